"""Server-sent events, as the dashboard reads them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from ostler.control.server import ControlServer
from ostler.control.stream import Streams
from ostler.control.views import EventView, ExitView, SampleView, StatusView, WorkerView
from tests.unit.control.conftest import Rig
from tests.unit.control.fake import TOKEN, FakeBackend, an_exit, captured_log

TYPES: dict[str, Any] = {
    "history": list[SampleView],
    "events": list[EventView],
    "exits": list[ExitView],
    "exit": ExitView,
    "status": StatusView,
    "workers": list[WorkerView],
    "sample": SampleView,
    "event": EventView,
}


def sample(at: float) -> SampleView:
    return SampleView(at, 10.0, 0.0, 0.001, 0.002, 0.003, 1, 3, 3)


async def frames(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    """Name and decoded data of each event."""
    name = ""
    async for line in answer.content:
        key, _, value = line.decode().rstrip("\n").partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, msgspec.json.decode(value.encode(), type=TYPES[name])


async def take(stream: AsyncIterator[tuple[str, Any]], count: int) -> list[tuple[str, Any]]:
    return [await asyncio.wait_for(anext(stream), 10) for _ in range(count)]


async def until(stream: AsyncIterator[tuple[str, Any]], name: str) -> Any:
    async with asyncio.timeout(10):
        async for seen, data in stream:
            if seen == name:
                return data
    raise AssertionError(f"the stream ended without {name}")


async def test_the_complete_state_first_then_events(rig: Rig) -> None:
    """On connect history, events, exits, status, workers; then events and samples as they occur."""
    rig.backend.seconds = [sample(1.0), sample(2.0)]
    rig.backend.happen("worker_ready", slot=1)
    async with rig.tcp.get("/v1/stream", headers=rig.bearer) as answer:
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        stream = frames(answer)
        first = await take(stream, 5)
        assert [name for name, _ in first] == ["history", "events", "exits", "status", "workers"]
        assert [one.at for one in first[0][1]] == [1.0, 2.0]
        assert [one.name for one in first[1][1]] == ["worker_ready"]
        rig.backend.happen("worker_exited", slot=2)
        assert (await take(stream, 1))[0][1].fields == {"slot": 2}
        # The numbers follow the event at once, not at the next full second.
        assert [name for name, _ in await take(stream, 2)] == ["status", "workers"]
        rig.backend.seconds.append(sample(3.0))
        assert (await until(stream, "sample")).at == 3.0


async def test_an_event_in_the_first_state_is_not_sent_again(rig: Rig) -> None:
    """An event between subscribing and the snapshot is sent once."""
    late: list[str] = []

    def recent() -> list[EventView]:
        if not late:
            late.append("now")
            rig.backend.happen("between")
        return list(rig.backend.events)

    rig.backend.recent_events = recent  # type: ignore[method-assign]
    async with rig.tcp.get("/v1/stream", headers=rig.bearer) as answer:
        stream = frames(answer)
        assert [one.name for one in (await take(stream, 5))[1][1]] == ["between"]
        rig.backend.happen("after")
        assert (await until(stream, "event")).name == "after"


async def test_each_exit_is_sent_once(rig: Rig) -> None:
    """The newest exits come with the complete state; later ones when they happen, each once."""
    rig.backend.ends = [an_exit(2), an_exit(1)]
    async with rig.tcp.get("/v1/stream", headers=rig.bearer) as answer:
        stream = frames(answer)
        assert [one.id for one in await until(stream, "exits")] == [2, 1]
        await take(stream, 2)
        rig.backend.ends[:0] = [an_exit(4), an_exit(3, cause="crashed")]
        rig.backend.happen("worker_died", slot=2)
        assert [name for name, _ in await take(stream, 1)] == ["event"]
        later = await take(stream, 2)
        assert [(name, one.id) for name, one in later] == [("exit", 3), ("exit", 4)]
        assert [name for name, _ in await take(stream, 2)] == ["status", "workers"]


async def test_the_state_at_the_start_is_bounded(rig: Rig) -> None:
    """Of many events a new client gets the newest 200."""
    for _ in range(250):
        rig.backend.happen("worker_ready")
    async with rig.tcp.get("/v1/stream", headers=rig.bearer) as answer:
        assert [one.id for one in await until(frames(answer), "events")] == list(range(51, 251))


@pytest.mark.parametrize("readers", [3, 8])
async def test_all_streams_share_one_snapshot_per_tick(readers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status and workers are read once per tick for all streams, and not at all without streams."""
    backend, (log, _) = FakeBackend(), captured_log()
    made: list[float] = []
    status = backend.status

    def counted() -> StatusView:
        made.append(asyncio.get_running_loop().time())
        return status()

    monkeypatch.setattr(backend, "status", counted)
    tick = 0.2
    server = ControlServer(backend, log, streams=lambda b, lg: Streams(b, lg, tick=tick))
    url = await server.start_tcp("127.0.0.1", 0, TOKEN)
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {TOKEN}"}

    async def read(session: aiohttp.ClientSession, number: int) -> list[str]:
        """The names of the frames until the tenth status."""
        await asyncio.sleep(number * tick / readers)  # without common ticks each stream would have its own
        names: list[str] = []
        async with session.get("/v1/stream") as answer:
            async for name, _ in frames(answer):
                names.append(name)
                if names.count("status") == 10:
                    return names
        raise AssertionError("the stream ended")

    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as session:
        seen = await asyncio.wait_for(asyncio.gather(*(read(session, one) for one in range(readers))), 30)
        assert [names[:5] for names in seen] == [
            ["history", "events", "exits", "status", "workers"]
        ] * readers
        while backend.subscriptions:
            backend.left.clear()
            await asyncio.wait_for(backend.left.wait(), 10)
    # One at the start, one per tick, and one in the tick that was running at the end.
    assert len(made) <= (made[-1] - made[0]) / tick + 2
    count = len(made)
    backend.happen("an event that no stream is there for")
    await asyncio.sleep(3 * tick)
    assert len(made) == count
    await server.close()


async def test_streams_share_the_numbers_after_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event causes one new snapshot for all streams."""
    backend, (log, _) = FakeBackend(), captured_log()
    made: list[int] = []
    status = backend.status
    monkeypatch.setattr(backend, "status", lambda: made.append(1) or status())
    server = ControlServer(backend, log, streams=lambda b, lg: Streams(b, lg, tick=60.0))
    url = await server.start_tcp("127.0.0.1", 0, TOKEN)
    async with (
        aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {TOKEN}"}) as session,
        contextlib.AsyncExitStack() as stack,
    ):
        streams = [frames(await stack.enter_async_context(session.get("/v1/stream"))) for _ in range(5)]
        for stream in streams:
            await take(stream, 5)
        assert len(made) == 1
        backend.happen("worker_ready", slot=1)
        for stream in streams:
            assert [name for name, _ in await take(stream, 3)] == ["event", "status", "workers"]
        assert len(made) == 2
    await server.close()


async def test_the_number_of_streams_is_bounded() -> None:
    """One more than the limit is 503; when one ends another is accepted."""
    backend, (log, _) = FakeBackend(), captured_log()
    server = ControlServer(backend, log, streams=lambda b, lg: Streams(b, lg, limit=1, tick=0.01))
    url = await server.start_tcp("127.0.0.1", 0, TOKEN)
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {TOKEN}"}) as session:
        async with session.get("/v1/stream") as first:
            await take(frames(first), 1)
            async with session.get("/v1/stream") as second:
                assert second.status == 503
                assert (await second.json())["error"] == "too_many_streams"
        await asyncio.wait_for(backend.left.wait(), 10)
        async with session.get("/v1/stream") as third:
            assert third.status == 200
    await server.close()


async def test_a_slow_reader_is_dropped(tmp_path: Path) -> None:
    """A client that does not read is disconnected when the kernel's buffers are full.

    Its subscription is closed.
    """
    backend, (log, records) = FakeBackend(), captured_log()
    server = ControlServer(backend, log, streams=lambda b, lg: Streams(b, lg, tick=0.001, write_seconds=0.05))
    backend.name = "x" * 200_000  # each status has this size
    await server.start_unix(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(tmp_path / "a.sock"))
        reader.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(backend.left.wait(), 10)
    await server.close()
    assert [record["event"] for record in records] == ["control_stream_dropped"]


async def test_close_ends_the_streams(rig: Rig) -> None:
    """A server that closes does not wait for its clients: each sees the end of its stream."""
    async with rig.tcp.get("/v1/stream", headers=rig.bearer) as answer:
        stream = frames(answer)
        await take(stream, 5)
        await asyncio.wait_for(rig.server.close(), 10)
        assert [name async for name, _ in stream] == []
    assert rig.backend.subscriptions == []


async def test_logout_ends_the_sessions_streams(rig: Rig) -> None:
    """A stream ends with the session that opened it."""
    link = rig.server.login_link()
    assert link is not None
    async with rig.tcp.post("/v1/login", json={"code": link.partition("#login=")[2]}) as answer:
        headers = {"Authorization": f"Bearer {(await answer.json())['token']}"}
    async with rig.tcp.get("/v1/stream", headers=headers) as answer:
        stream = frames(answer)
        await take(stream, 5)
        await rig.tcp.post("/v1/logout", headers=headers)
        rig.backend.happen("anything")  # this wakes the stream up
        async with asyncio.timeout(10):
            assert "sample" not in [name async for name, _ in stream]


@pytest.mark.parametrize("path", ["/v1/stream"])
async def test_head_is_no_stream(rig: Rig, path: str) -> None:
    """HEAD would keep a connection open without any data."""
    async with rig.unix.head(path) as answer:
        assert answer.status == 405
