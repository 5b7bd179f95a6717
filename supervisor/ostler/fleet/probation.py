"""Probation: for a while after a reload, failures of the new generation bring the old one back.

These are crashes, a higher share of errors, and failed starts. The roll-back follows the rules of a reload in
the other direction: the old generation is current again, which makes the new one's workers stale. It can be
asked for, too, as long as the old generation is kept: on probation, and with `keep_generations` until the
next reload.
"""

from ostler.fleet import actions, events, fork_servers, reloads, scaling
from ostler.fleet.lifecycle import FleetDecision
from ostler.fleet.model import Cause, Generation, ReloadPhase, Worker, WorkerState
from ostler.fleet.policies import errs_more
from ostler.fleet.step import FleetStep

# How long a roll-back waits for a worker to become the old generation's fork server.
_SPARE_TIME = 2.0
# Why the same may go on after a roll-back.
_LOADS_AGAIN = (
    "new workers load the app from its files as they are now, because no old worker could be kept to fork "
    "them from"
)
# Workers or fork servers in a row that fail to start, after which a reload is given up as failed. The fleet
# goes on trying.
_GIVE_UP = 3


def count_failures(
    step: FleetStep, generation: Generation, failures: int, reason: str, traceback: str | None
) -> None:
    """Something of a generation failed to start, so many times in a row: if that is often, the reload that
    brought it is rolled back or given up."""
    state = step.state
    if failures < _GIVE_UP or generation.number != state.current:
        return
    if state.probation is not None and not state.probation.over:
        _roll_back(step, reason, traceback)
    elif state.reload is not None and state.reload.phase is ReloadPhase.ROLLING:
        reloads.end(step, state.reload, FleetDecision.FAIL, reason, traceback)


def count_crash(step: FleetStep, worker: Worker, reason: str, traceback: str | None) -> None:
    """A worker died while it served, and neither the fleet nor an outsider ended it."""
    state = step.state
    generation = state.generations.get(worker.generation)
    if generation is None:
        return
    generation.crashes.append(step.now)
    state.last_crash = reason
    probation, policy = state.probation, state.policy
    if probation is None or probation.over or policy is None or worker.generation != state.current:
        return
    probation.crashes = [at for at in probation.crashes if step.now - at <= policy.probation] + [step.now]
    crashes = len(probation.crashes)
    # As many crashes as the generation before had in the same time do not count against the new one.
    least = max(policy.rollback_crashes, probation.before + 1)
    if policy.rollback_crashes and crashes >= least:
        times = "once" if crashes == 1 else f"{crashes} times"
        _roll_back(step, f"its workers crashed {times}, last: {reason}", traceback)


def follow(step: FleetStep) -> None:
    """Compare the error rates; end the probation when its time is over."""
    state = step.state
    probation, policy = state.probation, state.policy
    current = state.generations.get(state.current)
    if probation is None or policy is None or current is None:
        return
    old, new = (probation.requests, probation.errors), (current.requests, current.errors)
    if not probation.over and errs_more(old, new, policy.rollback_error_rate):
        percent = [100 * errors / max(answers, 1) for answers, errors in (old, new)]
        reason = f"{percent[1]:.1f} % of its answers are errors, {percent[0]:.1f} % were before"
        _roll_back(step, reason, None)
        return
    if probation.until is not None and probation.until <= step.now:
        probation.over = True
    if probation.over and not policy.keep_generations:
        fork_servers.retire(step, probation.fallback)


def rollback_asked(step: FleetStep, event: events.RollbackAsked) -> None:
    state = step.state
    if state.stopping or state.probation is None:
        problem = "the daemon stops" if state.stopping else "no older generation is kept"
        step.report("warning", "rollback_refused", {"problem": problem, "by": event.by})
        return
    if state.candidate is not None and state.reload is not None:
        reloads.fail_candidate(step, state.reload, "a roll-back was asked for meanwhile", None)
    _roll_back(step, f"asked by {event.by}", None, "info")


def abort_asked(step: FleetStep, event: events.AbortReloadAsked) -> None:
    state, reason = step.state, f"aborted by {event.by}"
    reload = state.reload
    if state.stopping or reload is None or not reload.running:
        step.report("warning", "abort_refused", {"problem": "no reload is running", "by": event.by})
    elif reload.phase is not ReloadPhase.ROLLING:
        reloads.fail_candidate(step, reload, reason, None)
    elif state.probation is not None:
        _roll_back(step, reason, None, "info")
    else:
        problem = "the new generation has taken over, and the old one is not kept (probation)"
        step.report("warning", "abort_refused", {"problem": problem, "by": event.by})


def _roll_back(step: FleetStep, reason: str, traceback: str | None, level: actions.Level = "error") -> None:
    """Let the old generation fill the slots again; its fork server was kept for that."""
    state = step.state
    probation = state.probation
    assert probation is not None
    back = state.generations[probation.fallback]
    if not step.move(back, FleetDecision.ROLL_BACK):
        return
    state.probation = None
    bad, state.current = state.current, back.number
    if back.spare is not None:
        # A worker that is forked before the spare is ready would load the app that is on the disk now.
        back.retry_at = step.now + _SPARE_TIME
    elif not back.has_app:
        reason = f"{reason}; {_LOADS_AGAIN}"
    scaling.bring_back(step, probation, state.generations[bad].policy)
    _keep_old_workers(step)
    fork_servers.abandon(step, bad, Cause.ROLLBACK)
    reload = state.reload
    if reload is None or reload.generation != bad:
        step.report(level, "reload_rolled_back", {"generation": bad, "reason": reason})
        step.do(actions.RolledBack(bad))
    elif reload.running:
        reloads.end(step, reload, FleetDecision.ROLL_BACK, reason, traceback)
    elif step.move(reload, FleetDecision.ROLL_BACK):
        # The reload's result was reported before; the record says what became of it.
        reload.reason, reload.traceback = reason, traceback
        fields = {"generation": bad, "back_to": back.number, "reason": reason, "traceback": traceback}
        step.report(level, "reload_rolled_back", fields)
        step.do(actions.RolledBack(bad))


def _keep_old_workers(step: FleetStep) -> None:
    """Workers of the old generation that still serve were leaving for the reload only: they stay."""
    for worker in step.state.workers.values():
        leaving_for_reload = worker.generation == step.state.current and worker.leaving is Cause.RELOAD
        may_stay = worker.overdue_since is None and not worker.due
        if leaving_for_reload and may_stay and worker.state is WorkerState.READY:
            worker.leaving = worker.leaving_since = None
