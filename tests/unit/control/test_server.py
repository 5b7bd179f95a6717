"""The listeners' life, the dashboard's files, and what the rest of the daemon relies on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from supervisor.control.pages import CONTENT_SECURITY_POLICY
from supervisor.control.server import ControlServer
from supervisor.errors import SettingError
from tests.unit.control.conftest import Rig
from tests.unit.control.fake import TOKEN, FakeBackend, captured_log


def server() -> ControlServer:
    return ControlServer(FakeBackend(), captured_log()[0])


async def test_a_taken_port_is_told_and_the_unix_socket_serves_on(tmp_path: Path) -> None:
    """One listener's failure names its setting and leaves the other alone."""
    control = server()
    await control.start_unix(tmp_path / "a.sock")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=rf"^control_bind: 127.0.0.1:{port}: the port is in use"):
            await control.start_tcp("127.0.0.1", port, TOKEN)
    assert control.login_link() is None
    connector = aiohttp.UnixConnector(str(tmp_path / "a.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        async with session.post("/v1/login-link") as answer:
            assert answer.status == 409
            assert "--control-bind" in (await answer.json())["message"]
    await control.close()


@pytest.mark.parametrize(
    ("host", "port", "token"), [("0.0.0.0", 0, TOKEN), ("127.0.0.1", 0, ""), ("127.0.0.1", 70000, TOKEN)]
)
async def test_what_can_not_be_bound(host: str, port: int, token: str) -> None:
    """Not loopback, no token, no such port: refused by the setting's name."""
    with pytest.raises(SettingError, match=r"^control_bind: "):
        await server().start_tcp(host, port, token)


async def test_close_leaves_nothing(tmp_path: Path) -> None:
    """After close the socket and its lock are gone, the port is free, and a second close does nothing."""
    control = server()
    await control.start_unix(tmp_path / "a.sock")
    url = await control.start_tcp("localhost", 0, TOKEN)
    await control.close()
    await control.close()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - quick enough for a loop
    again = server()
    assert await again.start_tcp("127.0.0.1", int(url.rpartition(":")[2]), TOKEN) == url
    await again.close()


async def test_the_second_instance_is_refused_the_first_serves_on(tmp_path: Path) -> None:
    """Two daemons of one name: the later one gets an error and does not break the earlier one."""
    first, second = server(), server()
    await first.start_unix(tmp_path / "a.sock")
    with pytest.raises(SettingError, match="in use by another instance"):
        await second.start_unix(tmp_path / "a.sock")
    await second.close()
    connector = aiohttp.UnixConnector(str(tmp_path / "a.sock"))
    session = aiohttp.ClientSession("http://localhost", connector=connector)
    async with session, session.get("/healthz") as answer:
        assert answer.status == 200
    await first.close()


async def test_the_page_says_how_to_build_it(rig: Rig) -> None:
    """Without built files `/` is a plain page with the command; the API is as ever."""
    async with rig.tcp.get("/") as answer:
        assert answer.status == 200
        assert "npm ci &amp;&amp; npm run build" in await answer.text()


async def test_the_dashboards_files(rig: Rig, tmp_path: Path) -> None:
    """Built files are served without authentication, with their types and strict headers; nothing else is."""
    assets = tmp_path / "static" / "assets"
    assets.mkdir(parents=True)
    (tmp_path / "static" / "index.html").write_text("<!doctype html>built")
    (tmp_path / "secret.js").write_text("not for you")
    (assets / "index-a1b2.js").write_text("1")
    (assets / "index-a1b2.css").write_text("p{}")
    async with rig.tcp.get("/") as answer:
        assert await answer.text() == "<!doctype html>built"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    for name, media in (("index-a1b2.js", "text/javascript"), ("index-a1b2.css", "text/css")):
        async with rig.tcp.get(f"/assets/{name}") as answer:
            assert answer.content_type == media
            assert "immutable" in answer.headers["Cache-Control"]
    for path in (
        "/assets/none.js",
        "/assets/..%2f..%2fsecret.js",
        "/..%2fsecret.js",
        "/assets/%00.js",
        "/assets/",
    ):
        async with rig.tcp.get(path) as answer:
            assert answer.status == 404, path


async def test_the_unix_socket_has_no_page(rig: Rig) -> None:
    """The dashboard is for browsers, and they speak TCP."""
    async with rig.unix.get("/") as answer:
        assert answer.status == 404


def test_the_client_imports_nothing_heavy() -> None:
    """`ctl` must start fast: the client's side loads neither aiohttp nor asyncio, nor rich for JSON."""
    script = (
        "import sys; import supervisor.control.client, supervisor.cli.ctl;"
        "print(*{'aiohttp', 'asyncio', 'rich', 'structlog', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == ""
