"""The state diagrams of contrib/docs/lifecycle.md, made from the fleet's tables.

Run `python -m tests.kit.lifecycle_diagram` after a change of `ostler.fleet.lifecycle`; a test compares.
"""

import enum
from pathlib import Path
from typing import Any

from ostler.fleet import actions
from ostler.fleet.lifecycle import GENERATIONS, RELOADS, WORKERS, FleetDecision, Input, Lifecycle, label
from ostler.fleet.model import GenerationState, ReloadPhase, WorkerState

FILE = Path(__file__).parents[2] / "contrib" / "docs" / "lifecycle.md"

INTRODUCTION = """\
# Life cycles

The supervisor's decisions are made by a state machine without I/O (`supervisor/ostler/fleet/`). It gets
events (what happened, what was asked for) and returns actions (what the daemon is to do). Which changes of
state are legal is written down as tables in `supervisor/ostler/fleet/lifecycle.py`; everything else is
refused and logged as `internal_error`. This page is generated from those tables: run
`python -m tests.kit.lifecycle_diagram` after a change.

An arrow is labelled with its causes: an event, an action that the fleet takes, or a decision of the fleet
(in small letters). The dot is both the beginning and the end: before the first arrow and after the last one
there is no such worker or generation.
"""

SECTIONS: tuple[tuple[Lifecycle[Any], str], ...] = (
    (WORKERS, "A worker is one process. Its slot outlives it: another worker takes over."),
    (
        GENERATIONS,
        "A generation is one evaluation of the configuration and the app, by a fork server of its own.",
    ),
    (
        RELOADS,
        "A reload tries a new generation with one worker, the canary, before it replaces the current one.",
    ),
)

STATES: dict[enum.Enum, str] = {
    WorkerState.BOOTING: "it is being forked, or loads the app",
    WorkerState.READY: "it accepts connections",
    WorkerState.DRAINING: "it accepts no more and finishes its requests, within `graceful_timeout`",
    WorkerState.STOPPING: "a signal that ends it was sent",
    GenerationState.CONFIGURING: "its fork server evaluates the configuration",
    GenerationState.LOADING: "its listeners are bound; with `preload_app` its fork server loads the app",
    GenerationState.UP: "its fork server can fork workers",
    GenerationState.FAILED: "its fork server could not load or did not get on, and is being killed",
    GenerationState.DOWN: "its fork server has ended; another one is started after a while",
    GenerationState.SPARE: "a reload has replaced it; it is kept during `probation`, to be rolled back to",
    GenerationState.RETIRING: "its fork server is to end",
    ReloadPhase.LOADING: "the new generation loads",
    ReloadPhase.CANARY: "its first worker boots, and then has to live for `canary_time`",
    ReloadPhase.ROLLING: "the new generation is the current one; workers are replaced, successors first",
    ReloadPhase.DONE: "all workers are of the new generation",
    ReloadPhase.FAILED: "the new generation was given up, or it is current and its workers keep failing",
    ReloadPhase.SUPERSEDED: "another reload was asked for",
    ReloadPhase.ROLLED_BACK: "the old generation is the current one again",
}

DECISIONS = {
    FleetDecision.RETIRE: "the generation is not needed any more, and has no fork server to end",
    FleetDecision.KEEP_AS_SPARE: "the generation was replaced and is kept for a roll-back",
    FleetDecision.PROMOTE: "the canary has lived long enough: its generation becomes the current one",
    FleetDecision.COMPLETE: "the last old worker has ended and all slots are served",
    FleetDecision.FAIL: "loading, the canary or too many workers failed, or the daemon stops",
    FleetDecision.SUPERSEDE: "another reload was asked for",
    FleetDecision.ROLL_BACK: "crashes, errors or failed boots during probation",
}


def page() -> str:
    """The whole file."""
    return "\n".join([INTRODUCTION, *(_section(table, text) for table, text in SECTIONS)])


def _section(table: Lifecycle[Any], text: str) -> str:
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, cause), after in table.transitions.items():
        arrows.setdefault((_name(before), _name(after)), []).append(label(cause))
    lines = [f"## {table.subject.capitalize()}s", "", text, "", "```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{state.value}" as {_name(state)}' for state in table.states if " " in state.value]
    lines += [f"    {before} --> {after} : {', '.join(causes)}" for (before, after), causes in arrows.items()]
    lines += ["```", "", "| state | meaning |", "| --- | --- |"]
    lines += [f"| {state.value} | {STATES[state]} |" for state in table.states]
    lines += ["", "| cause | | meaning |", "| --- | --- | --- |"]
    causes = {cause: None for _, cause in table.transitions}
    lines += [f"| `{label(cause)}` | {_kind(cause)} | {_meaning(cause)} |" for cause in causes]
    return "\n".join([*lines, ""])


def _name(state: enum.Enum | None) -> str:
    return "[*]" if state is None else str(state.value).replace(" ", "_")


def _kind(cause: Input) -> str:
    if isinstance(cause, FleetDecision):
        return "decision"
    return "action" if cause.__module__ == actions.__name__ else "event"


def _meaning(cause: Input) -> str:
    """The meaning of a decision, from this module;
    that of an event or action is the first paragraph of its docstring.
    """
    if isinstance(cause, FleetDecision):
        return DECISIONS[cause]
    return " ".join((cause.__doc__ or "").split("\n\n")[0].split()).rstrip(".")


if __name__ == "__main__":
    FILE.write_text(page(), "utf-8")
