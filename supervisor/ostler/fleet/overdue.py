"""Requests that pass their deadline, and stalled event loops."""

from ostler.fleet import actions, events
from ostler.fleet.model import Cause, WorkerState
from ostler.fleet.step import FleetStep


def request_overdue(step: FleetStep, event: events.RequestOverdue) -> None:
    worker = step.state.workers.get(event.worker_id)
    if worker is None:
        return
    if worker.overdue_since is None:
        worker.overdue_since = step.now
    policy = step.state.policy
    age = round(event.age, 3)
    step.do(
        actions.DumpStack(
            *(worker.worker_id, event.thread, event.method, event.path, age, event.setting, event.limit)
        )
    )
    if policy is not None and policy.timeout_soft:
        step.do(actions.Interrupt(worker.worker_id, event.thread))
    elif worker.leaving is None:
        worker.leaving = Cause.DEADLINE


def overdue_ended(step: FleetStep, event: events.OverdueEnded) -> None:
    worker = step.state.workers.get(event.worker_id)
    if worker is None or worker.state is WorkerState.STOPPING or worker.leaving is Cause.STALLED:
        return
    if worker.overdue_since is not None and worker.leaving is None:
        late = round(step.now - worker.overdue_since, 1)
        step.report_worker("info", "overdue_ended", worker, pid=worker.pid, seconds_late=late)
    worker.overdue_since = None
    worker.only_overdue_left = False


def only_overdue_left(step: FleetStep, event: events.OnlyOverdueLeft) -> None:
    worker = step.state.workers.get(event.worker_id)
    # While it accepts, its next request may be a good one.
    if worker is not None and worker.state is WorkerState.DRAINING:
        worker.only_overdue_left = True


def stalled(step: FleetStep, event: events.LoopStalled) -> None:
    worker = step.state.workers.get(event.worker_id)
    if worker is None or worker.state is not WorkerState.READY or worker.leaving is Cause.STALLED:
        return
    worker.leaving = Cause.STALLED
    # It can't finish anything, so it is aborted as soon as its successor is ready.
    worker.overdue_since = step.now
    worker.only_overdue_left = True
    step.report_worker("error", "worker_stalled", worker, pid=worker.pid, seconds=round(event.age, 1))
