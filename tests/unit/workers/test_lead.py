"""Who leads: each step of the watcher by hand, in every order that matters, and then the watcher itself.

The steps that race in a worker are called here one after the other, so each order of them is a test.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ostler.scoreboard import layout
from ostler.workers import lead as module
from ostler.workers.lead import Lead
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE

THREADS = 4
TURNS = 40


class Lane:
    """What the watcher reads of a lane: when the request in the app began."""

    def __init__(self, started: int = 0) -> None:
        self.words = [0] * 24
        self.words[layout.STARTED] = started


class Stage:
    """A lead whose calls of the engine are noted in `acts`, in their order.

    Attributes:
        at_mind: done while the watcher minds.
    """

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.at_mind: Callable[[], object] = lambda: None
        self.at_let_go: Callable[[], object] = lambda: None
        self.lead: Any = Lead(THREADS, self._let_go, self._mind, lambda: self.acts.append("wake"))
        self._threads: list[threading.Thread] = []

    def _let_go(self) -> None:
        self.acts.append("let go")
        self.at_let_go()

    def _mind(self) -> None:
        self.acts.append("mind")
        self.at_mind()

    @property
    def is_led(self) -> bool:
        return bool(self.lead._lock.locked())

    def in_a_thread(self, part: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=part)
        self._threads.append(thread)
        thread.start()
        return thread

    def another_wants_it(self) -> threading.Thread:
        """Starts a thread that takes the lead and keeps it; returns when it waits."""
        thread = self.in_a_thread(lambda: self.lead.take(hurry=False))
        until(lambda: self.lead.wanted or not thread.is_alive(), "the other thread waits")
        return thread

    def end(self) -> None:
        """Let everybody go who still waits."""
        for thread in self._threads:
            while thread.is_alive():
                if self.is_led:
                    self.lead.give()
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


def test_who_comes_back_first_still_leads(stage: Stage) -> None:
    """The watcher that looks afterwards finds no loan: it lets nothing go and the lead stays taken."""
    lane = Lane()
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    assert stage.lead.come_back(lane)
    stage.lead._pass_on()
    assert stage.acts == []
    assert stage.is_led


def test_a_loan_goes_to_who_waits(stage: Stage) -> None:
    """What the lender had in hand is let go before; the lender does not lead any more."""
    lane = Lane()
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    other = stage.another_wants_it()
    stage.at_let_go = lambda: stage.acts.append("taken" if not stage.lead.wanted else "not taken yet")
    stage.lead._pass_on()
    assert joined(other)
    assert stage.acts == ["let go", "not taken yet"]
    assert not stage.lead.come_back(lane)
    assert stage.is_led
    assert not stage.lead.wanted


def test_nobody_takes_back_another_ones_loan(stage: Stage) -> None:
    """The first lender comes back while the second is in the app: the second's loan is not its own.

    It would lead then, while the second serves a connection that nobody has let go.
    """
    first, second = Lane(), Lane()
    stage.lead.take(hurry=False)
    stage.lead.lend(first)
    other = stage.another_wants_it()
    stage.lead._pass_on()
    assert joined(other)
    stage.lead.lend(second)
    assert not stage.lead.come_back(first)
    assert stage.lead.come_back(second)
    assert stage.is_led


def test_nobody_comes_back_before_its_connection_is_its_own(stage: Stage) -> None:
    """While the watcher lets go of what the lender has in hand, the lender waits."""
    lane = Lane()
    letting_go, go_on = threading.Event(), threading.Event()
    result: list[bool] = []

    def hold() -> None:
        letting_go.set()
        assert go_on.wait(PATIENCE)

    stage.at_let_go = hold
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    watcher = stage.in_a_thread(stage.lead._pass_on)
    assert letting_go.wait(PATIENCE)
    lender = stage.in_a_thread(lambda: result.append(stage.lead.come_back(lane)))
    lender.join(0.05)
    assert lender.is_alive()
    assert result == []
    go_on.set()
    assert joined(lender)
    assert joined(watcher)
    assert result == [False]


def test_the_watcher_minds_while_nobody_waits(stage: Stage) -> None:
    """It says so while it does, keeps the lead until it is done, and gives it away then."""
    lane = Lane()
    seen: list[object] = []
    stage.at_mind = lambda: seen.append((stage.lead.minding, stage.is_led))
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    stage.lead._pass_on()
    assert stage.acts == ["let go", "mind"]
    assert seen == [(True, True)]
    assert not stage.lead.minding
    assert not stage.is_led
    assert not stage.lead.come_back(lane)
    stage.lead.take(hurry=False)  # waits for nobody
    assert stage.is_led


def test_who_is_in_a_hurry_takes_the_loan(stage: Stage) -> None:
    """A thread that is done need not wait for the watcher; what the lender has in hand is let go as well."""
    lane = Lane()
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    stage.lead.take(hurry=True)
    assert stage.acts == ["let go"]
    assert stage.is_led
    assert not stage.lead.wanted
    assert not stage.lead.come_back(lane)
    stage.lead._pass_on()
    assert stage.is_led


def test_who_is_in_a_hurry_waits_where_nothing_is_lent(stage: Stage) -> None:
    """Somebody leads and is not in the app."""
    stage.lead.take(hurry=False)
    other = stage.in_a_thread(lambda: stage.lead.take(hurry=True))
    until(lambda: stage.lead.wanted, "the other thread waits")
    assert other.is_alive()
    stage.lead.give()
    assert joined(other)
    assert stage.is_led


def test_the_lead_is_given_whatever_goes_wrong_while_minding(stage: Stage) -> None:
    """Nobody would lead any more."""

    def fail() -> None:
        raise ValueError("a defect")

    stage.at_mind = fail
    stage.lead.take(hurry=False)
    stage.lead.lend(Lane())
    with pytest.raises(ValueError, match="a defect"):
        stage.lead._pass_on()
    assert not stage.is_led
    assert not stage.lead.minding


def test_who_wants_the_lead_wakes_the_watcher_that_minds(stage: Stage) -> None:
    """It may be waiting at the epoll; and it sees that the lead is wanted."""
    lane = Lane()
    others: list[threading.Thread] = []

    def mind() -> None:
        others.append(stage.another_wants_it())
        until(lambda: "wake" in stage.acts, "the watcher is woken")
        assert stage.lead.wanted
        assert stage.is_led

    stage.at_mind = mind
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    stage.lead._pass_on()
    assert joined(others[0])
    assert stage.is_led
    assert not stage.lead.wanted


def test_nobody_is_woken_who_does_not_mind(stage: Stage) -> None:
    """Taking a lead that is free, or that somebody serves with, makes no system call."""
    stage.lead.take(hurry=False)
    other = stage.another_wants_it()
    stage.lead.give()
    assert joined(other)
    assert stage.acts == []


# -- looking around --------------------------------------------------------------------------------------


class Clock:
    """Stands in for `sleep`: at each tick the next of the acts is done; the last one goes on for ever."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts = list(acts)
        self.ticks = 0

    def __call__(self, seconds: float) -> None:
        assert 0 < seconds < 0.1
        self.ticks += 1
        if self.acts:
            self.acts.pop(0)()


def test_a_request_at_two_looks_is_a_long_one(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the second look in the same request the lead is taken, not at the first."""
    lane = Lane(started=7)
    acts_at_look: list[list[str]] = []
    monkeypatch.setattr(module, "sleep", Clock(*[lambda: acts_at_look.append(stage.acts[:])] * 3))
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    stage.lead._look_around()
    assert acts_at_look == [[], [], ["let go", "mind"]]
    assert not stage.lead.come_back(lane)


def test_quick_requests_keep_the_lead(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request at each look is none that takes long, however many there are."""
    lane = Lane()

    def next_request() -> None:
        lane.words[layout.STARTED] += 1

    def no_request() -> None:
        lane.words[layout.STARTED] = 0

    clock = Clock(*[next_request] * 100, no_request)
    monkeypatch.setattr(module, "sleep", clock)
    stage.lead.take(hurry=False)
    stage.lead.lend(lane)
    stage.lead._look_around()
    assert stage.acts == []
    assert clock.ticks > 100
    assert stage.lead.come_back(lane)


def test_the_watcher_looks_no_more_when_nothing_comes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a loan, and with one that is not in the app, it goes to sleep after some looks."""
    for lane in (None, Lane()):
        clock = Clock()
        monkeypatch.setattr(module, "sleep", clock)
        if lane is not None:
            stage.lead.take(hurry=False)
            stage.lead.lend(lane)
        stage.lead._look_around()
        assert 1 < clock.ticks < 1000
    assert stage.acts == []


# -- the watcher itself ----------------------------------------------------------------------------------


@pytest.fixture
def watched(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A stage whose watcher runs in a thread, and ends with the test."""

    class Over(BaseException):
        pass

    over = threading.Event()
    run = Lead._run

    def run_until_over(lead: Lead) -> None:
        try:
            run(lead)
        except Over:
            pass

    look_around = Lead._look_around

    def look_unless_over(lead: Lead) -> None:
        if over.is_set():
            raise Over
        look_around(lead)

    monkeypatch.setattr(Lead, "_run", run_until_over)
    monkeypatch.setattr(Lead, "_look_around", look_unless_over)
    stage.lead.watch()
    yield stage
    over.set()
    stage.lead._ring()
    stage.lead._watcher.join(PATIENCE)
    assert not stage.lead._watcher.is_alive()


def test_the_watcher_is_started_once(watched: Stage) -> None:
    """Asking again changes nothing; `watched` tells that there is one."""
    watcher = watched.lead._watcher
    watched.lead.watch()
    assert watched.lead._watcher is watcher
    assert watched.lead.watched


def test_the_watcher_wakes_up_for_a_loan(watched: Stage) -> None:
    """Again and again, also after it has gone to sleep: no loan is overlooked."""
    for number in range(1, 6):
        until(lambda: watched.lead._parked, "the watcher sleeps")
        lane = Lane(started=number)
        watched.lead.take(hurry=False)
        watched.lead.lend(lane)
        until(lambda: not watched.is_led, "the watcher has passed the lead on")
        assert not watched.lead.come_back(lane)
        assert watched.acts == ["let go", "mind"] * number


def test_the_lead_is_one(watched: Stage) -> None:
    """Threads that lead, lend, come back and take again: never two lead, and all get their turns."""
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
        lane = Lane()
        for turn in range(1, TURNS + 1):
            watched.lead.take(hurry=turn % 3 == 0)
            lead_alone(thread)
            watched.lead.lend(lane)
            lane.words[layout.STARTED] = turn
            if turn % 2:
                long.wait(0.004)  # as an app that takes longer than two looks of the watcher
            lane.words[layout.STARTED] = 0
            if watched.lead.come_back(lane):
                lead_alone(thread)
                watched.lead.give()
            turns[thread] += 1

    watched.at_mind = lambda: until(lambda: watched.lead.wanted or all(n == TURNS for n in turns), "a taker")
    threads = [watched.in_a_thread(lambda number=number: serve(number)) for number in range(THREADS)]
    for thread in threads:
        assert joined(thread)
    assert wrong == []
    assert turns == [TURNS] * THREADS
