"""Free memory: the machine's, reduced by the limits of fake cgroup trees."""

from pathlib import Path

import pytest

from ostler.osapi.memory import memory_free

MACHINE = "MemTotal: 2000000 kB\nMemFree:    50000 kB\nMemAvailable:    1000000 kB\nHugePages_Total: 0\n"
AVAILABLE = 1_000_000 * 1024
NO_LIMIT_V1 = "9223372036854771712"


def free(root: Path, membership: str, files: dict[str, str], meminfo: str = MACHINE) -> int | None:
    """Build a cgroup tree and return the free memory in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (root / "self_cgroup").write_text(membership)
    (root / "meminfo").write_text(meminfo)
    return memory_free(root / "self_cgroup", root, root / "meminfo")


def test_without_a_limit(tmp_path: Path) -> None:
    """What the kernel estimates to be available without swapping, not only unused memory."""
    assert free(tmp_path, "0::/app\n", {"app/memory.max": "max", "app/memory.current": "5"}) == AVAILABLE


def test_v2_limit(tmp_path: Path) -> None:
    """The limit minus the usage, without the inactive page cache."""
    files = {
        "memory.max": "1000000",
        "memory.current": "700000",
        "memory.stat": "anon 5\ninactive_file 100000",
    }
    assert free(tmp_path, "0::/\n", files) == 400_000


def test_v2_soft_limit(tmp_path: Path) -> None:
    """Above memory.high the kernel slows processes down, so that memory does not count as free."""
    files = {"memory.max": "max", "memory.high": "800000", "memory.current": "700000"}
    assert free(tmp_path, "0::/\n", files) == 100_000


def test_v2_nearest_limit_wins(tmp_path: Path) -> None:
    """Other groups under the same parent reduce what is free."""
    files = {
        "a/memory.max": "1000000", "a/memory.current": "950000",
        "a/b/memory.max": "500000", "a/b/memory.current": "100000",
    }  # fmt: skip
    assert free(tmp_path, "0::/a/b\n", files) == 50_000


def test_v2_in_a_container(tmp_path: Path) -> None:
    """If the path is the host's and does not exist here, the limit is in the visible root."""
    files = {"memory.max": "1000000", "memory.current": "400000"}
    assert free(tmp_path, "0::/docker/0123\n", files) == 600_000


@pytest.mark.parametrize("limit", ["300000", "200000"])
def test_nothing_left(tmp_path: Path, limit: str) -> None:
    """At the limit, or above one that was lowered, the result is 0, never less."""
    assert free(tmp_path, "0::/\n", {"memory.max": limit, "memory.current": "300000"}) == 0


def test_v1_limit(tmp_path: Path) -> None:
    """v1 has other names, and counts nested groups only in `total_`."""
    files = {
        "memory/docker/x/memory.limit_in_bytes": "1000000",
        "memory/docker/x/memory.usage_in_bytes": "900000",
        "memory/docker/x/memory.stat": "inactive_file 1\ntotal_inactive_file 200000",
        "memory/memory.limit_in_bytes": NO_LIMIT_V1,
        "memory/memory.usage_in_bytes": "100",
    }
    assert free(tmp_path, "4:memory:/docker/x\n2:cpu:/\n0::/\n", files) == 300_000


def test_v1_without_a_limit(tmp_path: Path) -> None:
    """The largest possible number means no limit."""
    files = {"memory/memory.limit_in_bytes": NO_LIMIT_V1, "memory/memory.usage_in_bytes": "100"}
    assert free(tmp_path, "4:memory:/\n", files) == AVAILABLE


def test_the_machine_may_have_less(tmp_path: Path) -> None:
    """The result is never more than what the machine has."""
    files = {"memory.max": "9000000000000", "memory.current": "1"}
    assert free(tmp_path, "0::/\n", files) == AVAILABLE


def test_nothing_known(tmp_path: Path) -> None:
    """Neither /proc nor a cgroup tree: unknown, which is not 0."""
    assert memory_free(tmp_path / "no", tmp_path / "nowhere", tmp_path / "nothing") is None
    assert free(tmp_path, "0::/\n", {}, meminfo="") is None


def test_here() -> None:
    """On this machine there is some free memory."""
    assert (memory_free() or 0) > 1_000_000
