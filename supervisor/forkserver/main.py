"""The fork server's life.

Single-threaded and blocking: configure, load, then fork on demand. It forks twice for each worker, so that
the worker's parent dies at once and the supervisor, a child subreaper, becomes its parent: the supervisor
gets true exit statuses, and the fork server may come and go. When the supervisor is gone the channel ends,
and so does the fork server.
"""

import gc
import importlib
import os
import random
import signal
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from supervisor.errors import OstlerError, SettingError
from supervisor.ipc import messages
from supervisor.ipc.channel import Channel, shorten
from supervisor.logs.access import compile_format
from supervisor.logs.lean import Log, LogFile, open_log, resolve_format
from supervisor.osapi.cpus import usable_cpus
from supervisor.settings import configfile
from supervisor.settings.load import Loaded, load
from supervisor.settings.table import Settings
from supervisor.workers import boot
from supervisor.workers.loader import AppLoadError, load_app, prepare
from supervisor.workers.rehearsal import LONG, rehearse
from supervisor.wsgi.exchange import App

if TYPE_CHECKING:
    from ssl import SSLContext

    from supervisor.workers.tls import Hook

_PID = struct.Struct("i")


class ForkServer:
    """Talks to the supervisor over `channel` until one side is done."""

    def __init__(self, channel: Channel[messages.ToForkServer]) -> None:
        self._channel = channel
        self._generation = 0
        self._loaded: Loaded | None = None
        self._app: App | None = None
        self._app_spec = ""
        self._name = ""
        self._log_format = ""
        self._tls: SSLContext | None = None
        self._scoreboard_fd = -1
        self._relay: tuple[socket.socket, socket.socket] | None = None
        self._listeners: list[socket.socket] = []

    def run(self) -> boot.Inheritance | None:
        """Serve the supervisor. In a forked worker it returns what the worker inherits; None at the end."""
        while (received := self._channel.receive()) is not None:
            message, descriptors = received
            if isinstance(message, messages.Configure):
                if not self._configure(message):
                    return None
            elif isinstance(message, messages.Load):
                if not self._load(message, descriptors):
                    return None
            elif isinstance(message, messages.Warm):
                _warm(message.modules)
            elif (inheritance := self._spawn(message, descriptors)) is not None:
                return inheritance
        return None

    # -- configuring and loading -------------------------------------------------------------------------

    def _configure(self, ask: messages.Configure) -> bool:
        self._generation = ask.generation
        setproctitle(f"ostler: fork server gen {ask.generation} loading")
        try:
            if ask.version != messages.VERSION:
                raise OstlerError("Ostler was changed on disk while it runs; restart it to use the new one")
            loaded, warnings, hook = _configure(ask)
            prepare(loaded.settings)
            self._log_format = _check_logs(loaded.settings)
            _check_folder(loaded.settings.tmp_upload_dir)
            self._tls = _tls_context(loaded, hook)
            if hook is not None and self._tls is None:
                warnings.append("ssl_context: without effect, because certfile is not set")
        except (OstlerError, AppLoadError) as error:
            self._channel.send(messages.LoadFailed(str(error), None))
            return False
        self._loaded = loaded
        self._app_spec = loaded.settings.wsgi_app or ""
        self._channel.send(messages.Configured(loaded, warnings))
        return True

    def _load(self, ask: messages.Load, descriptors: list[int]) -> bool:
        assert self._loaded is not None
        settings = self._loaded.settings
        self._name = ask.name
        self._scoreboard_fd, giving_fd, taking_fd, *listener_fds = descriptors
        self._relay = socket.socket(fileno=giving_fd), socket.socket(fileno=taking_fd)
        self._listeners = [socket.socket(fileno=fd) for fd in listener_fds]
        try:
            if settings.preload_app:
                self._app = load_app(self._app_spec)
        except AppLoadError as error:
            self._channel.send(
                messages.LoadFailed(error.reason, shorten(error.trace) if error.trace else None)
            )
            return False
        rehearse(settings, Log(LogFile("-", 2), self._log_format, settings.loglevel, {}), LONG)
        # What is there now lives as long as this process: moved out of the collector's sight it is never
        # written to again, so workers share its pages.
        gc.collect()
        gc.freeze()
        setproctitle(f"ostler: fork server gen {self._generation} [{self._name}]")
        self._channel.send(messages.AppLoaded())
        return True

    # -- forking -----------------------------------------------------------------------------------------

    def _spawn(self, ask: messages.Spawn, descriptors: list[int]) -> boot.Inheritance | None:
        """Fork a worker; in the worker, returns what it inherits."""
        channel_fd, stacks_fd = descriptors
        read_fd, write_fd = os.pipe()
        # Blocked until the worker has handlers of its own: ours would swallow what is meant for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, boot.ENDING)
        try:
            intermediate = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, boot.ENDING)
            for fd in (read_fd, write_fd, channel_fd, stacks_fd):
                os.close(fd)
            self._channel.send(messages.ForkFailed(ask.launch, error.strerror or str(error)))
            return None
        if intermediate == 0:
            try:
                worker = os.fork()
            except OSError as error:
                os.write(write_fd, _PID.pack(-(error.errno or 1)))
                os._exit(1)
            if worker == 0:
                os.close(read_fd)
                os.close(write_fd)
                return self._inheritance(ask, channel_fd, stacks_fd)
            os.write(write_fd, _PID.pack(worker))
            os._exit(0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, boot.ENDING)
        os.close(write_fd)
        os.close(channel_fd)
        os.close(stacks_fd)
        answer = os.read(read_fd, _PID.size)
        os.close(read_fd)
        os.waitpid(intermediate, 0)
        pid = _PID.unpack(answer)[0] if len(answer) == _PID.size else -1
        if pid > 0:
            self._channel.send(messages.Forked(ask.launch, pid))
        else:
            self._channel.send(messages.ForkFailed(ask.launch, os.strerror(-pid)))
        return None

    def _inheritance(self, ask: messages.Spawn, channel_fd: int, stacks_fd: int) -> boot.Inheritance:
        assert self._loaded is not None
        assert self._relay is not None
        self._channel.close()
        return boot.Inheritance(
            launch=ask.launch,
            urgent=ask.urgent,
            slot=ask.slot,
            generation=self._generation,
            name=self._name,
            settings=self._loaded.settings,
            log_format=self._log_format,
            app_spec=self._app_spec,
            app=self._app,
            tls=self._tls,
            relay=self._relay,
            listeners=self._listeners,
            scoreboard_fd=self._scoreboard_fd,
            cell=ask.cell,
            channel_fd=channel_fd,
            stacks_fd=stacks_fd,
        )


def _configure(ask: messages.Configure) -> tuple[Loaded, list[str], "Hook | None"]:
    """The settings, what to warn of, and the configuration file's `ssl_context`."""
    folder = Path(ask.folder)
    try:
        # By its name: where that is a link to the newest release, a reload follows it.
        os.chdir(folder)
    except OSError as error:
        raise OstlerError(f"can't enter {folder}, where Ostler was started: {error.strerror}") from None
    warnings: list[str] = []
    name = configfile.find(ask.config, folder)
    file = None
    if name is not None:
        # As in gunicorn, a configuration file may import what lies beside it.
        sys.path.insert(0, str(folder))
        file = configfile.evaluate(name, folder)
        if file.unsupported:
            warnings.append(
                f"{file.name}: not supported yet and without effect: {', '.join(file.unsupported)}"
            )
    loaded = load(ask.command_line, os.environ, file, usable_cpus)
    if not loaded.settings.wsgi_app:
        raise SettingError("wsgi_app", "no app given; write ostler MODULE:APP, or try ostler --demo")
    compile_format(loaded.settings.access_log_format)
    return loaded, warnings, file.hooks.get("ssl_context") if file is not None else None


def _tls_context(loaded: Loaded, hook: "Hook | None") -> "SSLContext | None":
    """As `tls.make_context`, whose errors it gives their place.

    Raises:
        SettingError: the context can't be made.
    """
    if loaded.settings.certfile is None and hook is None:
        return None
    # Only now: it brings OpenSSL along, some megabytes which plain HTTP does without.
    from supervisor.workers import tls

    try:
        return tls.make_context(loaded.settings, hook)
    except SettingError as error:
        raise SettingError(error.setting, error.problem, loaded.origins.get(error.setting, "")) from error


def _check_folder(folder: str | None) -> None:
    """Raises SettingError if no temporary file can be made in `tmp_upload_dir`."""
    if folder is not None:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problem = f"can't write a file into {folder!r}: {error.strerror}"
            raise SettingError("tmp_upload_dir", problem) from None


def _check_logs(settings: Settings) -> str:
    """The log's format, after a look whether workers will be able to open their logs.

    Raises:
        SettingError: they will not.
    """
    terminal = os.isatty(2)
    for name, path in (("accesslog", settings.accesslog), ("errorlog", settings.errorlog)):
        if path is None or path == "-":
            continue
        try:
            fd = open_log(path)
        except OSError as error:
            raise SettingError(name, f"can't open {path!r}: {error.strerror}") from None
        terminal = os.isatty(fd) if name == "errorlog" else terminal
        # Not kept: after logrotate this process would hold the old file.
        os.close(fd)
    return resolve_format(settings.log_format, terminal)


def _warm(modules: list[str]) -> None:
    """Import standard modules that the app's workers have imported; user code is not among them."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - the worker could import it, we can't: nothing is lost
            continue
    gc.collect()
    gc.freeze()


def main(channel_fd: int, lowered: int) -> None:
    """Be the fork server until the channel ends, or a worker until that ends.

    lowered: how we stepped back (for good: only who boots waits for us); a worker undoes it for itself.
    """
    # A terminal's Ctrl-C and a service manager's TERM reach the whole group; the supervisor decides what they
    # mean, and it ends us by hanging up.
    for signum in (
        *(signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP),
        *(signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2),
    ):
        boot.disregard(signum)
    random.seed()
    # Without its supervisor it ends, also in the middle of an app that takes forever to load.
    boot.on_hang_up(channel_fd, lambda: os._exit(0))
    channel: Channel[messages.ToForkServer] = Channel.from_fd(channel_fd, messages.ToForkServer)
    try:
        inheritance = ForkServer(channel).run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the supervisor is gone in the middle of an answer
    if inheritance is not None:
        boot.run(inheritance, lowered)
