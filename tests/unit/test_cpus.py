"""Usable CPUs: affinity, reduced by the quotas of fake cgroup trees."""

import os
from pathlib import Path

import pytest

from ostler.osapi.cpus import IdleCpus, usable_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may run on eight CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def tree(root: Path, membership: str, files: dict[str, str]) -> int:
    """Build a cgroup tree and count in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    proc = root / "self_cgroup"
    proc.write_text(membership)
    return usable_cpus(proc, root)


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # a part of a CPU counts as one
        ("10000 100000", 1),
        ("1600000 100000", 8),  # more than exist
        ("nonsense", 8),
        ("", 8),
    ],
)
def test_v2_quota(tmp_path: Path, quota: str, cpus: int) -> None:
    """cpu.max limits the CPUs of the affinity, rounded up, at least one."""
    assert tree(tmp_path, "0::/app\n", {"app/cpu.max": quota + "\n"}) == cpus


def test_v2_nearest_limit_wins(tmp_path: Path) -> None:
    """A parent's quota applies to its children; the smallest one counts."""
    files = {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/c/cpu.max": "500000 100000"}
    assert tree(tmp_path, "0::/a/b/c\n", files) == 3


def test_v2_in_a_container(tmp_path: Path) -> None:
    """If the path is the host's and does not exist here, the quota is in the visible root."""
    assert tree(tmp_path, "0::/docker/0123\n", {"cpu.max": "400000 100000"}) == 4


def test_v2_root(tmp_path: Path) -> None:
    """The root cgroup has no cpu.max: no limit."""
    assert tree(tmp_path, "0::/\n", {}) == 8


def test_v1_quota(tmp_path: Path) -> None:
    """CFS quotas of v1 count, in a hierarchy that is mounted under its controllers' names."""
    files = {
        "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000\n",
        "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert tree(tmp_path, "7:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n", files) == 3


def test_v1_mounted_as_cpu(tmp_path: Path) -> None:
    """Some systems mount it as `cpu` alone."""
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}
    assert tree(tmp_path, "4:cpu,cpuacct:/docker/x\n", files) == 2


@pytest.mark.parametrize(("quota", "period"), [("-1", "100000"), ("0", "100000"), ("100000", "0"), ("", "")])
def test_v1_without_a_limit(tmp_path: Path, quota: str, period: str) -> None:
    """-1 is no limit in v1, and invalid values limit nothing."""
    files = {"cpu/x/cpu.cfs_quota_us": quota, "cpu/x/cpu.cfs_period_us": period}
    assert tree(tmp_path, "4:cpu:/x\n", files) == 8


def test_other_controllers_do_not_count(tmp_path: Path) -> None:
    """cpuset is not cpu."""
    assert tree(tmp_path, "3:cpuset:/x\n", {"cpu.max": "100000 100000"}) == 8


def test_without_cgroups(tmp_path: Path) -> None:
    """Neither a membership file nor a tree: affinity alone counts."""
    assert usable_cpus(tmp_path / "no", tmp_path / "nowhere") == 8


def test_affinity_below_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota adds no CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert tree(tmp_path, "0::/app\n", {"app/cpu.max": "400000 100000"}) == 1


def test_here() -> None:
    """On this machine there is at least one, and no more than affinity allows."""
    assert 1 <= usable_cpus() <= 8


class Machine:
    """A fake machine with eight CPUs, and a cgroup with a quota."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root = root
        self.now = 0.0
        self.statistics = root / "stat"
        self.files = files
        (root / "self_cgroup").write_text("0::/app\n")
        self.set(0)

    def set(self, idle_ticks: int) -> None:
        """Each CPU was idle for so long since its start."""
        lines = [f"cpu{number} 9 9 9 {idle_ticks} 0 9 9\n" for number in range(9)]
        self.statistics.write_text("cpu 1 1 1 1 1\n" + "".join(lines) + "intr 5\n")
        for name, text in self.files.items():
            path = self.root / "app" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def measure(self) -> IdleCpus:
        return IdleCpus(lambda: self.now, self.statistics, self.root / "self_cgroup", self.root)


HZ = os.sysconf("SC_CLK_TCK")


def test_idle_cpus(tmp_path: Path) -> None:
    """Of the CPUs of the affinity: the ninth is not ours. Each call is about the time since the last one."""
    machine = Machine(tmp_path, {})
    idle = machine.measure()
    assert idle.read() == 0.0
    machine.now = 2.0
    machine.set(HZ)
    assert idle.read() == pytest.approx(4.0)
    machine.now = 3.0
    assert idle.read() == 0.0


@pytest.mark.parametrize("counter", ["cpu.stat", "cpuacct.usage"])
def test_idle_cpus_with_a_quota(tmp_path: Path, counter: str) -> None:
    """The machine is idle, but the cgroup may use three CPUs, and has used one."""
    machine = Machine(tmp_path, {"cpu.max": "300000 100000", counter: "usage_usec 5000000\n"})
    if counter != "cpu.stat":
        machine.files[counter] = "5000000000\n"
        machine.set(0)
    idle = machine.measure()
    machine.now = 2.0
    machine.files[counter] = "usage_usec 7000000\n" if counter == "cpu.stat" else "7000000000\n"
    machine.set(2 * HZ)
    assert idle.read() == pytest.approx(2.0)


def test_idle_cpus_that_are_not_known(tmp_path: Path) -> None:
    """No counter of a limited cgroup, or no /proc/stat: none is idle."""
    machine = Machine(tmp_path, {"cpu.max": "300000 100000"})
    idle = machine.measure()
    machine.now = 2.0
    machine.set(2 * HZ)
    assert idle.read() == 0.0
    machine = Machine(tmp_path, {})
    machine.statistics.unlink()
    idle = machine.measure()
    machine.now = 9.0
    assert idle.read() == 0.0
