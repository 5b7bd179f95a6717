"""A control server on real sockets, with a fake daemon behind it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ostler.control.server import ControlServer
from tests.unit.control.fake import TOKEN, FakeBackend, captured_log


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """unix and tcp: HTTP clients of the two listeners; the TCP client sends no token by default."""

    backend: FakeBackend
    server: ControlServer
    records: list[dict[str, Any]]
    clock: Clock
    path: Path
    url: str
    unix: aiohttp.ClientSession
    tcp: aiohttp.ClientSession
    bearer: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {TOKEN}"})

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def changes(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == "control_change"]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    backend, clock = FakeBackend(), Clock()
    log, records = captured_log()
    static = tmp_path / "static"
    server = ControlServer(backend, log, clock=clock, static=static)
    path = tmp_path / "shop.sock"
    await server.start_unix(path)
    url = await server.start_tcp("127.0.0.1", 0, TOKEN)
    unix = aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(path)))
    tcp = aiohttp.ClientSession(url, cookie_jar=aiohttp.DummyCookieJar())
    async with unix, tcp:
        yield Rig(backend, server, records, clock, path, url, unix, tcp)
    await server.close()
