"""What follows from the death of a worker: as asked, by a crash, or by a signal from outside.

Here is decided when it may be replaced (`policies.backoff`, `policies.crash_pause`); `slots.fill` spawns the
successor.
"""

from ostler.fleet import boots, events, probation, reloads, spares
from ostler.fleet.lifecycle import FleetDecision
from ostler.fleet.model import Generation, ReloadPhase, Worker, WorkerState
from ostler.fleet.policies import CRASH_WINDOW, crash_loop, crash_pause, jittered, kills_too_many
from ostler.fleet.step import FleetStep


def exited(step: FleetStep, event: events.WorkerExited) -> None:
    state = step.state
    worker = state.workers.get(event.worker_id)
    if worker is None or not step.move(worker, events.WorkerExited):
        return
    spares.lost(step, worker)
    how = f"ended with {event.status}"
    if event.problem:
        how = f"was killed for a protocol error: {event.problem}"
    if worker.state is WorkerState.BOOTING:
        reason = how if event.problem else f"{how} while booting"
        boots.fail(step, worker, *(worker.boot_error or (reason, event.traceback)))
        return
    expected = worker.leaving is not None and worker.state is not WorkerState.READY
    if not expected:
        state.deaths += 1
    step.report_worker(
        "info" if expected else "warning",
        "worker_exited" if expected else "worker_died",
        worker,
        pid=worker.pid,
        cause=worker.leaving.value if worker.leaving else "unexpected",
        status=str(event.status),
        age=round(step.now - worker.spawned_at, 1),
    )
    last = f" (last request: {event.request})" if event.request else ""
    if event.outsider:
        _killed(step, worker, expected, f"{how}{last}")
    elif not (expected or state.stopping):
        _crashed(step, worker, f"{how}{last}", event.traceback)


def forget_old(step: FleetStep) -> None:
    """Forget crashes and kills after CRASH_WINDOW."""
    state, now = step.state, step.now
    if state.kills and now - state.kills[0] > CRASH_WINDOW:
        state.kills = [at for at in state.kills if now - at <= CRASH_WINDOW]
    for generation in state.generations.values():
        if generation.crashes and now - generation.crashes[0] > CRASH_WINDOW:
            generation.crashes = [at for at in generation.crashes if now - at <= CRASH_WINDOW]


def _crashed(step: FleetStep, worker: Worker, reason: str, traceback: str | None) -> None:
    """A worker died while it served, and neither the fleet nor an outsider ended it."""
    state = step.state
    reload = state.reload
    if reload is not None and state.candidate == worker.generation:
        reloads.fail_candidate(step, reload, f"the first new worker {reason}", traceback)
        return
    probation.count_crash(step, worker, reason, traceback)
    generation = state.generations.get(worker.generation)
    if generation is None or generation.number != state.current:
        return
    crashes = len(generation.crashes)
    if reload is not None and reload.phase is ReloadPhase.ROLLING and crash_loop(crashes, state.wanted):
        summary = f"its workers crashed {crashes} times, the last one {reason}"
        reloads.end(step, reload, FleetDecision.FAIL, summary, traceback)
    _delay_successors(step, generation)


def _killed(step: FleetStep, worker: Worker, expected: bool, reason: str) -> None:
    """An outsider ended a worker, or its app did, which looks the same.

    So the fleet waits after many kills as it does after crashes. They are no evidence against a new
    generation, unless they prevent that it is tried at all.
    """
    state = step.state
    if not expected:
        state.kills.append(step.now)
    too_many = kills_too_many(len(state.kills), state.wanted)
    reload = state.reload
    if reload is not None and reload.canary_worker_id == worker.worker_id:
        if reload.phase is ReloadPhase.CANARY and too_many:
            summary = f"its first worker was killed again and again, the last one {reason}"
            reloads.fail_candidate(step, reload, summary, None)
            return
        # Another canary is spawned.
        reload.canary_worker_id = reload.canary_until = None
    # A single kill is repaired at once, also while others crash.
    generation = state.generations.get(state.current)
    if too_many and generation is not None and worker.generation == state.current and not expected:
        _delay_successors(step, generation)


def _delay_successors(step: FleetStep, generation: Generation) -> None:
    """Wait before the next boot if too many workers of the current generation died while they served."""
    state = step.state
    deaths = len(generation.crashes) + kills_too_many(len(state.kills), state.wanted)
    pause = crash_pause(deaths, state.wanted, state.ready)
    # A pause is not made longer while it runs: with one crash after the other it would never end.
    if pause and generation.retry_at is None:
        generation.retry_at = step.now + jittered(pause, step.random())
