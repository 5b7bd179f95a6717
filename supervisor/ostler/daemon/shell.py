"""Performs the fleet's actions, and passes events to the fleet. It decides nothing.

All events come in through `submit`. It passes them to the fleet one after the other, including those that
result from performing an action, and sets the one timer that the fleet requests.
"""

# ruff: noqa: PLW0108 - lambdas name attributes that are set later

import asyncio
import random
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ostler.daemon.attempts import Attempts
from ostler.daemon.children.app_processes import AppProcesses, AppProcessesState
from ostler.daemon.children.fork_servers import ForkServerCallbacks, ForkServerManager
from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.children.hooks import HookDispatcher, HooksState
from ostler.daemon.children.inbox import Inbox
from ostler.daemon.children.overdue_requests import OverdueRequests
from ostler.daemon.children.ports import Ports
from ostler.daemon.children.reaper import Reaper, ReaperState
from ostler.daemon.children.registry import ChildRegistry, ChildrenState
from ostler.daemon.children.stack_dumps import StackDumps
from ostler.daemon.children.workers import WorkerManager
from ostler.daemon.configurations import Configurations
from ostler.daemon.environment.environments import Environments, GenerationEnvironment
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.retry_delay import RetryDelay
from ostler.daemon.start_request import StartRequest
from ostler.fleet import actions, events
from ostler.fleet.machine import Fleet
from ostler.fleet.model import ExitStatus
from ostler.fleet.state import State
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.load import Loaded

# Seconds that the timer comes after a deadline: before it the fleet would find nothing due, and ask again.
_LATER = 0.001
# So often in a row a deadline may be due again at once.
_KEPT_DEADLINES = 5


@dataclass(frozen=True, slots=True)
class Callbacks(ForkServerCallbacks):
    """What the fleet's decisions require of the rest of the daemon.

    rolled_back: called when a reload was rolled back after its end; on_event: called after each event, when
    its actions were performed.
    """

    serving: Callable[[], None]
    stopping: Callable[[], None]
    reload_ended: Callable[[int], None]
    rolled_back: Callable[[], None]
    finish: Callable[[actions.Finish], None]
    check_upgrade: Callable[[], None]
    upgrade: Callable[[], None]
    on_event: Callable[[], None]


class ShellState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries of the shell. handoff: descriptors of its two ends."""

    fleet: State
    children: ChildrenState
    hooks: HooksState
    reaper: ReaperState
    loaded: dict[int, Loaded]
    name: str
    handoff: tuple[int, int]
    app_processes: AppProcessesState = AppProcessesState()
    environments: dict[int, GenerationEnvironment] = {}

    def descriptors(self) -> list[int]:
        """The descriptors that must stay open over execve(2)."""
        return [*self.handoff, *self.children.descriptors()]


class Shell:
    """Between the fleet, which decides, and the processes. Called only by the event loop's thread.

    Args:
        start: how the daemon was asked to start.
        listeners, scoreboard, journal, ledger: what it works with.
        callbacks: called when the fleet or a child wants something of the rest of the daemon.

    Attributes:
        fleet: the state machine.
        handoff: the socket pair of the hand-off; connections may be in it, so it exists as long as the
            daemon.
        ports: for other parts of the daemon.
        environments: finds where fork servers, and the next program, are started.
    """

    def __init__(
        self,
        start: StartRequest,
        listeners: Listeners,
        scoreboard: Scoreboard,
        journal: Journal,
        ledger: Ledger,
        callbacks: Callbacks,
    ) -> None:
        self.fleet = Fleet(random.random)
        self._callbacks = callbacks
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[events.Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._failures = RetryDelay()
        # How often in a row the fleet's next deadline was still in the past after it was handled.
        self._kept_deadlines = 0
        self.handoff = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.children = ChildRegistry()
        self.attempt = Attempts(journal)
        self.configurations = Configurations(lambda: self.state)
        self.environments = Environments(start.command)
        self.ports = Ports(self._loop, journal, self.children, self.submit, lambda: self.state, self.attempt)
        self.app_processes = AppProcesses(self.ports)
        # These refer to each other: the lambdas look up the parts that are created further down.
        self.stacks = StackDumps(self.ports, scoreboard)
        self.overdue = OverdueRequests(self.ports, scoreboard, self.stacks)
        self.inbox = Inbox(
            self.ports,
            on_worker_message=lambda handle, message: self.workers.received(handle, message),
            on_fork_server_message=lambda handle, message: self.fork_servers.received(handle, message),
            on_violation=lambda child, problem: self.reaper.end_violator(child, problem),
        )
        self.hooks = HookDispatcher(
            self.ports,
            self.configurations,
            hang_up=lambda handle: self.fork_servers.hang_up(handle),
            kill=lambda child: self.reaper.kill(child),
        )
        self.reaper = Reaper(
            self.ports,
            scoreboard,
            ledger,
            self.inbox,
            on_child_ended=self.app_processes.on_child_ended,
            on_worker_ended=self._worker_ended,
            forget_worker=lambda worker_id: self.workers.forget(worker_id),
            on_fork_server_ended=lambda handle, status: self.fork_servers.ended(handle, status),
        )
        self.workers = WorkerManager(
            self.ports,
            self.configurations,
            scoreboard,
            self.inbox,
            self.stacks,
            self.reaper,
            callbacks.on_files,
        )
        self.fork_servers = ForkServerManager(
            start,
            self.ports,
            self.configurations,
            listeners,
            self.inbox,
            self.reaper,
            self.hooks,
            self.workers,
            self.app_processes,
            self.environments,
            lambda: (self.handoff[0].fileno(), self.handoff[1].fileno()),
            callbacks,
        )
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            actions.StartForkServer: self.fork_servers.start,
            actions.LoadApp: self.fork_servers.load_app,
            actions.StopForkServer: self.fork_servers.stop,
            actions.KillForkServer: self.fork_servers.kill,
            actions.UseZygote: self.fork_servers.promote_zygote,
            actions.Spawn: self.workers.spawn,
            actions.Drain: self.workers.drain,
            actions.AuditZygote: self.workers.audit_zygote,
            actions.Cancel: self.workers.cancel,
            actions.Quit: self.workers.quit,
            actions.Abort: self.workers.abort,
            actions.Kill: self.workers.kill,
            actions.DumpStack: self.overdue.dump_stack,
            actions.Interrupt: self.overdue.interrupt,
            actions.Report: lambda action: journal.record(action.level, action.name, action.fields),
            actions.Serving: lambda _action: callbacks.serving(),
            actions.Stopping: lambda _action: callbacks.stopping(),
            actions.ReloadEnded: self._reload_ended,
            actions.RolledBack: self._rolled_back,
            actions.CheckUpgrade: lambda _action: callbacks.check_upgrade(),
            actions.Upgrade: lambda _action: callbacks.upgrade(),
            actions.Finish: self._finish,
        }

    @property
    def state(self) -> State:
        """What the fleet knows, for reading only. All of the daemon reads it here."""
        return self.fleet.state

    @property
    def name(self) -> str:
        """The instance's, from the first configuration."""
        return self.fork_servers.instance_name

    # -- upgrades in place ------------------------------------------------------------------------------

    def snapshot(self) -> ShellState:
        """For `restore` in the program that comes next."""
        loaded, environments = self.configurations.snapshot()
        return ShellState(
            fleet=self.fleet.state,
            children=self.children.snapshot(),
            hooks=self.hooks.snapshot(),
            reaper=self.reaper.snapshot(),
            app_processes=self.app_processes.snapshot(),
            loaded=loaded,
            environments=environments,
            name=self.name,
            handoff=(self.handoff[0].fileno(), self.handoff[1].fileno()),
        )

    def restore(self, state: ShellState) -> None:
        """Continue where the program before this one stopped; before the first event."""
        self.fleet = Fleet.restored(state.fleet, random.random)
        self.configurations.restore(state.loaded, state.environments)
        self.fork_servers.instance_name = state.name
        for end in self.handoff:
            end.close()
        self.handoff = socket.socket(fileno=state.handoff[0]), socket.socket(fileno=state.handoff[1])
        self.hooks.restore(state.hooks)
        self.reaper.restore(state.reaper)
        self.children.restore(state.children)
        self.app_processes.restore(state.app_processes)
        for worker in self.children.workers.values():
            self.workers.watch(worker)
        for fork_server in self.children.all_fork_servers():
            self.fork_servers.watch(fork_server)
        for fork_server in list(self.children.leaving.values()):
            self.hooks.leave(fork_server)

    def close(self) -> None:
        """Ask for no more calls: the daemon has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _worker_ended(self, handle: WorkerHandle, status: ExitStatus) -> None:
        self.hooks.worker_ended(handle, status)
        self.fork_servers.let_unused_end(handle)

    # -- events and actions -----------------------------------------------------------------------------

    def submit(self, event: events.Event) -> None:
        """Hand an event to the fleet, and perform the actions that it wants."""
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._handle(self._waiting.popleft())
        finally:
            self._busy = False
            self._set_timer()
        self.attempt("what follows an event", self._callbacks.on_event)

    def _handle(self, event: events.Event) -> None:
        """If the fleet fails at an event, the event is lost and the next one is handled."""
        now = time.monotonic()
        try:
            wanted = self.fleet.handle(event, now)
        except Exception:  # noqa: BLE001 - our own error must not end the supervision of what serves
            if isinstance(event, events.DeadlinePassed):
                self._failures.failed(now)
            self.attempt.failed(f"the fleet can't handle {event!r}")
            return
        if isinstance(event, events.DeadlinePassed):
            self._judge_deadlines(now)
        # First: a fork server has to know the number of workers before it forks the next one.
        self.attempt("hooks", self.hooks.check_workers_number)
        for action in wanted:
            self._perform_safely(action)
        if isinstance(event, events.StopAsked) and self.state.stopping == "quick":
            self.attempt("hurrying", self.app_processes.hurry)

    def _judge_deadlines(self, now: float) -> None:
        """A deadline that stays in the past after it was handled is a defect, as an exception is."""
        deadline = self.attempt("the fleet's next deadline", self.fleet.next_deadline)
        self._kept_deadlines = self._kept_deadlines + 1 if deadline is not None and deadline <= now else 0
        if self._kept_deadlines > _KEPT_DEADLINES:
            self._failures.failed(now)
        else:
            self._failures.succeeded()

    def _perform_safely(self, action: actions.Action) -> None:
        """If our own code fails at one action, those after it are performed all the same."""
        try:
            self._perform[type(action)](action)
        except Exception:  # noqa: BLE001 - see above
            self.attempt.failed(f"can't perform {action!r}")
            self._give_up(action)

    def _give_up(self, action: actions.Action) -> None:
        """The fleet must not wait for a process that was never started."""
        if isinstance(action, actions.Spawn):
            self.workers.forget(action.worker_id)
            self.submit(events.SpawnFailed(action.worker_id, "a defect of Ostler's, see the log"))
        elif (
            isinstance(action, actions.Cancel | actions.Quit | actions.Kill)
            and action.worker_id not in self.children.workers
        ):
            self.submit(events.WorkerExited(action.worker_id, ExitStatus(), outsider=True))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        try:
            deadline = self.fleet.next_deadline()
        except Exception:  # noqa: BLE001 - as for an event
            self._failures.failed(now)
            self.attempt.failed("the fleet can't compute its next deadline")
            deadline = now
        if deadline is not None:
            # A fleet that fails leaves its deadline in the past, and must not be called all the time.
            delay = max(deadline - now, self._failures.wait(now), 0.0) + _LATER
            self._timer = self._loop.call_later(delay, self.submit, events.DeadlinePassed())

    def _reload_ended(self, action: actions.ReloadEnded) -> None:
        self.fork_servers.settle_listeners()
        self._callbacks.reload_ended(action.generation)
        self.fork_servers.forget_configurations()

    def _rolled_back(self, _action: actions.RolledBack) -> None:
        self.fork_servers.settle_listeners()
        self._callbacks.rolled_back()
        self.fork_servers.forget_configurations()

    def _finish(self, action: actions.Finish) -> None:
        self.hooks.finished()
        quick = self.state.stopping == "quick"
        self.app_processes.end_all(quick, lambda: self._callbacks.finish(action))
