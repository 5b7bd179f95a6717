"""`wsgi.errors` (PEP 3333) as a stream of whole lines."""

import io
import sys
import weakref
from collections.abc import Callable
from typing import cast

from ostler.osapi import original

# Characters of a line without its end, and how many threads and greenlets may have such a line.
_LONGEST_PIECE = 8 * 1024
_MOST_PIECES = 256


class ErrorStream(io.TextIOBase):
    """What an app writes goes to the log unchanged, in whole lines.

    A line may be written in pieces, by several threads or greenlets at once: each has a piece of its own. A
    piece is written as a line when its thread or greenlet has ended, when it gets too long, and when there
    are too many others.

    Args:
        write_lines: takes text that ends with a line end; may be called by any thread, also during a run of
            the garbage collector.
    """

    def __init__(self, write_lines: Callable[[str], object]) -> None:
        self._write_lines = write_lines
        # By the thread or greenlet that writes; the oldest first.
        self._pieces: dict[weakref.ref[object], str] = {}
        self._thread = original.ThreadLocal()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        writer = weakref.ref(self._writer(), self._write_piece)
        whole, end, rest = (self._pieces.pop(writer, "") + text).rpartition("\n")
        if end:
            self._write_lines(whole + end)
        if rest:
            self._pieces[writer] = rest
            if len(rest) > _LONGEST_PIECE:
                self._write_piece(writer)
            elif len(self._pieces) > _MOST_PIECES:
                self._write_piece(list(self._pieces)[0])  # noqa: RUF015 - atomic, unlike an iterator
        return len(text)

    def flush(self) -> None:
        """Write the piece of the calling thread or greenlet as a line."""
        self._write_piece(weakref.ref(self._writer()))

    def flush_all(self) -> None:
        """Write the pieces of all threads and greenlets."""
        for writer in list(self._pieces):
            self._write_piece(writer)

    def _writer(self) -> object:
        """An object that lives as long as the calling thread or greenlet."""
        if (greenlet := sys.modules.get("greenlet")) is not None:
            return cast("object", greenlet.getcurrent())
        try:
            return self._thread.token
        except AttributeError:
            token = self._thread.token = _Token()
            return token

    def _write_piece(self, writer: weakref.ref[object]) -> None:
        if rest := self._pieces.pop(writer, ""):
            self._write_lines(f"{rest}\n")


class _Token:
    """Identifies a thread."""
