"""The processing of one event: the state, the present time, and the actions so far."""

from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import Struct, field

from ostler.fleet import actions, lifecycle
from ostler.fleet.model import Generation, GenerationState, Reload, ReloadPhase, Worker, WorkerState
from ostler.fleet.state import State


class FleetStep(Struct):
    """What the functions of this package work on. Each event gets a new one; only the state outlives it.

    state: changed in place. now: CLOCK_MONOTONIC, seconds. random: returns a number from 0 to 1, for jitter.
    strict: an illegal transition raises. out: the actions, in the order in which they are to be performed.
    """

    state: State
    now: float
    random: Callable[[], float]
    strict: bool = False
    out: list[actions.Action] = field(default_factory=list)

    def do(self, action: actions.Action) -> None:
        self.out.append(action)

    def report(self, level: actions.Level, name: str, fields: dict[str, Any]) -> None:
        self.do(actions.Report(level, name, fields))

    def report_worker(self, level: actions.Level, name: str, worker: Worker, **fields: Any) -> None:
        self.report(level, name, {"slot": worker.slot, "generation": worker.generation} | fields)

    def move(self, subject: Worker | Generation | Reload, cause: lifecycle.Input) -> bool:
        """Bring a subject into its next state, as the tables in `lifecycle` say.

        A worker or generation that has come to its end is removed from the state. Returns False if nothing
        has changed: the input is ignored in that state, or it is illegal and was refused and reported.

        Raises:
            IllegalTransition: only if the step is strict.
        """
        try:
            match subject:
                case Worker():
                    return lifecycle.WORKERS.advance(
                        subject.state, cause, partial(self._enter_worker, subject)
                    )
                case Generation():
                    return lifecycle.GENERATIONS.advance(
                        subject.state, cause, partial(self._enter_generation, subject)
                    )
                case Reload():
                    return lifecycle.RELOADS.advance(subject.phase, cause, partial(_enter_phase, subject))
        except lifecycle.IllegalTransition as error:
            if self.strict:
                raise
            self.report("error", "internal_error", {"problem": f"{_name(subject)}: {error}"})
            return False

    def _enter_worker(self, worker: Worker, state: WorkerState | None) -> None:
        if state is None:
            self.state.workers.pop(worker.worker_id, None)
        else:
            worker.state, worker.since = state, self.now

    def _enter_generation(self, generation: Generation, state: GenerationState | None) -> None:
        if state is None:
            self.state.generations.pop(generation.number, None)
        else:
            generation.state = state


def _enter_phase(reload: Reload, phase: ReloadPhase | None) -> None:
    assert phase is not None  # an ended reload is kept, to be shown
    reload.phase = phase


def _name(subject: Worker | Generation | Reload) -> str:
    match subject:
        case Worker():
            return f"slot {subject.slot}"
        case Generation():
            return f"generation {subject.number}"
        case Reload():
            return f"reload to generation {subject.generation}"
