"""Handles the measurement of each second: counts it, checks limits, and lets the autoscaler decide."""

from ostler.fleet import events, reforks, scaling
from ostler.fleet.model import Cause, Worker, WorkerState
from ostler.fleet.step import FleetStep

# Measurements in a row, one a second, that must find a worker over max_memory.
_MEMORY_SAMPLES = 3


def measured(step: FleetStep, event: events.Measured) -> None:
    state = step.state
    for worker_id, load in event.loads.items():
        worker = state.workers.get(worker_id)
        if worker is None:
            continue
        if generation := state.generations.get(worker.generation):
            generation.requests += max(0, load.requests - worker.load.requests)
            generation.errors += max(0, load.errors - worker.load.errors)
        worker.load = load
        _check_memory(step, worker)
    if state.stopping:
        return
    scaling.autoscale(step, event)
    reforks.begin_when_due(step)


def _check_memory(step: FleetStep, worker: Worker) -> None:
    policy, memory = step.state.policy, worker.load.memory
    if policy is None or not policy.max_memory or memory is None:
        return
    worker.over_memory = worker.over_memory + 1 if memory > policy.max_memory else 0
    serves = worker.state is WorkerState.READY and worker.leaving is None
    if worker.over_memory >= _MEMORY_SAMPLES and serves:
        worker.leaving = Cause.MEMORY
        step.report_worker("info", "recycle", worker, pid=worker.pid, memory=memory, limit=policy.max_memory)
