"""Upgrades in place: this process takes another program (a newer Ostler or Python) and keeps everything else.

execve(2) keeps the pid, the children and all descriptors without close-on-exec. So what the supervisor holds
(listeners, scoreboard, channels to workers and fork servers, control sockets) stays open, and what it knows
is written into a memfd, which the new program reads: `Carried`.

The old program can't come back, so the new one is tried before: a child loads configuration and app as
`--check-config` does, and reads what it would be given. Should the real one fail to take over all the same,
it minds the workers: they serve on, nobody steers them, and SIGTERM ends them.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec
import psutil

from supervisor.control.handover import Handover
from supervisor.daemon.children import CarriedForkServer, CarriedWorker
from supervisor.daemon.journal import JournalState
from supervisor.daemon.ledger import LedgerState
from supervisor.daemon.listeners import ListenersState
from supervisor.daemon.observer import ObserverState
from supervisor.errors import ExitCode, OstlerError
from supervisor.fleet.model import ExitStatus
from supervisor.fleet.state import State
from supervisor.ipc import messages
from supervisor.logs.setup import get_logger, set_up
from supervisor.scoreboard import layout
from supervisor.scoreboard.reader import ScoreboardState
from supervisor.settings.load import Loaded

_STATE = "OSTLER_UPGRADE"
_CHECK = "OSTLER_UPGRADE_CHECK"
_SAID_LIMIT = 16 * 1024
# What the daemon has handlers for. Blocked from before the exec until the new program's handlers are there.
HANDLED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCHLD),
)


_spare: list[int] = []


class Carried(msgspec.Struct, frozen=True):
    """What one program leaves to the next.

    descriptors: all that must stay open; relay: its two ends; pidfile: its path and descriptor.
    """

    descriptors: list[int]
    fleet: State
    workers: list[CarriedWorker]
    fork_servers: list[CarriedForkServer]
    loaded: dict[int, Loaded]
    name: str
    relay: tuple[int, int]
    listeners: ListenersState
    scoreboard: ScoreboardState
    journal: JournalState
    ledger: LedgerState
    observer: ObserverState
    control: Handover
    pidfile: tuple[str, int] | None


class TakeOverFailed(Exception):
    """What the program before us left can't be gone on with; the cause says why."""


# -- the old program -------------------------------------------------------------------------------------


def start_check(carried: Carried, folder: str) -> tuple[int, int]:
    """Let a child try what the new program would do; returns its pid, and a memfd for `what_it_said`.

    Raises:
        OSError: no process could be made.
    """
    state, said = _written(carried), os.memfd_create("ostler-check", os.MFD_CLOEXEC)
    try:
        prefix = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
        argv = [sys.executable, *prefix, "--check-config", *sys.argv[1:]]
        # It starts where we were started, by that folder's name: it may lead to a new release now.
        environment = os.environ | {_CHECK: str(state)}
        actions = [(os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
        actions.append((os.POSIX_SPAWN_DUP2, state, state))  # onto itself: clears close-on-exec
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.chdir(folder)
            pid = os.posix_spawn(sys.executable, argv, environment, file_actions=actions)
        finally:
            os.fchdir(here)
            os.close(here)
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(state)
    return pid, said


def what_it_said(status: ExitStatus, said: int) -> tuple[str | None, str]:
    """Why the new program would not start, in a line, or None if it would; and all that it printed."""
    with os.fdopen(said, "rb") as file:
        file.seek(max(0, os.fstat(said).st_size - _SAID_LIMIT))
        text = file.read().decode("utf-8", "replace").strip()
    if status.code == ExitCode.OK:
        return None, text
    last = text.splitlines()[-1] if text else f"it ended with {status}"
    return last.removeprefix("ostler: error: "), text


def replace_program(carried: Carried, folder: str, notify: str) -> NoReturn:
    """Become the program that is on the disk now. `notify`: systemd's NOTIFY_SOCKET, if there is one.

    Raises:
        OSError: it could not be executed; everything is as before, but for the current folder.
    """
    state = _written(carried)
    kept = [*carried.descriptors, state]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        os.chdir(folder)
        argv = [sys.executable, *sys.orig_argv[1:]]
        notify_socket = {"NOTIFY_SOCKET": notify} if notify else {}
        environment = os.environ | {_STATE: str(state)} | notify_socket
        os.execve(sys.executable, argv, environment)  # noqa: S606 - no shell is what is wanted
    except BaseException:
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(state)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    raise AssertionError("execve does not return")


def _format() -> bytes:
    """Workers and fork servers live on and speak the old program's language: both must speak the same."""
    words = sorted((name, number) for name, number in vars(layout).items() if name.isupper())
    return msgspec.json.encode([1, messages.VERSION, words]) + b"\n"


def _written(carried: Carried) -> int:
    fd = os.memfd_create("ostler-upgrade", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(_format())
        file.write(msgspec.msgpack.encode(carried))
        file.flush()
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# -- the new program -------------------------------------------------------------------------------------


def check_readable() -> None:
    """In the child that tries: see whether what would be carried over can be read, if there is such.

    Raises:
        OstlerError: it can't.
        Exception: whatever the new program's modules raise; a half installed one must fail here.
    """
    fd = os.environ.pop(_CHECK, None)
    if fd is not None:
        _read(int(fd))
        # A check of the configuration needs few of them; what would serve needs them all.
        importlib.import_module("supervisor.daemon.main")


def taking_over(serve: Callable[[Carried | None], int]) -> int:
    """Call `serve` with what an older program has left in this process, or with None; returns the exit code.

    If that can't be gone on with the workers are minded instead.
    """
    fd = os.environ.pop(_STATE, None)
    if fd is None:
        return serve(None)
    try:
        carried = _read(int(fd))
        # Should `serve` fail, what it has closed by then must not have been the last end of a channel.
        _spare.extend(os.dup(number) for number in carried.descriptors)
        for number in carried.descriptors:
            os.set_inheritable(number, False)
    except Exception as error:  # noqa: BLE001 - whatever it is, it means the same
        return _mind_workers(error)
    try:
        return serve(carried)
    except TakeOverFailed as error:
        return _mind_workers(error.__cause__ or error)


def taken_over() -> None:
    """All that was left is in use again."""
    while _spare:
        os.close(_spare.pop())


def _read(fd: int) -> Carried:
    """Raises OstlerError if it is of a program that we can't replace."""
    with os.fdopen(fd, "rb") as file:
        if file.readline() != _format():
            raise OstlerError(
                "the new version speaks with its workers in another way than the one that runs; restart "
                "to use it"
            )
        return msgspec.msgpack.decode(file.read(), type=Carried)


def _mind_workers(error: BaseException) -> int:
    """Stay, so that nobody's channel ends and workers serve on, until a signal says that they are to end."""
    set_up("-", "auto", "info")
    problem = f"the new program can't take over ({error}); workers serve on without it, SIGTERM ends them"
    get_logger().critical("upgrade_failed", problem=problem, exc_info=error)
    waited_for = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    children = psutil.Process().children()
    while children:
        signum = signal.sigwait(waited_for)
        if signum != signal.SIGCHLD:
            for child in children:
                child.send_signal(signum)
        children = [child for child in children if not _has_ended(child)]
    return ExitCode.FAILED


def _has_ended(child: psutil.Process) -> bool:
    try:
        return os.waitpid(child.pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True
