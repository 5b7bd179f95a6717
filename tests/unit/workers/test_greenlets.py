"""Greenlets that serve, and the lanes that show what they do; with real hubs, on real sockets."""

import gc
import mmap
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from ostler.osapi.process import INTERRUPT_SIGNAL
from ostler.scoreboard import layout
from ostler.scoreboard.reader import InFlight
from ostler.scoreboard.writer import CellWriter
from ostler.workers import greenlets
from ostler.workers.base import Context
from ostler.workers.gevent_hub import GeventHub, GeventWorker
from ostler.workers.greenlet_deadlines import Berths
from ostler.wsgi.environ import Environ
from tests.kit.daemon import until
from tests.unit.workers.rig import Rig

SECOND = 1_000_000_000


def engine(context: Context) -> GeventWorker:
    return GeventWorker(GeventHub(), context)


class Shop:
    """The app: its path says what to do.

    Attributes:
        open: what `/wait` waits for; greenlets: those that have served.
    """

    def __init__(self) -> None:
        self.open = False
        self.greenlets: list[Any] = []
        self.held: list[Any] = []

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        path = environ["PATH_INFO"]
        current = gevent.getcurrent()
        self.greenlets.append(id(current))
        if path == "/wait":
            while not self.open:
                gevent.sleep(0.002)
        elif path == "/hold":
            self.held.append(current)
        elif path == "/extend":
            environ["ostler.extend_deadline"](100)
        elif path == "/extend-elsewhere":
            with pytest.raises(RuntimeError):
                gevent.spawn(environ["ostler.extend_deadline"], 100).get()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def serve(tmp_path: Path, shop: Shop) -> Iterator[Callable[..., Rig]]:
    """Run the engine here, as it is in a worker, while `play` is a client in a thread."""
    before = signal.getsignal(INTERRUPT_SIGNAL)

    def run(play: Callable[[Rig], object], lanes: int = 8, **settings: Any) -> Rig:
        rig = Rig(tmp_path, shop, threads=lanes, make=engine, **settings)
        signal.signal(INTERRUPT_SIGNAL, rig.engine.interrupt)
        rig.run_here(lambda: play(rig))
        if rig.failure is not None:
            raise rig.failure
        return rig

    yield run
    signal.signal(INTERRUPT_SIGNAL, before)
    gc.collect()


def flights(rig: Rig) -> list[InFlight]:
    return rig.scoreboard.in_flight(rig.cell)


def test_one_greenlet_after_the_other_is_the_same(serve: Callable[..., Rig], shop: Shop) -> None:
    """Requests that do not wait for anything are served by one greenlet, on any connection."""

    def play(rig: Rig) -> None:
        for _ in range(3):
            client = rig.client()
            for _ in range(3):
                assert client.get("/").body == b"ok"

    serve(play)
    assert len(set(shop.greenlets)) == 1


def test_a_new_worker_accepts_before_the_first_tick(
    serve: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request to a worker does not wait for a timer: here that would never come."""
    monkeypatch.setattr(greenlets, "_TICK", 3600.0)
    serve(lambda rig: rig.client().get("/"))


def test_a_greenlet_that_is_held_is_not_used_again(serve: Callable[..., Rig], shop: Shop) -> None:
    """Who holds it could throw into it what was meant for the request that it has served."""

    def play(rig: Rig) -> None:
        client = rig.client()
        for _ in range(3):
            assert client.get("/hold").body == b"ok"

    serve(play)
    assert len({id(held) for held in shop.held}) == 3


def test_more_requests_than_lanes(serve: Callable[..., Rig], shop: Shop) -> None:
    """Those without a lane are served and counted; only the scoreboard does not show them."""

    def play(rig: Rig) -> None:
        clients = [rig.client() for _ in range(20)]
        for client in clients:
            client.ask("/wait")
        until(lambda: len(shop.greenlets) == 20, "all are in the app")
        assert len(flights(rig)) == 8
        shop.open = True
        assert {client.answer().body for client in clients} == {b"ok"}
        until(lambda: rig.scoreboard.counts(rig.cell).requests == 20, "all are counted")
        assert flights(rig) == []

    serve(play)


def test_an_overdue_request_is_ended_alone(serve: Callable[..., Rig], shop: Shop) -> None:
    """The one that is marked gets 504, its neighbour goes on."""

    def play(rig: Rig) -> None:
        late, other = rig.client(), rig.client()
        late.ask("/wait")
        until(lambda: flights(rig), "it is in the app")
        (found,) = flights(rig)
        other.ask("/wait")
        until(lambda: len(flights(rig)) == 2, "so is the other")
        rig.scoreboard.mark_overdue(rig.cell, found.thread, found.started_ns)
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT_SIGNAL)
        assert late.answer().status == "504 Gateway Timeout"
        until(lambda: len(flights(rig)) == 1, "the other one is left")
        shop.open = True
        assert other.answer().body == b"ok"

    serve(play)


def test_more_time_is_for_the_greenlet_that_asks(serve: Callable[..., Rig], shop: Shop) -> None:
    """`extend_deadline` knows its request by the greenlet; in one of the app's own it says that it can't."""

    def play(rig: Rig) -> None:
        client = rig.client()
        assert client.get("/extend").status == "200 OK"
        assert client.get("/extend-elsewhere").status == "200 OK"

    serve(play)


# -- lanes -----------------------------------------------------------------------------------------------


@pytest.fixture
def berths() -> Berths:
    return Berths(CellWriter(mmap.mmap(-1, layout.PAGE + 4 * layout.SLOT_SIZE), 2))


def begin(berths: Berths, path: bytes, started: int) -> Any:
    berth = berths.take()
    berth.show(SimpleNamespace(method="GET", target=path))
    berth.flight[layout.STARTED] = started
    return berth


def shown(berth: Any) -> tuple[int, bytes, int]:
    start = layout.METHOD_SIZE
    return (
        berth.number,
        bytes(berth.text[start : start + berth.flight[layout.PATH_LENGTH]]),
        berth.flight[layout.STARTED],
    )


def test_old_requests_are_shown(berths: Berths) -> None:
    """What nobody sees changes places with younger requests, the oldest first, and keeps what it has told."""
    young = begin(berths, b"/young", 90 * SECOND)
    old = begin(berths, b"/old", 1 * SECOND)
    unseen = begin(berths, b"/unseen", 50 * SECOND)
    unseen.flight[layout.EXTENDED_FOR] = 50 * SECOND
    unseen.flight[layout.EXTENDED_UNTIL] = 70 * SECOND
    newest = begin(berths, b"/newest", 99 * SECOND + SECOND // 2)
    assert (unseen.number, newest.number) == (0, 0)
    berths.show_the_oldest(100 * SECOND)
    assert shown(old) == (2, b"/old", 1 * SECOND)
    assert shown(unseen) == (1, b"/unseen", 50 * SECOND)
    assert shown(young) == (0, b"/young", 90 * SECOND)
    assert newest.number == 0
    assert unseen.flight[layout.EXTENDED_UNTIL] == 70 * SECOND
    assert unseen.flight[layout.IDENT] == id(unseen)


def test_a_free_lane_is_used_first(berths: Berths) -> None:
    """A lane that has become free shows the oldest of those that nobody sees; nobody else moves."""
    first, second = begin(berths, b"/1", SECOND), begin(berths, b"/2", 2 * SECOND)
    unseen = begin(berths, b"/3", 3 * SECOND)
    first.flight[layout.STARTED] = 0
    berths.give_back(first)
    berths.show_the_oldest(100 * SECOND)
    assert shown(unseen) == (1, b"/3", 3 * SECOND)
    assert shown(second) == (2, b"/2", 2 * SECOND)
    assert berths.take() is first
    assert first.number == 0


def test_lanes_that_were_never_needed(berths: Berths) -> None:
    """The supervisor looks at no more lanes than were ever in use at once."""
    header = berths._cell.header
    assert header[layout.SLOTS_IN_USE] == 1
    for _ in range(5):
        berths.give_back(berths.take())
    assert header[layout.SLOTS_IN_USE] == 2
