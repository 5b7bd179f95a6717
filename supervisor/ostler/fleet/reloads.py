"""Reloads: a new generation is tried by one worker, the canary, before it replaces the current one.

A reload is a candidate generation with one worker. When that has lived for `canary_time` the candidate
becomes the current generation, which makes every older worker stale (`slots` replaces them). Until then
nothing of the current generation is touched. Afterwards the old fork server is kept while the new generation
is on probation: see `probation`.
"""

import math
from typing import Any

from ostler.fleet import actions, events, fork_servers, reforks, scaling, workers
from ostler.fleet.lifecycle import RELOADS, FleetDecision, Input
from ostler.fleet.model import (
    Cause,
    GenerationState,
    Probation,
    Reload,
    ReloadPhase,
    Worker,
    WorkerState,
)
from ostler.fleet.policies import CRASH_WINDOW
from ostler.fleet.step import FleetStep


def asked(step: FleetStep, event: events.ReloadAsked) -> None:
    if not step.state.stopping:
        begin(step, event.by, events.ReloadAsked, resumes=step.state.paused)


def begin(step: FleetStep, by: str, cause: Input, resumes: bool = False) -> None:
    """Start a reload in place of one that may be running. `resumes`: see `Reload`."""
    state = step.state
    if state.reload and state.reload.running:
        end(step, state.reload, FleetDecision.SUPERSEDE, "a newer reload took its place")
    drop_candidate(step)
    reforks.give_up(step, "a reload took its place")
    state.candidate = fork_servers.new_generation(step)
    phase = RELOADS.initial(cause)
    state.reload = Reload(state.candidate, phase, by, step.now, state.wanted, resumes=resumes)
    step.report("info", "reload", {"generation": state.candidate, "by": by})


def drop_candidate(step: FleetStep) -> None:
    """End the generation that is being tried, if there is one."""
    if step.state.candidate is not None:
        fork_servers.abandon(step, step.state.candidate, Cause.RELOAD)
        step.state.candidate = None


def fail_candidate(step: FleetStep, reload: Reload, reason: str, traceback: str | None) -> None:
    drop_candidate(step)
    end(step, reload, FleetDecision.FAIL, reason, traceback)


def start_canary(step: FleetStep) -> None:
    """Spawn the canary as soon as the candidate's fork server can fork."""
    state = step.state
    if state.candidate is None or state.reload is None or state.reload.canary_worker_id is not None:
        return
    generation = state.generations[state.candidate]
    if generation.state is GenerationState.UP:
        state.reload.canary_worker_id = workers.spawn(step, 1, generation).worker_id


def canary_ready(step: FleetStep, worker: Worker) -> None:
    """A worker is ready. If it is the canary, its time begins."""
    reload = step.state.reload
    if reload and reload.running and reload.canary_worker_id == worker.worker_id:
        policy = step.state.generations[reload.generation].policy
        reload.canary_until = step.now + (policy.canary_time if policy else 0.0)


def follow_canary(step: FleetStep) -> None:
    """Promote the candidate after `canary_time`; fail it if its worker is overdue or must be replaced."""
    state = step.state
    reload = state.reload
    if reload is None or reload.phase is not ReloadPhase.CANARY or reload.canary_worker_id is None:
        return
    canary = state.workers[reload.canary_worker_id]
    # It may be leaving for another cause, too.
    overdue = canary.overdue_since is not None and canary.leaving is not None
    if overdue or canary.leaving in (Cause.DEADLINE, Cause.STALLED):
        hangs = "serves no more" if canary.leaving is Cause.STALLED else "did not answer in time"
        fail_candidate(step, reload, f"the first new worker {hangs}", None)
    elif reload.canary_until is not None and reload.canary_until <= step.now:
        _promote(step, reload)


def _promote(step: FleetStep, reload: Reload) -> None:
    """From now on slots are filled with workers of the candidate."""
    if not step.move(reload, FleetDecision.PROMOTE):
        return
    state = step.state
    before = state.generations.get(state.current)
    state.current = reload.generation
    state.candidate = None
    override, autoscaled = state.override, state.autoscaled
    scaling.fit(step, before.policy if before else None)
    state.paused = state.paused and not reload.resumes
    reload.of = state.wanted
    if state.probation is not None:
        fork_servers.retire(step, state.probation.fallback)
    if before is None:
        return
    after = state.generations[state.current]
    kept_as_spare = (
        after.policy is not None
        and (after.policy.probation > 0 or after.policy.keep_generations > 0)
        and before.state is GenerationState.UP
        and not after.closes_listeners
    )
    if not kept_as_spare:
        fork_servers.retire(step, before.number)
        return
    assert after.policy is not None
    # No more than the last minute is known.
    length = after.policy.probation
    known = min(length, CRASH_WINDOW)
    recent = sum(step.now - at <= known for at in before.crashes) * length / known if length else 0
    if step.move(before, FleetDecision.KEEP_AS_SPARE):
        state.probation = Probation(
            before.number,
            math.ceil(recent),
            before.requests,
            before.errors,
            over=not length,
            override=override,
            autoscaled=autoscaled,
        )


def follow_roll(step: FleetStep) -> None:
    """Count what is replaced, and end the reload when all is."""
    state = step.state
    reload = state.reload
    if reload is None or reload.phase is not ReloadPhase.ROLLING:
        return
    fresh = [
        w
        for w in state.workers.values()
        if w.generation == reload.generation and w.state is WorkerState.READY
    ]
    reload.of = state.wanted
    reload.replaced = min(len({w.slot for w in fresh}), reload.of)
    stale = any(w.generation < reload.generation for w in state.workers.values())
    if reload.replaced >= reload.of and not stale:
        end(step, reload, FleetDecision.COMPLETE)


def end(
    step: FleetStep,
    reload: Reload,
    how: FleetDecision,
    reason: str | None = None,
    traceback: str | None = None,
) -> None:
    """End a reload that runs. `reason` and `traceback`: why it did not succeed."""
    if not step.move(reload, how):
        return
    state, phase = step.state, reload.phase
    reload.ended = step.now
    reload.reason = reason
    reload.traceback = traceback
    fields: dict[str, Any] = {
        "generation": reload.generation,
        "seconds": round(step.now - reload.started, 3),
        "workers": reload.replaced,
    }
    if how is not FleetDecision.COMPLETE:
        fields |= {"reason": reason, "traceback": traceback}
    failed = how in (FleetDecision.FAIL, FleetDecision.ROLL_BACK)
    step.report("error" if failed else "info", f"reload_{phase.value.replace(' ', '_')}", fields)
    step.do(actions.ReloadEnded(reload.generation))
    on_probation = state.probation
    if on_probation is not None and not on_probation.over and on_probation.until is None and state.policy:
        on_probation.until = step.now + state.policy.probation
