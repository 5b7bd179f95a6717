"""An answer in parts, between the app and meinheld's server.

The server takes an exception in an iterable for its end: it sends the last chunk, so that what is missing
does not show. It also sends an empty part as an empty chunk, which is the last one to HTTP/1.1. So the app's
iterable is not given to it directly.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import monotonic_ns
from types import TracebackType
from typing import Any

from ostler.scoreboard.request_slot import RequestSlot
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker

SLICE = 64 * 1024
"""Bytes that are given to the server at once: a client that is slow has `timeout` to take them."""
LATE, FAILED = "504 Gateway Timeout", "500 Internal Server Error"

Failed = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def plain_answer(status: str) -> tuple[list[tuple[str, str]], bytes]:
    """Fields and body of an answer that says no more than its status."""
    body = f"{status[4:]}\n".encode()
    return [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))], body


class AnswerParts:
    """What the server iterates over. Each part that it asks for is progress: the one before was sent.

    Args:
        result: what the app has returned.
        slot: shows the request.
        fd: of its connection.
        start_response: the server's.
        failed: called with what the app has raised.
        cut: called with the status that says why the answer ends, or is replaced by one that says it.

    Attributes:
        close: of the app's iterable; the server calls it.
    """

    __slots__ = ("_begun", "_cut", "_failed", "_fd", "_parts", "_slot", "_start_response", "close")

    def __init__(
        self,
        result: Iterable[bytes],
        slot: RequestSlot,
        fd: int,
        start_response: Callable[..., Any],
        failed: Failed,
        cut: Callable[[str], object],
    ) -> None:
        self._parts = iter(result)
        self._slot = slot
        self._fd = fd
        self._start_response = start_response
        self._failed = failed
        self._cut = cut
        self._begun = False
        self.close: Callable[[], object] = getattr(result, "close", _nothing)

    def __iter__(self) -> "AnswerParts":
        return self

    def __next__(self) -> bytes:
        if self._begun:
            self._slot.progressed(monotonic_ns())
        try:
            while not (part := next(self._parts)):
                pass
        except StopIteration:
            raise
        except BaseException as error:  # noqa: BLE001 - the server would take any for the end
            part = self._give_up(error)
        if len(part) > SLICE and isinstance(part, bytes):
            self._parts = _followed_by(part[SLICE:], self._parts)
            part = part[:SLICE]
        self._begun = True
        return part

    def _give_up(self, error: BaseException) -> bytes:
        """The app has raised: another answer if none has begun, else the connection is cut."""
        self._failed(type(error), error, error.__traceback__)
        status = LATE if isinstance(error, DeadlineExceeded) else FAILED
        self._parts = iter(())
        if not isinstance(error, QuitWorker):
            self._cut(status)
            if not self._begun:
                fields, body = plain_answer(status)
                self._start_response(status, fields)
                return body
        connection = socket.socket(fileno=self._fd)
        try:
            with suppress(OSError):  # the client has gone already
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()
        raise StopIteration


def _followed_by(rest: bytes, parts: Iterator[bytes]) -> Iterator[bytes]:
    """The rest of a block in slices, then what follows it."""
    for start in range(0, len(rest), SLICE):
        yield rest[start : start + SLICE]
    yield from parts


def _nothing() -> None:
    """There is nothing to close."""
