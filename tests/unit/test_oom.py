"""The kernel's counters of OOM kills, from fake files of the kernel."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ostler.osapi.oom import OomWatch


@dataclass
class Machine:
    """Fake /sys/fs/cgroup and /proc."""

    folder: Path
    now: float = 100.0
    groups: list[str] = field(default_factory=list)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def watch(self) -> OomWatch:
        cgroup = self.write("cgroup", "".join(f"{line}\n" for line in self.groups))
        return OomWatch(cgroup, self.folder / "sys", self.folder / "vmstat", lambda: self.now)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def events(kills: int) -> str:
    return f"low 0\nhigh 0\nmax 41\noom 9\noom_kill {kills}\noom_group_kill 7\n"


def control(kills: int) -> str:
    return f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"


def vmstat(kills: int) -> str:
    return f"nr_free_pages 99\noom_kill {kills}\n"


@pytest.mark.parametrize(
    ("groups", "name", "text"),
    [
        (["0::/system.slice/shop.service"], "sys/system.slice/shop.service/memory.events", events),
        (["0::/"], "sys/memory.events", events),
        (["4:memory:/shop", "0::/"], "sys/memory/shop/memory.oom_control", control),
        (["0::/", "4:cpu,memory:/shop"], "sys/memory/shop/memory.oom_control", control),
        (["0::/docker/12af"], "sys/memory.events", events),
        (["4:memory:/docker/12af"], "sys/memory/memory.oom_control", control),
        (["0::/shop"], "vmstat", vmstat),
        ([], "vmstat", vmstat),
    ],
)
def test_where_the_counter_is(machine: Machine, groups: list[str], name: str, text: object) -> None:
    """cgroup v2, v1 (also in a container, whose path is the host's), and the machine's own."""
    assert callable(text)
    machine.groups = groups
    machine.write(name, text(5))
    watch = machine.watch()
    assert not watch.grew()
    machine.write(name, text(6))
    assert watch.grew()
    assert not watch.grew()


def test_the_own_group_goes_before_the_machine(machine: Machine) -> None:
    """Kills elsewhere on the machine do not count."""
    machine.groups = ["0::/shop"]
    machine.write("sys/shop/memory.events", events(0))
    machine.write("vmstat", vmstat(0))
    watch = machine.watch()
    machine.write("vmstat", vmstat(3))
    assert not watch.grew()


def test_two_kills_account_for_two_deaths(machine: Machine) -> None:
    """Only as many deaths count as there were kills."""
    machine.write("vmstat", vmstat(0))
    watch = machine.watch()
    machine.write("vmstat", vmstat(2))
    assert [watch.grew() for _ in range(3)] == [True, True, False]


def test_an_old_kill_accounts_for_no_death(machine: Machine) -> None:
    """A kill without a death of a child hit another process; later it accounts for no death."""
    machine.write("vmstat", vmstat(0))
    watch = machine.watch()
    machine.write("vmstat", vmstat(1))
    watch.look()
    machine.now += 60
    assert not watch.grew()


def test_nothing_to_read(machine: Machine) -> None:
    """Without a counter, or if it disappears, there is no kill and no error."""
    assert not machine.watch().grew()
    path = machine.write("vmstat", vmstat(4))
    watch = machine.watch()
    path.unlink()
    assert not watch.grew()


def test_this_machine() -> None:
    """This machine's kernel has one of the counters."""
    assert not OomWatch().grew()
