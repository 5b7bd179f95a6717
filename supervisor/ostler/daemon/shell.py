"""Performs the fleet's actions and turns what children do into events.

`submit` is the only way in. It hands events to the fleet one after the other, also those that performing an
action brings about, and sets the one timer that the fleet asks for.
"""

import asyncio
import random
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import msgspec

from ostler.daemon.children import closing
from ostler.daemon.children.handles import (
    CarriedForkServer,
    CarriedWorker,
    ForkServerHandle,
    WorkerHandle,
)
from ostler.daemon.children.hooks import HookCaller
from ostler.daemon.children.inbox import Inbox
from ostler.daemon.children.overdue import Overdue
from ostler.daemon.children.protocol import Phase, check_fork_server, check_worker
from ostler.daemon.children.reaper import Reaper
from ostler.daemon.listening.listeners import Listeners, access_of
from ostler.daemon.policy import fleet_policy
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.reporting.ledger import Ledger, fork_server_leaving
from ostler.errors import SettingError
from ostler.fleet import actions, events
from ostler.fleet.machine import Fleet
from ostler.fleet.model import ExitStatus, GenerationState, WorkerState
from ostler.fleet.state import State
from ostler.ipc import messages
from ostler.ipc.channel import BadMessage, Channel
from ostler.osapi.needed import with_remedy
from ostler.osapi.process import is_anothers_child
from ostler.scoreboard.reader import Scoreboard
from ostler.settings import classes
from ostler.settings.confine import confine
from ostler.settings.load import Loaded
from ostler.settings.rights import rights_for

Result = TypeVar("Result")

# Seconds between two looks at the stack dumps of a worker, which may write for ever.
_DUMP_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Start:
    """How the daemon was asked to start.

    command_line: raw settings given on the command line; config: the configuration file asked for, or None
    for the usual places; folder: where; variables and remarks: see `messages.Configure`; detached: as a
    daemon, if the settings say so.
    """

    command_line: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    folder: str = "."
    variables: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    detached: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the daemon around the shell is called for.

    configured: with each generation's settings before its listeners are bound; may raise SettingError;
    watch: with a generation and what one of its processes has told of the app's files.
    """

    configured: Callable[[Loaded], None]
    serving: Callable[[], None]
    stopping: Callable[[], None]
    reload_ended: Callable[[int], None]
    watch: Callable[[int, messages.Watch | messages.AppBroken], None]
    finish: Callable[[actions.Finish], None]
    check_upgrade: Callable[[], None]
    upgrade: Callable[[], None]
    log_taken: Callable[[int], None]
    when_lines_taken: Callable[[Callable[[], None]], None]


def _is_decided(setting: str) -> bool:
    """Whether a setting is what the fork server said while it was to be believed."""
    return setting in ("user", "group", "initgroups")


class Shell:
    """The fleet's hands and senses.

    Args:
        start: how the daemon was asked to start.
        listeners, scoreboard, journal, ledger: what it works with.
        callbacks: called when the fleet says so.

    Attributes:
        fleet: the state machine.
        workers: handles of live worker processes by worker id.
        worker_id_of: worker ids by pid.
        loaded: settings by generation.
        handoff: its two ends; connections that one worker gives to another are in it, so it outlives all.
        name: the instance's, from the first configuration.
        loop: the one that all of this runs in.
    """

    def __init__(
        self,
        start: Start,
        listeners: Listeners,
        scoreboard: Scoreboard,
        journal: Journal,
        ledger: Ledger,
        callbacks: Callbacks,
    ) -> None:
        self._start = start
        self.listeners = listeners
        self.scoreboard = scoreboard
        self.journal = journal
        self.ledger = ledger
        self._callbacks = callbacks
        self.name = ""
        self.fleet = Fleet(random.random)
        self.workers: dict[int, WorkerHandle] = {}
        self.fork_servers: dict[int, ForkServerHandle] = {}
        self.reaper = Reaper(self)
        self.inbox = Inbox(self)
        self.hooks = HookCaller(self)
        self.overdue = Overdue(self)
        self.loaded: dict[int, Loaded] = {}
        self.handoff = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker_id_of: dict[int, int] = {}
        self._waiting: deque[events.Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            actions.StartForkServer: self._start_fork_server,
            actions.LoadApp: self._load_app,
            actions.StopForkServer: self._stop_fork_server,
            actions.KillForkServer: self._kill_fork_server,
            actions.Spawn: self._spawn,
            actions.Drain: self._drain,
            actions.AuditZygote: self._audit_zygote,
            actions.UseZygote: self._use_zygote,
            actions.DumpStack: self.overdue.dump_stack,
            actions.Interrupt: self.overdue.interrupt,
            actions.Cancel: lambda action: self._signal(action.worker_id, signal.SIGTERM),
            actions.Quit: self._quit,
            actions.Abort: lambda action: self._end(action.worker_id, signal.SIGABRT),
            actions.Kill: lambda action: self._end(action.worker_id, signal.SIGKILL),
            actions.Report: lambda action: journal.record(action.level, action.name, action.fields),
            actions.Serving: lambda _action: callbacks.serving(),
            actions.Stopping: lambda _action: callbacks.stopping(),
            actions.ReloadEnded: self._reload_ended,
            actions.CheckUpgrade: lambda _action: callbacks.check_upgrade(),
            actions.Upgrade: lambda _action: callbacks.upgrade(),
            actions.Finish: self._finish,
        }

    def take_over(
        self,
        fleet: State,
        workers: list[CarriedWorker],
        fork_servers: list[CarriedForkServer],
        loaded: dict[int, Loaded],
        handoff: tuple[int, int],
    ) -> None:
        """Go on where another program in this process stopped; before the first event."""
        self.fleet = Fleet.restored(fleet, random.random)
        self.loaded = loaded
        for end in self.handoff:
            end.close()
        self.handoff = socket.socket(fileno=handoff[0]), socket.socket(fileno=handoff[1])
        for carried in workers:
            worker = WorkerHandle.taken_over(carried)
            self.workers[worker.worker_id] = worker
            if worker.pid is not None:
                self.worker_id_of[worker.pid] = worker.worker_id
                worker.phase = self._phase_of_worker(worker)
            self._listen_to(worker)
            self.reaper.watch(worker)
        for server in fork_servers:
            handle = ForkServerHandle.taken_over(server)
            self.fork_servers[handle.generation] = handle
            handle.phase = self._phase_of_fork_server(handle)
            if handle.channel.fileno() >= 0:
                self.loop.add_reader(handle.channel.fileno(), self.inbox.read, handle)
            self.reaper.watch(handle)
        self.hooks.restored()

    def await_ends(self, leaving: list[CarriedForkServer]) -> None:
        """See to the ends of fork servers whose channels ended with the program before us."""
        for carried in leaving:
            gone = msgspec.structs.replace(carried, channel=-1, calls=False, lasting=False, due=[])
            handle = ForkServerHandle.taken_over(gone)
            self.reaper.leaving[handle.pid] = handle
            self.reaper.watch(handle)
            self.hooks.leave(handle)

    def _phase_of_worker(self, handle: WorkerHandle) -> Phase:
        worker = self.fleet.workers.get(handle.worker_id)
        refork, generation = self.fleet.refork, self.fleet.generations.get(handle.generation)
        if refork is not None and refork.worker_id == handle.worker_id:
            handle.audits = 0 if refork.audited else 1
            handle.zygote_asked = refork.audited
        handle.zygote_asked |= generation is not None and generation.spare == handle.worker_id
        serves = worker is not None and worker.state in (WorkerState.READY, WorkerState.DRAINING)
        return Phase.SERVING if serves else Phase.BOOTING

    def _phase_of_fork_server(self, handle: ForkServerHandle) -> Phase:
        generation = self.fleet.generations.get(handle.generation)
        state = generation.state if generation is not None else GenerationState.UP
        phases = {GenerationState.CONFIGURING: Phase.CONFIGURING, GenerationState.LOADING: Phase.LOADING}
        return phases.get(state, Phase.FORKING)

    def submit(self, event: events.Event) -> None:
        """Let the fleet know, and do what it wants done."""
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                found = self.fleet.handle(self._waiting.popleft(), time.monotonic())
                # First: what hears of more workers hears of their forks afterwards.
                self.attempt("hooks", self.hooks.look)
                for action in found:
                    self._perform_safely(action)
        finally:
            self._busy = False
            self._set_timer()

    def _perform_safely(self, action: actions.Action) -> None:
        try:
            self._perform[type(action)](action)
        except Exception:  # noqa: BLE001 - a defect of ours in one action must not lose those behind it
            self.journal.record(
                "error", "internal_error", {"action": repr(action), "traceback": traceback.format_exc()}
            )
            self._give_up(action)

    def attempt(self, what: str, step: Callable[[], Result]) -> Result | None:
        """Do one of several things that do not depend on each other; if it fails that is logged.

        Returns what `step` returns, or None if it has failed.
        """
        try:
            return step()
        except Exception:  # noqa: BLE001 - whatever it is, the others are to be done
            fields = {"problem": f"failed: {what}", "traceback": traceback.format_exc()}
            self.journal.record("error", "internal_error", fields)
            return None

    def _give_up(self, action: actions.Action) -> None:
        """The fleet must not wait for a process that there never was."""
        if isinstance(action, actions.Spawn):
            self.forget(action.worker_id)
            self.submit(events.SpawnFailed(action.worker_id, "a defect of Ostler's, see the log"))
        elif (
            isinstance(action, actions.Cancel | actions.Quit | actions.Kill)
            and action.worker_id not in self.workers
        ):
            self.submit(events.WorkerExited(action.worker_id, ExitStatus(), outsider=True))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.fleet.next_deadline()
        if deadline is not None:
            # A hair late rather than early: an early one would find nothing due and come again.
            delay = max(0.0, deadline - time.monotonic()) + 0.001
            self._timer = self.loop.call_later(delay, self.submit, events.DeadlinePassed())

    # -- fork servers -----------------------------------------------------------------------------------

    def _start_fork_server(self, action: actions.StartForkServer) -> None:
        try:
            handle = ForkServerHandle.start(action.generation)
        except OSError as error:
            reason = f"can't start a fork server: {with_remedy(error)}"
            self.submit(events.GenerationFailed(action.generation, reason))
            self.submit(events.ForkServerExited(action.generation, ExitStatus()))
            return
        self.fork_servers[action.generation] = handle
        handle.cause = self._cause(action.generation)
        self.loop.add_reader(handle.channel.fileno(), self.inbox.read, handle)
        self.reaper.watch(handle)
        self._tell(
            handle.channel,
            messages.Configure(
                messages.VERSION,
                action.generation,
                self._start.command_line,
                self._start.config,
                self._start.folder,
                self.loaded.get(action.generation),
                handle.cause,
                detached=self._start.detached,
                variables=self._start.variables,
                remarks=self._start.remarks,
            ),
        )

    def _cause(self, generation: int) -> Literal["start", "reload", "upgrade", "restart"]:
        if generation in self.loaded:
            return "restart"
        if self.fleet.reload is None or self.fleet.reload.generation != generation:
            return "start"
        return "upgrade" if self.fleet.reload.asked_by == "upgrade" else "reload"

    def hear_fork_server(self, handle: ForkServerHandle, message: messages.FromForkServer) -> None:
        """Raises BadMessage if that is nothing that it may say now."""
        check_fork_server(handle, message, self.loaded.get(handle.generation))
        generation = handle.generation
        if isinstance(message, messages.HookBegun):
            handle.begun = True
        elif isinstance(message, messages.HookDone):
            self.hooks.done(handle, message.name)
        elif isinstance(message, messages.LogTaken):
            self._callbacks.log_taken(message.number)
        elif handle.ending or handle.retired:
            pass  # it is not wanted any more
        elif isinstance(message, messages.Decided):
            if handle.decided is None and not handle.listener_keys:
                handle.decided = message
                for warning in message.warnings:
                    self.journal.record("warning", "configuration", {"problem": warning})
        elif isinstance(message, messages.Configured):
            self._configured(handle, message)
        elif isinstance(message, messages.AppLoaded):
            handle.takes_lines = message.loggers
            self.hooks.loaded(handle, handle.cause)
            self.submit(events.AppLoaded(generation))
        elif isinstance(message, messages.LoadFailed):
            app_failed = generation in self.loaded
            self.submit(events.GenerationFailed(generation, message.reason, message.traceback, app_failed))
        elif isinstance(message, messages.ForkFailed):
            if self._asked_for(handle, message.worker_id) is not None:
                self.forget(message.worker_id)
                self.submit(events.SpawnFailed(message.worker_id, message.reason))
        elif isinstance(message, messages.Forked):
            self._forked(handle, message)
        elif isinstance(message, messages.Watch | messages.AppBroken):
            self._callbacks.watch(generation, message)

    def _configured(self, handle: ForkServerHandle, message: messages.Configured) -> None:
        generation = handle.generation
        try:
            loaded, warnings = self._believed(handle, message.loaded)
            settings = loaded.settings
            self._callbacks.configured(loaded)
            for warning in (*message.warnings, *warnings):
                self.journal.record("warning", "configuration", {"problem": warning})
            handle.listener_keys = self._bind(loaded)
        except SettingError as error:
            self.submit(events.GenerationFailed(generation, str(error)))
            return
        except Exception as error:  # noqa: BLE001 - a defect of ours must fail this generation, not hang it
            self.submit(events.GenerationFailed(generation, str(error), traceback.format_exc()))
            return
        self.hooks.configured(handle, message.hooks)
        self.name = self.name or settings.proc_name or settings.wsgi_app or settings.paste or ""
        self.loaded[generation] = loaded
        current = self.fork_servers.get(self.fleet.current)
        closes = current is not None and not set(current.listener_keys) <= set(handle.listener_keys)
        self.submit(events.ForkServerConfigured(generation, fleet_policy(loaded, message.hooks), closes))

    def _believed(self, handle: ForkServerHandle, said: Loaded) -> tuple[Loaded, list[str]]:
        """The settings of a generation, and what to warn of.

        What a fork server says counts if only root could write what it had run by then.

        Raises:
            SettingError: they can't be used.
        """
        if (known := self.loaded.get(handle.generation)) is not None:
            return known, []
        decided = handle.decided
        if decided is None:
            raise SettingError("config", "the fork server has not said which file it is; this is a defect")
        if decided.loaded is not None:
            return msgspec.structs.replace(decided.loaded, one_loop=said.one_loop, tls=said.tls), []
        settings = msgspec.structs.replace(
            said.settings, user=decided.user, group=decided.group, initgroups=decided.initgroups
        )
        said = msgspec.structs.replace(said, settings=settings, config=decided.config)
        why = f"{decided.user!r} can write {decided.config or 'the PasteDeploy file'}"
        return confine(said, _is_decided, self._start.command_line, why)

    def _bind(self, loaded: Loaded) -> list[str]:
        """Raises SettingError."""
        settings = loaded.settings
        with rights_for(loaded, "bind"):
            return self.listeners.bind(
                settings.bind, settings.backlog, access_of(settings), settings.reuse_port
            )

    def _load_app(self, action: actions.LoadApp) -> None:
        handle = self.fork_servers[action.generation]
        handoff = [end.fileno() for end in self.handoff]
        listeners = map(self.listeners.fileno, handle.listener_keys)
        descriptors = [*handoff, *listeners]
        handle.phase = Phase.LOADING
        self._tell(handle.channel, messages.Load(handle.listener_keys, self.name), descriptors)

    def _stop_fork_server(self, action: actions.StopForkServer) -> None:
        if handle := self.fork_servers.get(action.generation):
            if handle.lasting and not self.fleet.stopping:
                self._retire(handle)
            else:
                self.hooks.stop(handle)

    def _retire(self, handle: ForkServerHandle) -> None:
        """Its generation ends, and it does not, perhaps: the fleet hears of its end now."""
        handle.left_for = fork_server_leaving(self.fleet, handle.generation)
        self.reaper.leaving[handle.pid] = handle
        del self.fork_servers[handle.generation]
        self.hooks.leave(handle)
        self._forget_unforked(handle.generation)
        self.submit(events.ForkServerExited(handle.generation, ExitStatus()))
        self.loop.call_soon(self._settle)  # when the fleet has heard it

    def _settle(self) -> None:
        self._forget_generations()
        self._settle_listeners()

    def hang_up(self, handle: ForkServerHandle) -> None:
        """Give it its sign to leave, also while it runs user code, once it has the lines it was given."""
        handle.takes_lines = False
        self._callbacks.when_lines_taken(lambda: self._hang_up(handle))

    def _hang_up(self, handle: ForkServerHandle) -> None:
        if handle.channel.fileno() >= 0:
            self.loop.remove_reader(handle.channel.fileno())
            closing.close(handle.channel)

    def _kill_fork_server(self, action: actions.KillForkServer) -> None:
        if handle := self.fork_servers.get(action.generation):
            self.reaper.kill(handle)

    # -- workers ----------------------------------------------------------------------------------------

    def _spawn(self, action: actions.Spawn) -> None:
        fork_server = self.fork_servers.get(action.generation)
        loaded = self.loaded[action.generation]
        try:
            cell = self.scoreboard.take_cell(classes.request_slots(loaded.settings, loaded.one_loop))
        except OSError as error:
            self.submit(events.SpawnFailed(action.worker_id, with_remedy(error)))
            return
        try:
            handle = WorkerHandle.new(action.worker_id, action.slot, action.generation, cell, loaded)
        except OSError as error:
            self.scoreboard.give_back(cell)
            self.submit(events.SpawnFailed(action.worker_id, with_remedy(error)))
            return
        self.workers[action.worker_id] = handle
        self._listen_to(handle)
        problem = self._ask_to_fork(fork_server, handle, action.urgent) if fork_server is not None else None
        handle.close_child_ends()
        if problem is not None:
            self.forget(action.worker_id)
            reason = f"the fork server can't be asked: {problem.strerror}"
            self.submit(events.SpawnFailed(action.worker_id, reason, isinstance(problem, BlockingIOError)))

    def _ask_to_fork(
        self, fork_server: ForkServerHandle, handle: WorkerHandle, urgent: bool
    ) -> OSError | None:
        """Returns why it will not hear of that, unless it is gone, which its death says."""
        descriptors = [*handle.descriptors_for_child(), self.scoreboard.fileno(handle.cell)]
        spawn = messages.Spawn(handle.worker_id, handle.slot, urgent)
        try:
            fork_server.channel.send(spawn, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return None
        except OSError as error:
            return error if fork_server.channel.fileno() >= 0 else None
        return None

    def _listen_to(self, handle: WorkerHandle) -> None:
        if handle.channel.fileno() >= 0:
            self.loop.add_reader(handle.channel.fileno(), self.inbox.read, handle)
        self.loop.add_reader(handle.stacks_fd, self._on_dumps, handle)

    def _on_dumps(self, handle: WorkerHandle) -> None:
        self.loop.remove_reader(handle.stacks_fd)
        if handle.read_dumps():
            self.loop.call_later(_DUMP_PAUSE, self._read_dumps_again, handle)

    def _read_dumps_again(self, handle: WorkerHandle) -> None:
        if self.workers.get(handle.worker_id) is handle:
            self.loop.add_reader(handle.stacks_fd, self._on_dumps, handle)

    def _asked_for(self, fork_server: ForkServerHandle, worker_id: int) -> WorkerHandle | None:
        """The worker that a fork server was asked for; None if that is not wanted any more.

        Raises:
            BadMessage: it was never asked for that one, or has answered already.
        """
        handle = self.workers.get(worker_id)
        if handle is None:
            if 0 < worker_id <= self.fleet.spawned:
                return None
            raise BadMessage(f"what became of worker {worker_id}, which was never asked for")
        if handle.generation != fork_server.generation or handle.pid is not None:
            raise BadMessage(f"what became of worker {worker_id}, which is not its to fork")
        return handle

    def _is_known(self, pid: int) -> bool:
        """Whether a process is a child with another part."""
        servers = (*self.fork_servers.values(), *self.reaper.leaving.values())
        known = pid in self.worker_id_of or self.reaper.expects(pid)
        return known or any(pid == server.pid for server in servers)

    def _forked(self, fork_server: ForkServerHandle, message: messages.Forked) -> None:
        handle = self._asked_for(fork_server, message.worker_id)
        if handle is None or message.worker_id not in self.fleet.workers:
            return  # it is not wanted any more; the end of its channel says so to it
        if self._is_known(message.pid):
            raise BadMessage(f"that process {message.pid} is a worker, which is something else")
        if is_anothers_child(message.pid):
            raise BadMessage(f"that process {message.pid} is a worker, which is no child of the supervisor's")
        handle.phase = Phase.BOOTING
        alive = handle.forked(message.pid)
        self.submit(events.WorkerForked(message.worker_id, message.pid))
        if alive:
            self.worker_id_of[message.pid] = message.worker_id
            self.reaper.watch(handle)
            self._tell(handle.channel, messages.Boot())
        else:
            self.reaper.ended_before_known(handle)

    def hear_worker(self, handle: WorkerHandle, message: messages.FromWorker) -> None:
        """Raises BadMessage if that is nothing that it may say now."""
        check_worker(handle, message, self.loaded.get(handle.generation))
        if isinstance(message, messages.Ready):
            self.submit(events.WorkerReady(handle.worker_id))
            self._warm(handle.generation, message.modules)
        elif isinstance(message, messages.BootFailed):
            self.submit(events.WorkerBootFailed(handle.worker_id, message.reason, message.traceback))
        elif isinstance(message, messages.ZygoteAudited):
            problems, warnings = tuple(message.problems), tuple(message.warnings)
            self.submit(events.ZygoteAudited(handle.worker_id, problems, warnings))
        elif isinstance(message, messages.ZygoteReady):
            # A process that is dead can't be a fork server.
            if handle.worker_id in self.worker_id_of.values():
                handle.takes_lines = message.loggers
                self.submit(events.ZygoteReady(handle.worker_id))
        elif isinstance(message, messages.Signalled):
            handle.signalled = message.signum
        elif isinstance(message, messages.Watch | messages.AppBroken):
            self._callbacks.watch(handle.generation, message)
        elif isinstance(message, messages.RecycleDue) and not handle.recycles:
            handle.recycles = True
            self.submit(events.RecycleDue(handle.worker_id, message.requests))

    def _warm(self, generation: int, modules: list[str]) -> None:
        """Let the fork server learn once from the first worker what the app needs of the standard library."""
        fork_server = self.fork_servers.get(generation)
        if fork_server is not None and not fork_server.warmed and modules:
            fork_server.warmed = True
            self._tell(fork_server.channel, messages.Warm(modules))

    def _drain(self, action: actions.Drain) -> None:
        handle = self.workers[action.worker_id]
        handle.zygote_asked |= action.zygote
        if not self._tell(handle.channel, messages.Drain(action.hand_over, action.zygote)):
            # It has not read its channel for long, or closed it: SIGTERM says the same.
            self._signal(action.worker_id, signal.SIGTERM)

    def _quit(self, action: actions.Quit) -> None:
        if self.fleet.stopping:
            self.reaper.report_lost(self.workers[action.worker_id])
        self._signal(action.worker_id, signal.SIGQUIT)

    def _end(self, worker_id: int, signum: int) -> None:
        self.reaper.report_lost(self.workers[worker_id])
        self._signal(worker_id, signum)

    def _signal(self, worker_id: int, signum: int) -> None:
        handle = self.workers[worker_id]
        if handle.pid is not None and signum == signal.SIGKILL:
            self.reaper.kill(handle)
        elif handle.pid is not None:
            handle.send_signal(signum)
        elif handle.channel.fileno() >= 0:
            # Not forked yet: with its channel gone it leaves before it runs a line of the app.
            self.loop.remove_reader(handle.channel.fileno())
            closing.close(handle.channel)

    # -- zygotes --------------------------------------------------------------------------------------

    def _audit_zygote(self, action: actions.AuditZygote) -> None:
        handle = self.workers[action.worker_id]
        handle.audits += 1
        self._tell(handle.channel, messages.AuditZygote(action.force))

    def _use_zygote(self, action: actions.UseZygote) -> None:
        """A worker serves no more and forks instead: its channel now carries a fork server's messages."""
        worker = self.workers.pop(action.worker_id)
        assert worker.pid is not None
        del self.worker_id_of[worker.pid]
        for fd in (worker.channel.fileno(), worker.stacks_fd):
            self.loop.remove_reader(fd)
        self.scoreboard.give_back(worker.cell)
        self.reaper.unwatch(worker)
        zygote = ForkServerHandle.of_zygote(worker)
        self.reaper.watch(zygote)
        zygote.takes_lines = worker.takes_lines
        old = self.fork_servers.get(action.generation)
        # One that is being restarted may not have told yet what the generation listens on.
        known = old.listener_keys if old is not None else []
        zygote.listener_keys = known or self._bind(self.loaded[action.generation])
        self.fork_servers[action.generation] = zygote
        if old is not None:
            self.reaper.leaving[old.pid] = old
        self.hooks.zygote(old, zygote, worker)
        self.loop.add_reader(zygote.channel.fileno(), self.inbox.read, zygote)
        self._forget_unforked(action.generation)

    # -- deaths -----------------------------------------------------------------------------------------

    def fork_server_ended(self, handle: ForkServerHandle, status: ExitStatus) -> None:
        """A fork server is dead; its handle is given up."""
        current = self.fork_servers.get(handle.generation) is handle
        if current:
            del self.fork_servers[handle.generation]
            self.attempt(
                "giving up workers that were not forked", lambda: self._forget_unforked(handle.generation)
            )
        self.attempt("closing a fork server's channel", lambda: self._close_dead(handle))
        if current:
            self.submit(events.ForkServerExited(handle.generation, status, handle.problem))
        self.attempt("hooks of a fork server that ended", lambda: self.hooks.gone(handle))
        if current:
            self.attempt("settling listeners", self._settle)

    def _close_dead(self, handle: ForkServerHandle) -> None:
        self._hang_up(handle)
        self.reaper.unwatch(handle)
        handle.close()

    def _forget_unforked(self, generation: int) -> None:
        """What was asked of a fork server and never came will not come; the fleet gives it up by itself."""
        for worker_id, handle in list(self.workers.items()):
            if handle.pid is None and handle.generation == generation:
                self.forget(worker_id)

    def forget(self, worker_id: int) -> None:
        """Give up a worker that is dead or never was."""
        handle = self.workers.pop(worker_id, None)
        if handle is None:
            return
        if handle.channel.fileno() >= 0:
            self.loop.remove_reader(handle.channel.fileno())
        self.loop.remove_reader(handle.stacks_fd)
        self.reaper.unwatch(handle)
        handle.close()
        self.attempt("freeing a cell of the scoreboard", lambda: self.scoreboard.give_back(handle.cell))

    def _reload_ended(self, action: actions.ReloadEnded) -> None:
        self._settle_listeners()
        self._callbacks.reload_ended(action.generation)
        self._forget_generations()

    def _finish(self, action: actions.Finish) -> None:
        self.hooks.finished()
        self._callbacks.finish(action)

    # -- small things -----------------------------------------------------------------------------------

    def _forget_generations(self) -> None:
        in_use = {handle.generation for handle in self.workers.values()} | self.fleet.generations.keys()
        self.loaded = {number: loaded for number, loaded in self.loaded.items() if number in in_use}

    def _settle_listeners(self) -> None:
        """Only the current generation's are open; mode, owner and backlog are as it says."""
        if self.fleet.reload and self.fleet.reload.running:
            return
        if loaded := self.loaded.get(self.fleet.current):
            try:
                self._bind(loaded)
            except SettingError as error:
                self.journal.record("warning", "listener_not_restored", {"problem": str(error)})
        used = {key for handle in self.fork_servers.values() for key in handle.listener_keys}
        if used:
            for key in self.listeners.keep_only(used):
                self.journal.record("info", "listener_closed", {"address": key})

    def tell_workers(self, message: messages.ToWorker) -> None:
        for handle in self.workers.values():
            if handle.channel.fileno() >= 0:
                self._tell(handle.channel, message)

    def tell_fork_servers(self, message: messages.ToForkServer) -> None:
        """Those that have retired, too."""
        for handle in (*self.fork_servers.values(), *self.reaper.leaving.values()):
            if handle.channel.fileno() >= 0:
                self._tell(handle.channel, message)

    def _tell(self, chan: Channel[Any], message: Any, descriptors: list[int] | None = None) -> bool:
        try:
            chan.send(message, descriptors)
        except OSError:
            return False  # it is gone or stuck: its death or a deadline will say so
        return True
