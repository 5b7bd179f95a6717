"""`--check-config` and `--print-config`: asks a fork server, as the daemon would, and serves nothing.

Nothing is bound, written or detached. Errors that would show only when that is tried are looked for instead.
"""

import errno
import grp
import os
import pwd
import select
import signal
import socket
import stat
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import msgspec

from ostler.daemon import upgrade_state
from ostler.daemon.children.handles import ForkServerHandle
from ostler.daemon.environment.environments import running
from ostler.daemon.process.fork_server_process import ForkServerProcess
from ostler.errors import BootError, ExitCode, OstlerError, SettingError, UsageProblem
from ostler.ipc import messages
from ostler.ipc.channel import BadMessage
from ostler.logs.setup import get_logger, set_up
from ostler.osapi import imports, process_groups
from ostler.osapi.needed import check_calls
from ostler.osapi.process import become_subreaper
from ostler.settings.address import parse_address
from ostler.settings.load import Loaded
from ostler.settings.render import print_config
from ostler.settings.table import Settings
from ostler.terminal import lines

Message = TypeVar("Message", bound=msgspec.Struct)

# Seconds that a fork server gets to end, and then what it has started.
_END_TIME = 5.0
_PAUSE = 0.02


class WarningsFound(OstlerError):
    """A strict check found no error, but something that has no effect, say."""

    exit_code = ExitCode.USAGE


def check(ask: messages.Configure, *, show: bool, load_app: bool, strict: bool = False) -> int:
    """Evaluate the configuration, print it if `show`, load the app if `load_app`; returns the exit code.

    Raises:
        OstlerError: something can't be used.
        WarningsFound: only if `strict`.
    """
    warned: list[str] = []
    set_up("-", "auto", "info")
    check_calls()
    # As in the daemon: an app must not report for a service.
    os.environ.pop("NOTIFY_SOCKET", None)
    if upgrade_state.check_readable():
        # Configuration and app don't need the control server and its libraries, but the new program does.
        import_module("ostler.daemon.run")
        import_module("ostler.control.server")
    become_subreaper()
    server = ForkServerHandle.of_process(0, ForkServerProcess.start(running(), imports.environment()))
    server.channel.set_blocking(True)
    try:
        if load_app:
            ask = msgspec.structs.replace(ask, command_line={**ask.command_line, "preload_app": True})
        server.channel.send(ask)
        configured = _receive(server, messages.Configured, warned)
        _warn(configured.warnings, warned)
        if show:
            print(print_config(configured.loaded))
        if configured.problem:
            raise _error(configured.problem, configured.invalid, OstlerError)
        if load_app:
            look_ahead(configured.loaded)
            giving, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with giving, taking:
                descriptors = [giving.fileno(), taking.fileno()]
                server.channel.send(messages.Load([], "check"), descriptors)
            loaded = _receive(server, messages.AppLoaded, warned, BootError)
            if loaded.remark:
                get_logger().info("factory_called", note=loaded.remark)
    finally:
        server.close()
        _wait_for_end(server)
        _end_app_processes(server.record.groups)
    if strict and warned:
        number = "1 warning" if len(warned) == 1 else f"{len(warned)} warnings"
        raise WarningsFound(f"--strict: there is no error, but {number} (see above)")
    return ExitCode.OK


def _warn(problems: list[str], warned: list[str]) -> None:
    for problem in problems:
        get_logger().warning("configuration", problem=problem)
    warned += problems


def look_ahead(loaded: Loaded) -> None:
    """Check whether addresses, pid file and accounts can be used, without using them.

    Raises:
        SettingError: of the first setting that can't be used.
    """
    settings = loaded.settings
    for name, look in (("bind", _look_at_addresses), ("pidfile", _look_at_pidfile)):
        try:
            look(settings)
        except OSError as error:
            path = f"{error.filename}: " if error.filename else ""
            raise SettingError(name, f"{path}{error.strerror}", loaded.origins[name]) from None
    for name, account in (("user", settings.user), ("group", settings.group)):
        if account is not None and not _is_account(name, account):
            raise SettingError(name, f"there is no {name} {account!r}", loaded.origins[name])


def _look_at_addresses(settings: Settings) -> None:
    if os.environ.get("LISTEN_FDS"):
        return  # sockets from systemd are used instead
    for text in settings.bind:
        address = parse_address(text)
        try:
            if address.kind == "tcp":
                port = address.port
                socket.getaddrinfo(
                    address.host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
            elif address.kind == "fd":
                os.fstat(address.fd)
            elif not address.path.startswith("@"):
                _look_into_folder(settings, address.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, text) from None
        except UnicodeError:
            raise OSError(errno.EINVAL, "this is no host name", text) from None


def _look_at_pidfile(settings: Settings) -> None:
    if settings.pidfile is not None:
        _look_into_folder(settings, settings.pidfile)


def _look_into_folder(settings: Settings, path: str) -> None:
    """Raises OSError if no file can be made at `path`, which is relative to the folder of `chdir`."""
    folder = Path(settings.chdir or ".", path).parent
    if not stat.S_ISDIR(folder.stat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _is_account(kind: str, name: str) -> bool:
    """Whether there is a user or group of that name, or it is a number, for which none is needed."""
    try:
        return name.isdecimal() or bool(pwd.getpwnam(name) if kind == "user" else grp.getgrnam(name))
    except KeyError:
        return False


def _receive(
    server: ForkServerHandle,
    kind: type[Message],
    warned: list[str],
    failure: type[OstlerError] = OstlerError,
) -> Message:
    """The next message, which has to be of one type. warned: gets the warnings that come before it."""
    try:
        received = server.channel.receive_unvouched()
    except BadMessage as error:
        raise BootError(f"the configuration or the app broke the fork server: it sent {error}") from None
    if received is None:
        raise BootError("the fork server ended while it loaded the configuration or the app")
    message = received[0]
    if isinstance(message, messages.Decided):
        _warn(message.warnings, warned)
        return _receive(server, kind, warned, failure)
    if isinstance(message, messages.LoadFailed):
        if message.traceback:
            print(lines(message.traceback), file=sys.stderr)
        raise _error(message.reason, message.invalid, failure)
    if not isinstance(message, kind):
        what = type(message).__name__
        raise BootError(f"the configuration or the app broke the fork server: it sent {what} too early")
    return message


def _error(reason: str, invalid: bool, other: type[OstlerError]) -> OstlerError:
    """The exception for a problem. invalid: it is a wrong value; else it is an `other`."""
    return UsageProblem(reason) if invalid else other(reason)


def _wait_for_end(server: ForkServerHandle) -> None:
    """It ends when its channel does, unless the app prevents that."""
    poll = select.poll()
    fd = os.pidfd_open(server.pid)
    try:
        poll.register(fd, select.POLLIN)
        if not poll.poll(_END_TIME * 1000):
            os.kill(server.pid, signal.SIGKILL)
    finally:
        os.close(fd)
    os.waitpid(server.pid, 0)


def _end_app_processes(groups: list[int]) -> None:
    """End what the configuration or the app has started."""
    for group in groups:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + _END_TIME
            asked = process_groups.signal_members(group, os.getpid(), signum, ())
            while asked and process_groups.members(group, os.getpid()) and time.monotonic() < deadline:
                time.sleep(_PAUSE)
