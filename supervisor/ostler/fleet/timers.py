"""Expires deadlines: boot and drain time-outs, ages, fork servers that hang. Computes the next one."""

from ostler.fleet import actions, boots, fork_server_reports, workers
from ostler.fleet.model import Cause, GenerationState, ReloadPhase, Worker, WorkerState
from ostler.fleet.step import FleetStep


def earliest(step: FleetStep) -> float | None:
    """The time of the next deadline, or None."""
    state = step.state
    times: list[float | None] = []
    for worker in state.workers.values():
        times += (
            worker.deadline,
            worker.age_limit,
            workers.grace_end(step, worker),
            _fork_deadline(step, worker),
        )
    times += [generation.deadline for generation in state.generations.values()]
    if not state.stopping:
        times.append(state.stop_at)
        current = state.generations.get(state.current)
        # In other states a retry waits for something else first: the fork server's end, or its loading.
        if current and current.state in (GenerationState.DOWN, GenerationState.UP):
            times.append(current.retry_at)
        if state.reload is not None and state.reload.phase is ReloadPhase.CANARY:
            times.append(state.reload.canary_until)
        if state.probation is not None and not state.probation.over:
            times.append(state.probation.until)
        if state.refork is not None and not state.refork.audited:
            times.append(state.refork.deadline)
    return min((time for time in times if time is not None), default=None)


def expire_workers(step: FleetStep) -> None:
    now = step.now
    for worker in list(step.state.workers.values()):
        fork_deadline = _fork_deadline(step, worker)
        if fork_deadline is not None and fork_deadline <= now:
            late = fork_deadline - worker.spawned_at
            reason = f"the fork server has not forked for {late:g} seconds"
            if worker.state is WorkerState.BOOTING:
                # The failure of the fork server is reported; that this worker has not booted in time is not.
                worker.deadline = None
            fork_server_reports.fail(step, worker.generation, reason, app_failed=True)
        grace_end = workers.grace_end(step, worker)
        if grace_end is not None and grace_end <= now:
            if worker.state is WorkerState.DRAINING:
                workers.abort(step, worker)
            else:
                worker.leaving = Cause.DEADLINE
        if worker.age_limit is not None and worker.age_limit <= now:
            worker.age_limit = None
            worker.due = True
            if worker.state is WorkerState.READY and worker.leaving is None:
                worker.leaving = Cause.AGE
                age = round(now - worker.spawned_at, 1)
                step.report_worker("info", "recycle", worker, pid=worker.pid, age=age)
        if worker.deadline is not None and worker.deadline <= now:
            _deadline_passed(step, worker)


def expire_generations(step: FleetStep) -> None:
    for generation in list(step.state.generations.values()):
        if generation.deadline is None or generation.deadline > step.now:
            continue
        if generation.state is GenerationState.RETIRING:
            generation.deadline = step.now + workers.KILL_REPEAT
            if step.move(generation, actions.KillForkServer):
                step.do(actions.KillForkServer(generation.number))
        else:
            reason = "loading took longer than boot_timeout"
            fork_server_reports.fail(step, generation.number, reason, app_failed=True)


def _deadline_passed(step: FleetStep, worker: Worker) -> None:
    if worker.state is not WorkerState.BOOTING:
        if worker.state is WorkerState.DRAINING:
            step.report_worker("warning", "drain_timeout", worker, pid=worker.pid)
        workers.kill(step, worker)
        return
    if not workers.abort(step, worker):
        return
    worker.leaving = worker.leaving or Cause.BOOT_TIMEOUT
    generation = step.state.generations.get(worker.generation)
    if generation is not None and generation.policy is not None:
        limit = f"boot_timeout ({generation.policy.boot_timeout:g} s)"
        late = f"took longer than {limit} to load the app; the log has its stack", None
        boots.fail(step, worker, *(worker.boot_error or late))


def _fork_deadline(step: FleetStep, worker: Worker) -> float | None:
    """When a fork server that has not forked the worker is taken to hang.

    Also if the worker is not wanted any more: it is known until it ends, or its fork server does.
    """
    if worker.pid is not None:
        return None
    generation = step.state.generations.get(worker.generation)
    if generation is None or generation.state not in (GenerationState.UP, GenerationState.SPARE):
        return None
    return worker.spawned_at + boots.fork_time(generation)
