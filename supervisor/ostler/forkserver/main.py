"""The fork server's life.

Single-threaded and blocking: configure, load, then fork on demand (see `forking`). When the supervisor is
gone the channel ends, and so does the fork server.

Every process that comes of it goes on in `main`: a forked worker lives in there, and so does the fork server
that a worker may become at its end.
"""

import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ostler.errors import OstlerError, SettingError
from ostler.forkserver.deciding import (
    Decision,
    decide,
    folder_warning,
    installation_warning,
    override,
    refuse_other_account,
)
from ostler.forkserver.forking import Asked, Forking, fields_of, take_over
from ostler.forkserver.rights import become_account, leave_terminal, set_umask
from ostler.hooks.calling import HookFailed
from ostler.hooks.generation import Cause, Hooks
from ostler.ipc import messages
from ostler.ipc.channel import Channel, line, lines, shorten
from ostler.logs import bridge, logconfig
from ostler.logs.access_format import compile_format, unknown_atoms
from ostler.logs.lean import resolve_format
from ostler.logs.opening import make_for_sharer, open_log, share_with
from ostler.logs.sinks import LogSinks
from ostler.logs.streams import ignore_write_errors, write_at_once
from ostler.osapi import imports, original, trust
from ostler.osapi.account import Account, find_account
from ostler.osapi.cpus import usable_cpus
from ostler.osapi.files import read_file
from ostler.osapi.memfile import memory_file
from ostler.osapi.priority import keep_way_forward, step_back
from ostler.osapi.process import set_title
from ostler.settings import configfile
from ostler.settings.load import Loaded, load
from ostler.settings.rights import others_logs, rights_for
from ostler.settings.table import Settings, without_effect
from ostler.workers import app_forks, boot, signals
from ostler.workers.base import BaseWorker
from ostler.workers.classes import built_in, worker_class
from ostler.workers.engine import Engine
from ostler.workers.inheritance import WorkerGeneration
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loader import enter, extend_path, set_environment
from ostler.workers.loader import load as load_app
from ostler.workers.priming import LONG, prime
from ostler.wsgi.exchange import App

if TYPE_CHECKING:
    from ssl import SSLContext

    from ostler.workers.development import Development


# Hooks that not every worker class can call.
_OF_REQUESTS = ("pre_request", "post_request")


class Preparation:
    """What comes before forking: the configuration, perhaps the app.

    Attributes:
        lowered: how we stepped back, as far as it can be undone.
    """

    def __init__(self, channel: Channel[Asked], lowered: int) -> None:
        self._channel = channel
        self.lowered = lowered
        self._number = 0
        self._loaded: Loaded | None = None
        # Before the configuration was evaluated.
        self._given_up = False
        self._log_format = ""
        self._tls: SSLContext | None = None
        self._certificates: dict[str, int] = {}
        self._worker_class: type[BaseWorker] = Engine
        self.sinks: LogSinks | None = None
        # With `reload`, and not when all that is asked is whether the app can be loaded.
        self._development: Development | None = None
        self._hooks: Hooks | None = None

    def run(self) -> WorkerGeneration | None:
        """Do what the supervisor asks; None if it can't be done, or the supervisor is gone."""
        while (received := self._channel.receive()) is not None:
            message, descriptors = received
            if isinstance(message, messages.Configure):
                if not self._configure(message):
                    return None
            elif isinstance(message, messages.Load):
                return self._load(message, descriptors)
            elif isinstance(message, messages.ReopenLogs) and self.sinks is not None:
                self.sinks.reopen()
        return None

    def _configure(self, ask: messages.Configure) -> bool:
        self._number = ask.generation
        set_title(f"ostler: fork server gen {ask.generation} loading")
        loaded, problem = None, ""
        warnings: list[str] = []
        try:
            if ask.version != messages.VERSION:
                raise OstlerError("Ostler was changed on disk while it runs; restart it to use the new one")
            loaded, warnings, file = self._read(ask)
            if ask.detached and loaded.settings.daemon:
                leave_terminal(loaded.settings)
            with _telling_where(loaded), self._rights_for(loaded, "chdir"):
                enter(loaded.settings)
            with _telling_where(loaded), _new_logs(loaded.settings, keep=ask.cause != "check"):
                warnings += self._set_up(loaded, file, ask)
                functions = configfile.imported_hooks(file) if file is not None else {}
                self._set_up_logs(loaded.settings, file)
                self._worker_class = worker_class(loaded.settings)
                remarks = self._worker_class.check(loaded.settings)
                kind = built_in(self._worker_class, loaded.settings)
                if kind is not None and (unused := without_effect(loaded.settings, kind)):
                    remarks.append(f"without effect in {kind} workers: {', '.join(unused)}")
            loaded = msgspec.structs.replace(loaded, one_loop=self._worker_class.one_loop)
            remarks += self._set_up_hooks(loaded.settings, functions, ask.cause)
            if ask.known is None:
                warnings += remarks
            if loaded.settings.reload and ask.cause != "check":
                # Only now: who does not ask for it need not have it in memory.
                from ostler.workers.development import Development

                self._development = Development(self._channel.send)
        except (OstlerError, AppLoadError) as error:
            problem = str(error)
            if loaded is None or ask.cause != "check":
                self._channel.send(messages.LoadFailed(line(problem), None))
                return False
        self._loaded = loaded
        hooks = self._hooks.names if self._hooks is not None else []
        warnings = lines(warnings, messages.MOST_LINES)
        self._channel.send(messages.Configured(loaded, warnings, hooks, line(problem)))
        if self._development is not None:
            self._development.report_configuration(loaded.config, ask, loaded.settings)
        return True

    def _read(self, ask: messages.Configure) -> tuple[Loaded, list[str], configfile.ConfigFile | None]:
        """The settings, what to warn of, and the configuration file.

        What others can write is evaluated with fewer rights than root's. Before any of that, or of the app,
        runs, the supervisor knows all that it believes: from then on this process may say anything.
        """
        folder = Path(ask.folder)
        try:
            # By its name: where that is a link to the newest release, a reload follows it.
            os.chdir(folder)
        except OSError as error:
            raise OstlerError(f"can't enter {folder}, where Ostler was started: {error.strerror}") from None
        decision = decide(ask, folder)
        config, warnings = decision.config, list(decision.warnings)
        if decision.account is None:
            loaded, more, file = _configure(ask, folder, decision)
            self._channel.send(messages.Decided(config, loaded, warnings=warnings))
            return loaded, more, file
        user, group = decision.user, decision.group
        self._channel.send(messages.Decided(config, None, user, group, decision.initgroups, warnings))
        more = installation_warning(decision.account) if ask.known is None else []
        _make_logs(ask, folder, decision.account)
        self._certificates = _certificates(ask, decision.account)
        more += self._give_up_rights(decision.account, user, group)
        self._given_up = True
        loaded, others, file = _configure(ask, folder, decision)
        if ask.known is None:
            refuse_other_account(decision, file)
        return loaded, more + others, file

    def _give_up_rights(
        self, account: Account, user: str | None, group: str | None, trial: bool = False
    ) -> list[str]:
        """For good; returns what to warn of. Raises SettingError if we may not."""
        self.lowered = keep_way_forward(self.lowered)
        warnings = become_account(account, user, group, trial)
        imports.release()
        return warnings

    def _rights_for(self, loaded: Loaded, setting: str) -> AbstractContextManager[None]:
        return nullcontext() if self._given_up else rights_for(loaded, setting)

    def _set_up(
        self, loaded: Loaded, file: configfile.ConfigFile | None, ask: messages.Configure
    ) -> list[str]:
        """Do what needs the supervisor's rights, then take the workers'; returns what to warn of."""
        settings = loaded.settings
        account = None
        if not self._given_up:
            account = find_account(settings.user, settings.group, settings.initgroups)
        share_with(account, others_logs(loaded))
        self._log_format = _check_logs(settings)
        # What others have a path lead to, or have said, is read and obeyed with the rights of the account.
        others = account is not None and "raw_env" in loaded.confined
        if not others:
            set_environment(settings)
        early = account is None or not _others_name_certificates(loaded)
        if early:
            self._tls = self._tls_context(settings, file)
        warnings: list[str] = []
        set_umask(settings)
        if account is not None:
            if ask.known is None and os.geteuid() == 0:
                warnings += installation_warning(account)
            trial = ask.cause == "check"
            warnings += self._give_up_rights(account, settings.user, settings.group, trial)
        else:
            if ask.known is None and settings.user is None:
                warnings += folder_warning()
            imports.release()
        if others:
            set_environment(settings)
        if file is not None and ask.folder not in sys.path:
            sys.path.insert(0, ask.folder)  # for what the file imports later
        extend_path(settings)
        if not early:
            self._tls = self._tls_context(settings, file)
        _check_folder(settings.tmp_upload_dir)
        return warnings

    def _tls_context(self, settings: Settings, file: configfile.ConfigFile | None) -> "SSLContext | None":
        """As `tls.make_context`. Raises SettingError, or ConfigFileError."""
        try:
            functions = configfile.imported_hooks(file, ("ssl_context",)) if file is not None else {}
            hook = functions.get("ssl_context")
            if settings.certfile is None and hook is None:
                return None
            # Only now: it brings OpenSSL along, some megabytes which plain HTTP does without.
            from ostler.workers import tls

            copies = {path: f"/proc/self/fd/{fd}" for path, fd in self._certificates.items()}
            return tls.make_context(settings, hook, copies)
        finally:
            while self._certificates:
                os.close(self._certificates.popitem()[1])

    def _set_up_logs(self, settings: Settings, file: configfile.ConfigFile | None) -> None:
        """With the workers' rights: what user code opens is to be openable for them.

        Raises:
            SettingError: `logconfig` or its like can't be used.
        """
        if settings.capture_output and settings.errorlog != "-":
            write_at_once()
        self.sinks = LogSinks(settings, self._log_format, fields_of(self._number))
        bridge.set_up(settings.loglevel, access=bool(settings.accesslog))
        logconfig.apply(settings, file.values.get("logconfig_dict") if file is not None else None)

    def _set_up_hooks(
        self, settings: Settings, functions: Mapping[str, Callable[..., Any]], cause: Cause
    ) -> list[str]:
        """Take those that will be called; returns what to warn of: those that will not."""
        remarks = []
        if "ssl_context" in functions and self._tls is None:
            remarks.append("ssl_context: without effect, because certfile is not set")
        uncalled: list[str] = []
        if not self._worker_class.calls_request_hooks:
            uncalled = [name for name in _OF_REQUESTS if name in functions]
        if uncalled:
            remarks.append(f"{', '.join(uncalled)}: without effect in {settings.worker_class} workers")
        without = {"ssl_context", *uncalled}
        called = {name: function for name, function in functions.items() if name not in without}
        assert self.sinks is not None
        self._hooks = Hooks(called, settings, self.sinks.log.event, self._load_app, cause)
        return remarks

    def _load_app(self) -> App:
        assert self._loaded is not None
        settings = self._loaded.settings
        self._worker_class.prepare(settings)
        if self._development is not None:
            return self._development.load(settings, self._worker_class, self._number)
        return load_app(settings, self._worker_class.interface)

    def _load(self, ask: messages.Load, descriptors: list[int]) -> WorkerGeneration | None:
        assert self._loaded is not None
        assert self._hooks is not None
        settings = self._loaded.settings
        giving_fd, taking_fd, *listener_fds = descriptors
        listeners: list[socket.socket] = [original.Socket(fileno=fd) for fd in listener_fds]
        app = self._hooks.server.app
        try:
            # Not before: a daemon that is to detach does so now, and starts over.
            self._hooks.configured()
            if settings.preload_app:
                app.wsgi()
            self._hooks.listening(listeners)
        except SettingError as error:
            self._channel.send(messages.LoadFailed(line(str(error)), None))
            return None
        except (AppLoadError, HookFailed) as error:
            self._channel.send(
                messages.LoadFailed(line(error.reason), shorten(error.trace) if error.trace else None)
            )
            return None
        assert self.sinks is not None
        if issubclass(self._worker_class, Engine):
            prime(settings, self.sinks.log, LONG)
        return WorkerGeneration(
            number=self._number,
            name=ask.name,
            settings=settings,
            log_format=self._log_format,
            worker_class=self._worker_class,
            app=app.callable,
            tls=self._tls,
            handoff=(original.Socket(fileno=giving_fd), original.Socket(fileno=taking_fd)),
            listeners=listeners,
            hooks=self._hooks,
        )


def _configure(
    ask: messages.Configure, folder: Path, decision: Decision
) -> tuple[Loaded, list[str], configfile.ConfigFile | None]:
    """The settings, what to warn of, and the configuration file.

    With `ask.known` the file is evaluated for what else it does: workers of a generation have one
    configuration, whatever has been written into its file meanwhile.
    """
    warnings = list(ask.remarks)
    name = decision.config
    file = None
    # As in gunicorn, a configuration file may import what lies beside it.
    beside = name is not None and imports.may_come_from(str(folder))
    if beside:
        sys.path.insert(0, str(folder))
    if name is not None and not decision.skipped:
        file = configfile.evaluate(name, folder, decision.source)
        if file.unrecognised:
            warnings.append(f"{file.name}: no settings, and without effect: {'; '.join(file.unrecognised)}")
    if ask.known is not None:
        return ask.known, [], file
    given, variables = override(ask, decision)
    loaded = load(given, os.environ, file, usable_cpus, variables)
    if loaded.settings.paste:
        # Only now: few have such a file.
        from ostler.forkserver.pasting import read_paste

        loaded, file = read_paste(loaded, given, variables, file, folder, warnings)
    elif not loaded.settings.wsgi_app:
        raise SettingError("wsgi_app", "no app given; write ostler MODULE:APP, or try ostler --demo")
    warnings += loaded.warnings
    if loaded.settings.spew:
        warnings.append(
            "spew: each line that the app runs is logged, which is slow; use it for debugging only"
        )
    compile_format(loaded.settings.access_log_format)
    if unknown := unknown_atoms(loaded.settings.access_log_format):
        warnings.append(f"access_log_format: there is no {', '.join(unknown)}; it is always -")
    return msgspec.structs.replace(loaded, config=name), warnings, file


def _others_name_certificates(loaded: Loaded) -> bool:
    """Whether others than root have named one of these files, or can write it."""
    paths = {name: getattr(loaded.settings, name) for name in ("certfile", "keyfile", "ca_certs")}
    named = {name: path for name, path in paths.items() if path}
    return os.geteuid() == 0 and any(
        name in loaded.confined or trust.writers(path) for name, path in named.items()
    )


def _make_logs(ask: messages.Configure, folder: Path, account: Account) -> None:
    """Those that the command line names, where only root can make them: later we have no such rights."""
    share_with(account)
    for name in ("errorlog", "accesslog"):
        path = ask.command_line.get(name)
        if isinstance(path, str) and path != "-":
            make_for_sharer(str(folder / (ask.command_line.get("chdir") or "") / path))


def _certificates(ask: messages.Configure, account: Account) -> dict[str, int]:
    """Copies, in memory, of the files with certificates and keys that only root can read and write.

    The command line names them; the configuration, which says how they are used, is evaluated when we have
    no right to read them any more. By their paths; what can't be read is reported when it is missed.
    """
    copies: dict[str, int] = {}
    for name in ("certfile", "keyfile", "ca_certs"):
        path = ask.command_line.get(name)
        # A relative one counts from a folder that the configuration may choose.
        if not isinstance(path, str) or not path.startswith("/") or path in copies or trust.writers(path):
            continue
        with suppress(OSError):
            content = read_file(path)
            fd = memory_file("ostler-certificate")
            copies[path] = fd
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(content)
            os.fchown(fd, -1 if account.uid is None else account.uid, -1)
    return copies


@contextmanager
def _telling_where(loaded: Loaded) -> Iterator[None]:
    """A SettingError also tells where its setting comes from."""
    try:
        yield
    except SettingError as error:
        where = error.where or loaded.origins.get(error.setting, "")
        raise SettingError(error.setting, error.problem, where) from error


def _check_folder(folder: str | None) -> None:
    """Raises SettingError if no temporary file can be made in `tmp_upload_dir`."""
    if folder is not None:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problem = f"can't write a file into {folder!r}: {error.strerror}"
            raise SettingError("tmp_upload_dir", problem) from None


@contextmanager
def _new_logs(settings: Settings, keep: bool) -> Iterator[None]:
    """Logs that come into being meanwhile stay if `keep`: who only checks may be another user."""
    if keep:
        yield
        return
    paths = [Path(path) for path in (settings.accesslog, settings.errorlog) if path and path != "-"]
    new = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110 - Path raises for a name that is too long
    try:
        with logconfig.noting_files() as made:
            yield
    finally:
        for path in (*new, *made):
            # With the workers' rights by now; one that root has made for them in its own folder stays.
            with suppress(OSError):
                path.unlink()


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
        original.close(fd)
    return resolve_format(settings.log_format, terminal)


def main(channel_fd: int, lowered: int) -> None:
    """Be the fork server until the channel ends, or a worker until that ends.

    lowered: how we stepped back (for good: only who boots waits for us); a worker undoes it for itself.
    """
    ignore_write_errors()  # before any user code: it may keep the streams it finds
    # The supervisor ends us by hanging up.
    signals.ignore_group_signals()
    app_forks.register()
    random.seed()
    # Without its supervisor it ends, also in the middle of an app that takes forever to load.
    signals.on_hang_up(channel_fd, lambda: os._exit(0))
    channel: Channel[Asked] = Channel.from_fd(channel_fd, Asked)
    try:
        preparation = Preparation(channel, lowered)
        generation = preparation.run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the supervisor is gone in the middle of an answer
    if generation is None or preparation.sinks is None:
        return
    lowered = preparation.lowered
    inheritance = Forking(channel, generation, preparation.sinks).run(messages.AppLoaded())
    while inheritance is not None:
        zygote = boot.run(inheritance, lowered)
        lowered = step_back()
        inheritance = take_over(zygote).run(messages.ZygoteReady())
    os._exit(0)
