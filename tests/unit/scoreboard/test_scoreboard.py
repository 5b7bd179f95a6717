"""The scoreboard: the supervisor reads what a worker writes, through one memfd."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from ostler.http1.errors import RULES
from ostler.scoreboard import layout, memory
from ostler.scoreboard.cell_reader import InFlight
from ostler.scoreboard.counts import MOST, Counts
from ostler.scoreboard.layout import bucket_limit, bucket_of, percentile
from ostler.scoreboard.reader import Scoreboard, ScoreboardState
from tests.kit.raw_cell import RawCell

# The largest limit of the histogram: 2**37 ns, 137 s.
LONGEST = 2**37 - 1


# The tests' clock when a worker is born, and later, when it is read; in ns.
BORN, NOW = 1_000_000_000_000, 1_060_000_000_000


class Board(Scoreboard):
    """A scoreboard with a clock in the test's hand.

    Attributes:
        now: the clock, CLOCK_MONOTONIC in ns; workers are born at BORN.
        doubts: what was implausible, by cell.
    """

    def __init__(self, state: ScoreboardState | None = None) -> None:
        self.now = BORN
        self.doubts: list[tuple[int, str]] = []
        # Reading costs nothing: what was costly to read, on a busy machine, is not read again at once.
        super().__init__(state, clock=lambda: self.now, cpu_clock=lambda: 0)
        self.on_implausible = lambda *what: self.doubts.append(what)

    def born(self, threads: int = 1) -> int:
        """A cell for a worker that was born a minute ago."""
        self.now = BORN
        cell = self.allocate_cell(threads + 1)
        self.now = NOW
        return cell


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.close()


def writer(board: Scoreboard, cell: int, threads: int = 1) -> RawCell:
    """A worker's side, mapped from the descriptor as in another process."""
    return RawCell(memory.map_cell(board.fileno(cell)), threads + 1)


def serve(worker: RawCell, thread: int, status: int, size: int, nanoseconds: int) -> None:
    """Count one answer as a worker does."""
    words, _ = worker.slot(thread)
    words[layout.STATUS_CLASSES + status // 100] += 1
    words[layout.BYTES_SENT] += size
    words[layout.HISTOGRAM + bucket_of(nanoseconds)] += 1
    words[layout.QUEUED + bucket_of(nanoseconds)] += 1


def begin(worker: RawCell, thread: int, method: bytes, path: bytes, started: int) -> None:
    """Show a request as a worker does: the text first, STARTED last."""
    words, text = worker.slot(thread)
    text[: len(method)] = method
    text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path)] = path
    words[layout.METHOD_LENGTH] = len(method)
    words[layout.PATH_LENGTH] = len(path)
    words[layout.IDENT] = 4711
    words[layout.STARTED] = started


def test_layout_fits() -> None:
    """Words, text and slots stay within their bounds, and cells begin on pages."""
    single = (layout.RECEIVED, layout.OVERDUE, layout.EXTENDED_FOR, layout.EXTENDED_UNTIL)
    assert len(set(single)) == 4
    assert min(single) >= layout.STATUS_CLASSES + 10
    assert max(single) < layout.HISTOGRAM
    assert layout.HISTOGRAM + layout.BUCKETS <= layout.QUEUED
    assert layout.QUEUED + layout.BUCKETS <= layout.REFUSED
    assert layout.COUNTED * layout.WORD <= layout.TEXT
    assert all(memory.size(slots) % layout.PAGE == 0 for slots in (1, 2, 3, 257))
    assert memory.size(2) == 3 * layout.PAGE
    assert layout.PATH_SIZE > 0


def test_rules_are_those_of_http() -> None:
    """The supervisor knows the rules by which workers refuse requests, and imports no HTTP for that."""
    assert tuple(RULES) == layout.RULES


def test_counts_round_trip(board: Board) -> None:
    """Counters of all threads are summed."""
    cell = board.born(threads=3)
    worker = writer(board, cell, threads=3)
    worker.header[layout.HEARTBEAT] = 1_005_500_000_000
    serve(worker, 0, 200, 100, 2_000_000)
    serve(worker, 2, 503, 20, 3_000)
    words, _ = worker.slot(2)
    words[layout.OPENED] = 4
    words[layout.CLOSED] = 3
    words, _ = worker.slot(3)
    words[layout.BYTES_SENT] = 7  # the watcher's slot: it only sends answers that others have begun

    counts = board.counts(cell)
    assert (counts.requests, counts.errors, counts.bytes_sent) == (2, 1, 127)
    assert (counts.opened, counts.closed) == (4, 3)
    assert [n for n in range(10) if counts.statuses[n]] == [2, 5]
    assert sum(counts.histogram) == sum(counts.queued) == 2
    assert board.slots(cell) == 3 + 1  # and that of the watcher
    assert board.heartbeat(cell) == 1005.5


def test_cells_are_apart(board: Board) -> None:
    """Each worker has memory of its own, as large as its slots need,
    and its descriptor leads to no other memory.
    """
    cells = [board.born() for _ in range(3)]
    serve(writer(board, cells[1]), 0, 200, 1, 1)
    assert [board.counts(cell).requests for cell in cells] == [0, 1, 0]
    assert len({os.fstat(board.fileno(cell)).st_ino for cell in cells}) == 3
    assert os.fstat(board.fileno(cells[0])).st_size == memory.size(2)


def test_in_flight(board: Board) -> None:
    """A request is seen from its start to its end, with its thread, method and path."""
    cell = board.born(threads=2)
    worker = writer(board, cell, threads=2)
    assert board.in_flight(cell) == []
    begin(worker, 1, b"GET", b"/slow", BORN + 3)
    assert board.in_flight(cell) == [InFlight(1, "GET", "/slow", BORN + 3, 4711)]
    words, _ = worker.slot(1)
    words[layout.STARTED] = 0
    assert board.in_flight(cell) == []


def test_deadlines(board: Board) -> None:
    """A request may take `timeout`, or as long as it has asked for if that is longer; 0 is never."""
    cell = board.born()
    worker = writer(board, cell)
    words, _ = worker.slot(0)
    started = 1_003_000_000_000
    begin(worker, 0, b"GET", b"/", started)
    words[layout.EXTENDED_FOR], words[layout.EXTENDED_UNTIL] = started, started + 47_000_000_000
    (request,) = board.in_flight(cell)
    assert [request.deadline(timeout) for timeout in (10.0, 100.0, 0.0)] == [1050.0, 1103.0, None]
    # The request before had asked for it.
    words[layout.STARTED] = started + 1_000_000_000
    (request,) = board.in_flight(cell)
    assert request.deadline(10.0) == 1014.0


def test_progress(board: Board) -> None:
    """`timeout` counts from the last progress; while a request waits for its client it has no deadline."""
    cell = board.born()
    worker = writer(board, cell)
    words, _ = worker.slot(0)
    started = 1_003_000_000_000
    begin(worker, 0, b"GET", b"/", started)
    for word, due in (
        (started + 4_000_000_000, 1017.0),
        (started - 1, 1013.0),
        (NOW + 2_000_000_000, 1013.0),
        (started | layout.PAUSED, None),
        (started - 1 | layout.PAUSED, 1013.0),
    ):
        words[layout.PROGRESSED] = word
        (request,) = board.in_flight(cell)
        assert request.deadline(10.0) == due
        assert request.deadline(10.0, limit=9.0) == 1012.0
        assert request.deadline(0.0) is None
    assert board.trusted(cell)


@pytest.mark.parametrize("until", [layout.NEVER, layout.NEVER - 1, NOW + 2 * 10**18])
def test_more_time_than_can_be_asked_for(board: Board, until: int) -> None:
    """Too large an extension means no deadline, and 0 is never."""
    cell = board.born()
    worker = writer(board, cell)
    words, _ = worker.slot(0)
    begin(worker, 0, b"GET", b"/", BORN)
    words[layout.EXTENDED_FOR], words[layout.EXTENDED_UNTIL] = BORN, until
    (request,) = board.in_flight(cell)
    assert request.deadline(10.0) is None
    assert board.trusted(cell)


def test_marking_an_overdue_request(board: Board) -> None:
    """Its slot gets its start time as the mark, and no other slot is marked."""
    cell = board.born(threads=3)
    worker = writer(board, cell, threads=3)
    started = BORN + 4711
    board.mark_overdue(cell, 1, started)
    assert [worker.slot(thread)[0][layout.OVERDUE] for thread in range(3)] == [0, started, 0]
    begin(worker, 0, b"GET", b"/", started)
    begin(worker, 1, b"GET", b"/", started)
    assert [request.overdue for request in board.in_flight(cell)] == [False, True]
    begin(worker, 1, b"GET", b"/", started + 1)
    assert [request.overdue for request in board.in_flight(cell)] == [False, False]


def test_a_worker_marks_nothing(board: Board) -> None:
    """The supervisor itself decides which request is overdue; values of a worker there are ignored."""
    cell = board.born()
    worker = writer(board, cell)
    begin(worker, 0, b"GET", b"/", BORN)
    words, _ = worker.slot(0)
    words[layout.OVERDUE] = BORN
    assert [request.overdue for request in board.in_flight(cell)] == [False]
    board.mark_overdue(cell, 0, BORN)
    assert [request.overdue for request in board.in_flight(cell)] == [True]
    words[layout.OVERDUE] = 0
    assert [request.overdue for request in board.in_flight(cell)] == [True]


def test_last_requests(board: Board) -> None:
    """Requests in flight first, the longest before others, then the last of idle threads; at most five."""
    cell = board.born(threads=8)
    worker = writer(board, cell, threads=8)
    assert board.last_requests(cell) == []
    begin(worker, 1, b"GET", b"/was?secret", BORN + 1)
    worker.slot(1)[0][layout.STARTED] = 0
    begin(worker, 2, b"POST", b"/late?secret", BORN + 3_000)
    begin(worker, 4, b"GET", b"/long", BORN + 2_000)
    assert board.last_requests(cell) == ["GET /long", "POST /late", "GET /was"]
    for thread in (5, 6, 7):
        begin(worker, thread, b"PUT", b"/more", BORN + 4_000)
    assert board.last_requests(cell) == ["GET /long", "POST /late", "PUT /more", "PUT /more", "PUT /more"]


def test_in_flight_keeps_no_query(board: Board) -> None:
    """Query strings may contain secrets: they are not shown."""
    cell = board.born()
    begin(writer(board, cell), 0, b"GET", b"/a?token=x", BORN)
    assert board.in_flight(cell)[0].path == "/a"


def test_in_flight_takes_any_bytes(board: Board) -> None:
    """Bytes of a path that are not printable ASCII are percent-encoded,
    and a method that is not a token is not shown.
    """
    cell = board.born()
    worker = writer(board, cell)
    begin(worker, 0, b"GET", b"/\xff a\x1b[2J\x00", BORN)
    assert board.in_flight(cell)[0].path == "/%FF%20a%1B[2J%00"
    begin(worker, 0, b"G\x9b1m", b"/", BORN + 1)
    assert board.in_flight(cell)[0].method == "?"


def test_give_back_returns_the_last_counts(board: Board) -> None:
    """Connections that were open when the process died count as closed."""
    cell = board.born()
    worker = writer(board, cell)
    serve(worker, 0, 200, 10, 1)
    words, _ = worker.slot(0)
    words[layout.OPENED] = 2
    counts = board.free_cell(cell)
    assert (counts.requests, counts.opened, counts.closed) == (1, 2, 2)
    assert board.totals().requests == 1


def test_another_program_goes_on(board: Board) -> None:
    """Totals, the counts of each worker and which workers are not trusted survive an upgrade, as msgpack."""
    good, bad, gone = (board.born() for _ in range(3))
    for cell in (good, bad, gone):
        serve(writer(board, cell), 0, 200, 10, 1)
    board.read_all()
    board.free_cell(gone)
    spoil(board, bad)
    carried = msgspec.msgpack.decode(msgspec.msgpack.encode(board.snapshot()), type=ScoreboardState)
    other = Board(carried)
    other.now = NOW
    assert other.totals() == board.totals()
    assert other.totals().requests == 3
    assert (other.trusted(good), other.trusted(bad)) == (True, False)
    serve(writer(board, good), 0, 200, 10, 1)
    assert other.counts(good).requests == 2
    assert other.allocate_cell(2) not in (good, bad, gone)
    assert other.doubts == []


def test_a_program_that_did_not_count_refusals_goes_on() -> None:
    """Counters that an older program does not hand over begin at 0."""
    state = msgspec.json.decode(msgspec.json.encode(ScoreboardState([], Counts(opened=3), 0)))
    del state["gone"]["refused"]
    carried = msgspec.json.decode(msgspec.json.encode(state), type=ScoreboardState)
    assert carried.gone == Counts(opened=3)


# -- what can't be true ---------------------------------------------------------------------------------


def spoil(board: Board, cell: int) -> None:
    """Write values that make the worker implausible."""
    words, _ = writer(board, cell).slot(0)
    words[layout.STATUS_CLASSES + 2] = 2**64 - 1
    board.read(cell)


HEADER_LIES = {
    "heartbeat in the future": (layout.HEARTBEAT, NOW + 2 * 10**9),
    "heartbeat before birth": (layout.HEARTBEAT, BORN - 1),
    "heartbeat": (layout.HEARTBEAT, 2**64 - 1),
    "slots": (layout.SLOTS_IN_USE, 260),
    "more slots": (layout.SLOTS_IN_USE, 2**64 - 1),
}
SLOT_LIES = {
    "start in the future": (layout.STARTED, NOW + 2 * 10**9),
    "start before birth": (layout.STARTED, BORN - 1),
    "bytes": (layout.BYTES_SENT, 10**14),
    "connections opened": (layout.OPENED, 10**10),
    "more connections than can be": (layout.OPENED, 2**23),
    "more closed than opened": (layout.CLOSED, 10**6),
    "less requests than before": (layout.STATUS_CLASSES + 2, 6),
    "requests": (layout.STATUS_CLASSES + 2, 2**63),
    "errors": (layout.STATUS_CLASSES + 5, 10**10),
    "more durations than requests": (layout.HISTOGRAM + 5, 10**6),
    "more waits than requests": (layout.QUEUED + 50, 10**6),
}


def distrusted(board: Board, cell: int) -> None:
    """Its numbers are as before, no request is in flight, and one doubt was reported."""
    for _ in range(2):
        reading = board.read(cell)
        assert (reading.counts.requests, reading.counts.bytes_sent) == (7, 700)
        assert (reading.in_flight, reading.heartbeat) == ([], 0.0)
    assert board.last_requests(cell) == []
    assert board.totals().requests == 7
    assert [what for what, _ in board.doubts] == [cell]
    assert not board.trusted(cell)


@pytest.mark.parametrize(("word", "value"), HEADER_LIES.values(), ids=HEADER_LIES.keys())
def test_implausible_words_in_the_header(board: Board, word: int, value: int) -> None:
    """The worker is not trusted any more; its earlier counts stay."""
    cell = board.born()
    worker = writer(board, cell)
    for _ in range(7):
        serve(worker, 0, 200, 100, 1)
    board.read(cell)
    worker.header[word] = value
    distrusted(board, cell)


@pytest.mark.parametrize(("word", "value"), SLOT_LIES.values(), ids=SLOT_LIES.keys())
def test_implausible_words_in_a_slot(board: Board, word: int, value: int) -> None:
    """The same for each word of a slot."""
    cell = board.born()
    worker = writer(board, cell)
    for _ in range(7):
        serve(worker, 0, 200, 100, 1)
    board.read(cell)
    words, _ = worker.slot(0)
    words[word] = value
    distrusted(board, cell)
    # It stays so, even if the worker's values are correct afterwards.
    words[word] = 7
    distrusted(board, cell)


def test_implausible_length_of_a_text(board: Board) -> None:
    """Also in an idle slot, which is read when its worker has died."""
    for started in (BORN, 0):
        cell = board.born()
        words, _ = writer(board, cell).slot(0)
        words[layout.PATH_LENGTH] = layout.PATH_SIZE + 1
        words[layout.STARTED] = started
        board.read(cell)
        assert board.trusted(cell) is (started == 0)
        assert board.last_requests(cell) == []
        assert not board.trusted(cell)


def test_memory_that_is_cut_off(board: Board, tmp_path: Path) -> None:
    """A file other than a memfd can't be sealed:
    only the data that its worker cuts off is missing, and nothing else fails.
    """
    cell = board.born()
    path = tmp_path / "cell"
    path.write_bytes(bytes(100))
    fd = os.open(path, os.O_RDWR)
    os.dup2(fd, board.fileno(cell))
    os.close(fd)
    assert board.in_flight(cell) == []
    assert not board.trusted(cell)
    board.free_cell(cell)


def test_large_but_plausible_numbers(board: Board) -> None:
    """Quick workers, long downloads and many threads are plausible."""
    cell = board.born(threads=256)
    worker = writer(board, cell, threads=256)
    worker.header[layout.HEARTBEAT] = NOW
    for thread in range(256):
        words, _ = worker.slot(thread)
        words[layout.STATUS_CLASSES + 2] = words[layout.HISTOGRAM + 3] = words[layout.QUEUED + 60] = 20_000
        words[layout.OPENED], words[layout.CLOSED] = 20_000, 19_000
        words[layout.STARTED] = NOW
        words[layout.BYTES_SENT] = 20_000_000_000
    reading = board.read(cell)
    assert board.trusted(cell)
    assert reading.counts.requests == 256 * 20_000
    assert len(reading.in_flight) == 256


@settings(derandomize=True, database=None, deadline=None, max_examples=200)
@given(st.data())
def test_any_words_at_all(data: st.DataObject) -> None:
    """For any content of a cell: reading never fails, all numbers are bounded, texts are printable, totals
    never decrease, the numbers of other workers are correct, and all of it can be carried over an upgrade.
    """
    word = st.one_of(
        st.sampled_from(
            [0, 1, 2, 3, 255, 2**32, 2**63 - 1, 2**63, 2**64 - 1, BORN, NOW, NOW + 1, NOW - 10**9]
        ),
        st.integers(0, 2**64 - 1),
        st.integers(BORN, NOW),
        st.integers(0, 5000),
    )
    place = st.one_of(
        st.sampled_from([layout.HEARTBEAT, layout.SLOTS_IN_USE]),
        st.tuples(st.integers(0, 2), st.one_of(st.integers(0, 23), st.integers(0, layout.TEXT // 8 - 1))),
    )
    board = Board()
    honest, hostile = board.born(), board.born(threads=2)
    serve(writer(board, honest), 0, 200, 10, 1)
    worker = writer(board, hostile, threads=2)
    before = _sums(board.totals())
    try:
        for _ in range(data.draw(st.integers(1, 4))):
            for where, value in data.draw(st.lists(st.tuples(place, word), max_size=12)):
                if isinstance(where, int):
                    worker.header[where] = value
                else:
                    worker.slot(where[0])[0][where[1]] = value
            worker.slot(data.draw(st.integers(0, 2)))[1][:30] = data.draw(st.binary(min_size=30, max_size=30))
            readings = board.read_all()
            reading = readings[hostile]
            assert reading.slots <= 3
            assert reading.heartbeat <= NOW / 1e9 + 1
            for request in reading.in_flight:
                text = request.method + request.path
                assert text.isascii()
                assert text.isprintable() or not text
                assert BORN <= request.started_ns <= NOW + 10**9
            assert all(text.isprintable() and text.isascii() for text in board.last_requests(hostile))
            totals = board.totals(readings)
            sums = _sums(totals)
            assert all(low <= high <= MOST for low, high in zip(before, sums, strict=True))
            assert 0 <= totals.connections <= MOST
            assert readings[honest].counts.requests == 1
            assert board.trusted(hostile) is (board.doubts == [])
            assert len(board.doubts) <= 1
            msgspec.msgpack.encode(board.snapshot())
            before = sums
        board.free_cell(hostile)
        assert all(low <= high <= MOST for low, high in zip(before, _sums(board.totals()), strict=True))
    finally:
        board.close()


def test_totals_are_bounded() -> None:
    """Sums stay within the range that other programs can read."""
    counts = Counts()
    most = Counts(MOST, MOST, MOST, MOST, MOST, [MOST] * 10, [MOST] * layout.BUCKETS, [MOST] * layout.BUCKETS)
    counts.add(most)
    counts.add(most)
    assert all(number <= MOST for number in _sums(counts))
    assert counts.requests <= MOST


def _sums(counts: Counts) -> list[int]:
    return [
        counts.requests,
        counts.errors,
        counts.bytes_sent,
        counts.opened,
        counts.closed,
        *counts.statuses,
        *counts.histogram,
        *counts.queued,
    ]


@settings(derandomize=True, database=None, deadline=None, max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.just(("start",)),
            st.tuples(st.just("end"), st.integers(0, 9)),
            st.tuples(
                st.just("serve"),
                st.integers(0, 9),
                st.integers(100, 599),
                st.integers(0, 10**6),
                st.integers(0),
            ),
        ),
        max_size=40,
    )
)
def test_totals_never_go_backwards(steps: list[tuple[object, ...]]) -> None:
    """When workers come, serve and end, no total ever decreases and no request is lost."""
    board = Board()
    workers: dict[int, RawCell] = {}
    before, served = _sums(board.totals()), 0
    try:
        for step in steps:
            match step:
                case ("start",):
                    cell = board.born(threads=2)
                    workers[cell] = writer(board, cell, threads=2)
                case ("end", int(pick)) if workers:
                    cell = list(workers)[pick % len(workers)]
                    del workers[cell]
                    board.free_cell(cell)
                case ("serve", int(pick), int(status), int(size), int(time)) if workers:
                    worker = list(workers.values())[pick % len(workers)]
                    words, _ = worker.slot(pick % 2)
                    words[layout.OPENED] += 1
                    serve(worker, pick % 2, status, size, time)
                    served += 1
            after = _sums(board.totals())
            assert all(a <= b for a, b in zip(before, after, strict=True))
            assert after[0] == served
            before = after
    finally:
        board.close()


# -- what reading costs ----------------------------------------------------------------------------------


def test_requests_of_many_slots(board: Board) -> None:
    """All are read, in order, and one that stays is the same object: it is not examined again."""
    cell = board.born(threads=999)
    worker = writer(board, cell, threads=999)
    for number in range(0, 1000, 3):
        begin(worker, number, b"GET", b"/%d" % number, BORN + number)
    found = board.in_flight(cell)
    assert [(request.thread, request.path) for request in found] == [(n, f"/{n}") for n in range(0, 1000, 3)]
    worker.slot(0)[0][layout.STARTED] = 0
    board.mark_overdue(cell, 999, BORN + 999)
    words, _ = worker.slot(600)
    words[layout.EXTENDED_FOR], words[layout.EXTENDED_UNTIL] = BORN + 600, NOW
    again = board.in_flight(cell)
    assert all(new is old for new, old in zip(again[:198], found[1:199], strict=True))
    assert [(r.thread, r.extended_until) for r in again if r.extended_until] == [(600, NOW / 1e9)]
    assert [r.thread for r in again if r.overdue] == [999]


def test_what_slots_of_loops_claim_to_have_counted(board: Board) -> None:
    """Slots beyond a worker's number of threads show requests, but their counters are ignored."""
    cell = board.born(threads=999)
    serve(writer(board, cell, threads=999), 600, 200, 10, 1)
    assert board.counts(cell).requests == 0
    assert board.trusted(cell)


def test_a_cell_that_costs_much_is_read_less_often() -> None:
    """The time that a worker can take from the supervisor is bounded;
    reading of other workers is not delayed.
    """
    spent = 0

    class Costly(Board):
        def __init__(self) -> None:
            super().__init__()
            self._cpu_clock = lambda: spent

    board = Costly()
    cheap, costly = board.born(), board.born(threads=999)
    worker, other = writer(board, costly, threads=999), writer(board, cheap)
    begin(worker, 998, b"GET", b"/", BORN)

    def clock() -> int:
        """Reading a cell of many slots takes 5 ms."""
        nonlocal spent
        spent += 5_000_000 if worker.header[layout.SLOTS_IN_USE] > 500 and reading == costly else 0
        return board.now

    board._clock = clock
    reading = costly
    assert len(board.look(costly).in_flight) == 1
    worker.slot(998)[0][layout.STARTED] = 0
    rests = 5_000_000 * 10 * 2
    board.now = NOW + rests - 1_000_000
    assert len(board.look(costly).in_flight) == len(board.read(costly).in_flight) == 1
    reading = cheap
    begin(other, 0, b"GET", b"/", BORN)
    assert len(board.look(cheap).in_flight) == 1
    reading = costly
    assert board.in_flight(costly) == []  # this one is not read often
    begin(worker, 998, b"GET", b"/", BORN + 1)
    board.now += 10 * rests
    assert len(board.look(costly).in_flight) == 1
    board.close()


def test_slots_that_are_claimed_and_never_written(board: Board) -> None:
    """A worker that claims all slots at once uses neither memory nor much time."""
    cell = board.born(threads=16384)
    worker = writer(board, cell, threads=16384)
    began = time.thread_time()
    for beat in range(3):
        worker.header[layout.HEARTBEAT] = NOW + beat
        board.read(cell)
        board.counts(cell)
    assert time.thread_time() - began < 3
    assert os.fstat(board.fileno(cell)).st_blocks * 512 <= 2 * layout.PAGE
    assert board.trusted(cell)


# -- histogram ------------------------------------------------------------------------------------------


@settings(derandomize=True, database=None)
@given(st.integers(0, 2 * LONGEST), st.integers(0, 2 * LONGEST))
def test_buckets_are_in_order(one: int, other: int) -> None:
    """A longer duration is never in a lower bucket."""
    low, high = sorted((one, other))
    assert 0 <= bucket_of(low) <= bucket_of(high) < layout.BUCKETS


@settings(derandomize=True, database=None)
@given(st.one_of(st.integers(0, LONGEST), st.integers(12, 37).map(lambda n: 2**n - 1)))
def test_bucket_limits_hold(nanoseconds: int) -> None:
    """The bucket's limit exceeds the duration by at most a quarter of it (or a microsecond)."""
    limit = bucket_limit(bucket_of(nanoseconds)) * 1e9
    assert nanoseconds <= limit
    assert limit <= max(nanoseconds * 1.25, nanoseconds + 1024) + 1e-3


def test_buckets_have_no_gaps() -> None:
    """Each bucket begins where the one before ends, and each can be used."""
    for bucket in range(layout.BUCKETS - 1):
        edge = round(bucket_limit(bucket) * 1e9)
        assert bucket_of(edge - 1) == bucket
        assert bucket_of(edge) == bucket + 1


def test_extreme_durations() -> None:
    """Too long durations are in the last bucket, negative ones in the first."""
    assert bucket_of(2**63) == bucket_of(LONGEST) == layout.BUCKETS - 1
    assert bucket_of(0) == bucket_of(-5_000_000) == 0


def test_percentile() -> None:
    """The limit of the bucket in which the requested fraction of requests is reached."""
    counts = [0] * layout.BUCKETS
    assert percentile(counts, 0.99) is None
    counts[10], counts[50] = 99, 1
    assert percentile(counts, 0.5) == percentile(counts, 0.99) == bucket_limit(10)
    assert percentile(counts, 0.995) == percentile(counts, 1.0) == bucket_limit(50)


def test_percentile_with_zeros() -> None:
    """Requests that no bucket counts took no time; the others come after them."""
    counts = [0] * layout.BUCKETS
    assert percentile(counts, 0.95, zeros=3) == 0.0
    counts[50] = 5
    assert percentile(counts, 0.95, zeros=95) == 0.0
    assert percentile(counts, 0.95, zeros=94) == bucket_limit(50)
    assert percentile(counts, 0.0, zeros=0) == percentile(counts, 0.0)


def test_queue_wait() -> None:
    """Of all requests, also those that did not wait; None without any."""
    counts = Counts()
    assert counts.queue_wait(0.95) is None
    counts.statuses[2] = 10
    assert counts.queue_wait(0.95) == 0.0
    counts.queued[40] = 1
    assert counts.queue_wait(0.9) == 0.0
    assert counts.queue_wait(0.95) == bucket_limit(40)
    # A request that has waited and is still in the app is already counted here.
    counts.queued[40] = 11
    assert counts.queue_wait(0.1) == bucket_limit(40)


@settings(derandomize=True, database=None)
@given(st.lists(st.integers(0, LONGEST), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_near_the_truth(durations: list[int], fraction: float) -> None:
    """Compared with exact sorting: never too low, and at most a quarter (or a microsecond) too high."""
    counts = [0] * layout.BUCKETS
    for duration in durations:
        counts[bucket_of(duration)] += 1
    rank = next(n for n in range(1, len(durations) + 1) if n >= fraction * len(durations))
    truth = sorted(durations)[rank - 1]
    found = percentile(counts, fraction)
    assert found is not None
    assert truth <= found * 1e9 <= max(truth * 1.25, truth + 1024) + 1e-3


def test_a_cell_can_not_be_cut_off(board: Board) -> None:
    """A worker has the descriptor, and can neither truncate the memory nor enlarge it."""
    cell = board.born()
    for size in (0, memory.size(2) + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fileno(cell), size)
    assert board.counts(cell).requests == 0
