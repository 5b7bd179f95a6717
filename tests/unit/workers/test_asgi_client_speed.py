"""How an asgi worker measures its clients, at simulated times; and that it has one timer for making room."""

import socket
from asyncio.sslproto import _SSLProtocolTransport  # type: ignore[attr-defined]
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from ostler.settings.table import Settings
from ostler.workers.asgi import client_speed
from ostler.workers.asgi.acceptor import AsgiAcceptor
from ostler.workers.eviction import MOVING


class Loop:
    """A clock, and timers that run when `fire` is called."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        timer = SimpleNamespace(at=self.now + seconds, callback=callback)
        timer.cancel = lambda: self.timers.remove(timer)
        self.timers.append(timer)
        return timer

    def fire(self) -> None:
        """Call all existing timers."""
        timers, self.timers = self.timers, []
        for timer in timers:
            timer.callback()


class Protocol:
    """The measured part of uvicorn's protocol. `cycle`: the current request."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self.loop = loop
        self.timeout_keep_alive_task = None
        self.unsent = 0
        self.flow = SimpleNamespace(read_paused=False)
        self.transport = SimpleNamespace(
            get_write_buffer_size=lambda: self.unsent, get_extra_info=lambda _: sock
        )
        self.cycle: Any = None

    def data_received(self, data: bytes) -> None:
        if self.cycle is None:
            self.cycle = SimpleNamespace(
                body=data, more_body=True, response_complete=False, waiting_for_100_continue=False
            )


class Measured:
    """A protocol that receives bytes, and is examined, at simulated times."""

    def __init__(self, sock: socket.socket, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.loop = Loop()
        self.protocol = client_speed.measured(Protocol, self.settings)(self.loop, sock)

    def feed(self, size: int, at: float) -> None:
        self.loop.now = at
        self.protocol.data_received(b"x" * size)

    def late(self, at: float) -> bool:
        return client_speed.is_late(self.protocol, at, self.settings)


@pytest.fixture
def measured() -> Iterator[Callable[..., Measured]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield lambda **settings: Measured(ours, **settings)


def test_what_comes_with_the_head_counts(measured: Callable[..., Measured]) -> None:
    """A body of which much has arrived at once may pause for `body_timeout`."""
    client = measured(body_min_rate=500, body_timeout=30)
    client.feed(5000, at=100)
    assert not client.late(112)
    assert client.late(113.1)
    client = measured(body_min_rate=500, body_timeout=30)
    client.feed(50_000, at=100)
    assert not client.late(129.9)
    assert client.late(130.1)


@pytest.mark.parametrize("paused", [True, False])
def test_time_that_the_app_takes_is_not_the_clients(measured: Callable[..., Measured], paused: bool) -> None:
    """A body is not late before the app asks for it, or for more than is buffered;
    nor immediately afterwards.
    """
    client = measured(body_min_rate=500, body_timeout=30)
    client.feed(10, at=100)
    cycle, flow = client.protocol.cycle, client.protocol.flow
    cycle.waiting_for_100_continue, flow.read_paused = not paused, paused
    assert not client.late(100.5)
    assert not client.late(150)
    cycle.waiting_for_100_continue = flow.read_paused = False
    assert not client.late(150.1)
    assert client.late(153.1)


def test_answers_by_a_unix_socket_are_not_given_up_while_they_move(measured: Callable[..., Measured]) -> None:
    """It is unknown how much a local proxy has read, but the unsent rest becomes smaller."""
    client = measured()
    client.feed(10, at=100)
    for second in range(100, 300, 10):
        client.protocol.unsent = 100_000 - second
        assert not client.late(second)
        assert (client.protocol.stalled, client_speed.rank(client.protocol, second * 1.0, 500)) != (
            None,
            None,
        )
        assert client_speed.rank(client.protocol, second, 500) == (MOVING, 0.0)
    assert not client.late(345)
    assert client.late(351)


def test_a_sent_answer_does_not_count_as_slow(measured: Callable[..., Measured]) -> None:
    """Measurements of the last answer do not count against the request that is in the app now."""
    client = measured()
    client.feed(10, at=100)
    client.protocol.unsent = 10
    client.late(101)
    client.protocol.unsent = 0
    client.protocol.cycle.more_body = False
    assert client_speed.rank(client.protocol, 102, 500) is None


def test_what_is_unsent_under_tls() -> None:
    """Data that asyncio has encrypted waits in the transport below; after two closes there is none."""
    below = SimpleNamespace(get_write_buffer_size=lambda: 7)
    tls = SimpleNamespace(_transport=below, _get_write_buffer_size=lambda: 5)
    transport = _SSLProtocolTransport(None, tls)
    assert client_speed.unsent(transport) == 12
    transport._closed = True
    transport._ssl_protocol = None
    assert client_speed.unsent(transport) == 0


def test_one_look_at_a_time() -> None:
    """However often a worker becomes full and has room again, there is one timer, not one for each time."""
    loop: Any = Loop()
    unused: Any = None
    settings = Settings(worker_connections=1)
    acceptor = AsgiAcceptor(loop, [], None, None, settings, *[unused] * 5, set())
    acceptor._wanted, acceptor.count = True, 1
    for _ in range(10):
        acceptor._look_for_room_in(0.0)
        loop.fire()
    assert len(loop.timers) == 1
