"""The serving threads of an engine: made early, released when serving begins, awaited for a limited time."""

import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic_ns
from typing import Any

import pytest

from ostler.osapi import original
from ostler.workers import serving_threads
from ostler.workers.serving_threads import ServingThreads
from ostler.workers.units import SECOND
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE

Make = Callable[[int], ServingThreads]
Names = Callable[[], set[str]]


class Served:
    """What the threads do: each notes its number, and stays until it may leave."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.may_leave = threading.Event()

    def __call__(self, number: int) -> None:
        self.numbers.append(number)
        self.may_leave.wait(PATIENCE)


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
def make(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes threads; what they set for the whole process is undone."""
    monkeypatch.setattr(serving_threads, "set_timer_slack", lambda _: None)
    interval = sys.getswitchinterval()
    made: list[ServingThreads] = []

    def make(count: int) -> ServingThreads:
        threads = ServingThreads(served)
        threads.make(count)
        made.append(threads)
        return threads

    yield make
    served.may_leave.set()
    for threads in made:
        if threads._gate.locked():
            threads._gate.release()
        threads.join(monotonic_ns() + int(PATIENCE) * SECOND)
    sys.setswitchinterval(interval)


@pytest.fixture
def names() -> Names:
    """The names of the threads that the test has started; threads of other tests may still be there."""
    before = set(threading.enumerate())
    return lambda: {thread.name for thread in set(threading.enumerate()) - before}


def test_they_wait_to_be_released(make: Make, served: Served, names: Names) -> None:
    """They exist before, so that a lack of threads is found; the main thread has the name's number 1."""
    threads = make(3)
    assert names() == {"ostler-2", "ostler-3", "ostler-4"}
    assert served.numbers == []
    threads.release()
    until(lambda: sorted(served.numbers) == [1, 2, 3], "all of them serve")


def test_the_first_one_begins_before_the_caller_goes_on(make: Make) -> None:
    """So the main thread does not become the leader first."""
    threads = make(1)
    assert threads._entered.locked()
    threads.release()
    assert not threads._gate.locked()
    assert threads._entered.locked()  # acquired by `release`, after the thread had released it


def test_without_threads() -> None:
    """A worker with one thread makes none: nothing is waited for."""
    threads = ServingThreads(lambda _: None)
    threads.release()
    threads.join(0)


def test_join_is_limited(make: Make, served: Served, names: Names) -> None:
    """A request that does not end does not keep the worker; its thread is left behind."""
    threads = make(3)
    threads.release()
    began = monotonic_ns()
    threads.join(began + SECOND // 100)
    assert monotonic_ns() - began >= SECOND // 100
    assert len(names()) == 3
    served.may_leave.set()
    threads.join(monotonic_ns() + int(PATIENCE) * SECOND)
    assert names() == set()


def test_no_more_threads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the system is an error of `make`, before the worker is ready."""

    def refused(*_: Any) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(original, "thread", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        make(1)


@pytest.mark.parametrize(("chosen", "after"), [(0.005, 0.001), (0.02, 0.02)])
def test_the_switch_interval(make: Make, chosen: float, after: float) -> None:
    """Python's default is shortened; what the app has chosen stays."""
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(chosen)
        make(1)
        assert sys.getswitchinterval() == pytest.approx(after)
    finally:
        sys.setswitchinterval(before)
