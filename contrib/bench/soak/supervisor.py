"""What the supervisor has: memory, descriptors, processes."""

from collections import Counter
from pathlib import Path

from soak.operations import SETTLE_WITHIN
from soak.releases import WORKERS
from tests.kit.daemon import Daemon
from tests.kit.processes import children, descriptors, title, zombies


def resident(pid: int) -> int:
    """Bytes (proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def kinds(pid: int) -> Counter[str]:
    """The process's descriptors by what they are."""
    return Counter(target.partition(":")[0] if ":[" in target else target for target in descriptors(pid))


def left_over(daemon: Daemon, before: Counter[str]) -> list[str]:
    """Processes and descriptors that are there and should not be."""
    problems = []
    try:
        daemon.until(
            lambda: len(children(daemon.pid)) == WORKERS + 1,
            "only a fork server and the workers",
            SETTLE_WITHIN,
        )
    except AssertionError:
        problems.append(f"processes: {[title(pid) for pid in children(daemon.pid)]}")
    if dead := zombies(daemon.pid):
        problems.append(f"zombies: {dead}")
    try:
        daemon.until(lambda: kinds(daemon.pid) <= before, "the descriptors of before")
    except AssertionError:
        problems.append(f"descriptors: before {dict(before)}, now {dict(kinds(daemon.pid))}")
    return problems
