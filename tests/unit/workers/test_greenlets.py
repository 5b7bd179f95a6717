"""Serving greenlets, and the request slots that show them; with real hubs, on real sockets."""

import gc
import io
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from ostler.osapi.process import INTERRUPT_SIGNAL
from ostler.scoreboard.cell_reader import InFlight
from ostler.workers.base import Context
from ostler.workers.greenlets import engine as greenlets
from ostler.workers.greenlets.gevent_hub import GeventHub, GeventWorker
from ostler.wsgi.body import _Unlinked
from ostler.wsgi.environ import Environ
from tests.kit.daemon import until
from tests.unit.workers.rig import Rig


def engine(context: Context) -> GeventWorker:
    return GeventWorker(GeventHub(), context)


class Shop:
    """The app; the path selects what it does.

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
    """Run the engine in this thread, as in a worker, while `play` is a client in another thread."""
    before = signal.getsignal(INTERRUPT_SIGNAL)

    def run(play: Callable[[Rig], object], slots: int = 8, **settings: Any) -> Rig:
        rig = Rig(tmp_path, shop, threads=slots, make=engine, **settings)
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
    """One greenlet serves all requests that do not wait, on any connection."""

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
    """The first request to a worker does not wait for a timer, which never fires here."""
    monkeypatch.setattr(greenlets, "_TICK", 3600.0)
    serve(lambda rig: rig.client().get("/"))


def test_a_greenlet_that_is_held_is_not_used_again(serve: Callable[..., Rig], shop: Shop) -> None:
    """An object that refers to it could throw an exception into it that was meant for an earlier request."""

    def play(rig: Rig) -> None:
        client = rig.client()
        for _ in range(3):
            assert client.get("/hold").body == b"ok"

    serve(play)
    assert len({id(held) for held in shop.held}) == 3


def test_each_request_is_shown(serve: Callable[..., Rig], shop: Shop) -> None:
    """However many are in the app at once, each has its request slot with its greenlet's name."""

    def play(rig: Rig) -> None:
        clients = [rig.client() for _ in range(300)]
        for client in clients:
            client.ask("/wait")
        until(lambda: len(shop.greenlets) == 300, "all are in the app")
        until(lambda: len(flights(rig)) == 300, "all are shown")
        assert len({flight.ident for flight in flights(rig)}) == 300
        shop.open = True
        assert {client.answer().body for client in clients} == {b"ok"}
        until(lambda: rig.scoreboard.counts(rig.cell).requests == 300, "all are counted")
        assert flights(rig) == []

    serve(play, slots=400)


def test_a_body_whose_end_does_not_fit(serve: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the last bytes of a spooled body are written: 507, and not an internal error."""
    monkeypatch.setattr(
        "ostler.wsgi.body._unlinked", lambda _folder: _Unlinked(io.FileIO("/dev/full", "rb+"))
    )

    def play(rig: Rig) -> None:
        client = rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000)
        assert client.answer().status == "507 Insufficient Storage"

    rig = serve(play, buffer_request=0)
    assert "internal_error" not in rig.log()


def test_an_overdue_request_is_ended_alone(serve: Callable[..., Rig], shop: Shop) -> None:
    """The marked request gets 504, the other one continues."""

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
    """`extend_deadline` finds its request by the greenlet; in a greenlet of the app's own it raises."""

    def play(rig: Rig) -> None:
        client = rig.client()
        assert client.get("/extend").status == "200 OK"
        assert client.get("/extend-elsewhere").status == "200 OK"

    serve(play)
