"""What happened in a run, and which lost requests that explains."""

from collections import Counter
from dataclasses import dataclass, field

from tests.kit.report import Report

NEWS_WITHIN = 2.0  # seconds after a process's end within which its clients see it


@dataclass(frozen=True)
class Harm:
    """A process that was harmed, and the connections that it held then. Times on the monotonic clock."""

    kind: str
    pid: int
    since: float
    until: float
    """Its end, or when it went on; infinite while it is unknown."""
    ports: frozenset[int]

    def explains(self, port: int, at: float) -> bool:
        return port in self.ports and self.since <= at <= self.until + NEWS_WITHIN


@dataclass
class Account:
    """What happened."""

    operations: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Operations that the daemon declined, e.g. as another was under way."""
    harms: list[Harm] = field(default_factory=list)
    asides: Counter[tuple[str, str]] = field(default_factory=Counter)
    answered_aside: int = 0
    lost_aside: int = 0
    unexplained: list[str] = field(default_factory=list)
    planned: list[tuple[float, float]] = field(default_factory=list)
    """When planned operations were under way."""
    reloads: Counter[str] = field(default_factory=Counter)

    def explanation(self, port: int, at: float) -> str | None:
        """What happened to the process that held the connection; None if nothing did."""
        return next((harm.kind for harm in self.harms if harm.explains(port, at)), None)

    def lost(self, report: Report) -> tuple[Counter[str], list[str]]:
        """Why requests of the load were lost: by cause, and what has none."""
        explained: Counter[str] = Counter()
        problems = []
        for record in report.lost:
            why = [self.explanation(port, at) for port, at in record.losses]
            if None in why:
                losses = ", ".join(f"port {port} at {at:.3f}" for port, at in record.losses)
                problems.append(
                    f"{record.outcome.value} {record.detail}: {losses}; last with {record.worker}, "
                    f"sent at {record.sent:.3f}"
                )
            else:
                explained[str(why[-1])] += 1
        return explained, problems
