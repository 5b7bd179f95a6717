"""Usable CPUs: affinity, reduced by the quotas of fake cgroup trees."""

import os
from pathlib import Path

import pytest

from ostler.osapi.cpus import usable_cpus


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
