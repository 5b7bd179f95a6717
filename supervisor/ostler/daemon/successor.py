"""Whether this program is the successor of an older one in its process; `upgrade_state` has all the rest.

It is known before most of the supervisor is imported, so little is imported here.
"""

import os
import signal

STATE = "OSTLER_UPGRADE"
"""The variable that names the older program's process, and the descriptor of the state that it has left."""

HANDLED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCHLD),
)
"""Signals that the daemon has handlers for; blocked from before the exec until the new program has them."""

HANDLED_BY_FLEET = frozenset(HANDLED) - {signal.SIGCHLD}
"""SIGCHLD matters before it has a handler: if it is ignored, the status of a child is lost."""


def is_successor() -> bool:
    """Whether an older program in this process has left something to this one."""
    return left_to(os.getpid(), os.environ.get(STATE, "")) is not None


def left_to(pid: int, text: str) -> int | None:
    """The descriptor that a variable's value names, if it is meant for process `pid`."""
    owner, _, fd = text.partition(":")
    return int(fd) if owner == str(pid) and fd.isascii() and fd.isdecimal() else None
