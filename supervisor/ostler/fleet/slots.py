"""Slots 1 to `wanted`: each is to be held by one ready worker of the current generation.

A worker that must go (`leaving`) is only drained when its successor in the slot is ready, or when its slot is
not wanted any more: make before break. Successors of planned replacements exist within `max_surge`; boots
happen within `boot_parallelism`, or more of them while CPUs are idle.
"""

from ostler.fleet import events, workers
from ostler.fleet.model import Cause, GenerationState, Worker, WorkerState
from ostler.fleet.policies import surge
from ostler.fleet.step import FleetStep

BOOTING, READY = WorkerState.BOOTING, WorkerState.READY

# How long a busy worker's planned replacement is put off in favour of idle ones.
_IDLE_FIRST = 10.0


def recycle_due(step: FleetStep, event: events.RecycleDue) -> None:
    worker = step.state.workers.get(event.worker_id)
    if worker is None or worker.state is not READY:
        return
    worker.due = True
    if worker.leaving is None:
        worker.leaving = Cause.RECYCLE
        step.report_worker("info", "recycle", worker, pid=worker.pid, requests=event.requests)


def recycle_asked(step: FleetStep, event: events.RecycleAsked) -> None:
    worker = step.state.serving(event.slot)
    if worker is not None and worker.leaving is None:
        worker.leaving = Cause.ASKED
        step.report_worker("info", "recycle", worker, pid=worker.pid, by=event.by)


def mark_leaving(step: FleetStep) -> None:
    """Mark workers as leaving.

    These are those beyond the wanted number, of another generation, or forked by an older fork server.
    """
    state = step.state
    current, wanted = state.generations.get(state.current), state.wanted
    for worker in state.workers.values():
        if worker.leaving is not None or worker.generation == state.candidate:
            continue
        if worker.slot > wanted:
            worker.leaving = Cause.PAUSE if state.paused else Cause.SCALE
        elif state.candidate is not None:
            continue
        elif worker.generation != state.current:
            worker.leaving = Cause.RELOAD if worker.generation < state.current else Cause.ROLLBACK
        elif current is not None and worker.zygote < current.zygote and worker.state is READY:
            worker.leaving = Cause.REFORK


def note_leaving(step: FleetStep) -> None:
    for worker in step.state.workers.values():
        if worker.leaving is not None and worker.leaving_since is None:
            worker.leaving_since = step.now


def drain_replaced(step: FleetStep) -> None:
    """Drain workers that must go and whose slot is served by another one, or not wanted."""
    state = step.state
    wanted = state.wanted
    # A canary succeeds no other worker before its generation is the current one.
    serving = [w for w in state.workers.values() if w.state is READY and w.generation != state.candidate]
    serving.sort(key=lambda w: (w.generation == state.current, w.worker_id))
    held = {w.slot for w in serving if w.leaving is None and w.generation == state.current}
    # If several workers of one slot must go, only the last waits for a successor; else each would wait, as
    # the others still serve the slot.
    last = {w.slot: w for w in serving}
    for worker in state.workers.values():
        if worker.leaving is None or worker.generation == state.candidate:
            continue
        if worker.state is BOOTING:
            workers.cancel(step, worker)
        if worker.state is not READY:
            continue
        if worker.slot in held or worker.slot > wanted or worker is not last[worker.slot]:
            workers.drain(step, worker)


def cpus_idle(step: FleetStep, event: events.CpusIdle) -> None:
    """Boots that leave CPUs idle wait for something else, so more of them take no longer."""
    step.state.most_boots = step.state.count(BOOTING) + int(event.idle)


def fill(step: FleetStep) -> None:
    """Spawn workers for slots without one, then successors for those that must go."""
    state = step.state
    generation = state.generations.get(state.current)
    if generation is None or generation.state is not GenerationState.UP or generation.policy is None:
        return
    if generation.retry_at is not None:
        if generation.retry_at > step.now:
            return
        generation.retry_at = None
    policy, wanted = generation.policy, state.wanted
    booting = state.count(BOOTING)
    if booting < policy.boot_parallelism:
        state.most_boots = 0  # what was measured is about boots that have ended
    parallelism = policy.boot_parallelism
    if policy.boot_when_idle:
        parallelism = max(parallelism, state.most_boots)
    if generation.failures:
        parallelism = 1  # as a test whether the cause has gone
    boots = parallelism - booting
    held = {w.slot for w in state.workers.values() if w.staying and w.generation == state.current}
    serving = {
        w.slot: w for w in state.workers.values() if w.state is READY and w.generation != state.candidate
    }
    for slot in range(1, wanted + 1):
        if boots <= 0:
            return
        if slot not in held and slot not in serving:
            workers.spawn(step, slot, generation, urgent=True)
            held.add(slot)
            boots -= 1
    # A worker with a request that hangs is no planned replacement, so max_surge does not count for it.
    leaving = [w for w in serving.values() if w.leaving and w.slot not in held and w.slot <= wanted]
    extra = surge(policy.max_surge, policy.max_surge_share, wanted)
    for worker in sorted(leaving, key=lambda w: _order(w, step.now)):
        if boots <= 0:
            return
        if worker.overdue_since is None and len(state.workers) + 1 - wanted > extra:
            return
        workers.spawn(step, worker.slot, generation)
        boots -= 1


def _order(worker: Worker, now: float) -> tuple[bool, bool, float, int]:
    """Which is replaced first: one with a request that hangs, an idle one, one that has waited longest."""
    since = worker.leaving_since or now
    busy = worker.load.in_flight > 0 and now - since < _IDLE_FIRST
    return worker.overdue_since is None, busy, since, worker.slot
