"""What the load client reports: one record for each request, and sums over them."""

import enum
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Outcome(enum.Enum):
    """How a request ended; all but `OK` are failures."""

    OK = "answered 200"
    STATUS = "answered with another status"
    REFUSED = "connection refused"
    RESET = "connection reset before the answer was complete"
    TRUNCATED = "connection closed within the answer"
    UNANSWERED = "connection closed before any byte of an answer"
    MALFORMED = "not an HTTP answer"
    TIMED_OUT = "no complete answer in time"


# A tuple, not a dataclass: one is made for each of some hundred thousand requests.
class Record(NamedTuple):
    """How one request ended; times are `time.monotonic()` seconds."""

    due: float
    sent: float
    """When the client sent it: `due`, plus the client's own delay, plus the wait behind earlier requests."""
    ended: float
    outcome: Outcome
    status: int
    """0 without an answer."""
    body: bytes
    """The answer's first bytes."""
    stale: bool
    """The first attempt met a connection that the server had closed; the outcome is the retry's."""
    detail: str
    """Details of the outcome; of a stale connection, how it ended."""
    connection: int
    worker: int
    """Pid of the process that answered; without an answer, the one that answered last on this connection.
    It need not be the one that held it, as connections move. 0: unknown."""
    port: int
    """The client's own, of the connection on which the request ended; 0 on Unix sockets."""
    stale_port: int
    """That of the first attempt if it met a stale connection, or else 0."""
    stale_at: float
    """When that attempt ended, or else nan."""

    @property
    def latency(self) -> float:
        """Seconds from the moment the request was due."""
        return self.ended - self.due

    @property
    def losses(self) -> list[tuple[int, float]]:
        """The client's port and the time of each attempt that was lost."""
        stale = [(self.stale_port, self.stale_at)] if self.stale else []
        return stale if self.outcome is Outcome.OK else [*stale, (self.port, self.ended)]


@dataclass(frozen=True)
class Report:
    """All records of a run, or those of a part of it, in the order in which they ended."""

    records: Sequence[Record]
    lags: Sequence[float] = field(default=(), repr=False)
    """Seconds by which the client itself was late for an idle connection, over the whole run."""
    unasked: int = 0
    """How often, over the whole run, the server sent bytes on a connection without a request."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lost(self) -> list[Record]:
        """The requests that failed or met a stale connection, in the order in which they ended."""
        return [record for record in self.records if record.stale or record.outcome is not Outcome.OK]

    @property
    def outcomes(self) -> Counter[Outcome]:
        return Counter(record.outcome for record in self.records)

    @property
    def failed(self) -> int:
        """Requests that got no 200, even after a retry."""
        return sum(record.outcome is not Outcome.OK for record in self.records)

    @property
    def stale(self) -> int:
        """Requests that needed the retry, whether or not it was answered."""
        return sum(record.stale for record in self.records)

    def due_within(self, start: float, end: float) -> "Report":
        """The requests that were due in `start <= due < end`."""
        return replace(self, records=[record for record in self.records if start <= record.due < end])

    def latency(self, share: float) -> float:
        """The latency that this share of the answered requests did not exceed (nearest rank); nan if none."""
        latencies = sorted(record.latency for record in self.records if record.outcome is Outcome.OK)
        return percentile(latencies, share)

    def summary(self) -> str:
        """One line, then one for each kind of failure with an example."""
        lines = [f"{len(self)} requests, {self.failed} failed, {self.stale} met a stale connection"]
        for outcome, count in self.outcomes.items():
            if outcome is not Outcome.OK:
                example = next(record for record in self.records if record.outcome is outcome)
                detail = f" ({example.detail})" if example.detail else ""
                worker = f", last with worker {example.worker}" if example.worker else ""
                lines.append(
                    f"  {count} x {outcome.value}, e.g. connection {example.connection}{worker}{detail}"
                )
        if self.unasked:
            lines.append(f"  {self.unasked} x bytes without a request")
        return "\n".join(lines)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank in ascending numbers; nan if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
