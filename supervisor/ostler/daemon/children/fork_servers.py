"""Fork servers: performs the fleet's actions on them, and turns what they send into events."""

import errno
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ostler import __version__
from ostler.control.wording import change
from ostler.daemon.children.app_processes import AppProcesses
from ostler.daemon.children.handles import AnyChild, ForkServerHandle
from ostler.daemon.children.hooks import HookDispatcher
from ostler.daemon.children.inbox import Inbox
from ostler.daemon.children.ports import Ports
from ostler.daemon.children.protocol import check_fork_server
from ostler.daemon.children.reaper import Reaper
from ostler.daemon.children.records import ChildPhase, StartCause
from ostler.daemon.children.workers import WorkerManager
from ostler.daemon.configurations import Configurations
from ostler.daemon.environment.environments import (
    Environments,
    GenerationEnvironment,
    changed_environment,
)
from ostler.daemon.environment.finding import Environment
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.listening.unix import access_of
from ostler.daemon.process.fork_server_process import ForkServerProcess
from ostler.daemon.reporting.ledger import fork_server_leaving
from ostler.daemon.settings_to_policy import fleet_policy
from ostler.daemon.start_request import StartRequest
from ostler.errors import OstlerError, SettingError
from ostler.fleet import actions, events
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages
from ostler.osapi.needed import with_remedy
from ostler.osapi.process_groups import own_group
from ostler.settings.confine import confine
from ostler.settings.load import COMMAND_LINE, Loaded
from ostler.settings.opening_rights import rights_for

# Errors of posix_spawn(3) that have nothing to do with the program.
_OF_RESOURCES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class ForkServerCallbacks:
    """What fork servers report that concerns other parts of the daemon.

    on_configured: called with each generation's settings before its listeners are bound; may raise
    SettingError; on_listening: called with a generation whose listeners are bound; on_files: called with a
    generation and what one of its processes has reported about the app's files; on_log_taken: called with the
    number of a log line that a fork server has passed to its loggers; when_lines_taken: takes a callback,
    which is called when all log lines that were sent have been passed on, or after a short time-out;
    before_last_line: called while the daemon stops, before the fork server that gets the log lines is ended.
    """

    on_configured: Callable[[Loaded], None]
    on_listening: Callable[[int], None]
    on_files: Callable[[int, messages.Watch | messages.AppBroken], None]
    on_log_taken: Callable[[int], None]
    when_lines_taken: Callable[[Callable[[], None]], None]
    before_last_line: Callable[[], None]


class ForkServerManager:
    """Starts, configures and ends fork servers. Called only by the event loop's thread.

    Args:
        start: how the daemon was asked to start.
        ports, configurations, listeners, inbox, reaper, hooks, workers, app_processes, environments: what it
            works with.
        handoff: descriptors of the socket pair of the hand-off.
        callbacks: see there.

    Attributes:
        instance_name: from the first configuration.
    """

    def __init__(
        self,
        start: StartRequest,
        ports: Ports,
        configurations: Configurations,
        listeners: Listeners,
        inbox: Inbox,
        reaper: Reaper,
        hooks: HookDispatcher,
        workers: WorkerManager,
        app_processes: AppProcesses,
        environments: Environments,
        handoff: Callable[[], tuple[int, int]],
        callbacks: ForkServerCallbacks,
    ) -> None:
        self._start = start
        self._first = start.first
        self._ports = ports
        self._children = ports.children
        self._configurations = configurations
        self._listeners = listeners
        self._inbox = inbox
        self._reaper = reaper
        self._hooks = hooks
        self._workers = workers
        self._app_processes = app_processes
        self._environments = environments
        self._handoff = handoff
        self._callbacks = callbacks
        self.instance_name = ""

    def watch(self, handle: ForkServerHandle) -> None:
        """Read what it sends, and learn of its death."""
        self._inbox.watch(handle)
        self._reaper.watch(handle)

    def broadcast(self, message: messages.ToForkServer) -> None:
        """Send to all, those that leave included."""
        for handle in self._children.all_fork_servers():
            if handle.channel.fileno() >= 0:
                handle.send(message)

    # -- starting -------------------------------------------------------------------------------------------

    def start(self, action: actions.StartForkServer) -> None:
        generation = action.generation
        try:
            found = self._environments.find()
        except OstlerError as error:
            self._not_started(generation, str(error))
            return
        except OSError as error:
            self._not_started(generation, with_remedy(error))  # no descriptors are left, say
            return
        try:
            handle = self._start_in(found, generation)
        except OSError as error:
            of_file = "" if error.errno in _OF_RESOURCES else f"{found.python}: "
            self._not_started(generation, f"{of_file}{with_remedy(error)}")
            return
        self._children.add_fork_server(handle)
        handle.record.cause = self._cause(generation)
        self.watch(handle)
        request = messages.Configure(
            messages.VERSION,
            generation,
            self._start.command_line,
            self._start.config,
            self._start.folder,
            self._configurations.get(generation),
            handle.record.cause,
            detached=self._start.detached,
            variables=self._start.variables,
            workers_before=self._ports.state().wanted if handle.record.cause == "reload" else None,
            remarks=self._start.remarks,
        )
        handle.send(request)

    def _start_in(self, found: Environment, generation: int) -> ForkServerHandle:
        """Raises OSError."""
        first, self._first = self._first, None
        if first is not None and first.environment == found:
            return ForkServerHandle.of_process(generation, first)
        if first is not None:
            first.end_if_unused()
        process = ForkServerProcess.start(found, self._environments.variables(found))
        return ForkServerHandle.of_process(generation, process)

    def _not_started(self, generation: int, problem: str) -> None:
        reason = f"can't start a fork server: {problem}"
        self._ports.submit(events.GenerationFailed(generation, reason))
        self._ports.submit(events.ForkServerExited(generation, ExitStatus()))

    def _cause(self, generation: int) -> StartCause:
        if generation in self._configurations:
            return "restart"
        reload = self._ports.state().reload
        if reload is None or reload.generation != generation:
            return "start"
        return "upgrade" if reload.asked_by == "upgrade" else "reload"

    def load_app(self, action: actions.LoadApp) -> None:
        """Send the listeners, and have the app loaded as far as the settings want that."""
        handle = self._children.fork_servers.get(action.generation)
        if handle is None:
            return  # its ForkServerExited is already on the way
        keys = handle.record.listener_keys
        descriptors = [*self._handoff(), *map(self._listeners.fileno, [*keys, *self._listeners.others(keys)])]
        handle.record.phase = ChildPhase.LOADING
        request = messages.Load(keys, self.instance_name)
        handle.send(request, descriptors)

    # -- messages -------------------------------------------------------------------------------------------

    def received(self, handle: ForkServerHandle, message: messages.FromForkServer) -> None:
        """Process a fork server's message. Raises BadMessage if it may not send that now."""
        record, generation = handle.record, handle.generation
        check_fork_server(record, message, self._configurations.get(generation))
        if isinstance(message, messages.HookBegun):
            record.hook_running = True
        elif isinstance(message, messages.HookDone):
            self._hooks.done(handle, message.name)
        elif isinstance(message, messages.LogTaken):
            self._callbacks.on_log_taken(message.number)
        elif record.stops_when_idle or record.background_only or record.kept_for_workers:
            pass  # nothing else of it is wanted any more
        elif isinstance(message, messages.Decided):
            if record.decision is None and not record.listener_keys:
                record.decision = message
                self._warn(message.warnings)
        elif isinstance(message, messages.Configured):
            record.wants_log_lines = message.loggers
            self._configured(handle, message)
        elif isinstance(message, messages.AppLoaded):
            record.wants_log_lines = message.loggers
            self._workers.report_remark(generation, message.remark)
            record.replaces_background_work = message.replaces
            if not record.groups and (group := own_group(handle.pid)) is not None:
                record.groups = [group]  # it has left the terminal's session (`osapi.login`)
            self._hooks.loaded(handle, record.cause)
            self._ports.submit(events.AppLoaded(generation))
        elif isinstance(message, messages.LoadFailed):
            app_failed = generation in self._configurations
            failure = events.GenerationFailed(
                generation, message.reason, message.traceback, app_failed, message.invalid and not app_failed
            )
            self._ports.submit(failure)
        elif isinstance(message, messages.ForkFailed):
            self._workers.fork_failed(handle, message)
        elif isinstance(message, messages.Forked):
            self._workers.forked(handle, message)
        elif isinstance(message, messages.Watch | messages.AppBroken):
            self._callbacks.on_files(generation, message)

    def _warn(self, problems: list[str]) -> None:
        for problem in problems:
            self._ports.journal.record("warning", "configuration", {"problem": problem})

    def _configured(self, handle: ForkServerHandle, message: messages.Configured) -> None:
        generation = handle.generation
        try:
            loaded, warnings = self._trusted(handle, message.loaded)
            self._callbacks.on_configured(loaded)
            self._warn([*message.warnings, *warnings])
            handle.record.listener_keys = self._bind(loaded)
        except SettingError as error:
            self._ports.submit(events.GenerationFailed(generation, _with_place(error, message.loaded)))
            return
        except Exception as error:  # noqa: BLE001 - our own error must fail this generation, not hang it
            self._ports.submit(events.GenerationFailed(generation, str(error), traceback.format_exc()))
            return
        settings = loaded.settings
        self._hooks.configured(handle, message.hooks)
        name = self.instance_name or settings.proc_name or settings.wsgi_app or settings.paste
        self.instance_name = name or ""
        self._report_move(handle)
        self._configurations.add(generation, loaded, _environment_of(handle))
        self._callbacks.on_listening(generation)
        current = self._children.fork_servers.get(self._ports.state().current)
        listened = set(current.record.listener_keys) if current is not None else set()
        closes = not listened <= set(handle.record.listener_keys)
        policy = fleet_policy(loaded, message.hooks)
        self._ports.submit(events.ForkServerConfigured(generation, policy, closes))

    def _report_move(self, handle: ForkServerHandle) -> None:
        """Log that a fork server was started again in another environment. `Reloads` does it for reloads."""
        before = self._configurations.environment(handle.generation)
        changes = changed_environment(before, _environment_of(handle))
        if changes:
            fields = {"generation": handle.generation, "changes": ", ".join(map(change, changes))}
            self._ports.journal.record("warning", "environment_changed", fields)

    def _trusted(self, handle: ForkServerHandle, reported: Loaded) -> tuple[Loaded, list[str]]:
        """The settings of a generation, and what to warn of.

        What a fork server reports counts if only root could write what it had run by then.

        Raises:
            SettingError: they can't be used.
        """
        if (known := self._configurations.get(handle.generation)) is not None:
            return known, []
        decision = handle.record.decision
        if decision is None:
            raise SettingError(
                "config", "the fork server has not reported which file it is; this is a defect"
            )
        if decision.loaded is not None:
            found = {"one_loop": reported.one_loop, "core": reported.core, "tls": reported.tls}
            return msgspec.structs.replace(decision.loaded, **found), []
        settings = msgspec.structs.replace(
            reported.settings, user=decision.user, group=decision.group, initgroups=decision.initgroups
        )
        reported = msgspec.structs.replace(reported, settings=settings, config=decision.config)
        why = f"{decision.user!r} can write {decision.config or 'the PasteDeploy file'}"
        return confine(reported, _is_decided, self._start.command_line, why)

    # -- listeners ------------------------------------------------------------------------------------------

    def _bind(self, loaded: Loaded) -> list[str]:
        """Raises SettingError."""
        settings = loaded.settings
        with rights_for(loaded, "bind"):
            return self._listeners.bind(
                settings.bind, settings.backlog, access_of(settings), settings.reuse_port
            )

    def settle_listeners(self) -> None:
        """End all listeners but the current generation's, and set their mode, owner and backlog as it says.

        While a reload runs nothing changes.
        """
        reload = self._ports.state().reload
        if reload is not None and reload.running:
            return
        if loaded := self._configurations.current:
            try:
                self._bind(loaded)
            except SettingError as error:
                self._ports.journal.record("warning", "listener_not_restored", {"problem": str(error)})
        servers = self._children.fork_servers.values()
        used = {key for handle in servers for key in handle.record.listener_keys}
        if used:
            loaded = self._configurations.current
            patience = loaded.settings.graceful_timeout if loaded is not None else 0.0
            for key in self._listeners.keep_only(used, time.monotonic() + patience):
                self._ports.journal.record("info", "listener_closed", {"address": key})

    def forget_configurations(self) -> None:
        """Forget the settings of generations that have neither a fork server nor workers."""
        workers = {handle.generation for handle in self._children.workers.values()}
        self._configurations.keep_only(workers | self._ports.state().generations.keys())

    def _settle(self) -> None:
        self.forget_configurations()
        self.settle_listeners()

    # -- ends -----------------------------------------------------------------------------------------------

    def stop(self, action: actions.StopForkServer) -> None:
        """Let it end, now or when its workers have, or only run its background work."""
        handle = self._children.fork_servers.get(action.generation)
        if handle is None:
            return
        if self._ports.state().stopping:
            self._hooks.stop(handle)
            return
        handle.record.kept_for_workers = self._app_processes.is_used(handle)
        handle.record.may_run_background_work = self._hooks.is_needed(handle)
        if handle.record.may_run_background_work:
            self._keep(handle)
            self._hooks.leave(handle)
        elif handle.record.kept_for_workers:
            self._keep(handle)
        else:
            self._hooks.stop(handle)

    def let_unused_end(self, ended: AnyChild) -> None:
        """A child has ended: let the fork servers end that were only kept for it."""
        for handle in list(self._children.leaving.values()):
            record = handle.record
            if record.kept_for_workers and not self._app_processes.is_used(handle, ended):
                record.kept_for_workers = False
                if not record.background_only:
                    self._hooks.leave(handle)

    def _keep(self, handle: ForkServerHandle) -> None:
        """The generation ends. The fork server stays for a while; the fleet treats it as ended."""
        handle.record.exit_cause = fork_server_leaving(self._ports.state(), handle.generation)
        self._children.leave(handle)
        self._workers.forget_unforked(handle.generation)
        self._ports.submit(events.ForkServerExited(handle.generation, ExitStatus()))
        self._ports.loop.call_soon(self._settle)  # when the fleet has processed the event

    def kill(self, action: actions.KillForkServer) -> None:
        if handle := self._children.fork_servers.get(action.generation):
            self._reaper.kill(handle)

    def hang_up(self, handle: ForkServerHandle) -> None:
        """Close its channel once it has the lines it was sent. That ends it, also while it runs user code."""
        state = self._ports.state()
        if state.stopping and handle is self._children.fork_servers.get(state.current):
            self._callbacks.before_last_line()
        handle.record.wants_log_lines = False
        self._callbacks.when_lines_taken(lambda: self._close_channel(handle))

    def _close_channel(self, handle: ForkServerHandle) -> None:
        if handle.channel.fileno() >= 0:
            self._inbox.unwatch(handle)
            handle.close_channel()

    def ended(self, handle: ForkServerHandle, status: ExitStatus) -> None:
        """A fork server is dead; its handle is given up."""
        attempt, generation = self._ports.attempt, handle.generation
        current = self._children.is_current(handle)
        self._children.remove_fork_server(handle)
        if current:
            attempt(
                "giving up workers that were not forked", lambda: self._workers.forget_unforked(generation)
            )
        attempt("closing a fork server's channel", lambda: self._close_dead(handle))
        if current:
            self._ports.submit(events.ForkServerExited(generation, status, handle.record.problem))
        attempt("hooks of a fork server that ended", lambda: self._hooks.fork_server_ended(handle))
        attempt("fork servers that were kept", lambda: self.let_unused_end(handle))
        if current:
            attempt("settling listeners", self._settle)

    def _close_dead(self, handle: ForkServerHandle) -> None:
        self._close_channel(handle)
        self._reaper.unwatch(handle)
        handle.close()

    # -- zygotes --------------------------------------------------------------------------------------------

    def promote_zygote(self, action: actions.UseZygote) -> None:
        """A worker has stopped serving and has become its generation's fork server."""
        loaded = self._configurations.get(action.generation)
        worker, zygote = self._workers.release_zygote(action.worker_id)
        old = self._children.fork_servers.get(action.generation)
        # One that is being restarted may not have reported yet what the generation listens on.
        keys = old.record.listener_keys if old is not None else []
        if not keys and loaded is not None:
            keys = self._bind(loaded)
        zygote.record.listener_keys = keys
        self._children.add_fork_server(zygote)
        self.watch(zygote)
        if old is not None and self._app_processes.is_used(old):
            old.record.kept_for_workers = True
            old = None
        self._hooks.zygote_promoted(old, zygote, worker)
        self._workers.forget_unforked(action.generation)


def _environment_of(handle: ForkServerHandle) -> GenerationEnvironment | None:
    decision = handle.record.decision
    if decision is None:
        return None
    return GenerationEnvironment(decision.prefix, decision.python, __version__)


def _with_place(error: SettingError, loaded: Loaded) -> str:
    """The error's text, with the file and the line that its setting is from."""
    where = error.where or loaded.origins.get(error.setting, "")
    known = where in ("", "default", COMMAND_LINE)
    return str(error if known else SettingError(error.setting, error.problem, where))


def _is_decided(setting: str) -> bool:
    """Whether a setting is part of the fork server's decision, which it made before it ran user code."""
    return setting in ("user", "group", "initgroups")
