"""The supervisor's side of the scoreboard: what workers do right now, and totals that never go backwards."""

import math
from dataclasses import dataclass, field

import msgspec

from supervisor.scoreboard import layout, memory

_LAST_REQUESTS = 5
# What a lane has counted, as far as it tells whether it has counted at all; the rest comes with these.
_GIVEN_TO_TAKEN = slice(layout.GIVEN, layout.TAKEN + 1)  # and all answers in between


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request in the app.

    Times are CLOCK_MONOTONIC in seconds; started_ns: `started` as the worker wrote it, in nanoseconds, which
    tells the request from others of its lane.
    ident: the thread as faulthandler names it.
    extended_until: up to when the app wants to be given time for it, 0.0 if it has not asked, inf: forever.
    overdue: it was marked as that (`Scoreboard.mark_overdue`).
    """

    thread: int
    method: str
    path: str
    started_ns: int
    ident: int
    extended_until: float = 0.0
    overdue: bool = False

    @property
    def started(self) -> float:
        return self.started_ns / 1e9

    def deadline(self, timeout: float) -> float | None:
        """When it is overdue if requests may take `timeout` seconds; None: never, which is what 0 means."""
        if not timeout or self.extended_until == math.inf:
            return None
        return max(self.started + timeout, self.extended_until)


@dataclass(slots=True)
class Counts:
    """Sums over threads; over workers too, in the fleet's totals."""

    bytes_sent: int = 0
    opened: int = 0
    closed: int = 0
    given: int = 0
    taken: int = 0
    statuses: list[int] = field(default_factory=lambda: [0] * 10)
    """Answers by the status's first digit."""
    histogram: list[int] = field(default_factory=lambda: [0] * layout.BUCKETS)
    """Times in the app."""
    queued: list[int] = field(default_factory=lambda: [0] * layout.BUCKETS)
    """Times from a request's arrival to the call of the app, without those below layout.LEAST_QUEUED."""

    @property
    def requests(self) -> int:
        return sum(self.statuses)

    @property
    def errors(self) -> int:
        """Answers with a status of 500 and above."""
        return sum(self.statuses[5:])

    @property
    def connections(self) -> int:
        """Open right now."""
        return self.opened + self.taken - self.given - self.closed

    def queue_wait(self, fraction: float) -> float | None:
        """How long (seconds) `fraction` of the requests waited at most; None without requests.

        Also for the difference of two counts: it takes no more than `statuses` and `queued`.
        """
        return layout.percentile(self.queued, fraction, max(0, self.requests - sum(self.queued)))

    def add(self, other: "Counts") -> None:
        self.bytes_sent += other.bytes_sent
        self.opened += other.opened
        self.closed += other.closed
        self.given += other.given
        self.taken += other.taken
        self.statuses = [a + b for a, b in zip(self.statuses, other.statuses, strict=True)]
        self.histogram = [a + b for a, b in zip(self.histogram, other.histogram, strict=True)]
        self.queued = [a + b for a, b in zip(self.queued, other.queued, strict=True)]


class ScoreboardState(msgspec.Struct, frozen=True):
    """What it is made from again after an upgrade in place: its descriptor, cells in use, the counts of those
    that were given back."""

    fd: int
    in_use: list[int]
    gone: Counts


class Scoreboard:
    """All cells; hands them out to workers and takes them back. `state`: of the one to go on with."""

    def __init__(self, state: ScoreboardState | None = None) -> None:
        self.fd = memory.create() if state is None else state.fd
        self._map = memory.map_whole(self.fd)
        self._words = memoryview(self._map).cast("Q")
        self._in_use: set[int] = set(state.in_use) if state else set()
        self._gone = state.gone if state else Counts()
        self._free = [cell for cell in range(layout.CELLS - 1, -1, -1) if cell not in self._in_use]

    def snapshot(self) -> ScoreboardState:
        return ScoreboardState(self.fd, sorted(self._in_use), self._gone)

    def take_cell(self) -> int:
        """A cleared cell for a new worker.

        Raises:
            RuntimeError: more workers than cells.
        """
        if not self._free:
            raise RuntimeError(f"the scoreboard has room for {layout.CELLS} workers")
        cell = self._free.pop()
        self._in_use.add(cell)
        return cell

    def give_back(self, cell: int) -> Counts:
        """Fold a dead worker's counts into the totals and free its cell; returns its last counts."""
        counts = self.counts(cell)
        # What was open ended with the process.
        counts.closed += counts.connections
        self._gone.add(counts)
        start = cell * layout.CELL_SIZE
        used = layout.PAGE + self.lanes(cell) * layout.LANE_SIZE
        self._map[start : start + used] = bytes(used)
        self._in_use.remove(cell)
        self._free.append(cell)
        return counts

    def lanes(self, cell: int) -> int:
        return min(self._words[cell * layout.CELL_SIZE // layout.WORD + layout.LANES_IN_USE], layout.LANES)

    def heartbeat(self, cell: int) -> float:
        """When the worker's loop passed last (CLOCK_MONOTONIC, seconds); 0.0 before the first time."""
        return self._words[cell * layout.CELL_SIZE // layout.WORD + layout.HEARTBEAT] / 1e9

    def ident(self, cell: int) -> int:
        """The main thread as faulthandler names it; 0 before it has a lane."""
        return self._lane(cell, 0)[layout.IDENT]

    def counts(self, cell: int) -> Counts:
        counts = Counts()
        for thread in range(self.lanes(cell)):
            lane = self._lane(cell, thread)
            if thread and not (lane[layout.OPENED] or lane[layout.CLOSED] or any(lane[_GIVEN_TO_TAKEN])):
                continue  # greenlets count in the first lane only
            counts.add(
                Counts(
                    lane[layout.BYTES_SENT],
                    lane[layout.OPENED],
                    lane[layout.CLOSED],
                    lane[layout.GIVEN],
                    lane[layout.TAKEN],
                    lane[layout.STATUS_CLASSES : layout.STATUS_CLASSES + 10].tolist(),
                    lane[layout.HISTOGRAM : layout.HISTOGRAM + layout.BUCKETS].tolist(),
                    lane[layout.QUEUED : layout.QUEUED + layout.BUCKETS].tolist(),
                )
            )
        return counts

    def in_flight(self, cell: int) -> list[InFlight]:
        """The requests in the app, by thread."""
        found = []
        for thread in range(self.lanes(cell)):
            lane = self._lane(cell, thread)
            started = lane[layout.STARTED]
            if not started:
                continue
            ident = lane[layout.IDENT]
            method, path = self._shown(cell, thread)
            # In this order: the worker writes them the other way round.
            extended = lane[layout.EXTENDED_FOR] == started
            until_ns = lane[layout.EXTENDED_UNTIL] if extended else 0
            until = math.inf if until_ns == layout.NEVER else until_ns / 1e9
            if lane[layout.STARTED] != started:
                continue  # ended while we read
            marked = lane[layout.OVERDUE] == started
            found.append(InFlight(thread, method, path, started, ident, until, marked))
        return found

    def last_requests(self, cell: int) -> list[str]:
        """What the worker did last, as lines like `GET /path`, at most five; also if it is dead.

        What it was still doing comes first, the longest first, then the last of each thread that was idle.
        """
        busy = sorted(self.in_flight(cell), key=lambda request: request.started_ns)
        found = [f"{request.method} {request.path}" for request in busy]
        for thread in range(self.lanes(cell)):
            method, path = self._shown(cell, thread)
            if method and not self._lane(cell, thread)[layout.STARTED]:
                found.append(f"{method} {path}")
        return found[:_LAST_REQUESTS]

    def mark_overdue(self, cell: int, thread: int, started_ns: int) -> None:
        """Let the worker know that a request is overdue, if that is still what the thread does."""
        self._lane(cell, thread)[layout.OVERDUE] = started_ns

    def _shown(self, cell: int, thread: int) -> tuple[str, str]:
        """Method and path in a lane's text."""
        lane = self._lane(cell, thread)
        method_length = min(lane[layout.METHOD_LENGTH], layout.METHOD_SIZE)
        path_length = min(lane[layout.PATH_LENGTH], layout.PATH_SIZE)
        text = cell * layout.CELL_SIZE + layout.PAGE + thread * layout.LANE_SIZE + layout.TEXT
        method = self._map[text : text + method_length]
        target = self._map[text + layout.METHOD_SIZE : text + layout.METHOD_SIZE + path_length]
        # Queries hold tokens and personal data; the path says enough.
        return method.decode("latin-1"), target.partition(b"?")[0].decode("latin-1")

    def totals(self) -> Counts:
        """Everything since the start, workers that are gone included."""
        counts = Counts()
        counts.add(self._gone)
        for cell in self._in_use:
            counts.add(self.counts(cell))
        return counts

    def _lane(self, cell: int, thread: int) -> memoryview:
        start = (cell * layout.CELL_SIZE + layout.PAGE + thread * layout.LANE_SIZE) // layout.WORD
        return self._words[start : start + layout.TEXT // layout.WORD]
