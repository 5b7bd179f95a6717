"""A stage for the fleet: a simulated shell, kernel and user code with a virtual clock.

`World` performs the fleet's actions as the real shell would, and fails when the fleet asks for the impossible
(a spawn by a dead fork server, a signal to a reaped process). Nothing moves by itself: each step of a fork
server or worker is one call, and time passes in `pass_time`. `settle` lets all processes do what they were
asked.

`Play` puts short words on top of it, so that a test reads as a play:

    running(workers=2).exits(1, signal=9).then(spawn(1)).ready(1).then()
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Self

import msgspec

from ostler.fleet import actions, events
from ostler.fleet.machine import Fleet
from ostler.fleet.model import ExitStatus, FleetPolicy, Load
from ostler.fleet.state import State
from tests.kit.policies import fleet_policy

# How long "just before" is, and the largest difference that counts as a rounding error.
_BEFORE = 1e-6
_ROUNDING = 1e-9


Order = Literal["drain", "zygote", "cancel", "quit", "abort", "kill"]
SIGNALS: dict[type[actions.Action], Order] = {
    actions.Cancel: "cancel",
    actions.Quit: "quit",
    actions.Abort: "abort",
    actions.Kill: "kill",
}


# -- the world ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class SimForkServer:
    state: Literal["started", "configured", "up"] = "started"
    ordered: Literal["stop", "kill"] | None = None


@dataclass(slots=True)
class SimWorker:
    slot: int
    generation: int
    state: Literal["asked", "booting", "serving"] = "asked"
    """asked: the fork server has not forked it yet."""
    ordered: Order | None = None
    audited: bool = True
    """False while the fleet waits for its audit."""


class World:
    """A simulation of all that is outside of the fleet.

    Args:
        policy: see below.
        chance: the fleet's random numbers.

    Attributes:
        policy: of the next evaluated configuration, if no other is given.
        fork_servers: live ones by generation.
        workers: by worker id, from the wish to spawn them to their reaping.
        spawned_ever: slot and generation of every worker id there ever was.
        upgrade: what an upgrade in place waits for.
    """

    def __init__(self, policy: FleetPolicy | None = None, chance: Callable[[], float] = lambda: 0.5) -> None:
        self.fleet = Fleet(chance, strict=True)
        self.chance = chance
        self.now = 1000.0
        self.policy = policy or fleet_policy()
        self.fork_servers: dict[int, SimForkServer] = {}
        self.workers: dict[int, SimWorker] = {}
        self.spawned_ever: dict[int, tuple[int, int]] = {}
        self.finished: list[actions.Finish] = []
        self.policies: dict[int, FleetPolicy] = {}
        self.upgrade: Literal["check", "exec"] | None = None

    def hand_in(self, event: events.Event) -> list[actions.Action]:
        """Give the fleet an event and perform what it answers."""
        out = self.decide(event)
        for action in out:
            self.perform(action)
        return out

    def decide(self, event: events.Event) -> list[actions.Action]:
        return self.fleet.handle(event, self.now)

    def perform(self, action: actions.Action) -> None:
        match action:
            case actions.StartForkServer(generation):
                assert generation not in self.fork_servers, f"{action}: it has one"
                self.fork_servers[generation] = SimForkServer()
            case actions.LoadApp(generation):
                assert self.fork_servers[generation].state == "configured", action
            case actions.StopForkServer(generation):
                self.fork_servers[generation].ordered = "stop"
            case actions.KillForkServer(generation):
                self.fork_servers[generation].ordered = "kill"
            case actions.Spawn(worker_id, slot, generation):
                server = self.fork_servers[generation]
                assert server.state == "up", f"{action}: it can't spawn yet"
                assert server.ordered is None, f"{action}: it is to end"
                assert worker_id not in self.spawned_ever, f"{action}: worker ids are never reused"
                self.workers[worker_id] = SimWorker(slot, generation)
                self.spawned_ever[worker_id] = slot, generation
            case actions.Drain(worker_id, _, zygote):
                assert self.workers[worker_id].state == "serving", f"{action}: it does not serve"
                self.workers[worker_id].ordered = "zygote" if zygote else "drain"
            case actions.AuditZygote(worker_id):
                assert self.workers[worker_id].state == "serving", f"{action}: it does not serve"
                self.workers[worker_id].audited = False
            case actions.UseZygote(worker_id, generation):
                assert self.workers.pop(worker_id).ordered == "zygote", (
                    f"{action}: it was not asked to be one"
                )
                # The fork server before ends. Workers that it has not forked yet will never exist.
                self.fork_servers[generation] = SimForkServer("up")
                self._forget_unforked(generation)
            case (
                actions.Cancel(worker_id)
                | actions.Quit(worker_id)
                | actions.Abort(worker_id)
                | actions.Kill(worker_id)
            ):
                worker = self.workers[worker_id]
                # Before the fork there is no process that could get a signal.
                if worker.state != "asked":
                    worker.ordered = SIGNALS[type(action)]
            case actions.DumpStack(worker_id) | actions.Interrupt(worker_id):
                assert worker_id in self.workers, action
            case actions.CheckUpgrade():
                assert self.upgrade is None, f"{action}: another upgrade is running"
                self.upgrade = "check"
            case actions.Upgrade():
                assert self.upgrade is None, f"{action}: it was not checked"
                self.upgrade = "exec"
            case actions.Finish():
                assert not self.workers, f"{action}: workers are left"
                assert not self.fork_servers, f"{action}: fork servers are left"
                self.finished.append(action)
                self.upgrade = None  # the process that would have become the new program has ended
            case (
                actions.Report()
                | actions.Serving()
                | actions.ReloadEnded()
                | actions.RolledBack()
                | actions.Stopping()
            ):
                pass

    # Fork servers. Workers that a dead one was asked to spawn will never exist.

    def configure(
        self, generation: int, policy: FleetPolicy | None = None, closes_listeners: bool = False
    ) -> None:
        self.fork_servers[generation].state = "configured"
        # The configuration of a generation is the same each time it is evaluated.
        policy = self.policies.setdefault(generation, policy or self.policy)
        self.hand_in(events.ForkServerConfigured(generation, policy, closes_listeners))

    def load(self, generation: int) -> None:
        self.fork_servers[generation].state = "up"
        self.hand_in(events.AppLoaded(generation))

    def end_fork_server(self, generation: int, status: ExitStatus) -> None:
        del self.fork_servers[generation]
        self._forget_unforked(generation)
        self.hand_in(events.ForkServerExited(generation, status))

    def _forget_unforked(self, generation: int) -> None:
        for worker_id, worker in list(self.workers.items()):
            if worker.generation == generation and worker.state == "asked":
                del self.workers[worker_id]

    # Workers.

    def fork(self, worker_id: int) -> None:
        self.workers[worker_id].state = "booting"
        self.hand_in(events.WorkerForked(worker_id, pid=10_000 + worker_id))

    def fail_to_fork(self, worker_id: int, reason: str = "no memory", unread: bool = False) -> None:
        del self.workers[worker_id]
        self.hand_in(events.SpawnFailed(worker_id, reason, unread))

    def boot(self, worker_id: int) -> None:
        self.workers[worker_id].state = "serving"
        self.hand_in(events.WorkerReady(worker_id))

    def reap(self, worker_id: int, status: ExitStatus, outsider: bool = False) -> None:
        del self.workers[worker_id]
        self.hand_in(events.WorkerExited(worker_id, status, outsider))

    def audit(self, worker_id: int, problems: tuple[str, ...] = (), warnings: tuple[str, ...] = ()) -> None:
        self.workers[worker_id].audited = True
        self.hand_in(events.ZygoteAudited(worker_id, problems, warnings))

    # Upgrades in place.

    def check_upgrade(self, problem: str | None = None) -> None:
        self.upgrade = None
        self.hand_in(events.UpgradeChecked(problem))

    def take_over(self, problem: str | None = None) -> None:
        """The new program runs with the state that the old one had;
        or, with a problem, the old program continues.
        """
        self.upgrade = None
        if problem is not None:
            self.hand_in(events.UpgradeChecked(problem))
            return
        self.fleet = Fleet.restored(carried(self.fleet.state), self.chance, strict=True)
        self.hand_in(events.UpgradeDone("2"))

    # Time, and processes that do what they were asked.

    def pass_time(self, seconds: float) -> None:
        """Let time pass, with a timer that does what `Fleet.next_deadline` asks for."""
        end = self.now + seconds
        at_once = 0
        while (deadline := self.fleet.next_deadline()) is not None and deadline <= end + _ROUNDING:
            at_once = at_once + 1 if deadline <= self.now else 0
            assert at_once < 10, f"the timer spins: it is {self.now}, the deadline is {deadline}"
            self.now = max(self.now, deadline)
            self.hand_in(events.DeadlinePassed())
        self.now = max(self.now, end)

    def step(self) -> bool:
        """Let one process do what it should do next; False if all processes wait for the fleet or time."""
        if self.upgrade is not None:
            if self.upgrade == "check":
                self.check_upgrade()
            else:
                self.take_over()
            return True
        for generation, server in self.fork_servers.items():
            if server.ordered:
                self.end_fork_server(generation, _ended_by(server.ordered))
                return True
            if server.state == "started":
                self.configure(generation)
                return True
            if server.state == "configured":
                self.load(generation)
                return True
        for worker_id, worker in self.workers.items():
            if worker.state == "asked":
                self.fork(worker_id)
                return True
            if worker.ordered == "zygote":
                self.hand_in(events.ZygoteReady(worker_id))
                return True
            if worker.ordered:
                self.reap(worker_id, _ended_by(worker.ordered))
                return True
            if worker.state == "booting":
                self.boot(worker_id)
                return True
            if not worker.audited:
                self.audit(worker_id)
                return True
        return False

    def settle(self, limit: float = 600.0) -> None:
        """Let all processes do what they were asked, and let time pass,
        until only recycling for age is left to be done.
        """
        end = self.now + limit
        while True:
            if self.step():
                continue
            deadline = self.fleet.next_deadline()
            if deadline is None or self._only_ages():
                return
            assert deadline <= end, f"not at rest after {limit} seconds"
            self.pass_time(deadline - self.now)

    def _only_ages(self) -> bool:
        """Whether the fleet only waits until workers reach their maximum age."""
        if not any(worker.age_limit for worker in self.fleet.state.workers.values()):
            return False
        ageless = Fleet.restored(deepcopy(self.fleet.state))
        for worker in ageless.state.workers.values():
            worker.age_limit = None
        return ageless.next_deadline() is None


def carried(state: State) -> State:
    """The state after it was written to and read from a file, as in an upgrade in place."""
    return msgspec.json.decode(msgspec.json.encode(state), type=State)


def _ended_by(order: str) -> ExitStatus:
    return {"kill": ExitStatus(signal=9), "abort": ExitStatus(signal=6)}.get(order, ExitStatus(code=0))


# -- what a play expects --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cue:
    """An action by its effect: what is done to which slot and generation; None stands for any."""

    what: str
    slot: int | None = None
    generation: int | None = None

    def fits(self, other: "Cue") -> bool:
        return (
            self.what == other.what
            and self.slot in (None, other.slot)
            and self.generation in (None, other.generation)
        )

    def __str__(self) -> str:
        slot = "" if self.slot is None else f" slot {self.slot}"
        generation = "" if self.generation is None else f" gen {self.generation}"
        return self.what + slot + generation


def spawn(slot: int, generation: int | None = None) -> Cue:
    return Cue("Spawn", slot, generation)


def drain(slot: int, generation: int | None = None) -> Cue:
    return Cue("Drain", slot, generation)


def end(slot: int, generation: int | None = None) -> Cue:
    return Cue("Quit", slot, generation)


def cancel(slot: int, generation: int | None = None) -> Cue:
    return Cue("Cancel", slot, generation)


def abort(slot: int, generation: int | None = None) -> Cue:
    return Cue("Abort", slot, generation)


def kill(slot: int, generation: int | None = None) -> Cue:
    return Cue("Kill", slot, generation)


def dump_stack(slot: int) -> Cue:
    return Cue("DumpStack", slot)


def interrupt(slot: int) -> Cue:
    return Cue("Interrupt", slot)


def audit_zygote(slot: int) -> Cue:
    return Cue("AuditZygote", slot)


def use_zygote(slot: int, generation: int | None = None) -> Cue:
    return Cue("UseZygote", slot, generation)


def start_fork_server(generation: int) -> Cue:
    return Cue("StartForkServer", generation=generation)


def load_app(generation: int) -> Cue:
    return Cue("LoadApp", generation=generation)


def stop_fork_server(generation: int) -> Cue:
    return Cue("StopForkServer", generation=generation)


def kill_fork_server(generation: int) -> Cue:
    return Cue("KillForkServer", generation=generation)


def reload_ended(generation: int) -> Cue:
    return Cue("ReloadEnded", generation=generation)


def rolled_back(generation: int) -> Cue:
    return Cue("RolledBack", generation=generation)


SERVING = Cue("Serving")
STOPPING = Cue("Stopping")
FINISH = Cue("Finish")
CHECK_UPGRADE = Cue("CheckUpgrade")
UPGRADE = Cue("Upgrade")


# -- the play -------------------------------------------------------------------------------------------


class Play(World):
    """A world in which a test names slots instead of worker ids, and checks the fleet's actions.

    Events add the fleet's actions to those not checked yet; `then` compares and removes them. Reports are
    kept separately: `reported` looks for them.
    """

    def __init__(self, **policy: Any) -> None:
        super().__init__(fleet_policy(**policy))
        self.unseen: list[Cue] = []
        self.reports: list[actions.Report] = []

    def perform(self, action: actions.Action) -> None:
        if isinstance(action, actions.Report):
            self.reports.append(action)
        else:
            self.unseen.append(self._cue(action))
        super().perform(action)

    def _cue(self, action: actions.Action) -> Cue:
        slot, generation = getattr(action, "slot", None), getattr(action, "generation", None)
        if (worker_id := getattr(action, "worker_id", None)) in self.spawned_ever:
            slot, generation = self.spawned_ever[worker_id]
        return Cue(type(action).__name__, slot, generation)

    # -- expectations

    def then(self, *expected: Cue) -> Self:
        """The fleet has asked for these actions, in this order, and for no others since the last check."""
        seen, self.unseen = self.unseen, []
        same = len(seen) == len(expected) and all(a.fits(b) for a, b in zip(expected, seen, strict=True))
        assert same, f"expected {[str(cue) for cue in expected]}, seen {[str(cue) for cue in seen]}"
        return self

    def nothing_until(self, seconds: float) -> Self:
        """No action before `seconds` from now. Actions at that moment are left for `then`."""
        self.then()
        moment = self.now + seconds
        self.pass_time(seconds - _BEFORE)
        self.then()
        self.pass_time(moment - self.now)
        return self

    def reported(self, name: str, **fields: Any) -> Self:
        """The newest report of this name has these fields."""
        found = [report for report in self.reports if report.name == name]
        assert found, f"no report {name!r}, only {[report.name for report in self.reports]}"
        assert found[-1].fields | fields == found[-1].fields, found[-1]
        return self

    def never_reported(self, name: str) -> Self:
        assert not [report for report in self.reports if report.name == name], name
        return self

    # -- events of fork servers, by default the newest

    def start(self) -> Self:
        return self.on(events.StartAsked())

    def on(self, event: events.Event) -> Self:
        """Hand in any event."""
        self.hand_in(event)
        return self

    def configured(self, generation: int | None = None, **policy: Any) -> Self:
        """The configuration is good; `policy` is what it changes."""
        if policy:
            self.policy = fleet_policy(**policy)
        self.configure(generation or max(self.fork_servers))
        return self

    def app_loaded(self, generation: int | None = None) -> Self:
        self.load(generation or max(self.fork_servers))
        return self

    def loaded(self, generation: int | None = None, **policy: Any) -> Self:
        """Configured, and the app loaded."""
        return self.configured(generation, **policy).app_loaded(generation)

    def generation_failed(
        self,
        generation: int | None = None,
        reason: str = "bad",
        traceback: str | None = None,
        app_failed: bool = False,
        invalid: bool = False,
    ) -> Self:
        number = generation or max(self.fork_servers)
        return self.on(events.GenerationFailed(number, reason, traceback, app_failed, invalid))

    def fork_server_exits(self, generation: int | None = None, signal: int = 9) -> Self:
        self.end_fork_server(generation or max(self.fork_servers), ExitStatus(signal=signal))
        return self

    # -- events of workers, by slot

    def forked(self, slot: int) -> Self:
        self.fork(self._booting(slot))
        return self

    def ready(self, *slots: int) -> Self:
        """The newest worker of each slot is forked, boots and serves."""
        for slot in slots:
            worker_id = self._booting(slot)
            if self.workers[worker_id].state == "asked":
                self.fork(worker_id)
            self.boot(worker_id)
        return self

    def boot_fails(self, slot: int, reason: str = "no app", traceback: str | None = None) -> Self:
        """The newest worker of the slot reports that it can't load the app, and exits."""
        worker_id = self._booting(slot)
        if self.workers[worker_id].state == "asked":
            self.fork(worker_id)
        self.hand_in(events.WorkerBootFailed(worker_id, reason, traceback))
        self.reap(worker_id, ExitStatus(code=3))
        return self

    def exits(
        self, slot: int, code: int | None = None, signal: int | None = None, outsider: bool = False
    ) -> Self:
        """A worker of the slot ends: the one that was asked to end, else the newest."""
        here = self._here(slot)
        found = [worker_id for worker_id in here if self.workers[worker_id].ordered]
        worker_id = found[0] if found else here[-1]
        if code is None and signal is None:
            code = 0
        self.reap(worker_id, ExitStatus(code, signal), outsider)
        return self

    def crashes(self, *slots: int) -> Self:
        """The newest worker of each slot serves and dies of a segmentation fault."""
        for slot in slots:
            self.reap(self._serving_newest(slot), ExitStatus(signal=11))
        return self

    def recycle_due(self, slot: int, requests: int = 1000) -> Self:
        return self.on(events.RecycleDue(self._serving(slot), requests))

    def overdue(self, slot: int, thread: int = 0, path: str = "/slow", age: float = 30.0) -> Self:
        return self.on(events.RequestOverdue(self._serving(slot), thread, "GET", path, age))

    def only_overdue_left(self, slot: int) -> Self:
        return self.on(events.OnlyOverdueLeft(self._serving(slot)))

    def overdue_ended(self, slot: int) -> Self:
        return self.on(events.OverdueEnded(self._serving(slot)))

    def stalls(self, slot: int, age: float = 10.0) -> Self:
        return self.on(events.LoopStalled(self._serving_newest(slot), age))

    def measured(self, *slots: int, memory_free: int | None = None, **load: Any) -> Self:
        """All serving workers, or the newest ones of these slots, have these measurements; see `Load`."""
        serving = [worker_id for worker_id, worker in self.workers.items() if worker.state == "serving"]
        worker_ids = [self._serving_newest(slot) for slot in slots] or serving
        return self.on(events.Measured({worker_id: Load(**load) for worker_id in worker_ids}, memory_free))

    def audited(self, slot: int, *problems: str, warnings: tuple[str, ...] = ()) -> Self:
        """The worker in the slot answers the audit."""
        self.audit(self._serving(slot), problems, warnings)
        return self

    def zygote_ready(self, slot: int) -> Self:
        """The worker of the slot that drains to become a zygote has drained."""
        found = [worker_id for worker_id in self._here(slot) if self.workers[worker_id].ordered == "zygote"]
        return self.on(events.ZygoteReady(found[0]))

    # -- requests of operators, and time

    def scale(self, workers: int) -> Self:
        return self.on(events.ResizeAsked("test", workers=workers))

    def scale_by(self, delta: int) -> Self:
        return self.on(events.ResizeAsked("test", delta=delta))

    def reload(self) -> Self:
        return self.on(events.ReloadAsked("test"))

    def recycle(self, slot: int) -> Self:
        return self.on(events.RecycleAsked("test", slot))

    def refork(self, slot: int | None = None, force: bool = False) -> Self:
        return self.on(events.ReforkAsked("test", slot, force))

    def upgrade_asked(self) -> Self:
        return self.on(events.UpgradeAsked("test"))

    def upgrade_checked(self, problem: str | None = None) -> Self:
        self.check_upgrade(problem)
        return self

    def taken_over(self, problem: str | None = None) -> Self:
        self.take_over(problem)
        return self

    def pause(self) -> Self:
        return self.on(events.PauseAsked("test"))

    def drain(self) -> Self:
        return self.on(events.DrainAsked("test"))

    def resume(self) -> Self:
        return self.on(events.ResumeAsked("test"))

    def abort_reload(self) -> Self:
        return self.on(events.AbortReloadAsked("test"))

    def rollback(self) -> Self:
        return self.on(events.RollbackAsked("test"))

    def stop(self) -> Self:
        return self.on(events.StopAsked("test", "graceful"))

    def stop_quickly(self) -> Self:
        return self.on(events.StopAsked("test", "quick"))

    def after(self, seconds: float) -> Self:
        self.pass_time(seconds)
        return self

    def settle_processes(self) -> Self:
        """All processes do what they were asked, and no time passes."""
        while self.step():
            pass
        return self

    def settled(self) -> Self:
        """All processes do what they were asked until nothing is left to do;
        the actions meanwhile are not checked.
        """
        self.settle()
        self.unseen.clear()
        return self

    # -- state

    def slots(self, generation: int | None = None) -> list[int]:
        """The slots of all serving workers that are not to be replaced, of one generation or of all."""
        return sorted(
            worker.slot
            for worker in self.workers.values()
            if worker.state == "serving" and not worker.ordered and generation in (None, worker.generation)
        )

    def _here(self, slot: int) -> list[int]:
        return [worker_id for worker_id, worker in self.workers.items() if worker.slot == slot]

    def _booting(self, slot: int) -> int:
        return [worker_id for worker_id in self._here(slot) if self.workers[worker_id].state != "serving"][-1]

    def _serving(self, slot: int) -> int:
        return next(worker_id for worker_id in self._here(slot) if self.workers[worker_id].state == "serving")

    def _serving_newest(self, slot: int) -> int:
        return [worker_id for worker_id in self._here(slot) if self.workers[worker_id].state == "serving"][-1]


def running(**policy: Any) -> Play:
    """A play whose fleet is at rest with all its workers ready."""
    return Play(**policy).start().settled()
