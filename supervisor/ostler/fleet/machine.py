"""The fleet's state machine: events in, actions out.

`Fleet.handle` takes one event in three steps. First the event's handler (`HANDLERS`) updates what is known.
Then deadlines that have passed expire (`timers`). Last, `RECONCILE` compares what is known with what is
wanted: slots 1 to `wanted`, each held by one ready worker of the current generation. While the fleet stops,
`stopping.wind_down` takes the place of `RECONCILE`. Each step may add actions; most come from the last. So
the same few rules do starting, scaling, recycling, reloading, reforking and repairing:

- A slot without a worker gets one at once, unless boots keep failing or workers keep crashing (then after a
  backoff).
- A ready worker that must go (`leaving`) is only drained when its successor in the slot is ready, or when its
  slot is not wanted any more: make before break.
- What is stale (of an older generation, or of an older zygote) must go. A reload, a roll-back and a refork
  only change what is current.

Each module beside this one is about one subject; its functions get a `FleetStep`, which has the state, the
time and the list of actions. Which changes of state are legal is in the tables of `lifecycle`.

Time comes in with every call (CLOCK_MONOTONIC, seconds); `next_deadline` says when to call again with
`DeadlinePassed` if nothing else happens.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

from ostler.fleet import (
    actions,
    boots,
    deaths,
    events,
    fork_server_reports,
    fork_servers,
    measurements,
    overdue,
    probation,
    reforks,
    reloads,
    scaling,
    slots,
    stopping,
    timers,
    upgrades,
    workers,
)
from ostler.fleet.state import State
from ostler.fleet.step import FleetStep

HANDLERS: Mapping[type[Any], Callable[[FleetStep, Any], None]] = {
    events.StartAsked: fork_servers.start_first,
    events.ForkServerConfigured: fork_server_reports.configured,
    events.AppLoaded: fork_server_reports.loaded,
    events.GenerationFailed: fork_server_reports.failed,
    events.ForkServerExited: fork_server_reports.exited,
    events.WorkerForked: workers.forked,
    events.SpawnFailed: boots.spawn_failed,
    events.WorkerReady: boots.ready,
    events.WorkerBootFailed: boots.app_failed,
    events.WorkerExited: deaths.exited,
    events.RecycleDue: slots.recycle_due,
    events.RequestOverdue: overdue.request_overdue,
    events.OverdueEnded: overdue.overdue_ended,
    events.OnlyOverdueLeft: overdue.only_overdue_left,
    events.LoopStalled: overdue.stalled,
    events.ZygoteAudited: reforks.audited,
    events.ZygoteReady: reforks.zygote_ready,
    events.Measured: measurements.measured,
    events.CpusIdle: slots.cpus_idle,
    events.DeadlinePassed: lambda _step, _event: None,
    events.ResizeAsked: scaling.resize,
    events.ReloadAsked: reloads.asked,
    events.AbortReloadAsked: probation.abort_asked,
    events.RollbackAsked: probation.rollback_asked,
    events.RecycleAsked: slots.recycle_asked,
    events.ReforkAsked: reforks.asked,
    events.PauseAsked: scaling.pause,
    events.DrainAsked: scaling.drain,
    events.ResumeAsked: scaling.resume,
    events.StopAsked: stopping.asked,
    events.UpgradeAsked: upgrades.asked,
    events.UpgradeChecked: upgrades.checked,
    events.UpgradeDone: upgrades.done,
}
"""What each event changes."""

RECONCILE: tuple[Callable[[FleetStep], None], ...] = (
    deaths.forget_old,
    reloads.follow_canary,
    boots.announce,
    probation.follow,
    reforks.follow,
    fork_servers.keep_current,
    reloads.start_canary,
    slots.mark_leaving,
    slots.note_leaving,
    slots.drain_replaced,
    slots.fill,
    reloads.follow_roll,
)
"""What is done after each event unless the fleet stops, in this order."""


class Fleet:
    """Decides everything about workers and fork servers. No I/O, no clock; one thread calls it.

    Args:
        random: returns a number from 0 to 1, for jitter.
        strict: an illegal transition raises `lifecycle.IllegalTransition` (tests). Otherwise it is refused
            and reported as `internal_error`.

    Attributes:
        state: all that is known. To be read; only the fleet changes it.
    """

    def __init__(self, random: Callable[[], float] = lambda: 0.5, *, strict: bool = False) -> None:
        self.state = State()
        self._random = random
        self._strict = strict

    @classmethod
    def restored(
        cls, state: State, random: Callable[[], float] = lambda: 0.5, *, strict: bool = False
    ) -> Self:
        """A fleet that goes on from a state, which it owns from then on."""
        fleet = cls(random, strict=strict)
        fleet.state = state
        return fleet

    def handle(self, event: events.Event, now: float) -> list[actions.Action]:
        """Take in an event; returns what is to be done, in order. `now`: CLOCK_MONOTONIC, seconds."""
        step = self._step(now)
        HANDLERS[type(event)](step, event)
        timers.expire_workers(step)
        timers.expire_generations(step)
        stopping.begin_delayed(step)
        if self.state.stopping:
            stopping.wind_down(step)
        else:
            for part in RECONCILE:
                part(step)
        return step.out

    def next_deadline(self) -> float | None:
        """When to hand in `DeadlinePassed` at the latest, or None."""
        return timers.earliest(self._step(0.0))

    def _step(self, now: float) -> FleetStep:
        return FleetStep(self.state, now, self._random, self._strict)
