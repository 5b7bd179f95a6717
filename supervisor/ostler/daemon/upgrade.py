"""Upgrades in place: this process takes another program (a newer Ostler or Python) and keeps everything else.

execve(2) keeps the pid, the children and all descriptors without close-on-exec. So what the supervisor holds
(listeners, scoreboard, channels to workers and fork servers, control sockets) stays open, and what it knows
is written into a file without a name, which the new program reads: `Carried`.

The old program can't come back, so the new one is tried before: a child loads configuration and app as
`--check-config` does, and reads what it would be given. Should the real one fail to take over all the same,
it minds the workers: they serve on, nobody steers them, and SIGTERM ends them.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil

import ostler
from ostler.control.handover import Handover
from ostler.daemon.children.handles import CarriedForkServer, CarriedWorker
from ostler.daemon.listening.listeners import ListenersState
from ostler.daemon.reporting.journal import JournalState
from ostler.daemon.reporting.ledger import LedgerState
from ostler.daemon.reporting.observer import ObserverState
from ostler.errors import ExitCode, OstlerError
from ostler.fleet.model import ExitStatus
from ostler.fleet.state import State
from ostler.ipc import messages, wire
from ostler.logs.setup import get_logger, set_up
from ostler.osapi import imports
from ostler.osapi.memfile import memory_file
from ostler.scoreboard import layout
from ostler.scoreboard.reader import ScoreboardState
from ostler.settings.load import Loaded

_STATE = "OSTLER_UPGRADE"
_CHECK = "OSTLER_UPGRADE_CHECK"
_SAID_LIMIT = 16 * 1024
# What the daemon has handlers for. Blocked from before the exec until the new program's handlers are there.
HANDLED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCHLD),
)


# SIGCHLD has a meaning before its handler is there: if it is ignored, the status of a child is lost.
HANDLED_BY_FLEET = frozenset(HANDLED) - {signal.SIGCHLD}

# SCM_MAX_FD is 253 (linux/net/scm.h).
_SENT_AT_ONCE = 250
_spare: list[socket.socket] = []


class Carried(msgspec.Struct, frozen=True):
    """What one program leaves to the next. A field that comes later needs a default, here and further in.

    descriptors: all that must stay open; handoff: its two ends; pidfile: its path and descriptor; leaving:
    fork servers that end with the old program, because their channels do.
    """

    descriptors: list[int]
    fleet: State
    workers: list[CarriedWorker]
    fork_servers: list[CarriedForkServer]
    loaded: dict[int, Loaded]
    name: str
    handoff: tuple[int, int]
    listeners: ListenersState
    scoreboard: ScoreboardState
    journal: JournalState
    ledger: LedgerState
    observer: ObserverState
    control: Handover
    pidfile: tuple[str, int] | None
    leaving: list[CarriedForkServer] = []


class TakeOverFailed(Exception):
    """What the program before us left can't be gone on with; the cause says why."""


# -- the old program -------------------------------------------------------------------------------------


def start_check(carried: Carried, folder: str) -> tuple[int, int]:
    """Let a child try what the new program would do; returns its pid, and a file for `what_it_said`.

    Raises:
        OSError: no process could be made.
    """
    state, said = _written(carried), memory_file("ostler-check")
    try:
        prefix = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
        argv = [sys.executable, *prefix, "--check-config", *sys.argv[1:]]
        # It starts where we were started, by that folder's name: it may lead to a new release now.
        environment = imports.environment(_first_on_path(folder)) | {_CHECK: f"{os.getpid()}:{state}"}
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

    The signals in HANDLED must be blocked, and none of them be waiting for its Python handler.

    Raises:
        OSError: it could not be executed; everything is as before, but for the current folder.
    """
    state = _written(carried)
    kept = [*carried.descriptors, state]
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        os.chdir(folder)
        argv = [sys.executable, *sys.orig_argv[1:]]
        notify_socket = {"NOTIFY_SOCKET": notify} if notify else {}
        path = imports.environment(_first_on_path(folder))
        environment = path | {_STATE: f"{os.getpid()}:{state}"} | notify_socket
        os.execve(sys.executable, argv, environment)  # noqa: S606 - no shell is what is wanted
    except BaseException:
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(state)
        raise
    raise AssertionError("execve does not return")


def _first_on_path(folder: str) -> str | None:
    """The folder that comes first on the new program's module search path, if that is `folder`.

    One that the package itself lies in can't be done without.
    """
    by_name = len(sys.orig_argv) > 1 and "-m" in sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    home = Path(ostler.__file__).resolve().parents[1]
    return folder if by_name and not sys.flags.safe_path and Path(folder).resolve() != home else None


def _format() -> bytes:
    """Workers and fork servers live on and speak the old program's language: both must speak the same."""
    words = sorted((name, number) for name, number in vars(layout).items() if name.isupper())
    return msgspec.json.encode([1, messages.VERSION, words]) + b"\n"


def _written(carried: Carried) -> int:
    fd = memory_file("ostler-upgrade")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(_format())
        file.write(wire.encode(carried))
        file.flush()
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# -- the new program -------------------------------------------------------------------------------------


def is_successor() -> bool:
    """Whether an older program in this process has left something to this one; see `taking_over`."""
    return _left_to(os.getpid(), os.environ.get(_STATE, "")) is not None


def check_readable() -> bool:
    """In the child that tries: see whether what would be carried over can be read; False if there is no such.

    Raises:
        OstlerError: it can't.
        Exception: whatever the new program's modules raise; a half installed one must fail here.
    """
    fd = _left(_CHECK, os.getppid())
    if fd is None:
        return False
    _read(fd)
    return True


def taking_over(serve: Callable[[Carried | None], int]) -> int:
    """Call `serve` with what an older program has left in this process, or with None; returns the exit code.

    If that can't be gone on with the workers are minded instead.
    """
    fd = _left(_STATE, os.getpid())
    if fd is None:
        return serve(None)
    try:
        carried = _read(fd)
        for number in carried.descriptors:
            os.set_inheritable(number, False)
        _keep_open(carried.descriptors)
    except Exception as error:  # noqa: BLE001 - whatever it is, it means the same
        return _mind_workers(error)
    try:
        return serve(carried)
    except Exception as error:
        if not _spare:
            raise
        return _mind_workers(error.__cause__ if isinstance(error, TakeOverFailed) else error)


def taken_over() -> None:
    """All that was left is in use again."""
    while _spare:
        _spare.pop().close()


def _left(variable: str, pid: int) -> int | None:
    """The descriptor that the program in process `pid` has left us, or None.

    A variable of that name that says something else is somebody's mistake and was not meant for us.
    """
    return _left_to(pid, os.environ.pop(variable, ""))


def _left_to(pid: int, text: str) -> int | None:
    owner, _, fd = text.partition(":")
    return int(fd) if owner == str(pid) and fd.isascii() and fd.isdecimal() else None


def _keep_open(descriptors: list[int]) -> None:
    """Should `serve` fail, what it has closed by then must not have been the last end of a channel.

    They wait in a socket's queue (unix(7), SCM_RIGHTS): duplicates would count against RLIMIT_NOFILE.
    """
    ends = socket.socketpair()
    _spare.extend(ends)
    for start in range(0, len(descriptors), _SENT_AT_ONCE):
        socket.send_fds(ends[0], [b" "], descriptors[start : start + _SENT_AT_ONCE])


def _read(fd: int) -> Carried:
    """Raises OstlerError if it is of a program that we can't replace."""
    with os.fdopen(fd, "rb") as file:
        if file.readline() != _format():
            raise OstlerError(
                "the new version speaks with its workers in another way than the one that runs; restart "
                "to use it"
            )
        try:
            found: Carried = wire.decoder(Carried)(file.read())
            return found
        except msgspec.DecodeError as error:
            raise OstlerError(
                f"the new version can't go on with what the one that runs knows ({error}); restart to use it"
            ) from error


def _mind_workers(error: BaseException | None) -> int:
    """Stay, so that nobody's channel ends and workers serve on, until a signal says that they are to end."""
    set_up("-", "auto", "info")
    problem = f"the new program can't take over ({error}); workers serve on without it, SIGTERM ends them"
    get_logger().critical("upgrade_failed", problem=problem, exc_info=error)
    waited_for = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    # Fork servers heed no signal. They end with us, and without workers there is nothing to stay for.
    workers = [child for child in psutil.Process().children() if not _is_fork_server(child)]
    while workers := [worker for worker in workers if not _has_ended(worker)]:
        signum = signal.sigwait(waited_for)
        if signum != signal.SIGCHLD:
            for worker in workers:
                worker.send_signal(signum)
    return ExitCode.FAILED


def _is_fork_server(child: psutil.Process) -> bool:
    """By its title: what the older program knew of it could perhaps not be read."""
    try:
        return " ".join(child.cmdline()).startswith("ostler: fork server")
    except psutil.Error:
        return False


def _has_ended(child: psutil.Process) -> bool:
    try:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        return pid != 0 and not os.WIFSTOPPED(status)  # one that has made us its tracer has only stopped
    except ChildProcessError:
        return True
