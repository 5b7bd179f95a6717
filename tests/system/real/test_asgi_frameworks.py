"""Apps of ASGI frameworks as their clients see them: pages, bodies, streams, lifespan, websockets."""

import json
import socket
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.kit.daemon import Daemon
from tests.kit.waiting import PATIENCE, until
from tests.system.conftest import furnished
from tests.system.real.conftest import furnish

pytestmark = pytest.mark.system

FRAMEWORKS = ["starlette", "fastapi", "quart", "litestar", "django"]
SIZE = 300_000


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name, reason=f"{name} is not installed")
    return name


@pytest.fixture(scope="module")
def site(framework: str) -> Iterator[Daemon]:
    """One daemon for each framework. A place of its own: the files that apps leave say what was called."""
    with furnished() as place:
        yield furnish(place).start("-k", "asgi", "--graceful-timeout", "5", f"asgi_{framework}:app")


def test_pages(site: Daemon) -> None:
    """Of a function and a coroutine, any script in the path, and 404, on one connection."""
    connection = site.connect()
    assert connection.asked("/").answer().text == "hello world"
    assert connection.asked("/hello/J%C3%BCrgen").answer().text == "hello Jürgen"
    assert connection.asked("/none").answer().status == 404
    answer = connection.asked("/nothing").answer()
    assert (answer.status, answer.body) == (204, b"")
    assert connection.asked("/", "HEAD").answer().body == b""
    assert connection.asked("/").answer().text == "hello world"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    "upgrade", [{}, {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}], ids=["", "h2c"]
)
def test_bodies(site: Daemon, chunked: bool, upgrade: dict[str, str]) -> None:
    """All of it arrives, also if the client would rather speak HTTP/2."""
    connection = site.connect()
    for _ in range(2):
        body = iter([b"x" * 1000, b"x" * (SIZE - 1000)]) if chunked else b"x" * SIZE
        options = {"body": body, "encode_chunked": chunked, "headers": upgrade}
        answer = connection.asked("/size", "POST", **options).answer()
        assert json.loads(answer.body) == {"size": SIZE}


def test_stream(site: Daemon) -> None:
    """A part reaches the client before the app makes the next; its half-closed side does not matter."""
    gate = site.place.app_folder / "stream.open"
    with socket.create_connection(site.address, timeout=PATIENCE) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        received = b""
        while b"first " not in received:
            received += client.recv(4096)
        assert b"last" not in received
        gate.touch()
        while data := client.recv(4096):
            received += data
    assert received.endswith(b"\r\nlast\r\n0\r\n\r\n")
    gate.unlink()


def test_websocket(site: Daemon, framework: str) -> None:
    """It echoes, and the app is notified when the client leaves; Django refuses it, and serves on."""
    url = f"ws://127.0.0.1:{site.port}/socket"
    if framework == "django":
        with pytest.raises(InvalidStatus), connect(url, open_timeout=PATIENCE):
            pass
        assert site.get().text == "hello world"
        return
    with connect(url, open_timeout=PATIENCE, close_timeout=PATIENCE) as client:
        for text in ("hello", "Grüße, 世界", "x" * 70_000):
            client.send(text)
            assert client.recv(timeout=PATIENCE) == f"echo {text}"
    (pid,) = site.pids()
    until((site.place.app_folder / f"closed-{pid}").exists, "the app was notified")


def test_lifespan(site: Daemon, framework: str) -> None:
    """What the startup has made is there; a reload runs the shutdown. Django knows neither."""
    (pid,) = site.pids()
    assert site.ctl("reload").code == 0
    assert site.get().text == "hello world"
    (worker,) = site.settled(1)
    assert worker.pid != pid
    if framework != "django":
        assert site.get("/state").text == "started"
        until((site.place.app_folder / f"stopped-{pid}").exists, "the shutdown has run")
    assert [event["path"] for event in site.events("request_failed") if event["path"] != "/socket"] == []
