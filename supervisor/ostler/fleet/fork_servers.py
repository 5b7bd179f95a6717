"""Fork servers, one for each generation: starting them and ending them.

What they report is handled in `fork_server_reports`.
"""

from ostler.fleet import actions, events, reforks
from ostler.fleet.lifecycle import GENERATIONS, FleetDecision
from ostler.fleet.model import Cause, FleetPolicy, Generation, GenerationState
from ostler.fleet.step import FleetStep

# What applies until a generation's configuration has been read: to read it, and to end.
_FIRST_BOOT_TIMEOUT = 60.0
_GRACE = 1.0


def start_first(step: FleetStep, _: events.StartAsked) -> None:
    step.state.current = new_generation(step)


def new_generation(step: FleetStep) -> int:
    """Start the fork server of a new generation; returns its number."""
    state = step.state
    state.newest_generation += 1
    number = state.newest_generation
    state.generations[number] = Generation(number, GENERATIONS.initial(actions.StartForkServer))
    # The time-out is the current generation's: the new one is in the configuration that is about to be read.
    _start(step, state.generations[number], state.policy)
    return number


def keep_current(step: FleetStep) -> None:
    """Start the current generation's fork server again if it has ended."""
    generation = step.state.generations.get(step.state.current)
    if (
        generation is not None
        and generation.state is GenerationState.DOWN
        and (generation.retry_at is None or generation.retry_at <= step.now)
        and step.move(generation, actions.StartForkServer)
    ):
        _start(step, generation, generation.policy)


def _start(step: FleetStep, generation: Generation, policy: FleetPolicy | None) -> None:
    generation.retry_at = None
    timeout = policy.boot_timeout if policy else _FIRST_BOOT_TIMEOUT
    generation.deadline = step.now + timeout if timeout else None
    step.do(actions.StartForkServer(generation.number))


def abandon(step: FleetStep, number: int, cause: Cause) -> None:
    """End a generation: its fork server, and its workers as their slots allow."""
    for worker in step.state.workers.values():
        if worker.generation == number and worker.leaving is None:
            worker.leaving = cause
    retire(step, number)


def retire(step: FleetStep, number: int) -> None:
    """End a generation's fork server. Its workers are not concerned."""
    state = step.state
    generation = state.generations.get(number)
    if generation is None or generation.state is GenerationState.RETIRING:
        return
    if state.probation is not None and state.probation.fallback == number:
        state.probation = None
    if state.refork is not None and state.refork.generation == number:
        reforks.give_up(step, "its generation was given up")
    if generation.state is GenerationState.DOWN:
        step.move(generation, FleetDecision.RETIRE)
        return
    if step.move(generation, actions.StopForkServer):
        grace = generation.policy.fork_server_grace if generation.policy else _GRACE
        generation.deadline = step.now + grace
        generation.retry_at = None
        step.do(actions.StopForkServer(number))
