"""What a worker has counted, and sums of it."""

from dataclasses import dataclass, field
from operator import add

from ostler.scoreboard import layout

# A counter that reaches this stays there. More can't be read by all that read JSON, Prometheus, or msgpack.
MOST = 2**63 - 1


def _none(words: int) -> list[int]:
    return [0] * words


@dataclass(slots=True)
class Counts:
    """Sums over a worker's slots, or over workers."""

    bytes_sent: int = 0
    opened: int = 0
    closed: int = 0
    handed_off: int = 0
    received: int = 0
    statuses: list[int] = field(default_factory=lambda: _none(10))
    """Answers by the status's first digit."""
    histogram: list[int] = field(default_factory=lambda: _none(layout.BUCKETS))
    """Times in the app."""
    queued: list[int] = field(default_factory=lambda: _none(layout.BUCKETS))
    """Times from a request's arrival to the call of the app, without those below layout.LEAST_QUEUED."""

    refused: list[int] = field(default_factory=lambda: _none(len(layout.RULES)))
    """Refused requests, by layout.RULES."""

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
        return max(0, self.opened + self.received - self.handed_off - self.closed)

    def queue_wait(self, fraction: float) -> float | None:
        """How long (seconds) `fraction` of the requests waited at most; None without requests.

        Also for the difference of two counts: it takes no more than `statuses` and `queued`.
        """
        return layout.percentile(self.queued, fraction, max(0, self.requests - sum(self.queued)))

    def add(self, other: "Counts") -> None:
        """Add `other`; no number gets beyond MOST."""
        self.bytes_sent = min(self.bytes_sent + other.bytes_sent, MOST)
        self.opened = min(self.opened + other.opened, MOST)
        self.closed = min(self.closed + other.closed, MOST)
        self.handed_off = min(self.handed_off + other.handed_off, MOST)
        self.received = min(self.received + other.received, MOST)
        self.statuses = _sums(self.statuses, other.statuses, MOST // len(self.statuses))
        self.histogram = _sums(self.histogram, other.histogram, MOST // layout.BUCKETS)
        self.queued = _sums(self.queued, other.queued, MOST // layout.BUCKETS)
        self.refused = _sums(self.refused, other.refused, MOST // len(layout.RULES))


def _sums(some: list[int], others: list[int], most: int) -> list[int]:
    """`most`: of each, so that all of them together are no more than MOST."""
    sums = list(map(add, some, others))
    return sums if max(sums) <= most else [min(number, most) for number in sums]
