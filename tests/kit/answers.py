"""A strict parser of HTTP/1.1 answers: bytes of one connection in, complete answers out."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

WORKER_FIELD = "X-Worker"
"""Header field of an answer with the pid of the process that gives it; the app under test sets it."""


class MalformedAnswerError(Exception):
    """The bytes are no HTTP answer; the text gives the reason."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete answer."""

    status: int
    body: bytes
    reusable: bool
    """Whether the connection may carry another request."""
    worker: int = 0
    """Pid of the process that gave it, 0 if the answer does not have it."""


class _Head(NamedTuple):
    """The parsed head of an answer."""

    status: int
    reusable: bool
    chunked: bool
    length: int | None
    """Of the body; None if it is in chunks, or lasts as long as the connection."""
    worker: int


class AnswerParser:
    """Turns the bytes of one connection into answers; strict, without sockets.

    It parses what the servers under test send: status line, header fields, `Content-Length`, chunks, or a
    body that lasts until the end of the connection; interim answers (1xx) are skipped.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def started(self) -> bool:
        """Whether any byte of an answer has arrived."""
        return bool(self._data)

    def feed(self, data: bytes) -> Answer | None:
        """Take more bytes; return the answer once it is complete.

        Raises:
            MalformedAnswerError: the bytes are not the beginning of an answer, or more bytes follow the
            answer.
        """
        self._data += data
        return self._parse(ended=False)

    def end(self) -> Answer | None:
        """The server has closed the connection: return the answer if that completes it, else None."""
        return self._parse(ended=True)

    def _parse(self, *, ended: bool) -> Answer | None:
        head_end = self._data.find(b"\r\n\r\n")
        if head_end < 0:
            if self._data and not b"HTTP/1.".startswith(self._data[:7]):
                raise MalformedAnswerError(f"starts with {bytes(self._data[:40])!r}")
            return None
        head = _parse_head(bytes(self._data[:head_end]))
        if 100 <= head.status < 200:
            del self._data[: head_end + 4]
            return self._parse(ended=ended) if self._data else None
        rest = bytes(self._data[head_end + 4 :])
        reusable = head.reusable
        if head.chunked:
            found = self._chunks(rest)
            if found is None:
                return None
            body, used = found
        elif head.length is not None:
            used = head.length
            if len(rest) < used:
                return None
            body = rest[:used]
        else:
            if not ended:
                return None
            body, used, reusable = rest, len(rest), False
        if used < len(rest):
            raise MalformedAnswerError(f"bytes behind the answer: {rest[used : used + 40]!r}")
        self._data.clear()
        return Answer(head.status, body, reusable, head.worker)

    @staticmethod
    def _chunks(data: bytes) -> tuple[bytes, int] | None:
        """Decode a chunked body. Returns it and the number of bytes it took, or None if it is incomplete."""
        body, at = bytearray(), 0
        while True:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                return None
            digits = data[at:line_end].partition(b";")[0].strip()
            try:
                size = int(digits, 16)
            except ValueError:
                raise MalformedAnswerError(f"chunk size {digits[:40]!r}") from None
            at = line_end + 2
            if size == 0:
                break
            if len(data) < at + size + 2:
                return None
            if data[at + size : at + size + 2] != b"\r\n":
                raise MalformedAnswerError("a chunk does not end where it should")
            body += data[at : at + size]
            at += size + 2
        while True:  # trailer fields up to an empty line
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                return None
            if line_end == at:
                return bytes(body), at + 2
            at = line_end + 2


# Most heads equal the one before (a worker's heads within one second do), so each is parsed once.
@functools.lru_cache(256)
def _parse_head(block: bytes) -> _Head:
    lines = block.decode("latin-1").split("\r\n")
    version, status = _status_line(lines[0])
    fields = _fields(lines[1:])
    wishes = {token.strip().lower() for token in fields.get("connection", "").split(",")}
    reusable = "close" not in wishes and (version == "HTTP/1.1" or "keep-alive" in wishes)
    chunked, length = "transfer-encoding" in fields, None
    if status in (204, 304):
        chunked, length = False, 0
    elif chunked:
        if fields["transfer-encoding"].lower() != "chunked" or "content-length" in fields:
            raise MalformedAnswerError("unclear framing: Transfer-Encoding is not just chunked")
    elif (digits := fields.get("content-length")) is not None:
        if not (digits.isascii() and digits.isdigit()):
            raise MalformedAnswerError(f"Content-Length {digits!r}")
        length = int(digits)
    worker = fields.get(WORKER_FIELD.lower(), "")
    return _Head(status, reusable, chunked, length, int(worker) if worker.isdecimal() else 0)


def _status_line(line: str) -> tuple[str, int]:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isdigit() and rest[3:4] in ("", " ")):
        raise MalformedAnswerError(f"status line {line[:80]!r}")
    return version, int(code)


def _fields(lines: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise MalformedAnswerError(f"header line {line[:80]!r}")
        key = name.lower()
        if key in ("content-length", "transfer-encoding") and key in fields:
            raise MalformedAnswerError(f"{name} is given twice")
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    return fields


# A tuple, not a dataclass: one is made for each of some hundred thousand requests.
