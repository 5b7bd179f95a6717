"""HAProxy's agent check: what is answered, and what clients can cost."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import closing

import pytest

from ostler.control import agent_check
from ostler.control.agent_check import MOST_OPEN, AgentCheck
from ostler.control.readiness import FleetReadiness
from ostler.control.server import ControlServer
from ostler.errors import SettingError
from ostler.logs.limiter import LimitedLog
from tests.kit.waiting import PATIENCE
from tests.unit.control.fake import FakeBackend, captured_log


def server(backend: FakeBackend) -> ControlServer:
    return ControlServer(backend, captured_log()[0])


async def ask(address: str, sent: bytes = b"") -> bytes:
    """All that is answered; `sent` is sent as HAProxy's `agent-send` does."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("state", "workers", "answer"),
    [
        ("ready", True, b"ready up\n"),
        ("degraded", True, b"ready up\n"),
        ("reloading", True, b"ready up\n"),
        ("draining", True, b"drain\n"),
        ("draining", False, b"drain\n"),
        ("stopping", True, b"drain\n"),
        ("starting", False, b"down #no worker is ready\n"),
        ("degraded", False, b"down #no worker is ready\n"),
        ("paused", False, b"down #no worker is ready\n"),
    ],
)
async def test_answers(state: str, workers: bool, answer: bytes) -> None:
    """One line by the state, for clients that send something, too; then the connection is closed."""
    backend = FakeBackend()
    control = server(backend)
    address = control.start_agent_check("127.0.0.1", 0)
    backend.state = state  # type: ignore[assignment]
    if not workers:
        backend.fleet.clear()
    assert await ask(address) == await ask(address, b"backend app\n") == answer
    await control.close()


async def test_after_close_the_port_is_free() -> None:
    """A taken port is an error that names the setting; closing twice does no harm."""
    first, second = server(FakeBackend()), server(FakeBackend())
    address = first.start_agent_check("127.0.0.1", 0)
    port = int(address.rpartition(":")[2])
    with pytest.raises(SettingError, match=rf"^agent_check: {address}: the port is in use"):
        second.start_agent_check("127.0.0.1", port)
    await first.close()
    await first.close()
    assert second.start_agent_check("127.0.0.1", port) == address
    await second.close()


async def test_no_such_address() -> None:
    """An address that is not this machine's (RFC 5737) is an error that names the setting."""
    with pytest.raises(SettingError, match=r"^agent_check: 192\.0\.2\.1:0: this machine has no such"):
        server(FakeBackend()).start_agent_check("192.0.2.1", 0)


async def test_the_next_program_has_the_listener() -> None:
    """An upgrade passes on the descriptor; who connected in between is answered."""
    first, second = server(FakeBackend()), server(FakeBackend())
    address = first.start_agent_check("127.0.0.1", 0)
    state = first.snapshot()
    assert state.agent_check is not None
    assert state.descriptors() == [state.agent_check]
    kept = os.dup(state.agent_check)
    await first.close()
    assert second.start_agent_check("127.0.0.1", 0, kept) == address
    assert await ask(address) == b"ready up\n"
    await second.close()


@pytest.fixture
async def listener() -> AsyncIterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        yield sock


def check(
    sock: socket.socket,
    close_seconds: float,
    readiness: Callable[[], FleetReadiness] = lambda: FleetReadiness.READY,
) -> AgentCheck:
    log = LimitedLog(captured_log()[0], lambda: 0.0)
    return AgentCheck(sock, readiness, log, close_seconds)


async def until_open(agent: AgentCheck, number: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while agent.open != number:  # noqa: ASYNC110 - it has no event for that
            await asyncio.sleep(0.001)


async def test_idle_clients_are_bounded(listener: socket.socket) -> None:
    """Of more clients than the limit, which close nothing, the oldest connections are closed; all have the
    answer.
    """
    agent = check(listener, close_seconds=600.0)
    clients = []
    for number in range(1, MOST_OPEN + 9):
        clients.append(socket.create_connection(listener.getsockname()))
        await until_open(agent, min(number, MOST_OPEN))
    loop = asyncio.get_running_loop()
    for client in clients:
        client.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            assert await loop.sock_recv(client, 100) == b"ready up\n"
            assert await loop.sock_recv(client, 100) == b""
    assert agent.open == MOST_OPEN
    for client in clients:
        client.close()
    await until_open(agent, 0)
    agent.close()


@pytest.mark.parametrize("sent", [b"", b"x" * 100_000])
async def test_every_connection_ends(listener: socket.socket, sent: bytes) -> None:
    """A client that leaves its connection open, or sends without end, loses it after its time."""
    answered = asyncio.Event()

    def readiness() -> FleetReadiness:
        answered.set()
        return FleetReadiness.READY

    agent = check(listener, 0.05, readiness)
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        if sent:
            client.send(sent)
        await asyncio.wait_for(answered.wait(), PATIENCE)
        await until_open(agent, 0)
    agent.close()


async def test_client_that_resets(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is reset, before its answer or after it, is closed."""
    monkeypatch.setattr(agent_check, "MOST_OPEN", 2)
    agent = check(listener, close_seconds=600.0)
    for _ in range(5):
        with socket.create_connection(listener.getsockname()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with socket.create_connection(listener.getsockname()) as client:
        await until_open(agent, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await until_open(agent, 0)
    agent.close()
