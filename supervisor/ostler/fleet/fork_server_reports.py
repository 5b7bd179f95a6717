"""What fork servers report: the configuration was read, the app is loaded, or one of these failed.

How fork servers are started and ended is in `fork_servers`.
"""

from ostler.fleet import actions, events, fork_servers, probation, reloads, stopping, workers
from ostler.fleet.model import GenerationState
from ostler.fleet.policies import backoff, jittered
from ostler.fleet.step import FleetStep

# If a fork server that could fork for so long dies, its start was no failure.
_SETTLED = 60.0


def configured(step: FleetStep, event: events.ForkServerConfigured) -> None:
    generation = step.state.generations.get(event.generation)
    if generation is None or not step.move(generation, events.ForkServerConfigured):
        return
    policy = event.policy
    generation.policy = policy
    generation.closes_listeners = event.closes_listeners
    generation.has_app = policy.preload
    generation.deadline = step.now + policy.boot_timeout if policy.boot_timeout else None
    step.do(actions.LoadApp(event.generation))


def loaded(step: FleetStep, event: events.AppLoaded) -> None:
    state = step.state
    generation = state.generations.get(event.generation)
    if generation is None or not step.move(generation, events.AppLoaded):
        return
    generation.deadline = None
    generation.up_since = step.now
    if state.candidate == event.generation and state.reload is not None:
        step.move(state.reload, events.AppLoaded)


def failed(step: FleetStep, event: events.GenerationFailed) -> None:
    fail(step, event.generation, event.reason, event.traceback, event.app_failed, invalid=event.invalid)


def exited(step: FleetStep, event: events.ForkServerExited) -> None:
    state = step.state
    generation = state.generations.get(event.generation)
    if generation is None:
        return
    generation.unread_since = None
    workers.drop_unforked(step, event.generation, events.ForkServerExited)
    if generation.state in (GenerationState.CONFIGURING, GenerationState.LOADING, GenerationState.UP):
        how = f"ended with {event.status}"
        if event.problem:
            how = f"was killed for a protocol error: {event.problem}"
        fail(step, event.generation, f"the fork server {how}", app_failed=True, has_exited=True)
        return
    step.move(generation, events.ForkServerExited)
    if state.probation is not None and state.probation.fallback == generation.number:
        state.probation = None


def fail(
    step: FleetStep,
    number: int,
    reason: str,
    traceback: str | None = None,
    app_failed: bool = False,
    has_exited: bool = False,
    invalid: bool = False,
) -> None:
    """A generation's fork server can't load, makes no progress, or has ended.

    What follows depends on what there is to preserve: a reload fails, the start fails and the daemon ends, or
    the fork server is started again after a while. `has_exited`: there is no process left to kill;
    `app_failed`, `invalid`: as in `events.GenerationFailed`.
    """
    state = step.state
    generation = state.generations.get(number)
    if generation is None or generation.state in (GenerationState.RETIRING, GenerationState.FAILED):
        return
    loads = generation.state in (GenerationState.CONFIGURING, GenerationState.LOADING)
    generation.deadline = None
    if has_exited:
        step.move(generation, events.ForkServerExited)
    if state.stopping or generation.state is GenerationState.SPARE:
        # It is not needed. `stopping` retires it with the last worker; but if it hangs, what it was asked to
        # fork never comes and never ends.
        if generation.state in (GenerationState.UP, GenerationState.SPARE):
            fork_servers.retire(step, number)
        return
    if number == state.candidate and state.reload:
        reloads.fail_candidate(step, state.reload, reason, traceback)
        return
    again = app_failed and stopping.start_is_tried_again(step, generation)
    if not (state.ever_ready or again):
        stopping.fail_start(step, reason, traceback, app_failed, invalid)
        return
    # It could load once. Workers serve on, and it is tried again.
    if generation.up_since is not None and step.now - generation.up_since >= _SETTLED:
        generation.server_failures = 0
    generation.up_since = None
    generation.server_failures += 1
    wait = jittered(backoff(generation.server_failures - 1), step.random())
    generation.retry_at = step.now + wait
    generation.last_failure = reason
    if generation.state is not GenerationState.DOWN and step.move(generation, actions.KillForkServer):
        step.do(actions.KillForkServer(number))
    fields = {"generation": number, "reason": reason, "retry_in": round(wait, 3), "traceback": traceback}
    step.report("error", "fork_server_failed", fields)
    if loads:
        # A later death, perhaps by a signal from outside, is no evidence against the code.
        probation.count_failures(step, generation, generation.server_failures, reason, traceback)
