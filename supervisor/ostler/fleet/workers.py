"""One worker's way through its life cycle: spawning it, draining it, ending it."""

from ostler.fleet import actions, events, spares
from ostler.fleet.lifecycle import WORKERS, Input
from ostler.fleet.model import FleetPolicy, Generation, Worker, WorkerState
from ostler.fleet.step import FleetStep

KILL_REPEAT = 5.0
"""Seconds after which SIGKILL is sent again to a process that is still there."""
# How long a process may take to end because of a signal, before it is killed.
_QUIT_GRACE = 2.0
_ABORT_GRACE = 1.0
# The budget of a worker whose generation has ended while the first configuration is still being read.
_UNKNOWN_BUDGET = 30.0


def spawn(step: FleetStep, slot: int, generation: Generation, urgent: bool = False) -> Worker:
    """Let the generation's fork server fork a worker. `urgent`: see `actions.Spawn`."""
    state = step.state
    state.spawned += 1
    worker = Worker(
        worker_id=state.spawned,
        slot=slot,
        generation=generation.number,
        state=WORKERS.initial(actions.Spawn),
        since=step.now,
        spawned_at=step.now,
        deadline=boot_deadline(step, generation),
        zygote=generation.zygote,
    )
    state.workers[worker.worker_id] = worker
    step.do(actions.Spawn(worker.worker_id, slot, generation.number, urgent))
    return worker


def boot_deadline(step: FleetStep, generation: Generation) -> float | None:
    """When a worker that begins to boot now is given up."""
    timeout = generation.policy.boot_timeout if generation.policy else 0.0
    return step.now + timeout if timeout else None


def forked(step: FleetStep, event: events.WorkerForked) -> None:
    worker = step.state.workers.get(event.worker_id)
    if worker is None:
        return
    worker.pid = event.pid
    generation = step.state.generations.get(worker.generation)
    if generation is None:
        return
    generation.unread_since = None
    if worker.state is WorkerState.BOOTING and worker.deadline is None:
        # Its fork server was given up because it was late; the worker may be good.
        worker.deadline = boot_deadline(step, generation)


def drop_unforked(step: FleetStep, generation: int, cause: Input) -> None:
    """Remove what a fork server was asked for and has not forked: it has ended or was replaced."""
    for worker in list(step.state.workers.values()):
        if worker.generation == generation and worker.pid is None:
            step.move(worker, cause)


def drain(step: FleetStep, worker: Worker) -> None:
    """Let a worker finish its requests and end, or become a fork server (refork, spare).

    The drain message carries the worker's budget, and the deadline for the kill is that budget and a little
    more. Both stay as they are whatever the policy becomes while it drains.
    """
    state = step.state
    limit = overdue_limit(step, worker) if worker.only_overdue_left else None
    if limit is not None and limit <= step.now:
        abort(step, worker)  # its loop is stalled, and it had its time while the successor booted
        return
    if not step.move(worker, actions.Drain):
        return
    policy = state.policy or _own_policy(step, worker)
    seconds = policy.graceful_timeout if policy else _UNKNOWN_BUDGET
    worker.drain_time = _drain_time(policy)
    worker.deadline = step.now + worker.drain_time
    stays = not state.stopping and not state.paused
    refork = state.refork
    reforks = refork is not None and refork.worker_id == worker.worker_id and refork.audited
    zygote = stays and (reforks or spares.take(step, worker))
    step.do(
        actions.Drain(
            worker.worker_id,
            hand_over=stays,
            zygote=zygote,
            seconds=seconds,
            empty_queue=state.stopping is not None,
        )
    )


def cancel(step: FleetStep, worker: Worker) -> None:
    """End a worker that boots. It may serve by the time it gets the signal: see `serves_already`."""
    if not step.move(worker, actions.Cancel):
        return
    worker.deadline = step.now + _QUIT_GRACE
    worker.cancelled = True
    # No message with a budget reaches it, so it takes its own setting.
    worker.drain_time = _drain_time(_own_policy(step, worker) or step.state.policy)
    step.do(actions.Cancel(worker.worker_id))


def serves_already(step: FleetStep, worker: Worker) -> None:
    """A worker was ready before its cancellation arrived: it drains and finishes its requests."""
    if step.move(worker, events.WorkerReady):
        worker.cancelled = False
        worker.deadline = step.now + worker.drain_time


def quit_worker(step: FleetStep, worker: Worker) -> None:
    """SIGQUIT: end at once."""
    if step.move(worker, actions.Quit):
        worker.deadline = step.now + _QUIT_GRACE
        step.do(actions.Quit(worker.worker_id))


def abort(step: FleetStep, worker: Worker) -> bool:
    """SIGABRT: end, with the stacks in the log. Returns False if that is not possible."""
    if not step.move(worker, actions.Abort):
        return False
    worker.deadline = step.now + _ABORT_GRACE
    step.do(actions.Abort(worker.worker_id))
    return True


def kill(step: FleetStep, worker: Worker) -> None:
    """SIGKILL; sent again if the process is still there after KILL_REPEAT."""
    if step.move(worker, actions.Kill):
        worker.deadline = step.now + KILL_REPEAT
        step.do(actions.Kill(worker.worker_id))


def overdue_limit(step: FleetStep, worker: Worker) -> float | None:
    """When a worker's first overdue request has had `timeout_grace` seconds more; None without one."""
    if worker.overdue_since is None:
        return None
    policy = step.state.policy or _own_policy(step, worker)
    return worker.overdue_since + (policy.timeout_grace if policy else 0.0)


def grace_end(step: FleetStep, worker: Worker) -> float | None:
    """When something happens to a worker with an overdue request: its successor boots, or, if it drains and
    all that it still does is overdue, it is aborted."""
    waits = (worker.state is WorkerState.READY and worker.leaving is None) or (
        worker.state is WorkerState.DRAINING and worker.only_overdue_left
    )
    return overdue_limit(step, worker) if waits else None


def _own_policy(step: FleetStep, worker: Worker) -> FleetPolicy | None:
    generation = step.state.generations.get(worker.generation)
    return generation.policy if generation else None


def _drain_time(policy: FleetPolicy | None) -> float:
    return policy.graceful_timeout + policy.drain_grace if policy else _UNKNOWN_BUDGET
