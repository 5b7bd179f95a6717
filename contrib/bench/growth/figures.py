"""What is measured: memory, descriptors and threads, and by how much they may grow."""

from dataclasses import dataclass
from pathlib import Path

from tests.kit.daemon import Daemon
from tests.kit.processes import descriptors

WORKER_MOST, SUPERVISOR_MOST = 5.0, 2.0  # MB


def resident(pid: int) -> float:
    """Resident memory in MB, without what lies in files (proc_pid_status(5): RssAnon)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def sockets(pid: int) -> int:
    return sum(name.startswith("socket:") for name in descriptors(pid))


@dataclass(frozen=True)
class Sample:
    """MB; descriptors and threads of the supervisor."""

    worker: float
    supervisor: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Figures:
    """What was there after a tenth and after all of the requests.

    Attributes:
        count: requests in between; seconds: what these took; statuses: of their answers.
    """

    worker_class: str
    kind: str
    count: int
    seconds: float
    first: Sample
    last: Sample
    statuses: dict[str, int]
    problem: str = ""

    @property
    def good(self) -> bool:
        return (
            not self.problem
            and self.last.worker - self.first.worker <= WORKER_MOST
            and self.last.supervisor - self.first.supervisor <= SUPERVISOR_MOST
            and self.last.descriptors <= self.first.descriptors + 3
            and self.last.threads <= self.first.threads + 3
        )

    def row(self) -> str:
        def memory(name: str, before: float, after: float) -> str:
            return f"{name} {before:6.1f} MB {after - before:+6.2f}"

        return "  ".join(
            [
                f"{self.worker_class:10} {self.kind:18} {self.count:7,} in {self.seconds:6.1f} s",
                memory("worker", self.first.worker, self.last.worker),
                memory("supervisor", self.first.supervisor, self.last.supervisor),
                f"fds {self.first.descriptors}/{self.last.descriptors}",
                f"threads {self.first.threads}/{self.last.threads}",
                " ".join(f"{status or '-'}: {count:,}" for status, count in sorted(self.statuses.items())),
                self.problem or ("" if self.good else "GREW"),
            ]
        )


def sample(daemon: Daemon, worker: int | None) -> Sample:
    threads = len(list(Path(f"/proc/{daemon.pid}/task").iterdir()))
    return Sample(
        resident(worker) if worker is not None else 0.0,
        resident(daemon.pid),
        len(descriptors(daemon.pid)),
        threads,
    )
