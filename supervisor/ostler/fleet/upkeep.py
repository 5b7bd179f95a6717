"""What is done about workers that serve: those that grow or hang, zygotes, how many there should be."""

from ostler.fleet import actions, events
from ostler.fleet.autoscale import decide
from ostler.fleet.model import Cause, GenerationState, Refork, Worker
from ostler.fleet.slots import DRAINING, READY, STOPPING, Slots

# Measurements in a row, one a second, that must find a worker over max_memory.
_MEMORY_SAMPLES = 3
# How long a worker may take to say whether it can be forked from.
_AUDIT_TIME = 10.0


class Upkeep(Slots):
    """The part of the fleet that follows measurements and looks after requests that hang."""

    # -- measurements -----------------------------------------------------------------------------------

    def _on_measured(self, event: events.Measured, now: float) -> None:
        for worker_id, load in event.loads.items():
            worker = self.workers.get(worker_id)
            if worker is None:
                continue
            if generation := self.generations.get(worker.generation):
                generation.requests += max(0, load.requests - worker.load.requests)
                generation.errors += max(0, load.errors - worker.load.errors)
            worker.load = load
            self._watch_memory(worker)
        if self.stopping:
            return
        self._autoscale(event, now)
        self._refork_when_due(now)

    def _watch_memory(self, worker: Worker) -> None:
        policy, memory = self.policy, worker.load.memory
        if policy is None or not policy.max_memory or memory is None:
            return
        worker.over_memory = worker.over_memory + 1 if memory > policy.max_memory else 0
        if worker.over_memory >= _MEMORY_SAMPLES and worker.state is READY and worker.leaving is None:
            worker.leaving = Cause.MEMORY
            self._report("info", "recycle", worker, pid=worker.pid, memory=memory, limit=policy.max_memory)

    def _autoscale(self, event: events.Measured, now: float) -> None:
        policy = self.policy
        if policy is None or policy.workers_most is None or self.override is not None or self.paused:
            return
        loads = [w.load for w in self.workers.values() if w.state is READY]
        decision = decide(self.trend, loads, event.memory_free, policy, self.wanted, now)
        if decision is None:
            return
        # The number may be the present one: then more are needed but can't be had.
        fields = {"workers": decision.workers, "before": self.wanted, "reason": decision.reason}
        self._tell("info", "autoscale", fields)
        self.autoscaled = decision.workers

    # -- requests that hang, loops that stand still ------------------------------------------------------

    def _on_overdue(self, event: events.RequestOverdue, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None:
            return
        if worker.overdue_since is None:
            worker.overdue_since = now
        soft = self.policy is not None and self.policy.timeout_soft
        self._do(
            actions.DumpStack(worker.worker_id, event.thread, event.method, event.path, round(event.age, 3))
        )
        if soft:
            self._do(actions.Interrupt(worker.worker_id, event.thread))
        elif worker.leaving is None:
            worker.leaving = Cause.DEADLINE

    def _on_overdue_ended(self, event: events.OverdueEnded, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is not None and worker.state is not STOPPING and worker.leaving is not Cause.STALLED:
            if worker.overdue_since is not None and worker.leaving is None:
                late = round(now - worker.overdue_since, 1)
                self._report("info", "overdue_ended", worker, pid=worker.pid, seconds_late=late)
            worker.overdue_since = None
            worker.only_overdue_left = False

    def _on_only_overdue_left(self, event: events.OnlyOverdueLeft, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        # While it still accepts, the next request may be a good one.
        if worker is not None and worker.state is DRAINING:
            worker.only_overdue_left = True

    def _on_stalled(self, event: events.LoopStalled, now: float) -> None:
        worker = self.workers.get(event.worker_id)
        if worker is None or worker.state is not READY or worker.leaving is Cause.STALLED:
            return
        worker.leaving = Cause.STALLED
        # It can't finish anything: when its successor is there nobody waits for it.
        worker.overdue_since = now
        worker.only_overdue_left = True
        self._report("error", "worker_stalled", worker, pid=worker.pid, seconds=round(event.age, 1))

    # -- zygotes --------------------------------------------------------------------------------------

    def _on_refork_asked(self, event: events.ReforkAsked, now: float) -> None:
        problem = self._why_no_refork()
        worker = self._best_zygote(event.slot)
        if problem is None and worker is None:
            problem = (
                "no worker is ready" if event.slot is None else f"no worker is ready in slot {event.slot}"
            )
        if problem is not None or worker is None:
            self._tell("warning", "refork_refused", {"problem": problem, "by": event.by})
            return
        self._begin_refork(worker, event.by, event.force, now)

    def _why_no_refork(self) -> str | None:
        if self.stopping or self.paused:
            return "the fleet stops or is paused"
        if self.candidate is not None or (self.reload is not None and self.reload.running):
            return "a reload is running"
        if self.refork is not None:
            return "another one is running"
        return None

    def _best_zygote(self, slot: int | None = None) -> Worker | None:
        """The worker that has served most."""
        able = [
            w
            for w in self.workers.values()
            if w.state is READY
            and w.leaving is None
            and w.generation == self.current
            and w.overdue_since is None
            and (slot is None or w.slot == slot)
        ]
        return max(able, key=lambda w: (w.load.requests, -w.slot), default=None)

    def _begin_refork(self, worker: Worker, by: str, force: bool, now: float) -> None:
        self.refork = Refork(worker.worker_id, worker.generation, by, force, now, now + _AUDIT_TIME)
        self._report("info", "refork", worker, pid=worker.pid, by=by)
        self._do(actions.AuditZygote(worker.worker_id, force))

    def _on_zygote_audited(self, event: events.ZygoteAudited, now: float) -> None:
        refork, worker = self.refork, self.workers.get(event.worker_id)
        if refork is None or refork.worker_id != event.worker_id or worker is None or refork.audited:
            return
        if event.problems and not refork.force:
            generation = self.generations.get(refork.generation)
            if generation is not None:
                generation.refork_refused = True
            self._end_refork("; ".join(event.problems))
            return
        if warnings := (*event.problems, *event.warnings):
            self._report("warning", "refork_warning", worker, problem="; ".join(warnings))
        refork.audited = True
        if worker.leaving is None:
            worker.leaving = Cause.REFORK

    def _on_zygote_ready(self, event: events.ZygoteReady, now: float) -> None:
        worker, refork = self.workers.get(event.worker_id), self.refork
        if worker is None:
            return
        generation = self.generations.get(worker.generation)
        reforks = refork is not None and refork.worker_id == event.worker_id
        if (
            generation is None
            or generation.state is GenerationState.RETIRING
            or not (reforks or generation.spare == event.worker_id)
            or self.stopping
        ):
            # Meanwhile something else was asked for.
            self._enter(worker, STOPPING, now, deadline=now)
            return
        del self.workers[worker.worker_id]
        self._give_up_unforked(generation.number)
        generation.has_app = True
        if generation.state is not GenerationState.SPARE:
            generation.state = GenerationState.UP
        generation.deadline = generation.retry_at = None
        generation.server_failures = 0
        generation.up_since = now
        self._do(actions.UseZygote(worker.worker_id, generation.number))
        if refork is None or not reforks:
            generation.spare = None
            self._report("info", "standby", worker, pid=worker.pid)
            return
        self.refork = None
        generation.zygote += 1  # those that the fork server before it made are to be replaced
        seconds = round(now - refork.started, 3)
        self._report("info", "refork_done", worker, pid=worker.pid, seconds=seconds, by=refork.asked_by)

    def _follow_refork(self, now: float) -> None:
        refork = self.refork
        if refork is None:
            return
        if refork.worker_id not in self.workers:
            self._end_refork("the worker ended before it was a zygote; its log says more")
        elif not refork.audited and refork.deadline <= now:
            self._end_refork("the worker did not say whether it can be forked from")

    def _refork_when_due(self, now: float) -> None:
        policy, generation = self.policy, self.generations.get(self.current)
        if (
            policy is None
            or generation is None
            or generation.state is not GenerationState.UP
            or generation.refork_refused
            or generation.zygote >= len(policy.refork_after)
            or self.ready < self.wanted
            or self._why_no_refork() is not None
        ):
            return
        worker = self._best_zygote()
        if (
            worker is not None
            and worker.zygote == generation.zygote
            and worker.load.requests >= policy.refork_after[generation.zygote]
        ):
            self._begin_refork(worker, "refork_after", False, now)
