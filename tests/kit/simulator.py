"""Simulates a day of a fleet in seconds: a virtual clock, a load, and processes that take time.

`World` knows what processes do; `Simulator` decides when. Each action of the fleet is performed after a
while, a load is shared among the serving workers, and failures happen at random with a seed. After each event
the rules are checked that apply to every fleet at every moment. `Statistics` counts what happened.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ostler.fleet import actions, events
from ostler.fleet.model import ExitStatus, FleetPolicy, Load, WorkerState
from ostler.fleet.policies import surge
from tests.kit.play import SimWorker, World

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
MIB = 1 << 20

_SIGNALS_KILL = ExitStatus(signal=9)
_SEGFAULT = ExitStatus(signal=11)

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scenario:
    """The load and the failures of a simulation. Times in seconds from the start; spans are (from, until).

    policy: the configuration. rate: requests a second at a moment. request_seconds: what one takes in the
    app. max_requests, jitter: after how many a worker asks for a successor, each drawn by the worker itself.
    boot, drain: how long these take, drawn evenly between the two. memory, growth: bytes of a new worker, and
    per request, for some half of that and for others half as much again. crashes: a worker's chance to crash
    within an hour. poison: while requests that kill their worker come in, `poison_every` seconds apart.
    broken: while no worker can boot. reloads: seconds between them, 0 for none; fork_server_deaths: likewise.
    measured: seconds between measurements.
    """

    policy: FleetPolicy
    rate: Callable[[float], float] = lambda _: 0.0
    request_seconds: float = 0.015
    max_requests: int = 0
    jitter: int = 0
    boot: Span = (1.0, 4.0)
    drain: Span = (0.0, 3.0)
    memory: int = 50 * MIB
    growth: int = 0
    memory_free: int | None = None
    crashes: float = 0.0
    poison: Sequence[Span] = ()
    poison_every: float = 1.0
    broken: Sequence[Span] = ()
    reloads: float = 0.0
    fork_server_deaths: float = 0.0
    measured: float = 3.0


@dataclass(slots=True)
class Statistics:
    """What happened. Times in seconds from the start.

    most_extra: processes beyond the wanted number; most_booting, most_leaving: at once, the latter those that
    leave because of planned replacements; longest_outage: how long a slot was not served, at worst.
    """

    most_extra: int = 0
    most_booting: int = 0
    most_leaving: int = 0
    longest_outage: float = 0.0
    spawned: int = 0
    reaped: int = 0
    never_forked: int = 0
    crashed: int = 0
    offered: int = 0
    answered: int = 0
    recycles: list[tuple[float, str]] = field(default_factory=list)
    boots: list[float] = field(default_factory=list)
    failed_boots: list[float] = field(default_factory=list)
    fork_servers: list[float] = field(default_factory=list)
    reports: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[float, int]] = field(default_factory=list)
    """The wanted number each time it was measured."""

    def per_minute(self, cause: str) -> list[int]:
        """How many workers began to be recycled for a cause in each minute until the last one."""
        minutes = Counter(int(at // MINUTE) for at, why in self.recycles if why == cause)
        return [minutes[minute] for minute in range(max(minutes, default=-1) + 1)]


@dataclass(slots=True)
class _Process:
    """What the simulator knows of a worker process."""

    quota: int | None
    growth: float
    requests: int = 0
    asked: bool = False


class Simulator(World):
    """A scenario that runs.

    Args:
        scenario: see there.
        seed: of all that is left to chance, the fleet's jitter included.
    """

    def __init__(self, scenario: Scenario, seed: int = 0) -> None:
        self.scenario = scenario
        self.stats = Statistics()
        self.random = random.Random(seed)
        super().__init__(scenario.policy, random.Random(seed + 1).random)
        self._began = self.now
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._processes: dict[int, _Process] = {}
        self._unserved: dict[int, float] = {}
        self._crashed_slots: set[int] = set()
        self._wanted = 0
        self.hand_in(events.StartAsked())
        self._in(scenario.measured, self._measure)
        if scenario.reloads:
            self._in(scenario.reloads, self._reload)
        if scenario.fork_server_deaths:
            self._in(scenario.fork_server_deaths, self._kill_fork_server)
        for begin, _ in scenario.poison:
            self._in(begin, self._poison)

    @property
    def time(self) -> float:
        """Seconds since the start."""
        return self.now - self._began

    def run(self, seconds: float) -> "Simulator":
        """Let time pass, and let everything happen that is due."""
        end = self.now + seconds
        while True:
            deadline = self.fleet.next_deadline()
            due = self._agenda[0][0]
            if min(due, deadline if deadline is not None else due) > end:
                self.now = end
                return self
            if deadline is not None and deadline <= due:
                self.now = max(self.now, deadline)
                self.hand_in(events.DeadlinePassed())
            else:
                self.now, _, act = heapq.heappop(self._agenda)
                act()

    # -- what the fleet wants done ----------------------------------------------------------------------

    def hand_in(self, event: events.Event) -> list[actions.Action]:
        out = super().hand_in(event)
        self._check()
        return out

    def perform(self, action: actions.Action) -> None:
        super().perform(action)
        match action:
            case actions.StartForkServer(generation):
                self.stats.fork_servers.append(self.time)
                self._in(0.2, self._configure, generation, self.fork_servers[generation])
            case actions.StopForkServer(generation) | actions.KillForkServer(generation):
                self._in(0.1, self._end_fork_server, generation, self.fork_servers[generation])
            case actions.Spawn(worker_id):
                self.stats.spawned += 1
                self.stats.boots.append(self.time)
                self._in(0.02, self._fork, worker_id)
            case actions.Drain(worker_id, _, zygote):
                then = self._become_zygote if zygote else self._leave
                self._in(self._drawn(self.scenario.drain), then, worker_id)
            case (
                actions.Cancel(worker_id)
                | actions.Quit(worker_id)
                | actions.Abort(worker_id)
                | actions.Kill(worker_id)
            ):
                self._in(0.05, self._leave, worker_id)
            case actions.AuditZygote(worker_id):
                self._in(0.05, self._audit, worker_id)
            case actions.Report(_, name, fields):
                self.stats.reports[name] += 1
                if name == "recycle":
                    cause = self.fleet.state.serving(fields["slot"])
                    assert cause is not None
                    assert cause.leaving is not None
                    self.stats.recycles.append((self.time, cause.leaving.value))
            case _:
                pass

    def _in(self, seconds: float, act: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._number), lambda: act(*args)))

    def _drawn(self, span: Span) -> float:
        return self.random.uniform(*span)

    def _within(self, spans: Sequence[Span]) -> bool:
        return any(begin <= self.time < end for begin, end in spans)

    # -- fork servers -----------------------------------------------------------------------------------

    def _configure(self, generation: int, server: object) -> None:
        if self.fork_servers.get(generation) is server:
            self.configure(generation)
            self._in(0.3, self._load, generation, server)

    def _load(self, generation: int, server: object) -> None:
        if self.fork_servers.get(generation) is server:
            self.load(generation)

    def _end_fork_server(self, generation: int, server: object) -> None:
        if self.fork_servers.get(generation) is server:
            self.end_fork_server(generation, _SIGNALS_KILL)

    def _kill_fork_server(self) -> None:
        self._in(self.scenario.fork_server_deaths, self._kill_fork_server)
        if self.fork_servers:
            self.end_fork_server(self.random.choice(sorted(self.fork_servers)), _SIGNALS_KILL)

    def _forget_unforked(self, generation: int) -> None:
        before = len(self.workers)
        super()._forget_unforked(generation)
        self.stats.never_forked += before - len(self.workers)

    # -- workers ----------------------------------------------------------------------------------------

    def _fork(self, worker_id: int) -> None:
        worker = self.workers.get(worker_id)
        if worker is None or worker.state != "asked":
            return
        self.fork(worker_id)
        if worker_id in self.workers:
            self._in(self._drawn(self.scenario.boot), self._boot, worker_id)

    def _boot(self, worker_id: int) -> None:
        worker = self.workers.get(worker_id)
        if worker is None or worker.ordered:
            return
        if self._within(self.scenario.broken):
            self.stats.failed_boots.append(self.time)
            self.hand_in(events.WorkerBootFailed(worker_id, "no app", None))
            self._reaped(worker_id, ExitStatus(code=3))
            return
        quota = self.scenario.max_requests
        jitter = self.random.randint(0, self.scenario.jitter)
        growth = self.scenario.growth * self.random.uniform(0.5, 1.5)
        self._processes[worker_id] = _Process(quota + jitter if quota else None, growth)
        self.boot(worker_id)

    def _leave(self, worker_id: int) -> None:
        if worker_id in self.workers:
            self._reaped(worker_id, ExitStatus(code=0))

    def _become_zygote(self, worker_id: int) -> None:
        if worker_id in self.workers:
            self._processes.pop(worker_id, None)
            self.hand_in(events.ZygoteReady(worker_id))

    def _audit(self, worker_id: int) -> None:
        if worker_id in self.workers:
            self.audit(worker_id)

    def _reaped(self, worker_id: int, status: ExitStatus) -> None:
        self.stats.reaped += 1
        self._processes.pop(worker_id, None)
        self.reap(worker_id, status)

    def _crash(self, worker_id: int) -> None:
        self.stats.crashed += 1
        self._crashed_slots.add(self.workers[worker_id].slot)
        self._reaped(worker_id, _SEGFAULT)

    def _serving(self) -> list[tuple[int, SimWorker]]:
        """Workers that accept connections, by worker id."""
        return [(n, w) for n, w in self.workers.items() if w.state == "serving" and w.ordered is None]

    # -- what comes from outside ------------------------------------------------------------------------

    def _reload(self) -> None:
        self._in(self.scenario.reloads, self._reload)
        self.hand_in(events.ReloadAsked("the clock"))

    def _poison(self) -> None:
        if not self._within(self.scenario.poison):
            return
        self._in(self.scenario.poison_every, self._poison)
        if serving := self._serving():
            self._crash(self.random.choice(serving)[0])

    def _measure(self) -> None:
        """Distribute the load of the time since the last measurement,
        and submit the measurements to the fleet.
        """
        scenario, seconds = self.scenario, self.scenario.measured
        self._in(seconds, self._measure)
        serving = self._serving()
        rate = scenario.rate(self.time)
        if self.fleet.state.ever_ready:
            self.stats.offered += int(rate * seconds)
        loads: dict[int, Load] = {}
        due: list[int] = []
        if serving:
            self.stats.answered += int(rate * seconds)
            share = rate / len(serving)
            full = share * scenario.request_seconds >= 1.0
            for worker_id, _ in serving:
                process = self._processes[worker_id]
                own = share * (0.8 + 0.4 * self.random.random())
                process.requests += int(own * seconds)
                if process.quota is not None and process.requests >= process.quota and not process.asked:
                    process.asked = True
                    due.append(worker_id)
                busy = min(1.0, own * scenario.request_seconds)
                memory = scenario.memory + int(process.growth * process.requests)
                loads[worker_id] = Load(process.requests, 0, int(busy > 0.5), busy, 0.5 * full, memory, own)
        self.hand_in(events.Measured(loads, scenario.memory_free))
        for worker_id in due:
            self.hand_in(events.RecycleDue(worker_id, self._processes[worker_id].requests))
        chance = scenario.crashes * seconds / HOUR
        for worker_id, _ in serving:
            if chance and self.random.random() < chance and worker_id in self.workers:
                self._crash(worker_id)
        self.stats.sizes.append((self.time, self.fleet.state.wanted))

    # -- what must be true at each moment ---------------------------------------------------------------

    def _check(self) -> None:
        fleet, stats, policy = self.fleet, self.stats, self.fleet.state.policy
        if policy is None:
            return
        wanted, canary = fleet.state.wanted, fleet.state.candidate is not None
        served, replaced = set(), 0
        for worker in self.workers.values():
            if worker.ordered is None and worker.state == "serving":
                served.add(worker.slot)
            elif worker.ordered in ("drain", "zygote") and worker.slot <= wanted:
                replaced += 1
        booting = fleet.state.count(WorkerState.BOOTING) - canary
        stats.most_booting = max(stats.most_booting, booting)
        stats.most_extra = max(stats.most_extra, len(self.workers) - wanted - canary)
        stats.most_leaving = max(stats.most_leaving, replaced)
        assert booting <= policy.boot_parallelism, "beyond boot_parallelism"
        # One more for the canary, which is not part of the budget until its predecessor has ended.
        budget = surge(policy.max_surge, policy.max_surge_share, wanted)
        assert replaced <= budget + 1, "too many leave at once"
        assert fleet.state.workers.keys() == self.workers.keys(), "the fleet is wrong about what lives"
        self._check_served(served, wanted)

    def _check_served(self, served: set[int], wanted: int) -> None:
        """A slot may only be empty if its worker crashed, or if it was not wanted before."""
        if wanted > self._wanted:
            self._crashed_slots.update(range(self._wanted + 1, wanted + 1))
        self._wanted = wanted
        self._crashed_slots -= served
        for slot in self._unserved.keys() & served:
            outage = self.now - self._unserved.pop(slot)
            self.stats.longest_outage = max(self.stats.longest_outage, outage)
        for slot in set(range(1, wanted + 1)) - served:
            assert slot in self._crashed_slots, f"slot {slot} is not served, and no worker crashed there"
            self._unserved.setdefault(slot, self.now)
