"""How a worker's boot ends: ready, failed in the app, or never forked."""

from ostler.fleet import actions, events, fork_server_reports, probation, reloads, stopping, workers
from ostler.fleet.model import Cause, Generation, Worker, WorkerState
from ostler.fleet.policies import backoff, jittered
from ostler.fleet.step import FleetStep

# How long a fork server may take to fork, which it does in milliseconds.
_FORK_TIME = 10.0


def ready(step: FleetStep, event: events.WorkerReady) -> None:
    state = step.state
    worker = state.workers.get(event.worker_id)
    if worker is None:
        return
    if worker.state is WorkerState.STOPPING:
        if worker.cancelled:
            workers.serves_already(step, worker)
        return
    if not step.move(worker, events.WorkerReady):
        return
    worker.deadline = None
    seconds = round(step.now - worker.spawned_at, 3)
    step.report_worker("info", "worker_ready", worker, boot_seconds=seconds, pid=worker.pid)
    if generation := state.generations.get(worker.generation):
        if generation.failures:
            generation.failures = 0
            generation.retry_at = None
        generation.server_failures = 0
        policy = generation.policy
        if policy is not None and policy.max_age:
            worker.age_limit = step.now + policy.max_age + policy.max_age_jitter * step.random()
    if not state.ever_ready:
        state.ever_ready = True
        step.out += state.postponed
        state.postponed.clear()
    reloads.canary_ready(step, worker)


def announce(step: FleetStep) -> None:
    """The daemon serves as soon as a worker of the current generation is ready.

    Not with the canary of a reload that was asked for while the first configuration was still being read:
    the current generation has no settings then.
    """
    state = step.state
    if not state.announced and any(
        worker.state is WorkerState.READY and worker.generation == state.current
        for worker in state.workers.values()
    ):
        state.announced = True
        step.do(actions.Serving())


def app_failed(step: FleetStep, event: events.WorkerBootFailed) -> None:
    """The worker reports why it is about to exit; its exit is the failure."""
    if worker := step.state.workers.get(event.worker_id):
        worker.boot_error = (event.reason, event.traceback)


def spawn_failed(step: FleetStep, event: events.SpawnFailed) -> None:
    worker = step.state.workers.get(event.worker_id)
    if worker is None or not step.move(worker, events.SpawnFailed):
        return
    if event.unread and _is_unread_too_long(step, worker.generation):
        return
    fail(step, worker, f"can't fork: {event.reason}", None)


def fail(step: FleetStep, worker: Worker, reason: str, traceback: str | None) -> None:
    """A worker did not become ready: try again after a while, or give up what started it."""
    state = step.state
    if state.stopping or worker.leaving not in (None, Cause.BOOT_TIMEOUT):
        return  # it was not wanted any more
    generation = state.generations.get(worker.generation)
    if generation is None:
        return
    if state.candidate == worker.generation and state.reload:
        reloads.fail_candidate(step, state.reload, reason, traceback)
        return
    generation.failures += 1
    generation.last_failure = reason
    wait = jittered(backoff(generation.failures), step.random())
    generation.retry_at = step.now + wait
    others_boot = any(
        w.state is WorkerState.BOOTING and w.generation == worker.generation for w in state.workers.values()
    )
    retries = stopping.start_is_tried_again(step, generation) if not others_boot else False
    if not (state.ever_ready or others_boot or retries):
        stopping.fail_start(step, reason, traceback, app_failed=True)
        return
    fields = {"slot": worker.slot, "generation": worker.generation, "reason": reason}
    fields |= {"retry_in": round(wait, 3), "traceback": traceback}
    report = actions.Report("error", "worker_boot_failed", fields)
    if state.ever_ready or retries:
        step.do(report)
    else:
        # If no sibling boots either, the start fails and that is reported with the same reason, once.
        state.postponed.append(report)
    probation.count_failures(step, generation, generation.failures, reason, traceback)


def fork_time(generation: Generation) -> float:
    """Seconds after which a fork server that forks nothing is taken to hang."""
    limit = generation.policy.boot_timeout if generation.policy else 0.0
    return min(_FORK_TIME, limit or _FORK_TIME)


def _is_unread_too_long(step: FleetStep, number: int) -> bool:
    """A fork server does not read its channel. If it has not for long it is taken to hang, and fails."""
    generation = step.state.generations.get(number)
    if generation is None:
        return False
    if generation.unread_since is None:
        generation.unread_since = step.now
    late = step.now - generation.unread_since
    if late < fork_time(generation):
        return False
    generation.unread_since = None
    reason = f"the fork server has not read for {late:.0f} seconds"
    fork_server_reports.fail(step, number, reason, app_failed=True)
    return True
