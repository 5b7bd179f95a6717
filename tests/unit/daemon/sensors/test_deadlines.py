"""The deadline sensor: what it reports about requests and loops at each look, with a simulated clock."""

import asyncio
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.daemon.configurations import Configurations
from ostler.daemon.sensors import deadlines
from ostler.daemon.sensors.deadlines import DeadlineSensor
from ostler.fleet import events
from ostler.fleet.model import Worker, WorkerState
from ostler.fleet.state import State
from ostler.scoreboard import layout, memory
from ostler.scoreboard.reader import Scoreboard
from tests.kit.raw_cell import RawCell
from tests.unit.daemon.fakes import fake_ports

TIMEOUT = 30.0
START = 1000.0
# The sensor may look a little later than it could.
LATE = 2.0


def call_later(*args: Any) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(*args)


class Stage:
    """A fleet of workers that do what the test asks for.

    Attributes:
        submitted: the events that were submitted.
        now: the clock; `look` moves it.
    """

    def __init__(self) -> None:
        self.submitted: list[Any] = []
        self.now = START
        self.scoreboard = Scoreboard(clock=lambda: int(self.now * 1e9))
        self.settings = SimpleNamespace(timeout=TIMEOUT, limit_request_time=0.0, worker_class="sync")
        self.state = State(current=1)
        self.handles: dict[int, Any] = {}
        loaded: Any = SimpleNamespace(settings=self.settings)
        configurations = Configurations(lambda: self.state)
        configurations.add(1, loaded)
        self.submit: Any = self.submitted.append
        self.sensor = DeadlineSensor(
            fake_ports(
                state=self.state,
                workers=self.handles,
                submit=lambda event: self.submit(event),
                loop=SimpleNamespace(call_later=call_later),
            ),
            configurations,
            self.scoreboard,
            lambda handle, age: self.submitted.append((handle.worker_id, age)),
        )

    def worker(
        self,
        worker_id: int = 1,
        threads: int = 2,
        state: WorkerState = WorkerState.READY,
        one_loop: bool = False,
    ) -> "ActingWorker":
        cell = self.scoreboard.allocate_cell(threads + 1)
        worker = Worker(worker_id, worker_id, 1, state, since=self.now, spawned_at=self.now - 1)
        self.state.workers[worker_id] = worker
        self.handles[worker_id] = SimpleNamespace(
            worker_id=worker_id, cell=cell, threads=threads, generation=1, one_loop=one_loop
        )
        mapped = memory.map_cell(self.scoreboard.fileno(cell))
        return ActingWorker(self, worker, RawCell(mapped, threads + 1))

    def bury(self, worker_id: int) -> None:
        del self.state.workers[worker_id]
        self.scoreboard.free_cell(self.handles.pop(worker_id).cell)

    def look(self, after: float = 0.0) -> float:
        self.now += after
        return self.sensor.look(self.now)

    def reported(self) -> list[Any]:
        """The events that were submitted since the last call."""
        submitted = list(self.submitted)
        self.submitted.clear()
        return submitted


class ActingWorker:
    def __init__(self, stage: Stage, worker: Worker, cell: RawCell) -> None:
        self._stage = stage
        self.worker = worker
        self.cell = cell
        self.beat()

    def beat(self) -> None:
        self.cell.header[layout.HEARTBEAT] = int(self._stage.now * 1e9)

    def begin(self, thread: int = 0, path: bytes = b"/x") -> None:
        words, text = self.cell.slot(thread)
        text[:3] = b"GET"
        text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path)] = path
        words[layout.METHOD_LENGTH], words[layout.PATH_LENGTH] = 3, len(path)
        words[layout.STARTED] = int(self._stage.now * 1e9)

    def end(self, thread: int = 0) -> None:
        words, _ = self.cell.slot(thread)
        words[layout.STARTED] = 0
        words[layout.STATUS_CLASSES + 2] += 1

    def extend(self, seconds: float, thread: int = 0) -> None:
        words, _ = self.cell.slot(thread)
        words[layout.EXTENDED_UNTIL] = int((self._stage.now + seconds) * 1e9)
        words[layout.EXTENDED_FOR] = words[layout.STARTED]

    def progress(self, thread: int = 0) -> None:
        words, _ = self.cell.slot(thread)
        words[layout.PROGRESSED] = int(self._stage.now * 1e9)

    def pause(self, thread: int = 0) -> None:
        words, _ = self.cell.slot(thread)
        words[layout.PROGRESSED] = words[layout.STARTED] | layout.PAUSED

    def marked(self, thread: int = 0) -> bool:
        words, _ = self.cell.slot(thread)
        return bool(words[layout.STARTED] and words[layout.OVERDUE] == words[layout.STARTED])


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.scoreboard.close()


def overdue(worker_id: int, age: float, thread: int = 0, path: str = "/x") -> events.RequestOverdue:
    return events.RequestOverdue(worker_id, thread, "GET", path, pytest.approx(age), "timeout", TIMEOUT)


def over_limit(worker_id: int, age: float, limit: float) -> events.RequestOverdue:
    return events.RequestOverdue(worker_id, 0, "GET", "/x", pytest.approx(age), "limit_request_time", limit)


# -- requests --------------------------------------------------------------------------------------------


def test_an_overdue_request(stage: Stage) -> None:
    """It is reported at its time-out, once, and marked before anything is done about it; others are not."""
    worker = stage.worker()
    worker.begin(0)
    assert stage.look() <= 1.0
    stage.look(TIMEOUT - 0.05)
    assert stage.reported() == []
    worker.begin(1, b"/young")
    marked: list[bool] = []
    stage.submit = lambda event: (marked.append(worker.marked(0)), stage.submitted.append(event))
    stage.look(0.05)
    assert stage.reported() == [overdue(1, TIMEOUT)]
    assert marked == [True]
    assert not worker.marked(1)
    stage.look(0.1)
    assert stage.reported() == []


def test_it_looks_again_when_the_next_one_is_due(stage: Stage) -> None:
    """It looks when the next request can be overdue, and soon while one is."""
    worker = stage.worker()
    worker.begin(0)
    assert stage.look(TIMEOUT - 0.3) == pytest.approx(0.3)
    assert stage.look(0.3) == pytest.approx(0.1)
    stage.settings.timeout = 0.4
    worker.end(0)
    assert stage.look() == pytest.approx(0.4)


def test_an_overdue_request_that_ends(stage: Stage) -> None:
    """When no overdue request is left that is reported once; the next one is reported again."""
    worker = stage.worker()
    worker.begin(0)
    worker.begin(1)
    stage.look(TIMEOUT)
    assert stage.reported() == [overdue(1, TIMEOUT), overdue(1, TIMEOUT, thread=1)]
    worker.end(0)
    stage.look(0.1)
    assert stage.reported() == []
    worker.end(1)
    stage.look(0.1)
    assert stage.reported() == [events.OverdueEnded(1)]
    stage.look(0.1)
    assert stage.reported() == []
    worker.begin(0)
    stage.look(TIMEOUT)
    assert stage.reported() == [overdue(1, TIMEOUT)]


def test_a_worker_that_ends(stage: Stage) -> None:
    """With a process its requests end, but nothing is reported about a worker that has ended."""
    worker = stage.worker()
    worker.begin(0)
    stage.look(TIMEOUT)
    stage.reported()
    stage.bury(1)
    stage.look(0.1)
    assert stage.reported() == []


def test_a_request_that_has_asked_for_time(stage: Stage) -> None:
    """It is overdue when the time that it asked for is over;
    if it asks while overdue, it is not overdue any more.
    """
    worker = stage.worker()
    worker.begin(0)
    worker.extend(TIMEOUT + 10)
    assert stage.look(TIMEOUT + 9.5) == pytest.approx(0.5)
    assert stage.reported() == []
    stage.look(0.5)
    assert stage.reported() == [overdue(1, TIMEOUT + 10)]
    worker.extend(5)
    stage.look(0.1)
    assert stage.reported() == [events.OverdueEnded(1)]
    stage.look(5)
    assert stage.reported() == [overdue(1, TIMEOUT + 15.1)]


def test_less_time_than_usual(stage: Stage) -> None:
    """Asking for time never shortens a deadline."""
    worker = stage.worker()
    worker.begin(0)
    worker.extend(1)
    stage.look(TIMEOUT - 0.1)
    assert stage.reported() == []


def test_progress(stage: Stage) -> None:
    """A request may take `timeout` from its last progress on; if it makes some while it is overdue, it is
    overdue no more.
    """
    worker = stage.worker()
    worker.begin(0)
    for _ in range(3):
        stage.look(TIMEOUT - 1)
        worker.progress(0)
    assert stage.look(TIMEOUT - 0.5) == pytest.approx(0.5)
    assert stage.reported() == []
    stage.look(0.5)
    assert stage.reported() == [overdue(1, 4 * TIMEOUT - 3)]
    worker.progress(0)
    stage.look(0.1)
    assert stage.reported() == [events.OverdueEnded(1)]
    stage.look(TIMEOUT)
    assert stage.reported() == [overdue(1, 5 * TIMEOUT - 2.9)]


def test_a_request_that_waits_for_its_client(stage: Stage) -> None:
    """Its time does not count; the next request of the thread does not wait."""
    worker = stage.worker()
    worker.begin(0)
    worker.pause(0)
    assert stage.look(10 * TIMEOUT) == 1.0
    worker.progress(0)
    stage.look(TIMEOUT - 0.1)
    assert stage.reported() == []
    worker.pause(0)
    worker.end(0)
    stage.look(0.1)
    worker.begin(0)
    stage.look(TIMEOUT)
    assert stage.reported() == [overdue(1, TIMEOUT)]


def test_a_limit_for_the_whole_request(stage: Stage) -> None:
    """Neither progress, nor waiting, nor time that it has asked for takes it beyond `limit_request_time`."""
    stage.settings.limit_request_time = limit = 3 * TIMEOUT
    worker = stage.worker()
    worker.begin(0)
    worker.extend(1000)
    worker.pause(0)
    assert stage.look(limit - 0.4) == pytest.approx(0.4)
    stage.look(0.4)
    assert stage.reported() == [over_limit(1, limit, limit)]
    worker.progress(0)
    stage.look(0.1)
    assert stage.reported() == [], "it stays overdue, and is reported once"
    assert worker.marked(0)
    stage.settings.timeout = 0.0
    worker.end(0)
    worker.begin(0)
    stage.reported()
    stage.look(limit)
    assert over_limit(1, limit, limit) in stage.reported()


def test_both_limits_one_after_the_other(stage: Stage) -> None:
    """One that was overdue already, and goes on in the moment when its whole time is over, is ended too."""
    stage.settings.limit_request_time = limit = TIMEOUT + 5
    worker = stage.worker()
    worker.begin(0)
    stage.look(TIMEOUT)
    assert stage.reported() == [overdue(1, TIMEOUT)]
    stage.look(4.9)
    worker.progress(0)
    stage.look(0.1)
    assert stage.reported() == [over_limit(1, limit, limit)]


def test_only_overdue_left(stage: Stage) -> None:
    """Reported for a draining worker, at each look, as long as only overdue requests are in flight in it."""
    worker = stage.worker()
    worker.begin(0)
    stage.look(TIMEOUT)
    stage.reported()
    stage.look(0.1)
    assert stage.reported() == []
    worker.worker.state = WorkerState.DRAINING
    stage.look(0.1)
    assert stage.reported() == [events.OnlyOverdueLeft(1)]
    worker.begin(1)
    stage.look(0.1)
    assert stage.reported() == []
    worker.end(1)
    stage.look(0.1)
    assert stage.reported() == [events.OnlyOverdueLeft(1)]


def test_very_many_overdue_requests(stage: Stage) -> None:
    """They are reported some at a time, over time not more than the limit, and none twice."""
    worker = stage.worker(threads=256)
    for thread in range(256):
        worker.begin(thread)
    stage.look(TIMEOUT)
    assert len(stage.reported()) == deadlines._REPORTS_IN_A_LOOK
    for _ in range(4):
        stage.look(0.1)
    assert len(stage.reported()) == 256 - deadlines._REPORTS_IN_A_LOOK
    assert all(worker.marked(thread) for thread in range(256))
    # The worker shows other requests all the time.
    words = [worker.cell.slot(thread)[0] for thread in range(256)]
    for number in range(1, 100):
        for flight in words:
            flight[layout.STARTED] = int((stage.now - TIMEOUT) * 1e9) - number
        stage.look(0.1)
    assert len(stage.reported()) <= deadlines._REPORTS + 12 * deadlines._REPORTS_RATE


def test_a_worker_that_is_not_trusted_has_no_deadlines(stage: Stage) -> None:
    """Its requests and its loop are ignored, also if one of them is overdue just now."""
    worker = stage.worker()
    worker.begin(0)
    stage.look(TIMEOUT)
    assert stage.reported() == [overdue(1, TIMEOUT)]
    worker.cell.header[layout.SLOTS_IN_USE] = 260
    stage.look(0.1)
    assert stage.reported() == [events.OverdueEnded(1)]
    worker.cell.header[layout.SLOTS_IN_USE] = 3
    pass_time(stage, 3 * TIMEOUT)
    assert stage.reported() == []


def test_no_timeout(stage: Stage) -> None:
    """0 is never; also for a request that was overdue when the setting changed."""
    worker = stage.worker()
    worker.begin(0)
    stage.look(TIMEOUT)
    stage.reported()
    stage.settings.timeout = 0.0
    assert stage.look(1000) == 1.0
    assert stage.reported() == [events.OverdueEnded(1)]


# -- loops -----------------------------------------------------------------------------------------------


def pass_time(stage: Stage, seconds: float) -> None:
    """Look as often as the sensor asks for."""
    end = stage.now + seconds
    while stage.now < end:
        stage.look(min(stage.sensor.look(stage.now), end - stage.now))


def stalled(worker_id: int, age: float) -> events.LoopStalled:
    return events.LoopStalled(worker_id, pytest.approx(age, abs=LATE))


def test_a_loop_that_stands_still(stage: Stage) -> None:
    """Reported after the time-out, once; if it continues and stops again, once more.
    Other workers are not affected.
    """
    still, other = stage.worker(1), stage.worker(2)
    for _ in range(int(TIMEOUT - 2)):
        other.beat()
        pass_time(stage, 1.0)
    assert stage.reported() == []
    for _ in range(10):
        other.beat()
        pass_time(stage, 1.0)
    assert stage.reported() == [stalled(1, TIMEOUT)]
    still.beat()
    pass_time(stage, 1.0)
    for _ in range(int(TIMEOUT) + 3):
        other.beat()
        pass_time(stage, 1.0)
    assert stage.reported() == [stalled(1, TIMEOUT)]


def test_a_loop_that_never_began(stage: Stage) -> None:
    """The time counts from when the worker was ready."""
    worker = stage.worker()
    worker.cell.header[layout.HEARTBEAT] = 0
    pass_time(stage, TIMEOUT - 2)
    assert stage.reported() == []
    pass_time(stage, 2 + LATE)
    assert stage.reported() == [stalled(1, TIMEOUT)]


def test_a_loop_that_is_kept_by_a_request(stage: Stage) -> None:
    """Then the request's deadline counts, even if it is later;
    when the request has ended the loop has its full time.
    """
    worker = stage.worker()
    worker.begin(0)
    worker.extend(10 * TIMEOUT)
    pass_time(stage, 5 * TIMEOUT)
    worker.end(0)
    pass_time(stage, TIMEOUT - 5)
    assert stage.reported() == []


def test_a_loop_with_much_to_do(stage: Stage) -> None:
    """Several requests after one poll of the sockets: between two of them the loop is not stalled."""
    worker = stage.worker()
    for _ in range(100):
        worker.begin(0)
        worker.end(0)
        stage.look(1.0)
    assert stage.reported() == []


@pytest.mark.parametrize("state", [WorkerState.BOOTING, WorkerState.DRAINING, WorkerState.STOPPING])
def test_other_deadlines_hold_for_others(stage: Stage, state: WorkerState) -> None:
    """Workers that boot or leave have other deadlines."""
    stage.worker(state=state)
    pass_time(stage, 3 * TIMEOUT)
    assert stage.reported() == []


def test_no_timeout_for_loops(stage: Stage) -> None:
    """0 is never for loops as well."""
    stage.settings.timeout = 0.0
    stage.worker()
    pass_time(stage, 3 * TIMEOUT)
    assert stage.reported() == []


def test_a_short_timeout_does_not_apply_to_loops(stage: Stage) -> None:
    """An idle loop makes a pass once a second: a time-out below that does not apply to loops."""
    stage.settings.timeout = 0.2
    worker = stage.worker()
    for _ in range(20):
        pass_time(stage, 1.3)
        worker.beat()
    assert stage.reported() == []
    pass_time(stage, 5 + LATE)
    assert stage.reported() == [stalled(1, 5)]


@pytest.mark.parametrize("others", ["none", "no deadline"])
def test_one_loop_is_kept_by_no_request(stage: Stage, others: str) -> None:
    """Where requests take turns in one thread, requests in flight do not hide that the loop is stalled."""
    actor = stage.worker(one_loop=True)
    if others == "no deadline":
        actor.begin(path=b"/socket")
        words, _ = actor.cell.slot(0)
        words[layout.EXTENDED_UNTIL], words[layout.EXTENDED_FOR] = layout.NEVER, words[layout.STARTED]
    assert stage.look() <= 1.0
    stage.look(after=1.5)
    assert stage.reported() == [(1, pytest.approx(1.5))]
    stage.look(after=TIMEOUT)
    assert stage.reported() == [(1, pytest.approx(TIMEOUT + 1.5))]
    stage.look(after=1.0)
    assert stage.reported() == [events.LoopStalled(1, pytest.approx(TIMEOUT + 2.5))]


def test_one_loop_that_has_ended(stage: Stage) -> None:
    """A draining worker is stalled only if it has requests;
    otherwise its process is ending, which may take a while.
    """
    actor = stage.worker(one_loop=True, state=WorkerState.DRAINING)
    stage.look(after=5.0)
    assert stage.reported() == []
    actor.begin()
    stage.look(after=1.0)
    assert stage.reported() == [(1, pytest.approx(6.0))]


def test_one_loop_whose_request_has_asked_for_time(stage: Stage) -> None:
    """That request may be the one that computes: the loop gets the time that it has asked for."""
    actor = stage.worker(one_loop=True)
    actor.begin()
    actor.extend(TIMEOUT * 2)
    stage.look(after=TIMEOUT + 5)
    assert not [event for event in stage.reported() if isinstance(event, events.LoopStalled)]
    stage.look(after=TIMEOUT)
    assert [event for event in stage.reported() if isinstance(event, events.LoopStalled)]


def test_dead_workers_are_forgotten(stage: Stage) -> None:
    """A new worker with the same worker id, which never exists in practice, would be reported again."""
    stage.worker()
    pass_time(stage, TIMEOUT + LATE)
    assert len(stage.reported()) == 1
    stage.bury(1)
    stage.look(1.0)
    stage.worker()
    pass_time(stage, TIMEOUT + LATE)
    assert len(stage.reported()) == 1


async def test_it_looks_by_itself(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look schedules the next one, also if it fails; starting again does not schedule two."""
    looks: list[float] = []

    def look(now: float) -> float:
        looks.append(now)
        if len(looks) == 3:
            raise ValueError("a defect")
        return 0.001

    monkeypatch.setattr(stage.sensor, "look", look)
    monkeypatch.setattr("ostler.daemon.sensors.deadlines._LOOK", 0.001)
    errors: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    stage.sensor.start()
    stage.sensor.start()
    async with asyncio.timeout(10):
        while len(looks) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert stage.sensor._timer is not None
    stage.sensor._timer.cancel()
    assert [str(error) for error in errors] == ["a defect"]


async def test_looks_take_a_share_of_the_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers determine their deadlines, so pauses are at least nine times as long as a look."""
    sensor = stage.sensor
    looks = 0

    def look(_now: float) -> float:
        nonlocal looks
        looks += 1
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return 0.0

    monkeypatch.setattr(sensor, "look", look)
    began = time.monotonic()
    sensor.start()
    while looks < 3:  # noqa: ASYNC110 - it is the time that is measured
        await asyncio.sleep(0.01)
    assert sensor._timer is not None
    sensor._timer.cancel()
    assert time.monotonic() - began >= 2 * 9 * 0.02
