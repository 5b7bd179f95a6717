"""Which changes of state are legal, as data: a table each for workers, generations and reloads.

A table maps (state, input) to the next state. An input is an event that came in (`events.WorkerReady`), an
action that the fleet takes (`actions.Drain`), or a decision that is neither (`FleetDecision.PROMOTE`). The
state None stands for both ends: the subject does not exist yet, or not any more. `step.FleetStep.move` is the
only function that changes a state, and it looks here. Some inputs can be repeated or come too late in the
ordinary course of things; those are `ignored`. All others are defects: see `IllegalTransition`.

What a child process may send in which phase is in `daemon/children/protocol.py`.

The state diagrams in contrib/docs/lifecycle.md are made from these tables.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ostler.fleet import actions, events
from ostler.fleet.model import GenerationState, ReloadPhase, WorkerState


class FleetDecision(enum.Enum):
    """Decisions of the fleet that change a state and are neither an event nor an action."""

    RETIRE = "retire"
    KEEP_AS_SPARE = "keep as spare"
    PROMOTE = "promote"
    COMPLETE = "complete"
    FAIL = "fail"
    SUPERSEDE = "supersede"
    ROLL_BACK = "roll back"


Input = type[Any] | FleetDecision
"""A class of `events` or `actions`, or a decision."""

StateT = TypeVar("StateT", bound=enum.Enum)


class IllegalTransition(Exception):
    """An input that has no meaning in the subject's state: a defect of the fleet or of the daemon."""


@dataclass(frozen=True)
class Lifecycle(Generic[StateT]):
    """The states of one kind of subject.

    subject: what has the states, e.g. `worker`; states: all of them; transitions: the table; ignored: what
    may happen in a state and changes nothing.
    """

    subject: str
    states: type[StateT]
    transitions: Mapping[tuple[StateT | None, Input], StateT | None]
    ignored: frozenset[tuple[StateT, Input]] = frozenset()

    def initial(self, cause: Input) -> StateT:
        """The state of a new subject. Raises IllegalTransition."""
        state = self.transitions.get((None, cause))
        if state is None:
            raise IllegalTransition(f"{label(cause)} does not create a {self.subject}")
        return state

    def advance(self, state: StateT, cause: Input, enter: Callable[[StateT | None], None]) -> bool:
        """Call `enter` with the next state; returns False, without a call, if the input is ignored.

        Raises:
            IllegalTransition: the input has no meaning in the state.
        """
        if (state, cause) in self.transitions:
            enter(self.transitions[state, cause])
            return True
        if (state, cause) in self.ignored:
            return False
        raise IllegalTransition(f"{label(cause)} is not possible for a {self.subject} that is {state.value}")


def label(cause: Input) -> str:
    """The input's name."""
    return cause.value if isinstance(cause, FleetDecision) else cause.__name__


# -- workers ------------------------------------------------------------------------------------------------

BOOTING, READY, DRAINING, STOPPING = WorkerState

WORKERS = Lifecycle(
    "worker",
    WorkerState,
    {
        (None, actions.Spawn): BOOTING,
        (BOOTING, events.WorkerReady): READY,
        (BOOTING, actions.Cancel): STOPPING,
        (BOOTING, actions.Quit): STOPPING,
        (BOOTING, actions.Abort): STOPPING,  # boot_timeout
        (READY, actions.Drain): DRAINING,
        (READY, actions.Quit): STOPPING,
        (READY, actions.Abort): STOPPING,  # it can't finish its requests, and its successor is ready
        (DRAINING, actions.Quit): STOPPING,
        (DRAINING, actions.Abort): STOPPING,
        (DRAINING, actions.Kill): STOPPING,  # graceful_timeout, or it became a zygote that is not wanted
        (DRAINING, events.ZygoteReady): None,  # it is a fork server from now on
        # It was ready before the cancellation reached it, so it may have requests. Only if it was cancelled.
        (STOPPING, events.WorkerReady): DRAINING,
        (STOPPING, actions.Kill): STOPPING,
        # Not forked, and its fork server has ended or was replaced.
        (BOOTING, events.ForkServerExited): None,
        (STOPPING, events.ForkServerExited): None,
        (BOOTING, actions.UseZygote): None,
        (STOPPING, actions.UseZygote): None,
        # In each state: the kernel reports its death, or the daemon that there is no such process.
        **{(state, events.WorkerExited): None for state in WorkerState},
        **{(state, events.SpawnFailed): None for state in WorkerState},
    },
    frozenset(
        {
            (READY, events.WorkerReady),
            (DRAINING, events.WorkerReady),
            (STOPPING, events.ZygoteReady),  # it ends: a signal for that was sent
        }
    ),
)

# -- generations --------------------------------------------------------------------------------------------

CONFIGURING, LOADING, UP, FAILED, DOWN, SPARE, RETIRING = GenerationState
_STARTING = (CONFIGURING, LOADING)

GENERATIONS = Lifecycle(
    "generation",
    GenerationState,
    {
        (None, actions.StartForkServer): CONFIGURING,
        (CONFIGURING, events.ForkServerConfigured): LOADING,
        (LOADING, events.AppLoaded): UP,
        # It fails, or makes no progress.
        **{(state, actions.KillForkServer): FAILED for state in (*_STARTING, UP)},
        **{(state, events.ForkServerExited): DOWN for state in (*_STARTING, UP, FAILED)},
        (DOWN, actions.StartForkServer): CONFIGURING,
        # A worker becomes the fork server, in place of the one that there is or was.
        **{(state, actions.UseZygote): UP for state in (*_STARTING, UP, FAILED, DOWN)},
        (SPARE, actions.UseZygote): SPARE,
        # A reload replaces it; during probation it is kept.
        (UP, FleetDecision.KEEP_AS_SPARE): SPARE,
        (SPARE, FleetDecision.ROLL_BACK): UP,
        **{(state, actions.StopForkServer): RETIRING for state in (*_STARTING, UP, FAILED, SPARE)},
        (RETIRING, actions.KillForkServer): RETIRING,
        (RETIRING, events.ForkServerExited): None,
        (SPARE, events.ForkServerExited): None,
        (DOWN, FleetDecision.RETIRE): None,
    },
    frozenset(
        {
            # What a fork server sent before it was stopped, killed or replaced by a zygote.
            *((s, events.ForkServerConfigured) for s in (LOADING, UP, FAILED, SPARE, RETIRING)),
            *((s, events.AppLoaded) for s in (UP, FAILED, SPARE, RETIRING)),
            (DOWN, events.ForkServerExited),
        }
    ),
)

# -- reloads ------------------------------------------------------------------------------------------------

_RUNNING = (ReloadPhase.LOADING, ReloadPhase.CANARY, ReloadPhase.ROLLING)

RELOADS = Lifecycle(
    "reload",
    ReloadPhase,
    {
        (None, events.ReloadAsked): ReloadPhase.LOADING,
        (None, events.UpgradeDone): ReloadPhase.LOADING,
        (ReloadPhase.LOADING, events.AppLoaded): ReloadPhase.CANARY,
        (ReloadPhase.CANARY, FleetDecision.PROMOTE): ReloadPhase.ROLLING,
        (ReloadPhase.ROLLING, FleetDecision.COMPLETE): ReloadPhase.DONE,
        **{(phase, FleetDecision.FAIL): ReloadPhase.FAILED for phase in _RUNNING},
        **{(phase, FleetDecision.SUPERSEDE): ReloadPhase.SUPERSEDED for phase in _RUNNING},
        # Also one that has ended, as long as its generation is on probation.
        **{
            (phase, FleetDecision.ROLL_BACK): ReloadPhase.ROLLED_BACK
            for phase in (ReloadPhase.ROLLING, ReloadPhase.DONE, ReloadPhase.FAILED)
        },
    },
)
