"""The end of the daemon: workers finish, then fork servers end, then the fleet asks for `Finish`.

Before a graceful stop the fleet serves on for `shutdown_delay`, reported as not ready: load balancers notice
that some seconds later, and until then they send requests.
"""

from typing import Literal

from ostler.fleet import actions, events, fork_servers, reforks, reloads, workers
from ostler.fleet.lifecycle import FleetDecision
from ostler.fleet.model import Cause, Generation, WorkerState
from ostler.fleet.step import FleetStep


def asked(step: FleetStep, event: events.StopAsked) -> None:
    state = step.state
    how = "quick" if state.stopping else event.how
    if state.stopping == how:
        return
    begins = _delayed(step) if how == "graceful" else None
    if begins is None:
        step.report("info", "stop", {"how": how, "by": event.by})
        _stop(step, how)
        return
    fields = {"how": how, "by": event.by, "delay": round(begins - step.now, 3)}
    step.report("info", "stop", fields)
    state.stop_at = begins
    if state.draining_since is None:
        state.draining_since = step.now
    step.do(actions.Stopping())


def _delayed(step: FleetStep) -> float | None:
    """When a graceful stop begins; None: at once."""
    state = step.state
    # Without a ready worker no balancer sends anything. A second request means that it is urgent.
    if state.policy is None or not state.ready or state.stop_at is not None:
        return None
    since = step.now if state.draining_since is None else state.draining_since
    begins = since + state.policy.shutdown_delay
    return begins if begins > step.now else None


def begin_delayed(step: FleetStep) -> None:
    """Begin the stop whose delay is over."""
    state = step.state
    if state.stop_at is not None and state.stop_at <= step.now and not state.stopping:
        _stop(step, "graceful")


def start_is_tried_again(step: FleetStep, generation: Generation) -> bool:
    """Whether the app, which could not be loaded at the start, is loaded again (`boot_retries`); counts."""
    state, policy = step.state, generation.policy
    if state.ever_ready or policy is None or state.start_retries >= policy.boot_retries:
        return False
    state.start_retries += 1
    return True


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
