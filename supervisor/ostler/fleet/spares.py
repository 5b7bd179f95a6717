"""Keeps an old worker as the fork server for a roll-back, when the app is not preloaded.

Only workers have the old code then. While a generation is on probation, one worker of the generation before
becomes that generation's fork server instead of ending (the glossary's spare). New workers of a roll-back are
forked from it and so have the old code, whatever is on the disk by then.
"""

from ostler.fleet.model import GenerationState, Worker
from ostler.fleet.step import FleetStep


def take(step: FleetStep, worker: Worker) -> bool:
    """Choose a worker that is about to drain as its generation's next fork server, if one is needed."""
    generation = step.state.generations.get(worker.generation)
    if (
        generation is None
        or generation.state is not GenerationState.SPARE
        or generation.has_app
        or generation.spare is not None
        or generation.spare_failed
        or worker.overdue_since is not None
    ):
        return False
    generation.spare = worker.worker_id
    return True


def lost(step: FleetStep, worker: Worker) -> None:
    """A worker has ended. If it was chosen, no other is: it would fail in the same way."""
    generation = step.state.generations.get(worker.generation)
    if generation is None or generation.spare != worker.worker_id:
        return
    generation.spare = None
    generation.spare_failed = True
    problem = "the old code could not be kept for a roll back; the worker's log says why"
    step.report_worker("warning", "standby_failed", worker, pid=worker.pid, problem=problem)
    if generation.state is GenerationState.UP:
        generation.retry_at = None
