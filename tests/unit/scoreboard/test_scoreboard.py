"""The scoreboard: what a worker writes is what the supervisor reads, through one memfd."""

import os
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from supervisor.scoreboard import layout, memory
from supervisor.scoreboard.layout import bucket_limit, bucket_of, percentile
from supervisor.scoreboard.reader import Counts, InFlight, Scoreboard
from supervisor.scoreboard.writer import CellWriter

# What the histogram can tell apart ends here: 2**37 ns, 137 s.
LONGEST = 2**37 - 1


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    board = Scoreboard()
    yield board
    os.close(board.fd)


def writer(board: Scoreboard, cell: int, threads: int = 1) -> CellWriter:
    """A worker's side, mapped anew from the descriptor as in another process."""
    return CellWriter(memory.map_cell(board.fd, cell), threads)


def serve(worker: CellWriter, thread: int, status: int, size: int, nanoseconds: int) -> None:
    """Count one answer as a worker does."""
    words, _ = worker.lane(thread)
    words[layout.STATUS_CLASSES + status // 100] += 1
    words[layout.BYTES_SENT] += size
    words[layout.HISTOGRAM + bucket_of(nanoseconds)] += 1
    words[layout.QUEUED + bucket_of(nanoseconds)] += 1


def begin(worker: CellWriter, thread: int, method: bytes, path: bytes, started: int) -> None:
    """Show a request as a worker does: the text first, STARTED last."""
    words, text = worker.lane(thread)
    text[: len(method)] = method
    text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path)] = path
    words[layout.METHOD_LENGTH] = len(method)
    words[layout.PATH_LENGTH] = len(path)
    words[layout.IDENT] = 4711
    words[layout.STARTED] = started


def test_layout_fits() -> None:
    """Words, text and lanes stay within their bounds, and cells begin on pages."""
    single = (layout.TAKEN, layout.OVERDUE, layout.EXTENDED_FOR, layout.EXTENDED_UNTIL)
    assert len(set(single)) == 4
    assert min(single) >= layout.STATUS_CLASSES + 10
    assert max(single) < layout.HISTOGRAM
    assert layout.HISTOGRAM + layout.BUCKETS <= layout.QUEUED
    assert (layout.QUEUED + layout.BUCKETS) * layout.WORD <= layout.TEXT
    assert layout.CELL_SIZE % layout.PAGE == 0
    assert layout.PATH_SIZE > 0


def test_counts_round_trip(board: Scoreboard) -> None:
    """Counters of all threads are summed."""
    cell = board.take_cell()
    worker = writer(board, cell, threads=3)
    worker.header[layout.HEARTBEAT] = 5_500_000_000
    serve(worker, 0, 200, 100, 2_000_000)
    serve(worker, 2, 503, 20, 3_000)
    words, _ = worker.lane(2)
    words[layout.OPENED] = 4
    words[layout.CLOSED] = 3

    counts = board.counts(cell)
    assert (counts.requests, counts.errors, counts.bytes_sent) == (2, 1, 120)
    assert (counts.opened, counts.closed) == (4, 3)
    assert [n for n in range(10) if counts.statuses[n]] == [2, 5]
    assert sum(counts.histogram) == sum(counts.queued) == 2
    assert board.lanes(cell) == 3 + 1  # and the watcher's
    assert board.heartbeat(cell) == 5.5


def test_cells_are_apart(board: Scoreboard) -> None:
    """A worker reaches its own cell and no other."""
    cells = [board.take_cell() for _ in range(3)]
    serve(writer(board, cells[1]), 0, 200, 1, 1)
    assert [board.counts(cell).requests for cell in cells] == [0, 1, 0]


def test_in_flight(board: Scoreboard) -> None:
    """A request is seen from its start to its end, with its thread, method and path."""
    cell = board.take_cell()
    worker = writer(board, cell, threads=2)
    assert board.in_flight(cell) == []
    begin(worker, 1, b"GET", b"/slow", 3_000_000_000)
    assert board.in_flight(cell) == [InFlight(1, "GET", "/slow", 3_000_000_000, 4711)]
    words, _ = worker.lane(1)
    words[layout.STARTED] = 0
    assert board.in_flight(cell) == []


def test_deadlines(board: Scoreboard) -> None:
    """A request may take `timeout`, or as long as it has asked for if that is longer; 0 is never."""
    cell = board.take_cell()
    worker = writer(board, cell)
    words, _ = worker.lane(0)
    begin(worker, 0, b"GET", b"/", 3_000_000_000)
    words[layout.EXTENDED_FOR], words[layout.EXTENDED_UNTIL] = 3_000_000_000, 50_000_000_000
    (request,) = board.in_flight(cell)
    assert (request.deadline(10.0), request.deadline(100.0), request.deadline(0.0)) == (50.0, 103.0, None)
    # It was the request before that had asked.
    words[layout.STARTED] = 4_000_000_000
    (request,) = board.in_flight(cell)
    assert request.deadline(10.0) == 14.0


def test_marking_an_overdue_request(board: Scoreboard) -> None:
    """Its lane is told its start, and no other lane anything."""
    cell = board.take_cell()
    worker = writer(board, cell, threads=3)
    board.mark_overdue(cell, 1, 4711)
    assert [worker.lane(thread)[0][layout.OVERDUE] for thread in range(3)] == [0, 4711, 0]
    begin(worker, 0, b"GET", b"/", 4711)
    begin(worker, 1, b"GET", b"/", 4711)
    assert [request.overdue for request in board.in_flight(cell)] == [False, True]
    begin(worker, 1, b"GET", b"/", 4712)
    assert [request.overdue for request in board.in_flight(cell)] == [False, False]


def test_last_requests(board: Scoreboard) -> None:
    """In flight first, the longest before others, then what idle threads did last; five at most."""
    cell = board.take_cell()
    worker = writer(board, cell, threads=8)
    assert board.last_requests(cell) == []
    begin(worker, 1, b"GET", b"/was?secret", 1)
    worker.lane(1)[0][layout.STARTED] = 0
    begin(worker, 2, b"POST", b"/late?secret", 3_000)
    begin(worker, 4, b"GET", b"/long", 2_000)
    assert board.last_requests(cell) == ["GET /long", "POST /late", "GET /was"]
    for thread in (5, 6, 7):
        begin(worker, thread, b"PUT", b"/more", 4_000)
    assert board.last_requests(cell) == ["GET /long", "POST /late", "PUT /more", "PUT /more", "PUT /more"]


def test_in_flight_keeps_no_query(board: Scoreboard) -> None:
    """Queries hold secrets: they are not shown."""
    cell = board.take_cell()
    begin(writer(board, cell), 0, b"GET", b"/a?token=x", 1)
    assert board.in_flight(cell)[0].path == "/a"


def test_in_flight_takes_any_bytes(board: Scoreboard) -> None:
    """A path that is no UTF-8, and lengths that are no truth, harm nobody."""
    cell = board.take_cell()
    worker = writer(board, cell)
    begin(worker, 0, b"GET", b"/\xff\xfe", 1)
    assert board.in_flight(cell)[0].path == "/\xff\xfe"
    words, _ = worker.lane(0)
    words[layout.METHOD_LENGTH] = words[layout.PATH_LENGTH] = 2**64 - 1
    (found,) = board.in_flight(cell)
    assert (len(found.method), len(found.path)) == (layout.METHOD_SIZE, layout.PATH_SIZE)
    worker.header[layout.LANES_IN_USE] = 2**64 - 1
    assert board.lanes(cell) == layout.LANES


def test_give_back_returns_the_last_counts(board: Scoreboard) -> None:
    """Connections that were open when the process died are closed with it."""
    cell = board.take_cell()
    worker = writer(board, cell)
    serve(worker, 0, 200, 10, 1)
    words, _ = worker.lane(0)
    words[layout.OPENED] = 2
    counts = board.give_back(cell)
    assert (counts.requests, counts.opened, counts.closed) == (1, 2, 2)
    assert board.totals().requests == 1


def test_cell_is_clean_for_the_next(board: Scoreboard) -> None:
    """Nothing of a dead worker is seen in its successor's cell."""
    cell = board.take_cell()
    worker = writer(board, cell, threads=5)
    begin(worker, 4, b"GET", b"/", 1)
    serve(worker, 4, 500, 10, 1)
    worker.header[layout.HEARTBEAT] = 1
    board.give_back(cell)
    assert board.take_cell() == cell
    writer(board, cell, threads=5)
    assert board.counts(cell) == Counts()
    assert board.in_flight(cell) == []
    assert board.heartbeat(cell) == 0.0


def test_cells_run_out(board: Scoreboard) -> None:
    """The last cell is the last; one given back can be taken again."""
    cells = [board.take_cell() for _ in range(layout.CELLS)]
    assert len(set(cells)) == layout.CELLS
    with pytest.raises(RuntimeError, match=f"room for {layout.CELLS} workers"):
        board.take_cell()
    board.give_back(cells[0])
    assert board.take_cell() == cells[0]


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
    """Whatever workers come, serve and go, no total ever shrinks and no request is lost."""
    board = Scoreboard()
    workers: dict[int, CellWriter] = {}
    before, served = _sums(board.totals()), 0
    try:
        for step in steps:
            match step:
                case ("start",):
                    cell = board.take_cell()
                    workers[cell] = writer(board, cell, threads=2)
                case ("end", int(pick)) if workers:
                    cell = list(workers)[pick % len(workers)]
                    del workers[cell]
                    board.give_back(cell)
                case ("serve", int(pick), int(status), int(size), int(time)) if workers:
                    worker = list(workers.values())[pick % len(workers)]
                    words, _ = worker.lane(pick % 2)
                    words[layout.OPENED] += 1
                    serve(worker, pick % 2, status, size, time)
                    served += 1
            after = _sums(board.totals())
            assert all(a <= b for a, b in zip(before, after, strict=True))
            assert after[0] == served
            before = after
    finally:
        os.close(board.fd)


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
    """The bucket's limit is above the duration, by a quarter of it (or a microsecond) at most."""
    limit = bucket_limit(bucket_of(nanoseconds)) * 1e9
    assert nanoseconds <= limit
    assert limit <= max(nanoseconds * 1.25, nanoseconds + 1024) + 1e-3


def test_buckets_have_no_gaps() -> None:
    """Each bucket begins where the one before ends, and none is never used."""
    for bucket in range(layout.BUCKETS - 1):
        edge = round(bucket_limit(bucket) * 1e9)
        assert bucket_of(edge - 1) == bucket
        assert bucket_of(edge) == bucket + 1


def test_extreme_durations() -> None:
    """What is too long is in the last bucket, what is below nothing in the first."""
    assert bucket_of(2**63) == bucket_of(LONGEST) == layout.BUCKETS - 1
    assert bucket_of(0) == bucket_of(-5_000_000) == 0


def test_percentile() -> None:
    """The limit of the bucket in which the asked fraction of requests is reached."""
    counts = [0] * layout.BUCKETS
    assert percentile(counts, 0.99) is None
    counts[10], counts[50] = 99, 1
    assert percentile(counts, 0.5) == percentile(counts, 0.99) == bucket_limit(10)
    assert percentile(counts, 0.995) == percentile(counts, 1.0) == bucket_limit(50)


def test_percentile_with_zeros() -> None:
    """Requests that no bucket counts took no time; the others are on top of them."""
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
    # One that has waited and is still in the app is counted there already.
    counts.queued[40] = 11
    assert counts.queue_wait(0.1) == bucket_limit(40)


@settings(derandomize=True, database=None)
@given(st.lists(st.integers(0, LONGEST), min_size=1, max_size=50), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_near_the_truth(durations: list[int], fraction: float) -> None:
    """Against exact sorting: never too low, and a quarter (or a microsecond) too high at most."""
    counts = [0] * layout.BUCKETS
    for duration in durations:
        counts[bucket_of(duration)] += 1
    rank = next(n for n in range(1, len(durations) + 1) if n >= fraction * len(durations))
    truth = sorted(durations)[rank - 1]
    found = percentile(counts, fraction)
    assert found is not None
    assert truth <= found * 1e9 <= max(truth * 1.25, truth + 1024) + 1e-3


def test_nobody_can_cut_it_off(board: Scoreboard) -> None:
    """A worker has the descriptor: what it took away would end the supervisor by SIGBUS."""
    for size in (0, layout.SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fd, size)
    assert board.counts(0).requests == 0
