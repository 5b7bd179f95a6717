"""Workers whose numbers in the scoreboard can't be true."""

from types import SimpleNamespace
from typing import Any

import pytest

from ostler.daemon.sensors.implausible import ImplausibleWorkers
from ostler.fleet import events
from ostler.fleet.model import Cause, Worker, WorkerState
from tests.unit.daemon.fakes import fake_ports


class Stage:
    """Three workers, with cells from 11 on; `due`: the scheduled calls and their times."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.logged: list[tuple[str, str, dict[str, Any]]] = []
        self.submitted: list[Any] = []
        self.due: list[tuple[float, Any]] = []
        self.workers = {
            n: Worker(n, n, 1, WorkerState.READY, since=0.0, spawned_at=0.0, pid=100 + n) for n in (1, 2, 3)
        }
        self.scoreboard: Any = SimpleNamespace(on_implausible=None)
        self.handles = {
            n: SimpleNamespace(worker_id=n, slot=n, cell=10 + n, pid=100 + n, generation=1) for n in (1, 2, 3)
        }
        self.state = SimpleNamespace(workers=self.workers, serving=self.workers.get)
        ports = fake_ports(
            state=self.state,
            workers=self.handles,
            journal=SimpleNamespace(record=lambda *what: self.logged.append(what)),
            loop=SimpleNamespace(call_later=lambda *what: self.due.append(what)),
            submit=self.submitted.append,
        )
        ImplausibleWorkers(ports, self.scoreboard, lambda: self.now)

    def doubt(self, cell: int) -> None:
        self.scoreboard.on_implausible(cell, "it can't be")

    def pass_time(self) -> float:
        """Do what is scheduled next; returns how long it had to wait."""
        wait, call = self.due.pop(0)
        self.now += wait
        call()
        return wait

    def recycled(self) -> list[int]:
        return [
            event.slot for event in self.submitted if event == events.RecycleAsked("scoreboard", event.slot)
        ]


def test_each_is_one_line() -> None:
    """It has the fields that an operator needs to find the worker;
    nothing is logged about a cell that was given up.
    """
    stage = Stage()
    stage.doubt(12)
    stage.doubt(99)
    fields = {"slot": 2, "pid": 102, "generation": 1, "problem": "it can't be"}
    assert stage.logged == [("warning", "scoreboard_implausible", fields)]


def test_each_is_replaced_in_its_turn() -> None:
    """The first at once, but not during the reading, the next a minute later."""
    stage = Stage()
    stage.doubt(11)
    assert stage.submitted == []
    assert stage.pass_time() == 0.0
    assert stage.recycled() == [1]
    stage.now += 10
    stage.doubt(12)
    stage.doubt(13)
    assert [stage.pass_time(), stage.pass_time()] == [50.0, 60.0]
    assert stage.recycled() == [1, 2, 3]
    assert stage.due == []


def test_ended_workers_delay_no_other() -> None:
    """Implausible workers that have ended do not delay others: only existing ones wait."""
    stage = Stage()
    stage.doubt(11)
    stage.pass_time()
    for worker_id in range(100, 1100):
        stage.handles[worker_id] = SimpleNamespace(
            worker_id=worker_id, slot=1, cell=worker_id, pid=1, generation=1
        )
        stage.doubt(worker_id)
        del stage.handles[worker_id]
    stage.doubt(12)
    assert len(stage.due) == 1
    assert stage.pass_time() == 60.0
    assert stage.recycled() == [1, 2]


def test_one_that_boots_has_its_turn_later() -> None:
    """It is replaced when it is ready; others do not wait for that."""
    stage = Stage()
    stage.workers[1].state = WorkerState.BOOTING
    stage.doubt(11)
    stage.doubt(12)
    stage.pass_time()
    assert stage.recycled() == [2]
    stage.workers[1].state = WorkerState.READY
    assert stage.pass_time() == 60.0
    assert stage.recycled() == [2, 1]


@pytest.mark.parametrize("how", ["gone", "leaving", "booting", "not serving"])
def test_others_are_left_alone(how: str) -> None:
    """A worker that leaves anyway, or whose slot has another worker by now."""
    stage = Stage()
    stage.doubt(11)
    if how == "gone":
        del stage.workers[1]
    elif how == "leaving":
        stage.workers[1].leaving = Cause.AGE
    elif how == "booting":
        stage.workers[1].state = WorkerState.BOOTING
    else:
        stage.state.serving = lambda _: stage.workers[2]
    stage.pass_time()
    assert stage.submitted == []
