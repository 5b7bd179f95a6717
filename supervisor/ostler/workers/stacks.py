"""Stacks of what is no thread, in a worker's dumps: of greenlets, and of tasks.

faulthandler knows threads only. Behind its dump, Python's handler of the same signal writes the others.
"""

import faulthandler
import select
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from traceback import FrameSummary
from types import FrameType

from ostler.osapi import original
from ostler.osapi.process import DUMP_SIGNAL

# Bytes of such stacks in one dump: what the supervisor keeps of it is not much more.
_ENOUGH = 32 * 1024
# How long (ms) a dump of stacks may wait for its reader.
_PATIENCE = 50


def write_too(stacks: Callable[[FrameType | None], str], fd: int) -> None:
    """At DUMP_SIGNAL write what `stacks` returns, too; to be called in the main thread.

    Args:
        stacks: called with the frame that the signal has interrupted, within a signal handler. Its result is
            in faulthandler's format: the ident of each part is that of a request's slot.
        fd: what dumps are written to; -1: they are not wanted.
    """
    if fd < 0:
        return

    def write(_signum: int, frame: FrameType | None) -> None:
        try:
            text = stacks(frame)
        except Exception:  # noqa: BLE001 - it would be raised in whatever the signal has interrupted
            return
        _write(fd, text.encode(errors="backslashreplace"))

    # Without a handler the signal would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, (DUMP_SIGNAL,))
    faulthandler.unregister(DUMP_SIGNAL)
    signal.signal(DUMP_SIGNAL, write)
    with suppress(OSError):  # refused, which was logged when the worker began
        faulthandler.register(DUMP_SIGNAL, fd, all_threads=True, chain=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (DUMP_SIGNAL,))


def dump_of(kind: str, stacks: Iterable[tuple[int, Callable[[], list[FrameSummary]]]]) -> str:
    """Stacks in faulthandler's format.

    Args:
        kind: what they are of.
        stacks: idents, and functions that find the frames, innermost last.
    """
    lines: list[str] = []
    size = 0
    for ident, find in stacks:
        lines.append(f"Thread 0x{ident:016x} ({kind}, most recent call first):")
        if size > _ENOUGH:
            lines.append("  (left out: too many requests are overdue)")
            continue
        found = [f'  File "{frame.filename}", line {frame.lineno} in {frame.name}' for frame in find()]
        lines += reversed(found)
        size += sum(map(len, found))
    return "\n".join((*lines, ""))


def _write(fd: int, text: bytes) -> None:
    poll = original.poll()
    poll.register(fd, select.POLLOUT)
    # There is room for a block if there is any; and a supervisor that does not read must not stop us.
    while text and poll.poll(_PATIENCE):
        try:
            text = text[original.write(fd, text[: select.PIPE_BUF]) :]
        except OSError:
            return  # it is gone
