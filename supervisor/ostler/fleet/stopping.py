"""The end of the daemon: workers finish, then fork servers end, then the fleet asks for `Finish`."""

from typing import Literal

from ostler.fleet import actions, events, fork_servers, reforks, reloads, workers
from ostler.fleet.lifecycle import FleetDecision
from ostler.fleet.model import Cause, WorkerState
from ostler.fleet.step import FleetStep


def asked(step: FleetStep, event: events.StopAsked) -> None:
    state = step.state
    how = "quick" if state.stopping else event.how
    if state.stopping == how:
        return
    step.report("info", "stop", {"how": how, "by": event.by})
    _stop(step, how)


def fail_start(
    step: FleetStep, reason: str, traceback: str | None, app_failed: bool, invalid: bool = False
) -> None:
    """No worker was ever ready, so there is nothing to keep: the daemon ends and says why."""
    step.state.finish = actions.Finish(True, app_failed, reason, traceback, invalid)
    _stop(step, "quick")


def _stop(step: FleetStep, how: Literal["graceful", "quick"]) -> None:
    state = step.state
    first, state.stopping = state.stopping is None, how
    if not first:
        return
    step.do(actions.Stopping())
    reforks.give_up(step, "the daemon stops")
    if state.upgrading is not None:
        state.upgrading = None
        step.report("warning", "upgrade_failed", {"problem": "the daemon stops"})
    if state.reload and state.reload.running:
        reloads.end(step, state.reload, FleetDecision.FAIL, "the daemon stops")
    reloads.drop_candidate(step)


def wind_down(step: FleetStep) -> None:
    """End all workers, and when there are none any more the fork servers, and then the daemon."""
    state = step.state
    for worker in state.workers.values():
        if worker.leaving is None:
            worker.leaving = Cause.STOP
        if state.stopping == "quick" and worker.state is not WorkerState.STOPPING:
            workers.quit_worker(step, worker)
        elif worker.state is WorkerState.BOOTING:
            workers.cancel(step, worker)
        elif worker.state is WorkerState.READY:
            workers.drain(step, worker)
    if state.workers:
        return
    for number in list(state.generations):
        fork_servers.retire(step, number)
    if not state.generations and not state.finished:
        state.finished = True
        step.do(state.finish)
