"""Work that is done once a second: a chore that fails stops no other one, and is tried again."""

import asyncio
from types import SimpleNamespace
from typing import Any

from ostler.daemon.attempts import Attempts
from ostler.daemon.chores import Chores


class Rig:
    """Chores with a clock, and what was logged."""

    def __init__(self) -> None:
        self.now = 100.0
        self.logged: list[dict[str, Any]] = []
        journal: Any = SimpleNamespace(record=lambda _level, _name, fields: self.logged.append(fields))
        self.chores = Chores(Attempts(journal, lambda: self.now), lambda: self.now)
        self.done: list[str] = []
        self.broken = True

    def fail(self) -> None:
        self.done.append("broken")
        if self.broken:
            raise ValueError("process stopped by delivery of signal 10")

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.chores.do_all()


def test_one_that_fails_ends_nothing() -> None:
    """It is logged; those before and after it run each second, and it runs again when it works."""
    rig = Rig()
    rig.chores.add("before", lambda: rig.done.append("before"))
    rig.chores.add("broken", rig.fail)
    rig.chores.add("after", lambda: rig.done.append("after"))
    rig.pass_seconds(100)
    assert rig.done.count("before") == rig.done.count("after") == 100
    # At seconds 1, 2, 4, 8, 16, 32, 64: twice as long after each failure.
    assert rig.done.count("broken") == 7
    assert [fields["problem"] for fields in rig.logged] == ["failed: broken"] * 7
    assert "delivery of signal 10" in rig.logged[0]["traceback"]
    rig.broken = False
    rig.pass_seconds(70)
    assert rig.done.count("broken") > 7 + 5
    assert len(rig.logged) == 7


async def test_one_that_waits_delays_no_other() -> None:
    """It is not started again before it has ended; if it fails, that is logged."""
    rig = Rig()
    released = asyncio.Event()
    started: list[int] = []

    async def wait() -> None:
        started.append(rig.chores.rounds)
        await released.wait()
        raise OSError("no more descriptors")

    rig.chores.add("waiting", wait)
    rig.chores.add("other", lambda: rig.done.append("other"))
    rig.pass_seconds(5)
    await asyncio.sleep(0)
    rig.pass_seconds(5)
    assert rig.done == ["other"] * 10
    assert started == [5]
    assert rig.logged == []
    released.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert [fields["problem"] for fields in rig.logged] == ["failed: waiting"]
    rig.pass_seconds(2)
    await asyncio.sleep(0)
    assert len(started) == 2


def test_an_error_of_each_event_does_not_flood_the_log() -> None:
    """The number of lines is bounded, and the next line has the number of those left out."""
    rig = Rig()
    attempt = rig.chores._attempt
    for _ in range(1000):
        attempt("something", rig.fail)
    assert len(rig.logged) == 100
    rig.now += 1.0
    attempt("something", rig.fail)
    assert rig.logged[-1]["left_out"] == 900
