"""All that is known of a fleet: plain data, which an upgrade in place hands on to the next program."""

from typing import Literal

from msgspec import Struct, field

from ostler.fleet import actions
from ostler.fleet.autoscale import Trend
from ostler.fleet.model import (
    FleetPolicy,
    Generation,
    Probation,
    Refork,
    Reload,
    Worker,
    WorkerState,
)


class State(Struct):
    """Times are CLOCK_MONOTONIC in seconds.

    workers: live processes by worker id; generations: those with a fork server, or waiting for one, by
    number; current: the generation that slots are filled with; candidate: the one that a reload is trying;
    reload: the newest; probation: what it can still be rolled back to; override: the number of workers set
    by hand, or None for the configuration's own; most_boots: how many workers may boot at once because CPUs
    are idle; autoscaled: the number that the load asks for, if it decides; draining_since: since when the
    fleet is reported as not ready while its workers serve on; stop_at: when a graceful stop that was asked
    for begins; kills: when outsiders ended workers that served, within the last minute; ever_ready: a
    worker was ready once; start_retries: how often the app was to be loaded again before that; announced:
    `actions.Serving` was returned; postponed: reports of the start that are only made if it succeeds;
    finish: how the daemon is to end; finished: that was requested.
    """

    workers: dict[int, Worker] = field(default_factory=dict)
    generations: dict[int, Generation] = field(default_factory=dict)
    current: int = 0
    candidate: int | None = None
    reload: Reload | None = None
    probation: Probation | None = None
    refork: Refork | None = None
    override: int | None = None
    most_boots: int = 0
    autoscaled: int | None = None
    trend: Trend = field(default_factory=Trend)
    paused: bool = False
    draining_since: float | None = None
    stop_at: float | None = None
    stopping: Literal["graceful", "quick"] | None = None
    upgrading: Literal["checking", "replacing"] | None = None
    ever_ready: bool = False
    start_retries: int = 0
    announced: bool = False
    postponed: list[actions.Report] = field(default_factory=list)
    finish: actions.Finish = field(default_factory=actions.Finish)
    finished: bool = False
    spawned: int = 0
    deaths: int = 0
    last_crash: str = ""
    kills: list[float] = field(default_factory=list)
    newest_generation: int = 0

    @property
    def policy(self) -> FleetPolicy | None:
        """The current generation's, or None while its configuration is being read for the first time."""
        generation = self.generations.get(self.current)
        return generation.policy if generation else None

    @property
    def wanted(self) -> int:
        """How many workers there should be."""
        if self.paused or self.stopping or self.policy is None:
            return 0
        if self.override is not None:
            return self.override
        return self.policy.workers if self.autoscaled is None else self.autoscaled

    @property
    def ready(self) -> int:
        """How many of the wanted slots are served; a slot whose successor is ready too counts once."""
        wanted = self.wanted
        return len(
            {w.slot for w in self.workers.values() if w.state is WorkerState.READY and w.slot <= wanted}
        )

    def count(self, state: WorkerState) -> int:
        """How many workers are in a state."""
        return sum(worker.state is state for worker in self.workers.values())

    def serving(self, slot: int) -> Worker | None:
        """The worker that serves in a slot; of two, the newer; never a canary, which is on trial only."""
        found = [
            w
            for w in self.workers.values()
            if w.slot == slot and w.state is WorkerState.READY and w.generation != self.candidate
        ]
        return max(found, key=lambda worker: worker.worker_id, default=None)
