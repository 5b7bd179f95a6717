"""Reforks: a worker that has served for a while becomes the zygote that the others are forked from.

The worker is audited first (can it be forked from?), then replaced like any worker that must leave. When it
has drained it reports `ZygoteReady`, and becomes its generation's fork server. Workers that an earlier fork
server has forked are stale then, so `slots` replaces them.
"""

from ostler.fleet import actions, events, workers
from ostler.fleet.model import Cause, GenerationState, Refork, Worker, WorkerState
from ostler.fleet.step import FleetStep

# How long the audit of a worker may take.
_AUDIT_TIME = 10.0


def asked(step: FleetStep, event: events.ReforkAsked) -> None:
    problem = _why_not(step)
    worker = _best_zygote(step, event.slot)
    if problem is None and worker is None:
        problem = "no worker is ready" if event.slot is None else f"no worker is ready in slot {event.slot}"
    if problem is not None or worker is None:
        step.report("warning", "refork_refused", {"problem": problem, "by": event.by})
        return
    _begin(step, worker, event.by, event.force)


def audited(step: FleetStep, event: events.ZygoteAudited) -> None:
    refork, worker = step.state.refork, step.state.workers.get(event.worker_id)
    if refork is None or refork.worker_id != event.worker_id or worker is None:
        return
    if event.problems and not refork.force:
        generation = step.state.generations.get(refork.generation)
        if generation is not None:
            generation.refork_refused = True
        give_up(step, "; ".join(event.problems))
        return
    if refork.audited:
        return
    if warnings := (*event.problems, *event.warnings):
        step.report_worker("warning", "refork_warning", worker, problem="; ".join(warnings))
    refork.audited = True
    if worker.leaving is None:
        worker.leaving = Cause.REFORK


def zygote_ready(step: FleetStep, event: events.ZygoteReady) -> None:
    """A worker has drained and can fork: for a refork, or as a spare (see `spares`)."""
    state = step.state
    worker, refork = state.workers.get(event.worker_id), state.refork
    if worker is None:
        return
    generation = state.generations.get(worker.generation)
    reforks = refork is not None and refork.worker_id == event.worker_id
    if worker.state is WorkerState.STOPPING or (
        worker.state is WorkerState.DRAINING
        and (
            generation is None
            or generation.state is GenerationState.RETIRING
            or not (reforks or generation.spare == event.worker_id)
            or state.stopping
        )
    ):
        # What it was to fork for was given up meanwhile. A zygote ignores the signals that end a worker.
        workers.kill(step, worker)
        return
    if not step.move(worker, events.ZygoteReady):
        return
    assert generation is not None
    workers.drop_unforked(step, generation.number, actions.UseZygote)
    step.move(generation, actions.UseZygote)
    generation.has_app = True
    generation.deadline = generation.retry_at = None
    generation.server_failures = 0
    generation.up_since = step.now
    step.do(actions.UseZygote(worker.worker_id, generation.number))
    if refork is None or not reforks:
        generation.spare = None
        step.report_worker("info", "standby", worker, pid=worker.pid)
        return
    state.refork = None
    generation.zygote += 1  # workers of the fork server before it are to be replaced
    seconds = round(step.now - refork.started, 3)
    step.report_worker("info", "refork_done", worker, pid=worker.pid, seconds=seconds, by=refork.asked_by)


def follow(step: FleetStep) -> None:
    """Give up a refork whose worker has ended, or whose audit takes too long."""
    refork = step.state.refork
    if refork is None:
        return
    if refork.worker_id not in step.state.workers:
        give_up(step, "the worker ended before it was a zygote; its log says more")
    elif not refork.audited and refork.deadline <= step.now:
        give_up(step, "the worker did not say whether it can be forked from")


def give_up(step: FleetStep, problem: str) -> None:
    """End the refork that runs, if one does, and report why."""
    refork, step.state.refork = step.state.refork, None
    if refork is not None:
        step.report("warning", "refork_refused", {"problem": problem, "by": refork.asked_by})


def begin_when_due(step: FleetStep) -> None:
    """`refork_after`: begin a refork when a worker has served so many requests."""
    state = step.state
    policy, generation = state.policy, state.generations.get(state.current)
    if (
        policy is None
        or generation is None
        or generation.state is not GenerationState.UP
        or generation.refork_refused
        or generation.zygote >= len(policy.refork_after)
        or state.ready < state.wanted
        or _why_not(step) is not None
    ):
        return
    worker = _best_zygote(step)
    if (
        worker is not None
        and worker.zygote == generation.zygote
        and worker.load.requests >= policy.refork_after[generation.zygote]
    ):
        _begin(step, worker, "refork_after", force=False)


def _begin(step: FleetStep, worker: Worker, by: str, force: bool) -> None:
    step.state.refork = Refork(
        worker.worker_id, worker.generation, by, force, step.now, step.now + _AUDIT_TIME
    )
    step.report_worker("info", "refork", worker, pid=worker.pid, by=by)
    step.do(actions.AuditZygote(worker.worker_id, force))


def _why_not(step: FleetStep) -> str | None:
    state = step.state
    if state.stopping or state.paused:
        return "the fleet stops or is paused"
    if state.candidate is not None or (state.reload is not None and state.reload.running):
        return "a reload is running"
    if state.refork is not None:
        return "another one is running"
    return None


def _best_zygote(step: FleetStep, slot: int | None = None) -> Worker | None:
    """The worker that has served most."""
    state = step.state
    able = [
        w
        for w in state.workers.values()
        if w.state is WorkerState.READY
        and w.leaving is None
        and w.generation == state.current
        and w.overdue_since is None
        and (slot is None or w.slot == slot)
    ]
    return max(able, key=lambda w: (w.load.requests, -w.slot), default=None)
