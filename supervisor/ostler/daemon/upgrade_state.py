"""Upgrades in place: this process executes another program (a newer Ostler or Python) and keeps all the rest.

execve(2) keeps the pid, the children and all descriptors without close-on-exec. So everything that the
supervisor has open (listeners, scoreboard, channels to workers and fork servers, control sockets) stays open,
and its state is written into a file without a name, which the new program reads: `Carried`.

The old program can't be restored, so the new one is tried first: a child loads configuration and app as
`--check-config` does, and reads the state that would be passed on. If the new program fails to take over in
spite of this check, it only keeps the workers' channels open: they go on serving, unsupervised, and SIGTERM
ends them.
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
from ostler.control.control_state import ControlState
from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.environment.environments import Environments
from ostler.daemon.listening.listeners import ListenersState
from ostler.daemon.reporting.journal import JournalState
from ostler.daemon.reporting.ledger import LedgerState
from ostler.daemon.shell import ShellState
from ostler.daemon.successor import HANDLED, STATE, left_to
from ostler.daemon.views.observer import ObserverState
from ostler.errors import ExitCode, OstlerError
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages, wire
from ostler.logs.setup import get_logger, set_up
from ostler.osapi.memfile import memory_file
from ostler.scoreboard import layout
from ostler.scoreboard.reader import ScoreboardState

_CHECK = "OSTLER_UPGRADE_CHECK"
# Bytes of a check's output that are read.
_OUTPUT_LIMIT = 16 * 1024
# SCM_MAX_FD is 253 (linux/net/scm.h).
_SENT_AT_ONCE = 250
# A socket pair whose queue holds duplicates of all descriptors until the new program has taken over.
_kept_open: list[socket.socket] = []


class Carried(msgspec.Struct, frozen=True):
    """The state that one program leaves to the next. A field that comes later needs a default, here and in
    the structs that this one consists of.

    descriptors: all that must stay open; pidfile: its path and descriptor; command: how the daemon was
    started.
    """

    descriptors: list[int]
    shell: ShellState
    listeners: ListenersState
    scoreboard: ScoreboardState
    journal: JournalState
    ledger: LedgerState
    observer: ObserverState
    control: ControlState
    pidfile: tuple[str, int] | None
    command: TypedCommand | None = None


class TakeOverFailed(Exception):
    """This program can't continue with the state that the one before it left; the cause says why."""


# -- the old program -------------------------------------------------------------------------------------


def start_check(carried: Carried, environments: Environments, folder: str) -> tuple[int, int]:
    """Let a child try what the new program would do; returns its pid, and a file for `outcome_of_check`.

    Raises:
        OstlerError: there is no new program.
        OSError: no process could be made.
    """
    found, script = environments.find_program()
    state, output = _written(carried), memory_file("ostler-check")
    try:
        argv = [found.python, *_before_arguments(script), "--check-config", *sys.argv[1:]]
        # It starts where we were started, by that folder's name: it may lead to a new release now.
        environment = environments.variables(found, _first_on_path(folder))
        environment |= {_CHECK: f"{os.getpid()}:{state}", "PWD": folder}
        actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        actions.append((os.POSIX_SPAWN_DUP2, state, state))  # onto itself: clears close-on-exec
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.chdir(folder)
            pid = os.posix_spawn(found.python, argv, environment, file_actions=actions)
        finally:
            os.fchdir(here)
            os.close(here)
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(state)
    return pid, output


def outcome_of_check(status: ExitStatus, output: int) -> tuple[str | None, str]:
    """Why the new program would not start, in a line, or None if it would; and all that it printed.

    output: the file's descriptor, which is closed.
    """
    with os.fdopen(output, "rb") as file:
        file.seek(max(0, os.fstat(output).st_size - _OUTPUT_LIMIT))
        text = file.read().decode("utf-8", "replace").strip()
    if status.code == ExitCode.OK:
        return None, text
    last = text.splitlines()[-1] if text else f"it ended with {status}"
    return last.removeprefix("ostler: error: "), text


def replace_program(carried: Carried, environments: Environments, folder: str, notify: str) -> NoReturn:
    """Become the program that is on the disk now.

    The signals in HANDLED must be blocked, and none of them may be waiting for its Python handler.

    Args:
        carried: the state that the new program continues with.
        environments: finds it.
        folder: where the daemon was started; the new program starts there.
        notify: systemd's NOTIFY_SOCKET, or an empty text.

    Raises:
        OstlerError: there is none.
        OSError: it could not be executed; everything is as before, but for the current folder.
    """
    found, script = environments.find_program()
    state = _written(carried)
    kept = [*carried.descriptors, state]
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        os.chdir(folder)
        argv = [found.python, *_before_arguments(script), *sys.argv[1:]]
        notify_socket = {"NOTIFY_SOCKET": notify} if notify else {}
        environment = environments.variables(found, _first_on_path(folder)) | notify_socket
        environment |= {STATE: f"{os.getpid()}:{state}", "PWD": folder}
        try:
            os.execve(found.python, argv, environment)  # noqa: S606 - no shell is what is wanted
        except OSError as error:
            raise OSError(error.errno, error.strerror, found.python) from None
    except BaseException:
        for fd in kept:
            os.set_inheritable(fd, False)
        os.close(state)
        raise
    raise AssertionError("execve does not return")


def _before_arguments(script: str | None) -> list[str]:
    """What comes between the interpreter and our arguments: options, and what is executed.

    script: executed instead of the script that was typed.
    """
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    return before if script is None else [*before[:-1], script]


def _first_on_path(folder: str) -> str | None:
    """The folder that comes first on the new program's module search path, if that is `folder`.

    A folder in which the package itself lies must stay on the path.
    """
    by_name = len(sys.orig_argv) > 1 and "-m" in sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    home = Path(ostler.__file__).resolve().parents[1]
    return folder if by_name and not sys.flags.safe_path and Path(folder).resolve() != home else None


def _format() -> bytes:
    """Identifies the messages and the scoreboard's layout: workers and fork servers keep those of the old
    program, so the new one must have the same."""
    constants = sorted((name, number) for name, number in vars(layout).items() if name.isupper())
    return msgspec.json.encode([1, messages.VERSION, constants]) + b"\n"


def _written(carried: Carried) -> int:
    fd = memory_file("ostler-upgrade")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(_format())
        file.write(wire.encode(carried))
        file.flush()
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


# -- the new program -------------------------------------------------------------------------------------


def check_readable() -> bool:
    """In the child that tries: read the state that would be carried over; False if there is none.

    Raises:
        OstlerError: it can't be read.
        Exception: whatever the new program's modules raise; an incompletely installed one must fail here.
    """
    fd = _left(_CHECK, os.getppid())
    if fd is None:
        return False
    _read(fd)
    return True


def taking_over(serve: Callable[[Carried | None], int]) -> int:
    """Call `serve` with what an older program has left in this process, or with None; returns the exit code.

    If it can't be used, the workers go on serving without a supervisor, see `_keep_workers`.
    """
    fd = _left(STATE, os.getpid())
    if fd is None:
        return serve(None)
    try:
        carried = _read(fd)
        for number in carried.descriptors:
            os.set_inheritable(number, False)
        _keep_open(carried.descriptors)
    except Exception as error:  # noqa: BLE001 - whatever it is, it means the same
        return _keep_workers(error)
    try:
        return serve(carried)
    except Exception as error:
        if not _kept_open:
            raise
        return _keep_workers(error.__cause__ if isinstance(error, TakeOverFailed) else error)


def taken_over() -> None:
    """All descriptors that were left are in use again."""
    while _kept_open:
        _kept_open.pop().close()


def _left(variable: str, pid: int) -> int | None:
    """The descriptor that the program in process `pid` has left to this one, or None.

    A variable of that name with another value is a mistake, and was not meant for this process.
    """
    return left_to(pid, os.environ.pop(variable, ""))


def _keep_open(descriptors: list[int]) -> None:
    """If `serve` fails, what it has closed by then must not have been the last end of a channel.

    The descriptors are kept in a socket's queue (unix(7), SCM_RIGHTS): duplicates in this process would count
    against RLIMIT_NOFILE.
    """
    ends = socket.socketpair()
    _kept_open.extend(ends)
    for start in range(0, len(descriptors), _SENT_AT_ONCE):
        socket.send_fds(ends[0], [b" "], descriptors[start : start + _SENT_AT_ONCE])


def _read(fd: int) -> Carried:
    """Raises OstlerError if it was written by a program that this one can't replace."""
    with os.fdopen(fd, "rb") as file:
        if file.readline() != _format():
            raise OstlerError(
                "the new version exchanges other messages with its workers than the one that runs; restart "
                "to use it"
            )
        try:
            found: Carried = wire.decoder(Carried)(file.read())
            return found
        except msgspec.DecodeError as error:
            raise OstlerError(
                f"the new version can't read the state of the one that runs ({error}); restart to use it"
            ) from error


def _keep_workers(error: BaseException | None) -> int:
    """Keep all channels open, so that workers go on serving, until a signal ends them."""
    set_up("-", "auto", "info")
    problem = f"the new program can't take over ({error}); workers serve on without it, SIGTERM ends them"
    get_logger().critical("upgrade_failed", problem=problem, exc_info=error)
    waited_for = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    # Fork servers ignore signals. They end with this process, which has no purpose without workers.
    workers = [child for child in psutil.Process().children() if not _is_fork_server(child)]
    while workers := [worker for worker in workers if not _has_ended(worker)]:
        signum = signal.sigwait(waited_for)
        if signum != signal.SIGCHLD:
            for worker in workers:
                worker.send_signal(signum)
    return ExitCode.FAILED


def _is_fork_server(child: psutil.Process) -> bool:
    """By its title: the state that the older program left could perhaps not be read."""
    try:
        return " ".join(child.cmdline()).startswith("ostler: fork server")
    except psutil.Error:
        return False


def _has_ended(child: psutil.Process) -> bool:
    try:
        pid, status = os.waitpid(child.pid, os.WNOHANG)
        # One that has made this process its tracer has only stopped.
        return pid != 0 and not os.WIFSTOPPED(status)
    except ChildProcessError:
        return True
