"""The fleet's state machine.

`handle` takes one event, updates what is known, and lets `_reconcile` compare that with what is wanted:
slots 1 to `wanted`, each held by one ready worker of the current generation. The difference comes back as
actions. The same few rules do starting, scaling, recycling, reloading, reforking and repairing:

- A slot without a worker gets one at once, unless boots keep failing or workers keep crashing (then after a
  backoff).
- A ready worker that must go (`leaving`) is only drained when its successor in the slot is ready, or when its
  slot is not wanted any more: make before break.
- Successors of planned replacements exist within `max_surge`; boots happen within `boot_parallelism`.
- What is stale (of an older generation, or of an older zygote) must go. A reload, a rollback and a refork
  only change what is current.

The parts: `state` (what is known), `generations` (reloads, probation), `slots` (boots, successors, ends),
`upkeep` (measurements, hanging requests, zygotes), and here who is told what.

Time comes in with every call (CLOCK_MONOTONIC, seconds); `next_deadline` says when to call again with
`DeadlinePassed` if nothing else happens.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields
from typing import Any, Self

from ostler.fleet import actions, events
from ostler.fleet.model import Cause, GenerationState, ReloadPhase
from ostler.fleet.policies import MAX_WORKERS
from ostler.fleet.slots import BOOTING, READY
from ostler.fleet.state import State
from ostler.fleet.upkeep import Upkeep


class Fleet(Upkeep):
    """All that is known of the fleet, and the only one who decides.

    Args:
        random: a number from 0 to 1, for jitter.
    """

    def __init__(self, random: Callable[[], float] = lambda: 0.5) -> None:
        super().__init__(random)
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            events.StartAsked: self._on_start,
            events.ForkServerConfigured: self._on_configured,
            events.AppLoaded: self._on_app_loaded,
            events.GenerationFailed: self._on_generation_failed,
            events.ForkServerExited: self._on_fork_server_exited,
            events.WorkerForked: self._on_forked,
            events.SpawnFailed: self._on_spawn_failed,
            events.WorkerReady: self._on_ready,
            events.WorkerBootFailed: self._on_boot_failed,
            events.WorkerExited: self._on_exited,
            events.RecycleDue: self._on_recycle_due,
            events.RequestOverdue: self._on_overdue,
            events.OverdueEnded: self._on_overdue_ended,
            events.OnlyOverdueLeft: self._on_only_overdue_left,
            events.LoopStalled: self._on_stalled,
            events.ZygoteAudited: self._on_zygote_audited,
            events.ZygoteReady: self._on_zygote_ready,
            events.Measured: self._on_measured,
            events.DeadlinePassed: lambda _event, _now: None,
            events.ResizeAsked: self._on_resize,
            events.ReloadAsked: self._on_reload,
            events.RecycleAsked: self._on_recycle_asked,
            events.ReforkAsked: self._on_refork_asked,
            events.PauseAsked: self._on_pause,
            events.StopAsked: self._on_stop,
            events.UpgradeAsked: self._on_upgrade_asked,
            events.UpgradeChecked: self._on_upgrade_checked,
            events.UpgradeDone: self._on_upgrade_done,
        }

    # -- the calls of the shell -------------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> list[actions.Action]:
        """Take note of an event; returns what is to be done, in order."""
        self._handlers[type(event)](event, now)
        self._reconcile(now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """When to hand in `DeadlinePassed` at the latest, or None."""
        times: list[float | None] = []
        for worker in self.workers.values():
            times += (
                worker.deadline,
                worker.age_limit,
                self._grace_end(worker),
                self._fork_deadline(worker),
            )
        times += [generation.deadline for generation in self.generations.values()]
        if not self.stopping:
            current = self.generations.get(self.current)
            # Elsewhere a retry waits for something else first: a fork server's end, or its loading.
            if current and current.state in (GenerationState.DOWN, GenerationState.UP):
                times.append(current.retry_at)
            if self.reload is not None and self.reload.phase is ReloadPhase.CANARY:
                times.append(self.reload.canary_until)
            if self.probation is not None:
                times.append(self.probation.until)
            if self.refork is not None and not self.refork.audited:
                times.append(self.refork.deadline)
        return min((time for time in times if time is not None), default=None)

    def snapshot(self) -> State:
        """All that is known, for `restored`."""
        return State(**{field.name: deepcopy(getattr(self, field.name)) for field in fields(State)})

    @classmethod
    def restored(cls, state: State, random: Callable[[], float] = lambda: 0.5) -> Self:
        """The fleet as it was when `snapshot` gave the state."""
        fleet = cls(random)
        for field in fields(State):
            setattr(fleet, field.name, getattr(state, field.name))
        return fleet

    # -- facts ------------------------------------------------------------------------------------------

    def _on_start(self, _: events.StartAsked, now: float) -> None:
        self.current = self._new_generation(now)

    def _on_configured(self, event: events.ForkServerConfigured, now: float) -> None:
        generation = self.generations.get(event.generation)
        if generation is None or generation.state is not GenerationState.CONFIGURING:
            return
        generation.policy = event.policy
        generation.closes_listeners = event.closes_listeners
        generation.has_app = event.policy.preload
        generation.state = GenerationState.LOADING
        generation.deadline = now + event.policy.boot_timeout if event.policy.boot_timeout else None
        self._do(actions.LoadApp(event.generation))

    def _on_app_loaded(self, event: events.AppLoaded, now: float) -> None:
        generation = self.generations.get(event.generation)
        if generation is None or generation.state is not GenerationState.LOADING:
            return
        generation.state = GenerationState.UP
        generation.deadline = None
        generation.up_since = now
        if self.candidate == event.generation and self.reload is not None:
            self.reload.phase = ReloadPhase.CANARY

    def _on_generation_failed(self, event: events.GenerationFailed, now: float) -> None:
        self._generation_failed(event.generation, event.reason, event.traceback, event.app_failed, now)

    def _on_fork_server_exited(self, event: events.ForkServerExited, now: float) -> None:
        generation = self.generations.get(event.generation)
        if generation is None:
            return
        generation.unread_since = None
        # What was asked of it and never forked will not come.
        self._give_up_unforked(event.generation)
        reason = f"ended with {event.status}"
        if event.problem:
            reason = f"was killed for a protocol error: {event.problem}"
        self._fork_server_gone(generation, f"the fork server {reason}", now)

    def _on_forked(self, event: events.WorkerForked, now: float) -> None:
        if worker := self.workers.get(event.worker_id):
            self._forked(worker, event.pid, now)

    def _on_spawn_failed(self, event: events.SpawnFailed, now: float) -> None:
        if worker := self.workers.pop(event.worker_id, None):
            if event.unread and self._reads_nothing(worker.generation, now):
                return
            self._boot_failed(worker, f"can't fork: {event.reason}", None, now)

    def _on_ready(self, event: events.WorkerReady, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is not None and worker.cancelled:
            self._serves_already(worker, now)
        if worker is None or worker.state is not BOOTING:
            return
        self._report(
            "info", "worker_ready", worker, boot_seconds=round(now - worker.spawned_at, 3), pid=worker.pid
        )
        self._enter(worker, READY, now, deadline=None)
        if generation := self.generations.get(worker.generation):
            if generation.failures:
                generation.failures = 0
                generation.retry_at = None
            generation.server_failures = 0
            policy = generation.policy
            if policy is not None and policy.max_age:
                worker.age_limit = now + policy.max_age + policy.max_age_jitter * self._random()
        if not self.ever_ready:
            self.ever_ready = True
            self._out += self._held
            self._do(actions.Serving())
        if self.reload and self.reload.running and self.reload.canary_worker_id == worker.worker_id:
            self._canary_ready(self.reload, now)

    def _on_boot_failed(self, event: events.WorkerBootFailed, now: float) -> None:
        if worker := self.workers.get(event.worker_id):
            worker.boot_error = (event.reason, event.traceback)

    def _on_exited(self, event: events.WorkerExited, now: float) -> None:
        worker = self.workers.pop(event.worker_id, None)
        if worker is None:
            return
        self._no_spare(worker)
        how = f"ended with {event.status}"
        if event.problem:
            how = f"was killed for a protocol error: {event.problem}"
        if worker.state is BOOTING:
            died = f"{how} while booting" if not event.problem else how, event.traceback
            self._boot_failed(worker, *(worker.boot_error or died), now)
            return
        expected = worker.leaving is not None and worker.state is not READY
        if not expected:
            self.deaths += 1
        self._report(
            "info" if expected else "warning",
            "worker_exited" if expected else "worker_died",
            worker,
            pid=worker.pid,
            cause=worker.leaving.value if worker.leaving else "unexpected",
            status=str(event.status),
            age=round(now - worker.spawned_at, 1),
        )
        last = f" (last request: {event.request})" if event.request else ""
        if event.outsider:
            self._killed(worker, expected, f"{how}{last}", now)
        elif not (expected or self.stopping):
            self._crashed(worker, f"{how}{last}", event.traceback, now)

    def _on_recycle_due(self, event: events.RecycleDue, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.state is not READY:
            return
        worker.due = True
        if worker.leaving is None:
            worker.leaving = Cause.RECYCLE
            self._report("info", "recycle", worker, pid=worker.pid, requests=event.requests)

    # -- wishes -----------------------------------------------------------------------------------------

    def _on_resize(self, event: events.ResizeAsked, now: float) -> None:
        before = self.wanted
        fewer_than_none = self.paused and event.delta is not None and event.delta < 0
        if self.stopping or self.policy is None or fewer_than_none:
            return
        self.paused = False
        if event.workers is None and event.delta is None:
            self.override = None
        else:
            target = event.workers if event.workers is not None else before + (event.delta or 0)
            self.override = min(max(1, target), MAX_WORKERS)
        if self.probation is not None:
            self.probation.override = self.override
        fields = {"workers": self.wanted, "before": before, "by": event.by}
        if self.override is None:
            fields["note"] = "the configuration's own number counts again"
        self._tell("info", "scale", fields)

    def _on_reload(self, event: events.ReloadAsked, now: float) -> None:
        if not self.stopping:
            self._begin_reload(event.by, now, resumes=self.paused)

    def _on_recycle_asked(self, event: events.RecycleAsked, now: float) -> None:
        worker = self.serving(event.slot)
        if worker is not None and worker.leaving is None:
            worker.leaving = Cause.ASKED
            self._report("info", "recycle", worker, pid=worker.pid, by=event.by)

    def _on_pause(self, event: events.PauseAsked, now: float) -> None:
        if not self.stopping:
            self.paused = True
            self._tell("info", "pause", {"by": event.by})

    def _on_stop(self, event: events.StopAsked, now: float) -> None:
        how = "quick" if self.stopping else event.how
        if self.stopping == how:
            return
        self._tell("info", "stop", {"how": how, "by": event.by})
        self._stop(how, now)

    # -- upgrades in place ------------------------------------------------------------------------------

    def _on_upgrade_asked(self, event: events.UpgradeAsked, now: float) -> None:
        problem = None
        if self.stopping or not self.ever_ready:
            problem = "the fleet stops or has not started yet"
        elif self.upgrading is not None:
            problem = "another upgrade is running"
        elif self.reload is not None and self.reload.running:
            problem = "a reload is running"
        if problem is not None:
            self._tell("warning", "upgrade_failed", {"problem": problem, "by": event.by})
            return
        self.upgrading = "checking"
        self._tell("info", "upgrade", {"by": event.by})
        self._do(actions.CheckUpgrade())

    def _on_upgrade_checked(self, event: events.UpgradeChecked, now: float) -> None:
        if self.upgrading is None:
            return
        if event.problem is not None:
            self.upgrading = None
            self._tell("error", "upgrade_failed", {"problem": event.problem})
        elif self.upgrading == "checking":
            self.upgrading = "replacing"
            self._do(actions.Upgrade())

    def _on_upgrade_done(self, event: events.UpgradeDone, now: float) -> None:
        self.upgrading = None
        self._tell("info", "upgraded", {"version": event.version})
        if not self.stopping:
            self._begin_reload("upgrade", now)

    # -- wanted against observed --------------------------------------------------------------------------

    def _reconcile(self, now: float) -> None:
        self._expire_workers(now)
        self._expire_generations(now)
        if self.stopping:
            self._wind_down(now)
            return
        self._forget_crashes(now)
        self._follow_canary(now)
        self._watch_probation(now)
        self._follow_refork(now)
        self._keep_fork_server(now)
        self._start_canary(now)
        self._mark_leaving()
        self._note_leaving(now)
        self._drain_replaced(now)
        self._fill_slots(now)
        self._follow_roll(now)
