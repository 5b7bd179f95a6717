"""How many workers there should be: set by hand, decided by the load, or as the configuration says; none
during a pause.

Which workers end when there are fewer is decided in `slots.mark_leaving`: those in the highest slots.
"""

from ostler.fleet import events
from ostler.fleet.autoscale import decide
from ostler.fleet.model import FleetPolicy, Probation, WorkerState
from ostler.fleet.policies import MAX_WORKERS
from ostler.fleet.step import FleetStep


def resize(step: FleetStep, event: events.ResizeAsked) -> None:
    state = step.state
    before = state.wanted
    fewer_than_none = state.paused and event.delta is not None and event.delta < 0
    if state.stopping or state.policy is None or fewer_than_none:
        return
    state.paused = False
    target = None
    if event.workers is None and event.delta is None:
        state.override = None
    else:
        target = event.workers if event.workers is not None else before + (event.delta or 0)
        state.override = min(max(1, target), MAX_WORKERS)
    if state.probation is not None:
        state.probation.override = state.override
    fields = {"workers": state.wanted, "before": before, "by": event.by}
    if state.override is None:
        fields["note"] = "the configuration's own number counts again"
    elif target != state.override:
        fields["note"] = f"stopped at {state.override}, the {'least' if state.override == 1 else 'most'}"
    step.report("info", "scale", fields)


def pause(step: FleetStep, event: events.PauseAsked) -> None:
    if not step.state.stopping:
        step.state.paused = True
        step.report("info", "pause", {"by": event.by})


def drain(step: FleetStep, event: events.DrainAsked) -> None:
    state = step.state
    if not state.stopping and state.draining_since is None:
        state.draining_since = step.now
        step.report("info", "drain", {"by": event.by})


def resume(step: FleetStep, event: events.ResumeAsked) -> None:
    state = step.state
    # A stop that was asked for is not taken back: a service manager waits for it.
    if state.stopping or state.stop_at is not None or not (state.paused or state.draining_since is not None):
        return
    state.paused, state.draining_since = False, None
    step.report("info", "resume", {"by": event.by, "workers": state.wanted})


def autoscale(step: FleetStep, event: events.Measured) -> None:
    """Let the load decide, if the configuration gives a range and no number was set by hand."""
    state = step.state
    policy = state.policy
    if policy is None or policy.workers_most is None or state.override is not None or state.paused:
        return
    loads = [w.load for w in state.workers.values() if w.state is WorkerState.READY]
    decision = decide(state.trend, loads, event.memory_free, policy, state.wanted, step.now)
    if decision is None:
        return
    # The number may be the present one: then more are needed but can't be had.
    fields = {"workers": decision.workers, "before": state.wanted, "reason": decision.reason}
    step.report("info", "autoscale", fields)
    state.autoscaled = decision.workers


def fit(step: FleetStep, before: FleetPolicy | None) -> None:
    """Another generation is current: keep what was set by hand if its configuration says nothing new."""
    _fit_autoscaled(step, before)
    state = step.state
    after = state.policy
    if after is None or state.override is None or before is None:
        return
    if (before.workers, before.workers_most) == (after.workers, after.workers_most):
        step.report("info", "scale_kept", {"workers": state.override, "configured": after.workers})
    else:
        fields = {"workers": after.workers, "before": state.override}
        step.report("info", "scale_override_ended", fields)
        state.override = None


def bring_back(step: FleetStep, probation: Probation, before: FleetPolicy | None) -> None:
    """A roll-back: the number is the one before the reload, or what was set by hand since."""
    if step.state.autoscaled is None:
        step.state.autoscaled = probation.autoscaled
    _fit_autoscaled(step, before)
    step.state.override = probation.override


def _fit_autoscaled(step: FleetStep, before: FleetPolicy | None) -> None:
    """Keep the number that the load asks for within the current bounds; without one begin with as many as
    there were."""
    state = step.state
    after = state.policy
    if after is None or after.workers_most is None:
        state.autoscaled = None
        return
    number = state.autoscaled
    if number is None:
        number = state.override or (before.workers if before else 0)
    state.autoscaled = min(max(number, after.workers), after.workers_most)
