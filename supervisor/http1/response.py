"""Responses to bytes.

Most header lines of an app are the same in every response, so encoded lines are remembered by the very
tuple that the app passes: checking and encoding happen once for each distinct header, not once a response.
"""

import re

from supervisor.http1.errors import ResponseError

_REMEMBERED = 4096  # distinct header lines; beyond it all are forgotten

# What a header line means for the connection.
PLAIN, CONTENT_LENGTH, DATE, SERVER, CLOSE, DROPPED = range(6)

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 section 5.6.2
# Anything but visible characters, blank, tab and obs-text (RFC 9110 section 5.5).
_BAD_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_STATUS = re.compile(r"[1-9][0-9]{2} [^\x00-\x08\x0a-\x1f\x7f]*|[1-9][0-9]{2}")

# A server's own business (RFC 9110 section 7.6.1); PEP 3333 forbids apps to send them.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-connection transfer-encoding te trailer upgrade proxy-authenticate "
    "proxy-authorization".split()
)

_lines: dict[tuple[str, str], tuple[bytes, int]] = {}
_statuses: dict[str, bytes] = {}

HeaderList = list[tuple[str, str]]


def status_line(status: str) -> bytes:
    """E.g. `200 OK` to `HTTP/1.1 200 OK` with its line end.

    Raises:
        ResponseError: it is no status.
    """
    line = _statuses.get(status)
    if line is None:
        if not isinstance(status, str) or not _STATUS.fullmatch(status):
            raise ResponseError(f"status must be like '200 OK', got {status!r}")
        try:
            line = f"HTTP/1.1 {status}\r\n".encode("latin-1")
        except UnicodeEncodeError:
            raise ResponseError(f"status must be latin-1 text, got {status!r}") from None
        if len(_statuses) > _REMEMBERED:
            _statuses.clear()
        _statuses[status] = line
    return line


def header_line(header: tuple[str, str]) -> tuple[bytes, int]:
    """A header's bytes with the line end, and what it means (PLAIN, CONTENT_LENGTH, ...).

    Raises:
        ResponseError: the name is no token, or the value has characters that could forge another header.
    """
    try:
        name, value = header
    except (TypeError, ValueError):
        raise ResponseError(f"a header must be a (name, value) tuple, got {header!r}") from None
    if not isinstance(name, str) or not isinstance(value, str):
        raise ResponseError(f"header names and values must be str, got {header!r}")
    if not _TOKEN.fullmatch(name):
        raise ResponseError(f"invalid header name {name!r}")
    if _BAD_VALUE.search(value):
        raise ResponseError(f"invalid character in the value of header {name}: {value!r}")
    lower = name.lower()
    kind = PLAIN
    if lower == "content-length":
        if not value.isascii() or not value.isdigit():
            raise ResponseError(f"Content-Length must be a number, got {value!r}")
        kind = CONTENT_LENGTH
    elif lower == "date":
        kind = DATE
    elif lower == "server":
        kind = SERVER
    elif lower in _HOP_BY_HOP:
        kind = CLOSE if lower == "connection" and value.strip().lower() == "close" else DROPPED
    entry = (f"{name}: {value}\r\n".encode("latin-1"), kind)
    if len(_lines) > _REMEMBERED:
        _lines.clear()
    if type(header) is tuple and len(value) <= 256:
        _lines[header] = entry
    return entry


class Head:
    """The head of one response, as far as the app has said it.

    Attributes:
        lines: status line and header lines.
        code: the status as a number.
        length: the app's Content-Length, or None.
        close: the app wants the connection closed.
        has_date, has_server: the app sends its own.
    """

    __slots__ = ("close", "code", "has_date", "has_server", "length", "lines", "status")

    def __init__(self, status: str, headers: HeaderList) -> None:
        """Check and encode.

        Raises:
            ResponseError: the app's answer is invalid.
        """
        self.status = status
        self.lines = lines = [status_line(status)]
        self.code = int(status[:3])
        self.length: int | None = None
        self.close = self.has_date = self.has_server = False
        known = _lines.get
        for header in headers:
            try:
                entry = known(header) or header_line(header)
            except TypeError:  # a list: not what PEP 3333 asks for, yet common
                entry = header_line(header)
            line, kind = entry
            if kind:
                if kind == CONTENT_LENGTH:
                    length = int(header[1])
                    if self.length is not None:
                        if length != self.length:
                            raise ResponseError("Content-Length is given twice, with different values")
                        continue
                    self.length = length
                    if self.code == 204 or self.code < 200:
                        continue  # RFC 9110 section 8.6
                elif kind == DATE:
                    self.has_date = True
                elif kind == SERVER:
                    self.has_server = True
                else:
                    self.close = self.close or kind == CLOSE
                    continue
            lines.append(line)

    @property
    def bodiless(self) -> bool:
        """Whether this status never has a body (RFC 9110 section 6.4.1)."""
        return self.code in (204, 304) or self.code < 200


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked coding (RFC 9112 section 7.1); `data` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def plain_answer(status: str, text: str, date_server: bytes) -> bytes:
    """A whole small text answer that closes the connection, for what never reaches an app."""
    body = text.encode("latin-1", "replace")
    return b"".join(
        (
            status_line(status),
            date_server,
            b"Content-Type: text/plain; charset=iso-8859-1\r\nContent-Length: %d\r\n" % len(body),
            b"Connection: close\r\n\r\n",
            body,
        )
    )
