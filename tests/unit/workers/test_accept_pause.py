"""Accepting pauses for a second when there are no descriptors or no memory, which is logged once."""

import errno
import os
from typing import Any

import pytest

from ostler.workers.accept_pause import AcceptPause, is_exhaustion

SECOND = 1_000_000_000


class Lines:
    """Replaces the limited log."""

    def __init__(self) -> None:
        self.written: list[tuple[str, str, dict[str, Any]]] = []

    def write(self, level: str, event: str, _of: str, **fields: Any) -> None:
        self.written.append((level, event, fields))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhaustion(number: int) -> None:
    """The four errors of accept(2) that persist until something is closed."""
    assert is_exhaustion(OSError(number, ""))


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ECONNABORTED, errno.EPERM])
def test_errors_of_one_client(number: int) -> None:
    """A client that has disconnected, or a sibling that was faster, does not cause a pause."""
    assert not is_exhaustion(OSError(number, ""))


def test_a_pause() -> None:
    """It lasts one second and is one line in the log; a second one can follow."""
    lines: Any = Lines()
    pause = AcceptPause(lines)
    assert pause.is_over(0)
    pause.begin(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 5 * SECOND)
    assert lines.written == [
        ("error", "accept_paused", {"reason": "Too many open files", "seconds": 1}),
    ]
    assert not pause.is_over(6 * SECOND - 1)
    assert pause.is_over(6 * SECOND)
    assert pause.is_over(0), "a pause that has ended does not come back"
    pause.begin(OSError(errno.EMFILE, ""), 7 * SECOND)
    assert not pause.is_over(7 * SECOND)
