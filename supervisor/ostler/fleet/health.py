"""The state of the fleet, as one of a few names and as one sentence."""

from typing import Literal

from ostler.fleet.model import Cause, GenerationState, ReloadPhase, WorkerState
from ostler.fleet.policies import crash_loop, kills_too_many
from ostler.fleet.state import State

FleetState = Literal["starting", "ready", "degraded", "reloading", "paused", "draining", "stopping"]


def state(fleet: State) -> FleetState:
    """The state that matters most, if several apply."""
    if fleet.stopping:
        return "stopping"
    if fleet.paused:
        return "paused"
    if not fleet.ever_ready:
        return "starting"
    if fleet.draining_since is not None:
        return "draining"
    if _trouble(fleet):
        return "degraded"
    if fleet.reload and fleet.reload.running:
        return "reloading"
    return "ready"


def sentence(fleet: State) -> str:
    """The fleet's state for an operator, in one sentence."""
    # Slots, not workers: while one replaces another, two of them serve in one.
    ready = fleet.ready
    workers = f"{ready} of {fleet.wanted} workers ready"
    match state(fleet):
        case "stopping":
            return f"Stopping: {_counted(len(fleet.workers))} left."
        case "starting" if fleet.policy is None:
            return "Starting: reading the configuration."
        case "starting":
            return f"Starting: {workers}."
        case "paused":
            return f"Paused: all workers were asked to leave, {_counted(len(fleet.workers))} left."
        case "draining":
            end = "; the daemon is about to stop" if fleet.stop_at is not None else ""
            trouble = f"; {_trouble(fleet)}" if _trouble(fleet) else ""
            return f"Draining: load balancers are to send no more requests, {workers}{trouble}{end}."
        case "degraded":
            return f"Degraded: {workers}; {_trouble(fleet)}."
        case "reloading":
            reload = fleet.reload
            assert reload is not None
            step = {"loading": "loading the app", "canary": "waiting for the first new worker"}.get(
                reload.phase.value, f"{reload.replaced} of {reload.of} workers replaced"
            )
            return f"Reloading to generation {reload.generation}: {step}; {workers}."
        case "ready":
            pass
    if ready < fleet.wanted:
        booting = fleet.count(WorkerState.BOOTING)
        return f"Serving: {workers}, {booting} booting."
    if hanging := _hanging(fleet):
        return f"Serving: {workers}; {hanging}."
    all_are = "the only worker is" if fleet.wanted == 1 else f"all {fleet.wanted} workers are"
    return f"Healthy: {all_are} ready{_undone(fleet)}."


def _hanging(fleet: State) -> str:
    hanging = [worker for worker in fleet.workers.values() if worker.overdue_since is not None]
    stalled = sum(worker.leaving is Cause.STALLED for worker in hanging)
    parts = [f"{_counted(stalled)} with a stalled event loop being replaced"] if stalled else []
    if overdue := len(hanging) - stalled:
        # With timeout_soft only the request is ended at first.
        goes = all(worker.leaving is not None for worker in hanging)
        parts.append(f"{_counted(overdue)} with an overdue request{' being replaced' if goes else ''}")
    return ", ".join(parts)


def _undone(fleet: State) -> str:
    """That the last reload did not succeed, so that what serves is older than what was asked for."""
    if fleet.reload is None or fleet.reload.phase not in (ReloadPhase.FAILED, ReloadPhase.ROLLED_BACK):
        return ""
    end = "failed" if fleet.reload.phase is ReloadPhase.FAILED else "was rolled back"
    return f", but the last reload {end}: {(fleet.reload.reason or 'see the log').rstrip('.')}"


def _trouble(fleet: State) -> str:
    """Why the fleet is not what is wanted, or an empty text."""
    generation = fleet.generations.get(fleet.current)
    if generation is None:
        return "no generation is loaded"
    up = generation.state is GenerationState.UP
    held = sum(
        w.state is WorkerState.READY and w.staying and w.generation == fleet.current
        for w in fleet.workers.values()
    )
    if not up:
        failed = generation.server_failures
        why = f" (failed {_times(failed)}, last: {generation.last_failure})" if failed else ""
        return f"the fork server is being replaced{why}"
    # The count is not reset before a worker has booted; with all slots held that may take long.
    if generation.failures and held < fleet.wanted:
        return f"booting failed {_times(generation.failures)}, last: {generation.last_failure}"
    crashes = len(generation.crashes)
    if crash_loop(crashes, fleet.wanted):
        return f"workers crashed {_times(crashes)} within a minute, the last one {fleet.last_crash}"
    if kills_too_many(kills := len(fleet.kills), fleet.wanted):
        return f"workers were killed {_times(kills)} within a minute, and not by Ostler"
    if not fleet.ready:
        # Requests wait, so the sentence must not begin with "Serving".
        return f"none serves, {fleet.count(WorkerState.BOOTING)} booting"
    return ""


def _counted(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
