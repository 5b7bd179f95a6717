"""Turns: whose turn it is, and how much is done in one pass of the loop."""

import asyncio
from collections.abc import Callable

import pytest

from ostler.control.turns import SECONDS_PER_PASS, TURNS_PER_PASS, Turns


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Member:
    """A connection with some turns' work."""

    def __init__(self, name: str, taken: list[str], work: int = 1, trusted: bool = False) -> None:
        self.name = name
        self.taken = taken
        self.work = work
        self.trusted = trusted
        self.waits = False
        self.delays: list[float] = []
        self.on_turn: Callable[[], None] = lambda: None

    @property
    def wants_turn(self) -> bool:
        return self.work > 0

    def delay(self) -> float:
        return self.delays.pop() if self.delays else 0.0

    def take_turn(self) -> None:
        self.work -= 1
        self.taken.append(self.name)
        self.on_turn()


@pytest.fixture
def taken() -> list[str]:
    """The names of those that had a turn, in order."""
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def turns(clock: Clock) -> Turns:
    return Turns(asyncio.get_running_loop(), clock)


async def one_pass() -> None:
    await asyncio.sleep(0)


async def test_nothing_is_done_before_the_next_pass(turns: Turns, taken: list[str]) -> None:
    """What adds a connection goes on first."""
    turns.add(Member("a", taken))
    assert taken == []
    await one_pass()
    assert taken == ["a"]


async def test_few_turns_per_pass(turns: Turns, taken: list[str]) -> None:
    """Other tasks of the loop run in between."""
    for number in range(TURNS_PER_PASS * 2 + 1):
        turns.add(Member(str(number), taken))
    counts = []
    for _ in range(3):
        await one_pass()
        counts.append(len(taken))
    assert counts == [TURNS_PER_PASS, TURNS_PER_PASS * 2, TURNS_PER_PASS * 2 + 1]


async def test_a_pass_takes_little_time(turns: Turns, taken: list[str], clock: Clock) -> None:
    """After an expensive turn the others wait for the next pass."""

    def expensive() -> None:
        clock.now += SECONDS_PER_PASS * 1.5

    for name in "abc":
        member = Member(name, taken)
        member.on_turn = expensive
        turns.add(member)
    for expected in (["a"], ["a", "b"], ["a", "b", "c"]):
        await one_pass()
        assert taken == expected


async def test_work_that_is_left_goes_to_the_end(turns: Turns, taken: list[str]) -> None:
    """No connection keeps the others waiting by having much work."""
    for name in "ab":
        turns.add(Member(name, taken, work=2))
    for expected in (["a", "b"], ["a", "b", "a", "b"]):
        await one_pass()
        assert taken == expected


async def test_trusted_ones_come_first(turns: Turns, taken: list[str]) -> None:
    """However many others came before."""
    for name in "abcd":
        turns.add(Member(name, taken))
    turns.add(Member("own", taken, trusted=True))
    await one_pass()
    assert taken == ["own", "a", "b", "c"]


async def test_added_twice(turns: Turns, taken: list[str]) -> None:
    """It stands in the queue once."""
    member = Member("a", taken, work=3)
    turns.add(member)
    turns.add(member)
    turns.add(Member("b", taken))
    for expected in (["a", "b"], ["a", "b", "a"], ["a", "b", "a", "a"]):
        await one_pass()
        assert taken == expected


async def test_without_work(turns: Turns, taken: list[str]) -> None:
    """It is not queued, and gets no turn if its work is gone by then: its client has left."""
    turns.add(Member("idle", taken, work=0))
    left = Member("left", taken)
    turns.add(left)
    left.work = 0
    await one_pass()
    assert taken == []
    left.work = 1
    turns.add(left)
    await one_pass()
    assert taken == ["left"]


async def test_beyond_its_allowance(turns: Turns, taken: list[str]) -> None:
    """It gets its turn later, once, and the others need not wait for it."""
    member = Member("late", taken)
    member.delays = [0.01]
    turns.add(member)
    turns.add(Member("a", taken))
    await one_pass()
    assert taken == ["a"]
    turns.add(member)
    async with asyncio.timeout(10):
        while "late" not in taken:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.001)
    await one_pass()
    assert taken == ["a", "late"]
