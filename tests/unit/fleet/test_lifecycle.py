"""The tables of legal transitions: exactly these work, and the documentation shows them."""

import ast
from pathlib import Path
from typing import Any

import pytest

import ostler.fleet
from ostler.fleet import actions, events, lifecycle
from ostler.fleet.lifecycle import GENERATIONS, RELOADS, WORKERS, IllegalTransition, Lifecycle
from ostler.fleet.machine import Fleet
from ostler.fleet.model import (
    ExitStatus,
    Generation,
    GenerationState,
    Reload,
    ReloadPhase,
    Worker,
    WorkerState,
)
from ostler.fleet.state import State
from ostler.fleet.step import FleetStep
from tests.kit import lifecycle_diagram
from tests.kit.play import Play, kill, running
from tests.kit.policies import fleet_policy

TABLES: tuple[Lifecycle[Any], ...] = (WORKERS, GENERATIONS, RELOADS)
CAUSES = sorted({cause for table in TABLES for _, cause in table.transitions}, key=lifecycle.label)
PAIRS = [
    pytest.param(table, state, cause, id=f"{table.subject} {state.value}-{lifecycle.label(cause)}")
    for table in TABLES
    for state in table.states
    for cause in CAUSES
]

Subject = Worker | Generation | Reload


def a_step(table: Lifecycle[Any], state: Any, strict: bool) -> tuple[FleetStep, Subject]:
    """A step whose state has one subject, in a state."""
    step = FleetStep(State(), 10.0, lambda: 0.5, strict)
    if table is WORKERS:
        worker = step.state.workers[7] = Worker(7, 1, 1, state, since=1.0, spawned_at=1.0)
        return step, worker
    if table is GENERATIONS:
        generation = step.state.generations[3] = Generation(3, state)
        return step, generation
    step.state.reload = Reload(3, state, "test", started=1.0, of=1)
    return step, step.state.reload


def state_of(step: FleetStep, subject: Subject) -> Any:
    """The state of a subject; None if there is no such subject."""
    match subject:
        case Worker():
            return subject.state if step.state.workers else None
        case Generation():
            return subject.state if step.state.generations else None
        case Reload():
            return subject.phase


@pytest.mark.parametrize(("table", "state", "cause"), PAIRS)
def test_each_cause_in_each_state(table: Lifecycle[Any], state: Any, cause: lifecycle.Input) -> None:
    """The cause leads to the state in the table, or is ignored, or is refused:
    with an exception when strict, else with a report and without a change.
    """
    legal, ignored = (state, cause) in table.transitions, (state, cause) in table.ignored
    assert not (legal and ignored)
    strict, subject = a_step(table, state, strict=True)
    lenient, other = a_step(table, state, strict=False)
    if not legal and not ignored:
        with pytest.raises(IllegalTransition, match=lifecycle.label(cause)):
            strict.move(subject, cause)
        assert lenient.move(other, cause) is False
        assert state_of(lenient, other) is state
        (report,) = lenient.out
        assert isinstance(report, actions.Report)
        assert (report.level, report.name) == ("error", "internal_error")
        return
    after = table.transitions[state, cause] if legal else state
    for step, moved in ((strict, subject), (lenient, other)):
        assert step.move(moved, cause) is legal
        assert state_of(step, moved) is after
        assert step.out == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.subject)
def test_each_state_is_reached_and_left(table: Lifecycle[Any]) -> None:
    """Each state can be reached and can be left."""
    assert {after for after in table.transitions.values() if after is not None} == set(table.states)
    if table is not RELOADS:
        ends = {state for (state, _), after in table.transitions.items() if after is None}
        for state in set(table.states) - ends:
            assert ends & {after for (before, _), after in table.transitions.items() if before is state}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.subject)
def test_what_creates_a_subject(table: Lifecycle[Any]) -> None:
    """Only the causes of the first arrow create a subject."""
    for cause in CAUSES:
        if (None, cause) in table.transitions:
            assert table.initial(cause) is table.transitions[None, cause]
        else:
            with pytest.raises(IllegalTransition):
                table.initial(cause)


def test_a_worker_remembers_since_when() -> None:
    """A transition records its time."""
    step, worker = a_step(WORKERS, WorkerState.BOOTING, strict=True)
    assert isinstance(worker, Worker)
    step.move(worker, events.WorkerReady)
    assert worker.since == 10.0


def test_only_one_function_changes_states() -> None:
    """Only step.py assigns `state` of a worker or generation and `phase` of a reload."""
    (folder,) = ostler.fleet.__path__
    found = set()
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in [part for one in targets for part in getattr(one, "elts", [one])]:
                if isinstance(target, ast.Attribute) and target.attr in ("state", "phase"):
                    found.add((path.name, ast.unparse(target)))
    assert {(name, text) for name, text in found if name != "step.py"} == {
        ("machine.py", "self.state"),
        ("machine.py", "fleet.state"),
    }


def test_the_document_is_current() -> None:
    """contrib/docs/lifecycle.md is what the tables give. To update it:
    python -m tests.kit.lifecycle_diagram.
    """
    assert lifecycle_diagram.FILE.read_text("utf-8") == lifecycle_diagram.page()


# -- the whole fleet ----------------------------------------------------------------------------------------


def a_fleet(strict: bool) -> Fleet:
    """A fleet whose only worker serves."""
    fleet = Fleet(strict=strict)
    fleet.handle(events.StartAsked(), 0.0)
    fleet.handle(events.ForkServerConfigured(1, fleet_policy()), 0.0)
    fleet.handle(events.AppLoaded(1), 0.0)
    fleet.handle(events.WorkerForked(1, 100), 0.0)
    fleet.handle(events.WorkerReady(1), 1.0)
    return fleet


def test_an_illegal_event_in_production() -> None:
    """A worker that was not asked to can't become a fork server:
    the event is logged, and the fleet continues.
    """
    fleet = a_fleet(strict=False)
    (report,) = fleet.handle(events.ZygoteReady(1), 2.0)
    assert isinstance(report, actions.Report)
    assert report.name == "internal_error"
    assert report.fields["problem"] == "slot 1: ZygoteReady is not possible for a worker that is ready"
    assert fleet.state.workers[1].state is WorkerState.READY
    assert fleet.state.generations[1].state is GenerationState.UP
    died = fleet.handle(events.WorkerExited(1, ExitStatus(signal=9)), 3.0)
    assert any(isinstance(action, actions.Spawn) for action in died)


def test_an_illegal_event_in_tests() -> None:
    fleet = a_fleet(strict=True)
    with pytest.raises(IllegalTransition):
        fleet.handle(events.ZygoteReady(1), 2.0)


def test_a_zygote_that_is_ended_does_not_fork() -> None:
    """A zygote that took too long to drain is killed. What it reports afterwards is ignored."""
    play = running(workers=2).refork(1).audited(1).ready(1).after(31.0)
    play.unseen.clear()
    play.on(events.ZygoteReady(1)).then(kill(1))  # a zygote ignores the signals that end workers
    assert play.fleet.state.refork is not None
    play.exits(1, signal=9).reported("refork_refused")
    assert play.fleet.state.generations[1].zygote == 0


def test_phases_that_have_ended_stay() -> None:
    """A reload that has ended can only be rolled back."""
    ended = (ReloadPhase.DONE, ReloadPhase.FAILED, ReloadPhase.SUPERSEDED, ReloadPhase.ROLLED_BACK)
    after = {RELOADS.transitions[pair] for pair in RELOADS.transitions if pair[0] in ended}
    assert after == {ReloadPhase.ROLLED_BACK}


# -- transitions that random events seldom reach (tests/property/test_fleet.py has the others) --------------


def a_zygote_drains(**policy: Any) -> Play:
    """One of two workers was audited and drains to become the fork server."""
    return running(**{"workers": 2, "graceful_timeout": 200.0} | policy).refork().audited(1).ready(1)


def generation_state(play: Play) -> GenerationState:
    return play.fleet.state.generations[1].state


def test_a_zygote_in_place_of_one_that_configures() -> None:
    """The old fork server has died and another one is starting: the zygote takes its place."""
    play = a_zygote_drains().fork_server_exits()
    assert generation_state(play) is GenerationState.CONFIGURING
    assert generation_state(play.zygote_ready(1)) is GenerationState.UP


def test_a_zygote_in_place_of_one_that_loads() -> None:
    play = a_zygote_drains().fork_server_exits().configured()
    assert generation_state(play) is GenerationState.LOADING
    assert generation_state(play.zygote_ready(1)) is GenerationState.UP


def test_a_zygote_without_a_fork_server_before() -> None:
    """After the second death in a row a new fork server has to wait; a zygote does not."""
    play = a_zygote_drains().fork_server_exits().fork_server_exits()
    assert generation_state(play) is GenerationState.DOWN
    assert generation_state(play.zygote_ready(1)) is GenerationState.UP
    assert play.settled().slots() == [1, 2]


def test_a_zygote_in_place_of_one_that_is_killed() -> None:
    play = a_zygote_drains().fork_server_exits().generation_failed()
    assert generation_state(play) is GenerationState.FAILED
    assert generation_state(play.zygote_ready(1)) is GenerationState.UP


def test_a_cancelled_worker_of_the_fork_server_before_a_zygote() -> None:
    """Workers that the old fork server has not forked by then will never exist."""
    play = a_zygote_drains().scale(3).scale(2)
    (worker,) = [w for w in play.fleet.state.workers.values() if w.slot == 3]
    assert worker.state is WorkerState.STOPPING
    play.zygote_ready(1)
    assert worker.worker_id not in play.fleet.state.workers


def test_a_spare_that_dies() -> None:
    """Without its fork server there is no roll-back to the old generation."""
    play = running(workers=1, probation=60.0).reload().loaded().ready(1)
    assert generation_state(play) is GenerationState.SPARE
    play.fork_server_exits(1)
    assert list(play.fleet.state.generations) == [2]
    assert play.fleet.state.probation is None


def test_a_reload_that_failed_is_rolled_back() -> None:
    """Crashes end the roll; errors bring the old generation back afterwards. Both are recorded."""
    play = (
        running(workers=2, max_surge=2, probation=600.0, rollback_error_rate=0.1).reload().loaded().ready(1)
    )
    for _ in range(4):
        play.crashes(1).after(1.0).ready(1)
    reload = play.fleet.state.reload
    assert reload is not None
    assert reload.phase is ReloadPhase.FAILED
    play.measured(1, requests=100, errors=100)
    assert reload.phase is ReloadPhase.ROLLED_BACK
    assert play.settled().slots(1) == [1, 2]


@pytest.mark.parametrize("drains", [False, True])
def test_a_ready_worker_without_a_process(drains: bool) -> None:
    """A fork server has reported a wrong pid: the worker is removed in whatever state it is."""
    fleet = a_fleet(strict=True)
    if drains:
        fleet.handle(events.PauseAsked("test"), 2.0)
    fleet.handle(events.SpawnFailed(1, "protocol error"), 3.0)
    assert 1 not in fleet.state.workers
