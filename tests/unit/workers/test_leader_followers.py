"""Leader/followers: each step is called directly, in every relevant order; then the watcher itself.

Steps that race in a worker are called here one after the other, with a test for each order.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ostler.workers import watcher as module
from ostler.workers.leader_followers import LeaderFollowers
from ostler.workers.watcher import Watcher
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE

THREADS = 4
TURNS = 40


class Slot:
    """What the watcher reads of a request slot: when the request in the app began."""

    def __init__(self, started: int = 0) -> None:
        self.started = started


class Stage:
    """LeaderFollowers whose calls of the engine are recorded in `acts`, in their order.

    Attributes:
        at_poll: done while the watcher polls.
    """

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.at_poll: Callable[[], object] = lambda: None
        self.at_detach: Callable[[], object] = lambda: None
        self.leader: Any = LeaderFollowers(
            THREADS, self._detach, self._poll_only, lambda: self.acts.append("wake")
        )
        self._threads: list[threading.Thread] = []

    def _detach(self) -> None:
        self.acts.append("detach")
        self.at_detach()

    def _poll_only(self) -> None:
        self.acts.append("poll")
        self.at_poll()

    @property
    def is_led(self) -> bool:
        return bool(self.leader._leadership.locked())

    def in_a_thread(self, part: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=part)
        self._threads.append(thread)
        thread.start()
        return thread

    def another_wants_it(self) -> threading.Thread:
        """Start a thread that acquires the leadership and keeps it; returns when it waits."""
        thread = self.in_a_thread(lambda: self.leader.acquire(accept_offer=False))
        until(lambda: self.leader.is_wanted or not thread.is_alive(), "the other thread waits")
        return thread

    def end(self) -> None:
        """Let all waiting threads continue."""
        for thread in self._threads:
            while thread.is_alive():
                if self.is_led:
                    self.leader.release()
                thread.join(0.01)


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.end()


def joined(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


# -- the steps -------------------------------------------------------------------------------------------


def test_a_leader_that_withdraws_first_still_leads(stage: Stage) -> None:
    """The watcher that looks afterwards finds no offer:
    it detaches nothing, and the leader keeps the leadership.
    """
    slot = Slot()
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    assert stage.leader.withdraw(slot)
    stage.leader._promote()
    assert stage.acts == []
    assert stage.is_led


def test_an_offer_goes_to_the_thread_that_waits(stage: Stage) -> None:
    """The connection that the old leader serves is detached first; it is not the leader any more."""
    slot = Slot()
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    other = stage.another_wants_it()
    stage.at_detach = lambda: stage.acts.append(
        "acquired" if not stage.leader.is_wanted else "not acquired yet"
    )
    stage.leader._promote()
    assert joined(other)
    assert stage.acts == ["detach", "not acquired yet"]
    assert not stage.leader.withdraw(slot)
    assert stage.is_led
    assert not stage.leader.is_wanted


def test_no_thread_withdraws_the_offer_of_another(stage: Stage) -> None:
    """The first leader returns from the app while the second is in it: the second's offer is not withdrawn.

    Otherwise it would lead, while the second serves a connection that was not detached.
    """
    first, second = Slot(), Slot()
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(first)
    other = stage.another_wants_it()
    stage.leader._promote()
    assert joined(other)
    stage.leader.offer(second)
    assert not stage.leader.withdraw(first)
    assert stage.leader.withdraw(second)
    assert stage.is_led


def test_no_thread_goes_on_before_its_connection_is_its_own(stage: Stage) -> None:
    """While the watcher detaches the old leader's connection, the old leader waits."""
    slot = Slot()
    detaching, go_on = threading.Event(), threading.Event()
    result: list[bool] = []

    def hold() -> None:
        detaching.set()
        assert go_on.wait(PATIENCE)

    stage.at_detach = hold
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    watcher = stage.in_a_thread(stage.leader._promote)
    assert detaching.wait(PATIENCE)
    leader = stage.in_a_thread(lambda: result.append(stage.leader.withdraw(slot)))
    leader.join(0.05)
    assert leader.is_alive()
    assert result == []
    go_on.set()
    assert joined(leader)
    assert joined(watcher)
    assert result == [False]


def test_the_watcher_polls_while_no_thread_waits(stage: Stage) -> None:
    """`watcher_polls` is set meanwhile; it holds the leadership until it is done, and then releases it."""
    slot = Slot()
    seen: list[object] = []
    stage.at_poll = lambda: seen.append((stage.leader.watcher_polls, stage.is_led))
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    stage.leader._promote()
    assert stage.acts == ["detach", "poll"]
    assert seen == [(True, True)]
    assert not stage.leader.watcher_polls
    assert not stage.is_led
    assert not stage.leader.withdraw(slot)
    stage.leader.acquire(accept_offer=False)  # does not wait
    assert stage.is_led


def test_a_thread_accepts_the_offer_itself(stage: Stage) -> None:
    """A thread that is done need not wait for the watcher; the old leader's connection is detached too."""
    slot = Slot()
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    stage.leader.acquire(accept_offer=True)
    assert stage.acts == ["detach"]
    assert stage.is_led
    assert not stage.leader.is_wanted
    assert not stage.leader.withdraw(slot)
    stage.leader._promote()
    assert stage.is_led


def test_a_thread_waits_while_nothing_is_offered(stage: Stage) -> None:
    """The leader is not in the app, so it has made no offer."""
    stage.leader.acquire(accept_offer=False)
    other = stage.in_a_thread(lambda: stage.leader.acquire(accept_offer=True))
    until(lambda: stage.leader.is_wanted, "the other thread waits")
    assert other.is_alive()
    stage.leader.release()
    assert joined(other)
    assert stage.is_led


def test_the_leadership_is_released_whatever_goes_wrong_while_polling(stage: Stage) -> None:
    """Otherwise no thread could lead any more."""

    def fail() -> None:
        raise ValueError("a defect")

    stage.at_poll = fail
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(Slot())
    with pytest.raises(ValueError, match="a defect"):
        stage.leader._promote()
    assert not stage.is_led
    assert not stage.leader.watcher_polls


def test_a_thread_that_waits_wakes_the_watcher_that_polls(stage: Stage) -> None:
    """The watcher may wait in epoll_wait(2); afterwards it sees that the leadership is wanted."""
    slot = Slot()
    others: list[threading.Thread] = []

    def poll() -> None:
        others.append(stage.another_wants_it())
        until(lambda: "wake" in stage.acts, "the watcher is woken")
        assert stage.leader.is_wanted
        assert stage.is_led

    stage.at_poll = poll
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    stage.leader._promote()
    assert joined(others[0])
    assert stage.is_led
    assert not stage.leader.is_wanted


def test_no_wake_up_unless_the_watcher_polls(stage: Stage) -> None:
    """Acquiring the leadership from a thread, or when it is free, makes no system call."""
    stage.leader.acquire(accept_offer=False)
    other = stage.another_wants_it()
    stage.leader.release()
    assert joined(other)
    assert stage.acts == []


# -- looking around --------------------------------------------------------------------------------------


class Clock:
    """Replaces `sleep`: each tick runs the next act; the last one is repeated."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts = list(acts)
        self.ticks = 0

    def __call__(self, seconds: float) -> None:
        assert 0 < seconds < 0.1
        self.ticks += 1
        if self.acts:
            self.acts.pop(0)()


def test_a_request_at_two_looks_is_a_long_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is promoted when the watcher finds the same request for the second time."""
    slot = Slot(started=7)
    acts_at_look: list[list[str]] = []
    monkeypatch.setattr(module, "sleep", Clock(*[lambda: acts_at_look.append(stage.acts[:])] * 3))
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    stage.leader._watcher._look()
    assert acts_at_look == [[], [], ["detach", "poll"]]
    assert not stage.leader.withdraw(slot)


def test_quick_requests_keep_the_leadership(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different requests at each look do not count as long, however many there are."""
    slot = Slot()

    def next_request() -> None:
        slot.started += 1

    def no_request() -> None:
        slot.started = 0

    clock = Clock(*[next_request] * 100, no_request)
    monkeypatch.setattr(module, "sleep", clock)
    stage.leader.acquire(accept_offer=False)
    stage.leader.offer(slot)
    stage.leader._watcher._look()
    assert stage.acts == []
    assert clock.ticks > 100
    assert stage.leader.withdraw(slot)


def test_the_watcher_looks_no_more_when_nothing_comes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an offer, or with one whose request has ended, it goes to sleep after some looks."""
    for slot in (None, Slot()):
        clock = Clock()
        monkeypatch.setattr(module, "sleep", clock)
        if slot is not None:
            stage.leader.acquire(accept_offer=False)
            stage.leader.offer(slot)
        stage.leader._watcher._look()
        assert 1 < clock.ticks < 1000
    assert stage.acts == []


# -- the watcher itself ----------------------------------------------------------------------------------


@pytest.fixture
def watched(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A stage whose watcher runs in a thread, which ends with the test."""

    class Over(BaseException):
        pass

    over = threading.Event()
    run = Watcher._run

    def run_until_over(watcher: Watcher) -> None:
        try:
            run(watcher)
        except Over:
            pass

    look = Watcher._look

    def look_unless_over(watcher: Watcher) -> None:
        if over.is_set():
            raise Over
        look(watcher)

    monkeypatch.setattr(Watcher, "_run", run_until_over)
    monkeypatch.setattr(Watcher, "_look", look_unless_over)
    stage.leader.start_watcher()
    yield stage
    over.set()
    stage.leader._watcher.wake()
    stage.leader._watcher.thread.join(PATIENCE)
    assert not stage.leader._watcher.thread.is_alive()


def test_the_watcher_is_started_once(watched: Stage) -> None:
    """Asking again changes nothing; `has_watcher` says that there is one."""
    thread = watched.leader._watcher.thread
    watched.leader.start_watcher()
    assert watched.leader._watcher.thread is thread
    assert watched.leader.has_watcher


def test_the_watcher_wakes_up_for_an_offer(watched: Stage) -> None:
    """Repeatedly, also after it has gone to sleep: it misses no offer."""
    for number in range(1, 6):
        until(lambda: watched.leader._watcher.sleeps, "the watcher sleeps")
        slot = Slot(started=number)
        watched.leader.acquire(accept_offer=False)
        watched.leader.offer(slot)
        until(lambda: not watched.is_led, "the watcher has released the leadership")
        assert not watched.leader.withdraw(slot)
        assert watched.acts == ["detach", "poll"] * number


def test_there_is_one_leader(watched: Stage) -> None:
    """Threads acquire, offer, withdraw and acquire again: never two lead at once, and all have turns."""
    leading: list[int] = []
    wrong: list[list[int]] = []
    turns = [0] * THREADS
    long = threading.Event()

    def lead_alone(thread: int) -> None:
        leading.append(thread)
        if leading != [thread]:
            wrong.append(leading[:])
        leading.remove(thread)

    def serve(thread: int) -> None:
        slot = Slot()
        for turn in range(1, TURNS + 1):
            watched.leader.acquire(accept_offer=turn % 3 == 0)
            lead_alone(thread)
            watched.leader.offer(slot)
            slot.started = turn
            if turn % 2:
                long.wait(0.004)  # like an app that takes longer than two looks of the watcher
            slot.started = 0
            if watched.leader.withdraw(slot):
                lead_alone(thread)
                watched.leader.release()
            turns[thread] += 1

    watched.at_poll = lambda: until(
        lambda: watched.leader.is_wanted or all(n == TURNS for n in turns), "a thread that wants it"
    )
    threads = [watched.in_a_thread(lambda number=number: serve(number)) for number in range(THREADS)]
    for thread in threads:
        assert joined(thread)
    assert wrong == []
    assert turns == [TURNS] * THREADS
