"""What a fork server does before it forks: it evaluates the configuration, and perhaps loads the app.

Single-threaded and blocking; the supervisor asks for each step.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ostler.errors import InvalidValue, OstlerError, SettingError
from ostler.forkserver.checks import check_folder, check_logs, new_logs
from ostler.forkserver.config_source import (
    decide,
    folder_warning,
    installation_warning,
    refuse_other_account,
)
from ostler.forkserver.configuration import (
    copy_certificates,
    make_logs,
    others_name_certificates,
    read_configuration,
)
from ostler.forkserver.environment_files import EnvironmentFiles
from ostler.forkserver.forking import Asked, fields_of
from ostler.forkserver.log_lines import pass_on
from ostler.forkserver.rights import become_account, leave_terminal, set_umask
from ostler.hooks.calling import HookFailed
from ostler.hooks.generation import Hooks
from ostler.ipc import messages
from ostler.ipc.channel import Channel, line, lines, shorten
from ostler.logs import bridge, logconfig
from ostler.logs.opening import share_with
from ostler.logs.sinks import LogSinks
from ostler.logs.standard_streams import write_at_once
from ostler.osapi import imports, original
from ostler.osapi.account import Account, find_account
from ostler.osapi.priority import keep_way_forward
from ostler.osapi.process import set_title
from ostler.settings import configfile
from ostler.settings.address import parse_address
from ostler.settings.classes import PATCHING
from ostler.settings.load import Loaded
from ostler.settings.opening_rights import others_logs, rights_for
from ostler.settings.table import Settings, without_effect
from ostler.workers import app_forks
from ostler.workers.audit import Before, audit_preloaded
from ostler.workers.base import BaseWorker
from ostler.workers.classes import built_in, of_ours, worker_class
from ostler.workers.inheritance import WorkerGeneration
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loader import enter, extend_path, set_environment
from ostler.workers.loader import load as load_app
from ostler.workers.priming import FORK_SERVER_REQUESTS, prime
from ostler.workers.thread_engine import Engine
from ostler.wsgi.exchange import App

if TYPE_CHECKING:
    from ssl import SSLContext

    from ostler.workers.development import Development


_PATCH_EARLIER = (
    "(It patches before the configuration file is evaluated if -k names the worker class, or the file "
    "does so in one plain assignment.)"
)
# Hooks that not every worker class can call.
_OF_REQUESTS = ("pre_request", "post_request")
# Hooks that are called in each worker, before it serves.
_IN_WORKERS = frozenset(("post_fork", "post_worker_init"))


class Preparation:
    """What comes before forking: the configuration, perhaps the app.

    Attributes:
        remark: about the app that was loaded; empty if there is none.
    """

    def __init__(self, channel: Channel[Asked]) -> None:
        self._channel = channel
        self.remark = ""
        self._number = 0
        self._prepared = False
        self._patched_late: list[str] = []
        self._loaded: Loaded | None = None
        # Before the configuration was evaluated.
        self._given_up = False
        self._environment = EnvironmentFiles(Path())
        self._log_format = ""
        self._tls: SSLContext | None = None
        self._certificates: dict[str, int] = {}
        self._worker_class: type[BaseWorker] = Engine
        self.sinks: LogSinks | None = None
        # With `reload`, unless the cause is a check.
        self._development: Development | None = None
        self._hooks: Hooks | None = None

    def run(self) -> WorkerGeneration | None:
        """Do what the supervisor asks; None if it can't be done, or the supervisor has ended."""
        while (received := self._channel.receive()) is not None:
            message, descriptors = received
            if isinstance(message, messages.Configure):
                if not self._configure(message):
                    return None
            elif isinstance(message, messages.Load):
                return self._load(message, descriptors)
            elif isinstance(message, messages.LogLine):
                pass_on(self._channel, message)
            elif isinstance(message, messages.ReopenLogs) and self.sinks is not None:
                self.sinks.reopen()
        return None

    def _configure(self, ask: messages.Configure) -> bool:
        self._number = ask.generation
        set_title(f"ostler: fork server gen {ask.generation} loading", always=True)
        loaded, problem, invalid = None, "", False
        warnings: list[str] = []
        try:
            if ask.version != messages.VERSION:
                raise OstlerError("Ostler was changed on disk while it runs; restart it to use the new one")
            loaded, warnings, file = self._read(ask)
            if ask.detached and loaded.settings.daemon:
                leave_terminal(loaded.settings)
            with _with_origin(loaded), self._rights_for(loaded, "chdir"):
                enter(loaded.settings)
            with _with_origin(loaded), new_logs(loaded.settings, keep=ask.cause != "check"):
                warnings += self._set_up(loaded, file, ask)
                self._worker_class = worker_class(loaded.settings)
                self._prepare_process(self._worker_class)
                functions = configfile.imported_hooks(file) if file is not None else {}
                self._set_up_logs(loaded.settings, file)
                remarks = self._worker_class.check(loaded.settings)
                self._check_tls(loaded)
                kind = built_in(self._worker_class, loaded.settings)
                if kind is not None and (unused := without_effect(loaded.settings, kind)):
                    remarks.append(f"without effect in {kind} workers: {', '.join(unused)}")
            loaded = msgspec.structs.replace(
                loaded,
                one_loop=self._worker_class.one_loop,
                core=self._worker_class.core,
                tls=self._tls is not None,
            )
            remarks += self._set_up_hooks(loaded.settings, functions, ask)
            if ask.known is None:
                warnings += [*self._environment.warnings, *remarks]
            if loaded.settings.reload and ask.cause != "check":
                # Imported only if it is used, to save memory.
                from ostler.workers.development import Development

                self._development = Development(self._channel.send, loaded.settings)
        except (OstlerError, AppLoadError) as error:
            problem, invalid = str(error), isinstance(error, InvalidValue)
            if loaded is None or ask.cause != "check":
                self._channel.send(messages.LoadFailed(line(problem), None, invalid))
                return False
        self._loaded = loaded
        hooks = self._hooks.names if self._hooks is not None else []
        warnings = lines(warnings, messages.MOST_LINES)
        self._channel.send(
            messages.Configured(loaded, warnings, hooks, line(problem), invalid, bridge.diverted())
        )
        if self._development is not None:
            self._development.report_configuration(loaded.config, ask, loaded.settings)
            self._development.report_writes()
        return True

    def _read(self, ask: messages.Configure) -> tuple[Loaded, list[str], configfile.ConfigFile | None]:
        """The settings, warnings, and the configuration file.

        What others can write is evaluated with fewer rights than root's. Before any of that, or of the app,
        runs, the supervisor has received all that it trusts: from then on this process may send anything.
        """
        folder = Path(ask.folder)
        try:
            # By its name: if that is a link to the newest release, a reload follows it.
            os.chdir(folder)
        except OSError as error:
            raise OstlerError(f"can't enter {folder}, where Ostler was started: {error.strerror}") from None
        decision = decide(ask, folder)
        config, warnings = decision.config, list(decision.warnings)
        self._environment = EnvironmentFiles(folder)
        self._environment.use_given(ask.command_line, ask.variables)
        if decision.account is None:
            loaded, more, file = read_configuration(ask, folder, decision, self._prepare_early)
            self._send_decision(config, loaded, warnings)
            return loaded, more, file
        user, group = decision.user, decision.group
        self._send_decision(config, None, warnings, user, group, decision.initgroups)
        more = installation_warning(decision.account) if ask.known is None else []
        make_logs(ask, folder, decision.account)
        self._certificates = copy_certificates(ask, decision.account)
        more += self._give_up_rights(decision.account, user, group)
        self._given_up = True
        self._environment.use_given(ask.command_line, ask.variables)
        loaded, others, file = read_configuration(ask, folder, decision, self._prepare_early)
        if ask.known is None:
            refuse_other_account(decision, file)
        return loaded, more + others, file

    def _send_decision(
        self,
        config: str | None,
        loaded: Loaded | None,
        warnings: list[str],
        user: str | None = None,
        group: str | None = None,
        initgroups: bool = False,
    ) -> None:
        python = sys.version.split()[0]
        self._channel.send(
            messages.Decided(config, loaded, user, group, initgroups, warnings, sys.prefix, python)
        )

    def _prepare_early(self, name: str) -> None:
        """Before the file is evaluated. name: of the worker class; only ours are code that can be run now."""
        if name in PATCHING:
            with suppress(SettingError):  # it is reported when all settings are known
                self._prepare_process(of_ours(name))

    def _prepare_process(self, found: type[BaseWorker]) -> None:
        """Call `prepare_process`, once."""
        if not self._prepared:
            self._prepared = True
            self._patched_late = found.prepare_process()

    def _give_up_rights(
        self, account: Account, user: str | None, group: str | None, trial: bool = False
    ) -> list[str]:
        """For good; returns warnings. Raises SettingError if this process has no right to."""
        keep_way_forward()
        warnings = become_account(account, user, group, trial)
        imports.release()
        return warnings

    def _rights_for(self, loaded: Loaded, setting: str) -> AbstractContextManager[None]:
        return nullcontext() if self._given_up else rights_for(loaded, setting)

    def _set_up(
        self, loaded: Loaded, file: configfile.ConfigFile | None, ask: messages.Configure
    ) -> list[str]:
        """Do what needs the supervisor's rights, then take the workers'; returns warnings."""
        settings = loaded.settings
        account = None
        if not self._given_up:
            account = find_account(settings.user, settings.group, settings.initgroups)
        share_with(account, others_logs(loaded))
        self._log_format = check_logs(settings)
        # Paths and settings that others control are used with the rights of the account.
        others = account is not None and "raw_env" in loaded.confined
        variables = settings.env_file, loaded.origins.get("env_file", "")
        if not others:
            self._environment.use(*variables)
            set_environment(settings)
        early = account is None or not others_name_certificates(loaded)
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
        self._environment.finish(*variables)
        set_environment(settings)
        if file is not None and ask.folder not in sys.path:
            sys.path.insert(0, ask.folder)  # for what the file imports later
        extend_path(settings)
        imports.offer_stand_ins()
        if not early:
            self._tls = self._tls_context(settings, file)
        check_folder(settings.tmp_upload_dir)
        return warnings

    def _tls_context(self, settings: Settings, file: configfile.ConfigFile | None) -> "SSLContext | None":
        """As `tls.make_context`. Raises SettingError, or ConfigFileError."""
        try:
            functions = configfile.imported_hooks(file, ("ssl_context",)) if file is not None else {}
            hook = functions.get("ssl_context")
            if settings.certfile is None and hook is None:
                return None
            # Imported only if it is used: it loads OpenSSL, some megabytes that plain HTTP does not need.
            from ostler.workers import tls

            copies = {path: f"/proc/self/fd/{fd}" for path, fd in self._certificates.items()}
            return tls.make_context(settings, hook, copies)
        finally:
            while self._certificates:
                os.close(self._certificates.popitem()[1])

    def _check_tls(self, loaded: Loaded) -> None:
        """Refuse what would serve plain HTTP to clients that expect TLS.

        Raises:
            SettingError: the worker class can't speak TLS.
        """
        if self._tls is not None and not self._worker_class.serves_tls:
            name = "certfile" if loaded.settings.certfile is not None else "ssl_context"
            raise SettingError(
                name,
                f"the worker class {loaded.settings.worker_class} can't speak TLS; choose another one, e.g."
                " gthread, or let a proxy do it and serve plain HTTP behind it",
                loaded.hooks.get(name, ""),
            )

    def _set_up_logs(self, settings: Settings, file: configfile.ConfigFile | None) -> None:
        """With the workers' rights: they have to be able to open what user code opens.

        Raises:
            SettingError: `logconfig` or its like can't be used.
        """
        if settings.capture_output and settings.errorlog != "-":
            write_at_once()
        self.sinks = LogSinks(settings, self._log_format, fields_of(self._number))
        bridge.set_up(settings.loglevel, bool(settings.accesslog), settings.log_format)
        logconfig.apply(settings, file.values.get("logconfig_dict") if file is not None else None)
        if self._patched_late:
            problem = f"{' '.join(self._patched_late)} {_PATCH_EARLIER}"
            self.sinks.log.warning("patched_late", problem=problem)

    def _set_up_hooks(
        self, settings: Settings, functions: Mapping[str, Callable[..., Any]], ask: messages.Configure
    ) -> list[str]:
        """Keep the hooks that will be called; returns warnings about those that will not."""
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
        emit, load = self.sinks.log.event, self._load_app
        self._hooks = Hooks(called, settings, emit, load, ask.cause, ask.workers_before)
        return remarks

    def _load_app(self) -> App:
        assert self._loaded is not None
        settings = self._loaded.settings
        self._worker_class.prepare(settings)
        if self._development is not None:
            return self._development.load(settings, self._worker_class, self._number, self._report)
        return load_app(settings, self._worker_class.interface, self._report)

    def _report(self, remark: str) -> None:
        self.remark = line(remark)

    def _report_shared(self, problems: list[str]) -> None:
        """Log what the preloaded app has opened or started that does not survive a fork.

        With a hook that can mend it in the worker this is no warning.
        """
        assert self._hooks is not None
        assert self.sinks is not None
        if problems:
            mended = not _IN_WORKERS.isdisjoint(self._hooks.names)
            level = "info" if mended else "warning"
            advice = "close it in when_ready, or open it in post_fork and not when the app is imported"
            self.sinks.log.event(level, "preload_shared", problem=line("; ".join(problems)), advice=advice)

    def _load(self, ask: messages.Load, descriptors: list[int]) -> WorkerGeneration | None:
        assert self._loaded is not None
        assert self._hooks is not None
        settings = self._loaded.settings
        giving_fd, taking_fd, *listener_fds = descriptors
        listeners: list[socket.socket] = [original.Socket(fileno=fd) for fd in listener_fds]
        handoff = original.Socket(fileno=giving_fd), original.Socket(fileno=taking_fd)
        app_forks.keep_private(lambda: [sock.fileno() for sock in (*listeners, *handoff)])
        app = self._hooks.server.app
        try:
            # Not before: a daemon that is to detach does so before this, and starts again.
            self._hooks.configured()
            before, opened = Before.now(), []
            if settings.preload_app:
                app.wsgi()
                opened = audit_preloaded(before)
            self._hooks.listening(listeners[: len(ask.addresses)])
            if opened:
                # Without what when_ready has closed or opened: the latter may be for this process alone.
                still = set(audit_preloaded(before))
                self._report_shared([problem for problem in opened if problem in still])
        except SettingError as error:
            self._channel.send(messages.LoadFailed(line(str(error)), None))
            return None
        except (AppLoadError, HookFailed) as error:
            self._channel.send(
                messages.LoadFailed(line(error.reason), shorten(error.trace) if error.trace else None)
            )
            return None
        assert self.sinks is not None
        named = zip(listeners, ask.addresses, strict=False)
        foreign = {sock for sock, address in named if parse_address(address).kind == "fd"}
        if issubclass(self._worker_class, Engine):
            prime(settings, self.sinks.log, FORK_SERVER_REQUESTS)
        return WorkerGeneration(
            number=self._number,
            name=ask.name,
            settings=settings,
            log_format=self._log_format,
            worker_class=self._worker_class,
            app=app.callable,
            tls=self._tls,
            handoff=handoff,
            listeners=listeners,
            own_listeners=[sock for sock in listeners if sock not in foreign],
            hooks=self._hooks,
        )


@contextmanager
def _with_origin(loaded: Loaded) -> Iterator[None]:
    """Adds to a SettingError where its setting comes from."""
    try:
        yield
    except SettingError as error:
        where = error.where or loaded.origins.get(error.setting, "")
        raise type(error)(error.setting, error.problem, where) from error
