"""The life cycle of the listeners, the dashboard's files, and what the rest of the daemon relies on."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from ostler.control.control_state import ControlState
from ostler.control.pages import CONTENT_SECURITY_POLICY
from ostler.control.server import ControlServer
from ostler.errors import SettingError
from tests.unit.control.conftest import Rig
from tests.unit.control.fake import TOKEN, FakeBackend, captured_log


def server() -> ControlServer:
    return ControlServer(FakeBackend(), captured_log()[0])


async def test_a_taken_port_is_reported_and_the_unix_socket_serves_on(tmp_path: Path) -> None:
    """The failure of one listener names its setting and does not affect the other listener."""
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
    """Not loopback, no token, no such port: refused with the setting's name."""
    with pytest.raises(SettingError, match=r"^control_bind: "):
        await server().start_tcp(host, port, token)


async def test_close_leaves_nothing(tmp_path: Path) -> None:
    """After close the socket and its lock are removed, the port is free, and a second close does nothing."""
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
    """Two daemons of one name: the later one gets an error and does not affect the earlier one."""
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


def at(path: Path) -> aiohttp.ClientSession:
    """A client of a Unix socket."""
    return aiohttp.ClientSession("http://localhost", connector=aiohttp.UnixConnector(str(path)))


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


async def is_served(path: Path) -> bool:
    async with at(path) as session, session.get("/healthz") as answer:
        return answer.status == 200


@pytest.mark.parametrize("what", ["socket", "lock", "token", "folder"])
async def test_what_is_deleted_under_us_comes_back(tmp_path: Path, what: str) -> None:
    """Deleted files are restored with the same permissions and owner, and connections stay."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o750)
    path, lock, token = (folder / name for name in ("a.sock", "a.sock.lock", "a.token"))
    log, records = captured_log()
    control = ControlServer(FakeBackend(), log)
    await control.start_unix(path)
    control.write_token(token, TOKEN)
    await control.ensure()
    assert records == []
    async with at(path) as session:
        async with session.get("/healthz") as answer:
            assert answer.status == 200
        if what in ("socket", "folder"):
            path.unlink()
        if what in ("lock", "folder"):
            lock.unlink()
        if what in ("token", "folder"):
            token.unlink()
        if what == "folder":
            folder.rmdir()
        await control.ensure()
        if what == "lock":
            path.unlink()  # its absence alone is not noticed; now both are
            await control.ensure()
        async with session.get("/healthz") as answer:
            assert answer.status == 200
    assert [record["event"] for record in records] == {
        "socket": ["control_socket_restored"],
        "lock": ["control_socket_restored"],
        "token": ["control_token_restored"],
        "folder": ["control_socket_restored", "control_token_restored"],
    }[what]
    assert await is_served(path)
    modes = [stat.S_IMODE(file.stat().st_mode) for file in (folder, path, lock, token)]
    assert modes == [0o750, 0o600, 0o600, 0o600]
    assert token.read_text() == f"{TOKEN}\n"
    second = server()
    with pytest.raises(SettingError, match="in use by another instance"):
        await second.start_unix(path)
    await control.ensure()
    assert await is_served(path)
    await control.close()
    assert os.listdir(folder) == []  # noqa: PTH208 - quick enough for a loop


async def test_a_daemon_that_took_the_path_is_left_alone(tmp_path: Path) -> None:
    """All files are deleted and another instance starts: that one keeps the path until its end.

    This is logged once.
    """
    path, token = tmp_path / "a.sock", tmp_path / "a.token"
    log, records = captured_log()
    first, second = ControlServer(FakeBackend(), log), server()
    await first.start_unix(path)
    first.write_token(token, TOKEN)
    empty(tmp_path)
    await second.start_unix(path)
    second.write_token(token, "another")
    inode = path.stat().st_ino
    for _ in range(3):
        await first.ensure()
    assert [record["event"] for record in records] == ["control_socket_lost"]
    assert "in use by another instance" in records[0]["problem"]
    assert (path.stat().st_ino, token.read_text()) == (inode, "another\n")
    await second.close()
    await first.ensure()
    assert await is_served(path)
    assert token.read_text() == f"{TOKEN}\n"
    await first.close()
    assert names(tmp_path) == set()


async def test_a_close_after_others_took_the_path(tmp_path: Path) -> None:
    """Our close removes nothing of the other instance: neither socket nor lock nor token."""
    path, token = tmp_path / "a.sock", tmp_path / "a.token"
    first, second = server(), server()
    await first.start_unix(path)
    first.write_token(token, TOKEN)
    empty(tmp_path)
    await second.start_unix(path)
    second.write_token(token, "another")
    await first.close()
    assert names(tmp_path) == {"a.sock", "a.sock.lock", "a.token"}
    assert await is_served(path)
    await second.close()


async def test_a_folder_that_can_not_be_made_again(tmp_path: Path) -> None:
    """If the folder is removed as well, there is one warning, however often it is checked."""
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    log, records = captured_log()
    control = ControlServer(FakeBackend(), log)
    await control.start_unix(folder / "a.sock")
    shutil.rmtree(tmp_path / "one")
    await control.ensure()
    await control.ensure()
    assert [record["event"] for record in records] == ["control_socket_lost"]
    folder.mkdir(parents=True)
    await control.ensure()
    assert await is_served(folder / "a.sock")
    await control.close()


async def test_handing_over(tmp_path: Path) -> None:
    """The next program has the same listeners, the same token and logins, and owns the path."""
    path = tmp_path / "a.sock"
    first = server()
    await first.start_unix(path)
    url = await first.start_tcp("127.0.0.1", 0, TOKEN)
    first.write_token(tmp_path / "a.token", TOKEN)
    link = first.login_link()
    assert link is not None
    session = await logged_in(first, url)
    before = msgspec.json.decode(msgspec.json.encode(first.snapshot()), type=ControlState)
    # An exec would close all descriptors except these.
    kept = {fd: os.dup(fd) for fd in before.descriptors()}
    assert before.unix is not None
    assert before.tcp is not None
    unix = msgspec.structs.replace(before.unix, fd=kept[before.unix.fd], lock_fd=kept[before.unix.lock_fd])
    tcp = msgspec.structs.replace(before.tcp, fd=kept[before.tcp.fd])
    second = server()
    await second.start_unix(Path(unix.path), unix)
    assert await second.start_tcp(tcp.host, tcp.port, tcp.token, tcp) == url
    second.write_token(Path(before.token_file or ""), tcp.token)
    code = {"code": link.partition("#login=")[2]}
    async with aiohttp.ClientSession(url) as client:
        async with client.post("/v1/login", json=code) as answer:
            assert answer.status == 200
        async with client.get("/v1/status", headers=session) as answer:
            assert answer.status == 200
    assert await is_served(path)
    with pytest.raises(SettingError, match="in use by another instance"):
        await server().start_unix(path)
    path.unlink()
    await second.ensure()
    assert await is_served(path)
    await second.close()
    assert names(tmp_path) == set()
    await first.close()


async def test_sessions_that_were_cookies_end_with_their_program() -> None:
    """Sessions of an older program were cookies, which every port of the host has received, so they end."""
    first, second = server(), server()
    url = await first.start_tcp("127.0.0.1", 0, TOKEN)
    session = await logged_in(first, url)
    tcp = first.snapshot().tcp
    assert tcp is not None
    older = msgspec.structs.replace(tcp, fd=os.dup(tcp.fd), sessions=tcp.page_sessions, page_sessions=[])
    await first.close()
    await second.start_tcp(tcp.host, tcp.port, TOKEN, older)
    async with aiohttp.ClientSession(url) as client, client.get("/v1/status", headers=session) as answer:
        assert answer.status == 401
    await second.close()


async def logged_in(control: ControlServer, url: str) -> dict[str, str]:
    """A session's header."""
    code = {"code": str(control.login_link()).partition("#login=")[2]}
    async with aiohttp.ClientSession(url) as client, client.post("/v1/login", json=code) as answer:
        return {"Authorization": f"Bearer {(await answer.json())['token']}"}


async def test_the_page_says_how_to_build_it(rig: Rig) -> None:
    """Without built files `/` is a plain page with the command; the API works as usual."""
    async with rig.tcp.get("/") as answer:
        assert answer.status == 200
        assert "npm ci &amp;&amp; npm run build" in await answer.text()


async def test_the_dashboards_files(rig: Rig, tmp_path: Path) -> None:
    """Only built files are served without authentication, with their types and strict headers."""
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
        f"/assets/{'a' * 300}.js",  # longer than a file name may be
        f"/{'a' * 300}.js",
        "/assets/",
    ):
        async with rig.tcp.get(path) as answer:
            assert answer.status == 404, path


async def test_the_unix_socket_has_no_page(rig: Rig) -> None:
    """The dashboard is for browsers, which use TCP."""
    async with rig.unix.get("/") as answer:
        assert answer.status == 404


def test_the_client_imports_nothing_heavy() -> None:
    """`ctl` must start fast: the client imports neither aiohttp nor asyncio, nor rich for JSON."""
    script = (
        "import sys; import ostler.control.client, ostler.cli.ctl;"
        "print(*{'aiohttp', 'asyncio', 'rich', 'structlog', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == ""
