"""The accounting: the supervisor reads what a worker writes with it."""

import gc
import os
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from ostler import native
from ostler.scoreboard import layout, memory
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.layout import bucket_of
from ostler.scoreboard.reader import Scoreboard
from ostler.scoreboard.request_slot import RequestSlot

SECOND = 1_000_000_000
# When workers of these tests are made, and the later time of their clock.
BORN, NOW = 1_000 * SECOND, 1_060 * SECOND
# Texts as long as a slot has room for are written and read completely.
LONG_TARGET = b"/" + b"x" * (layout.PATH_SIZE + 50)


class Worker:
    """A worker's accounting, and the supervisor's reader of the same memory."""

    def __init__(self, slots: int) -> None:
        self.clock = BORN
        self.doubts: list[str] = []
        self.scoreboard = Scoreboard(clock=lambda: self.clock)
        self.scoreboard.on_implausible = lambda _cell, problem: self.doubts.append(problem)
        self.cell = self.scoreboard.allocate_cell(slots)
        self.clock = NOW
        self.accounting = Accounting(memory.map_cell(self.scoreboard.fileno(self.cell)), slots)

    def shown(self) -> list[str]:
        return sorted(f"{r.method} {r.path}" for r in self.scoreboard.in_flight(self.cell))

    def memory(self) -> int:
        """Bytes of memory that the cell uses."""
        return os.fstat(self.scoreboard.fileno(self.cell)).st_blocks * 512


@pytest.fixture
def worker() -> Iterator[Worker]:
    yield from worker_with(4)


@pytest.fixture
def loop() -> Iterator[Worker]:
    """A worker with an event loop, and many slots."""
    for worker in worker_with(1001):
        worker.accounting.thread_slot(0)
        yield worker


def worker_with(slots: int) -> Iterator[Worker]:
    worker = Worker(slots)
    yield worker
    assert worker.doubts == []
    worker.accounting.close()
    worker.scoreboard.close()


# -- one slot --------------------------------------------------------------------------------------------


def test_a_request_from_beginning_to_end(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/a?secret", NOW)
    assert slot.started == NOW
    (shown,) = worker.scoreboard.in_flight(worker.cell)
    assert (shown.method, shown.path, shown.started_ns) == ("GET", "/a", NOW)
    assert shown.ident == threading.get_ident()
    slot.end(200, 17, NOW + SECOND)
    assert slot.started == 0
    assert worker.shown() == []
    counts = worker.scoreboard.counts(worker.cell)
    assert (counts.statuses[2], counts.requests, counts.bytes_sent) == (1, 1, 17)
    assert counts.histogram[bucket_of(SECOND)] == sum(counts.histogram) == 1


def test_what_is_shown_changes_with_the_request(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    for method, target in (
        ("GET", b"/long/path"),
        ("GET", b"/s"),
        ("DELETE", b"/s"),
        ("GET", b"/s"),
        ("GET", b""),
        ("GET", b"/s"),
    ):
        worker.clock += 1
        slot.begin(method, target, worker.clock)
        assert worker.shown() == [f"{method} {target.decode()}"]
        slot.end(200, 0, worker.clock)


def test_names_longer_than_there_is_room_for(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("M" * (layout.METHOD_SIZE + 5), LONG_TARGET, NOW)
    assert worker.shown() == ["M" * layout.METHOD_SIZE + " " + LONG_TARGET[: layout.PATH_SIZE].decode()]


def test_a_request_that_begins_before_another_has_ended(worker: Worker) -> None:
    """The newer one is shown; the text never changes while STARTED is the same."""
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/first", NOW)
    slot.begin("GET", b"/second", NOW + 1)
    assert worker.shown() == ["GET /second"]


@pytest.mark.parametrize("took", [0, 1023, 1024, 4_194_303, 4_194_304, 3 * SECOND, 200 * SECOND])
def test_durations_are_counted_in_the_right_bucket(worker: Worker, took: int) -> None:
    worker.clock = NOW + 300 * SECOND
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    slot.end(204, 0, NOW + took)
    assert worker.scoreboard.counts(worker.cell).histogram[bucket_of(took)] == 1


@pytest.mark.parametrize(
    ("status", "place"),
    [
        *[(100, 1), (204, 2), (HTTPStatus.NOT_FOUND, 4), (599, 5), (999, 9), (0, 0), (7, 0)],
        *[(1000, 9), (10**30, 9), (-1, 9), ("200", 9), ([], 9)],
    ],
)
def test_any_status_is_counted(worker: Worker, status: int, place: int) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.count(status, 0, None)
    counts = worker.scoreboard.counts(worker.cell)
    assert counts.statuses[place] == counts.requests == 1
    assert sum(counts.histogram) == 0


def test_an_end_without_a_beginning_has_no_duration(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    slot.leave_app()
    slot.leave_app()
    slot.end(200, 5, NOW + SECOND)
    counts = worker.scoreboard.counts(worker.cell)
    assert (counts.requests, counts.bytes_sent, sum(counts.histogram)) == (1, 5, 0)


def test_connections_refusals_waiting_and_late_bytes(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(1)
    for _ in range(5):
        slot.connection_opened()
    slot.connection_closed()
    slot.connection_handed_off()
    slot.connection_received()
    slot.refused(431, 60, "limit_request_fields")
    slot.refused(400, 40, "of another server")
    slot.refused(101, 0)
    slot.add_bytes(11)
    slot.waited(20_000_000)
    counts = worker.scoreboard.counts(worker.cell)
    assert (counts.opened, counts.closed, counts.handed_off, counts.received) == (5, 1, 1, 1)
    assert counts.connections == 4
    assert (counts.statuses[4], counts.bytes_sent, sum(counts.histogram)) == (2, 111, 0)
    assert {rule for rule, n in zip(layout.RULES, counts.refused, strict=True) if n == 1} == {
        "limit_request_fields",
        "other",
    }
    assert sum(counts.refused) == 2
    assert counts.queued[bucket_of(20_000_000)] == sum(counts.queued) == 1


# -- deadlines -------------------------------------------------------------------------------------------


def test_overdue_is_what_the_supervisor_marks(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    assert not slot.is_overdue(NOW)
    (shown,) = worker.scoreboard.in_flight(worker.cell)
    worker.scoreboard.mark_overdue(worker.cell, shown.thread, shown.started_ns)
    assert slot.overdue == NOW
    assert slot.is_overdue(NOW)
    slot.end(200, 0, NOW + 1)
    assert not slot.is_overdue(NOW + 2)
    slot.begin("GET", b"/", NOW + 3)
    assert not slot.is_overdue(NOW + 4)


def test_progress_gives_more_time(worker: Worker) -> None:
    """What was overdue is not any more once it has made progress, or waits for its client."""
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    slot.progressed(NOW - SECOND)
    worker.scoreboard.mark_overdue(worker.cell, 0, NOW)
    assert slot.is_overdue(NOW)
    slot.pause()
    assert not slot.is_overdue(NOW)
    assert worker.scoreboard.in_flight(worker.cell)[0].deadline(1.0) is None
    slot.progressed(NOW + SECOND // 2)
    assert not slot.is_overdue(NOW + SECOND)
    assert worker.scoreboard.in_flight(worker.cell)[0].deadline(1.0) == (NOW + SECOND // 2) / 1e9 + 1.0
    worker.clock = NOW + SECOND
    worker.scoreboard.mark_overdue(worker.cell, 0, NOW)
    assert slot.is_overdue(NOW + SECOND)


def test_what_is_overdue_for_good(worker: Worker) -> None:
    """Neither progress nor an extension gives a request more time than it may take in all."""
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    worker.scoreboard.mark_overdue(worker.cell, 0, NOW, for_good=True)
    slot.extend_until(NOW + 100 * SECOND)
    slot.pause()
    assert slot.is_overdue(NOW + 1)
    slot.progressed(NOW + SECOND)
    assert slot.is_overdue(NOW + SECOND)
    slot.end(200, 0, NOW + SECOND)
    slot.begin("GET", b"/", NOW + 2 * SECOND)
    assert not slot.is_overdue(NOW + 3 * SECOND)


def test_a_pause_is_that_of_one_request(worker: Worker) -> None:
    """One that ends while it waits for its client leaves nothing to the next one in its slot."""
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW - 2)
    slot.pause()
    slot.end(200, 0, NOW - 1)
    slot.begin("GET", b"/", NOW)
    assert worker.scoreboard.in_flight(worker.cell)[0].deadline(1.0) == NOW / 1e9 + 1.0
    worker.scoreboard.mark_overdue(worker.cell, 0, NOW)
    assert slot.is_overdue(NOW)


def test_an_extension_never_shortens(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    worker.scoreboard.mark_overdue(worker.cell, 0, NOW)
    slot.extend_until(NOW + 10 * SECOND)
    slot.extend_until(NOW + 2 * SECOND)
    assert worker.scoreboard.in_flight(worker.cell)[0].extended_until == (NOW + 10 * SECOND) / 1e9
    assert not slot.is_overdue(NOW + 9 * SECOND)
    assert slot.is_overdue(NOW + 11 * SECOND)
    slot.extend_until(layout.NEVER)
    assert worker.scoreboard.in_flight(worker.cell)[0].deadline(1.0) is None
    assert not slot.is_overdue(NOW + 1000 * SECOND)


def test_an_extension_ends_with_its_request(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    slot.extend(1000)
    slot.end(200, 0, NOW + 1)
    slot.begin("GET", b"/", NOW + 2)
    assert worker.scoreboard.in_flight(worker.cell)[0].extended_until == 0.0


def test_an_extension_is_for_the_request_that_is_meant(worker: Worker) -> None:
    """Another thread asks for it, perhaps when the next request is already in the slot."""
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    slot.end(200, 0, NOW + 1)
    slot.begin("GET", b"/", NOW + 2)
    slot.extend_until(NOW + SECOND, started=NOW)
    assert worker.scoreboard.in_flight(worker.cell)[0].extended_until == 0.0
    slot.extend_until(NOW + SECOND, started=NOW + 2)
    assert worker.scoreboard.in_flight(worker.cell)[0].extended_until == (NOW + SECOND) / 1e9


@pytest.mark.parametrize("seconds", [0, -1, 1e10, float("inf"), float("nan")])
def test_no_time_to_extend_by(worker: Worker, seconds: float) -> None:
    slot = worker.accounting.thread_slot(0)
    slot.begin("GET", b"/", NOW)
    with pytest.raises(ValueError, match="can't be extended"):
        slot.extend(seconds)


def test_nothing_to_extend(worker: Worker) -> None:
    slot = worker.accounting.thread_slot(0)
    with pytest.raises(RuntimeError, match="no request"):
        slot.extend(5)
    slot.extend_until(NOW)
    slot.begin("GET", b"/", NOW)
    assert worker.scoreboard.in_flight(worker.cell)[0].extended_until == 0.0


# -- slots of threads ------------------------------------------------------------------------------------


def test_each_thread_has_a_slot(worker: Worker) -> None:
    idents = []

    def serve(number: int) -> None:
        slot = worker.accounting.thread_slot(number)
        slot.begin("GET", b"/%d" % number, NOW)
        idents.append(threading.get_ident())

    threads = [threading.Thread(target=serve, args=(number,)) for number in (2, 0, 1)]
    for thread in threads:
        thread.start()
        thread.join()
    assert worker.shown() == ["GET /0", "GET /1", "GET /2"]
    assert worker.scoreboard.slots(worker.cell) == 3
    assert [slot.ident for slot in worker.accounting.slots] == idents
    assert worker.accounting.busy
    for slot in worker.accounting.slots:
        slot.end(200, 0, NOW)
    assert not worker.accounting.busy
    assert worker.accounting.answered == 3


@pytest.mark.parametrize("number", [-1, 4])
def test_a_slot_that_is_not_there(worker: Worker, number: int) -> None:
    with pytest.raises(IndexError, match="4 request slots"):
        worker.accounting.thread_slot(number)


def test_the_heartbeat(worker: Worker) -> None:
    worker.accounting.heartbeat(NOW)
    assert worker.scoreboard.heartbeat(worker.cell) == NOW / 1e9


def test_after_close_nothing_can_be_written() -> None:
    worker = Worker(100)
    slots = [worker.accounting.thread_slot(0), *(begin(worker, number) for number in range(150))]
    slots[3].release()
    if native.module is not None:
        for slot in slots[:5]:  # some share the memory of others
            slot.map_memory()

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("ostler-scoreboard")

    before = mapped()
    worker.accounting.close()
    assert mapped() == before - 1
    for slot in slots:
        with pytest.raises(ValueError, match="released"):
            slot.begin("GET", b"/", NOW)
    worker.scoreboard.close()


# -- slots of a loop -------------------------------------------------------------------------------------


def begin(worker: Worker, number: int) -> RequestSlot:
    return worker.accounting.begin("GET", b"/%d" % number, NOW)


def test_a_slot_that_is_taken_shows_no_request(loop: Worker) -> None:
    """It is shown from `RequestSlot.begin` on, and available again after `release`."""
    slot = loop.accounting.take()
    assert loop.shown() == []
    assert loop.accounting.take() is not slot
    slot.begin("GET", b"/taken", NOW)
    assert loop.shown() == ["GET /taken"]
    slot.end(200, 0, NOW + 1)
    assert loop.shown() == []
    assert loop.accounting.take() is slot


@pytest.mark.parametrize("own", [False, True])
def test_idents_of_a_loops_slots(loop: Worker, own: bool) -> None:
    """All have that of the loop's thread, or each its own; those that are not shown, too."""
    loop.accounting.own_idents = own
    slots = [loop.accounting.take() for _ in range(2000)]
    assert slots[-1].number == -1
    idents = {slot.ident for slot in slots}
    assert idents == ({id(slot) for slot in slots} if own else {threading.get_ident()})


def test_slots_are_taken_into_use_as_they_are_needed(loop: Worker) -> None:
    """All of many requests at once are visible; slots that were never needed use no memory."""
    assert loop.scoreboard.slots(loop.cell) == 1
    small = loop.memory()
    slots = [begin(loop, number) for number in range(700)]
    assert len({slot.number for slot in slots}) == 700
    assert loop.scoreboard.slots(loop.cell) == 701
    assert len(loop.shown()) == 700
    assert len(loop.accounting.slots) == 701
    assert small <= 8192
    for slot in slots:
        slot.end(200, 1, NOW + SECOND)
    assert loop.shown() == []
    counts = loop.scoreboard.counts(loop.cell)
    assert (counts.requests, counts.bytes_sent, sum(counts.histogram)) == (700, 700, 700)


def test_released_slots_are_used_again(loop: Worker) -> None:
    numbers = set()
    for _ in range(50):
        slot = begin(loop, 0)
        slot.owner = object()
        numbers.add(slot.number)
        slot.end(200, 0, NOW)
        assert slot.owner is None
    assert numbers == {1}


def test_releasing_twice_is_as_once(loop: Worker) -> None:
    first = begin(loop, 1)
    first.end(200, 0, NOW)
    first.release()
    assert begin(loop, 2) is not begin(loop, 3)


def test_slots_and_their_memory_are_given_up_when_they_are_free(loop: Worker) -> None:
    loop.clock = NOW + 60 * SECOND
    slots = [begin(loop, number) for number in range(700)]
    loop.accounting.heartbeat(NOW)
    assert loop.scoreboard.slots(loop.cell) == 701
    large = loop.memory()
    remaining = slots.pop(99)
    for slot in slots:
        slot.end(200, 0, NOW)
    loop.accounting.heartbeat(NOW + 5 * SECOND)
    assert loop.scoreboard.slots(loop.cell) == 701
    loop.accounting.heartbeat(NOW + 15 * SECOND)
    assert loop.scoreboard.slots(loop.cell) == remaining.number + 1 == 101
    assert [slot.number for slot in loop.accounting.slots] == list(range(101))
    assert loop.memory() < large / 5
    assert loop.shown() == ["GET /99"]
    assert loop.scoreboard.counts(loop.cell).requests == 699
    # Slots that are used again show requests as before, also the same request.
    again = [begin(loop, number) for number in range(700) if number != 99]
    assert len({slot.number for slot in (remaining, *again)}) == 700
    assert loop.shown() == sorted(f"GET /{number}" for number in range(700))


def test_slots_that_were_given_up_before_are_not_touched(loop: Worker) -> None:
    """Giving up the slots of a small burst allocates no memory for those of an earlier large one."""
    loop.clock = NOW + 60 * SECOND
    left = []
    for number, burst in enumerate((900, 40), 1):
        for slot in [begin(loop, place) for place in range(burst)]:
            slot.end(200, 0, NOW)
        loop.accounting.heartbeat(NOW + 20 * number * SECOND)
        left.append(loop.memory())
    assert left[1] == left[0]


def test_the_lowest_free_slots_are_used_first_after_giving_up(loop: Worker) -> None:
    slots = [begin(loop, number) for number in range(20)]
    for slot in slots:
        slot.end(200, 0, NOW)
    loop.accounting.heartbeat(NOW + 15 * SECOND)
    assert begin(loop, 0).number == 1


def test_more_requests_than_slots(worker: Worker) -> None:
    """The others are served and counted, but not shown, and are never overdue."""
    worker.accounting.thread_slot(0)
    slots = [begin(worker, number) for number in range(6)]
    assert [slot.number for slot in slots] == [1, 2, 3, -1, -1, -1]
    assert worker.shown() == ["GET /0", "GET /1", "GET /2"]
    slots[4].extend(5)
    assert not slots[4].is_overdue(NOW)
    for slot in slots:
        slot.end(200, 1, NOW + SECOND)
    counts = worker.scoreboard.counts(worker.cell)
    assert (counts.requests, counts.bytes_sent, sum(counts.histogram)) == (6, 6, 6)
    assert [begin(worker, number).number for number in range(3)] == [3, 2, 1]


def test_a_loop_without_a_slot_of_its_own(worker: Worker) -> None:
    with pytest.raises(RuntimeError, match=r"thread_slot\(0\)"):
        begin(worker, 0)


def test_reading_what_is_in_use_takes_no_memory(loop: Worker) -> None:
    """Neither the supervisor nor the worker reads slots that were never needed."""
    begin(loop, 0)
    before = loop.memory()
    loop.scoreboard.read(loop.cell)
    assert loop.accounting.busy
    assert loop.accounting.answered == 0
    gc.collect()
    assert loop.memory() == before
