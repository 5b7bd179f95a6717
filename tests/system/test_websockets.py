"""Websockets under WSGI, with the real libraries on both sides.

An app gets its connection as `gunicorn.socket`. Servers: flask-sock and Flask-SocketIO (on simple-websocket),
simple-websocket alone, gevent-websocket, eventlet's own. Clients: websocket-client, websockets,
python-socketio, and plain sockets for what no library sends.
"""

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests
import socketio
import websocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from ostler.control.routes import METRICS
from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE

pytestmark = pytest.mark.system

KINDS = ("sync", "gthread", "gevent", "eventlet")
EACH = pytest.mark.parametrize("kind", ["gthread", *thorough("gevent", "sync", "eventlet")])

# flask-sock; `SOCK_SERVER_OPTIONS` as its documentation recommends them.
FLASK_SOCK = """\
import os

from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25} if os.environ.get("PINGS") else {}
sock = Sock(app)

@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())

@sock.route("/once")
def once(ws):
    ws.send(ws.receive())

@sock.route("/bug")
def bug(ws):
    ws.receive()
    raise KeyError("a bug of the app")

@app.get("/")
def plain():
    return "plain"
"""


def arguments(kind: str) -> list[str]:
    return ["-k", kind, *(("--threads", "8") if kind == "gthread" else ())]


def url(daemon: Daemon, path: str) -> str:
    return f"{daemon.url.replace('http', 'ws', 1)}{path}"


@contextmanager
def opened(daemon: Daemon, path: str = "/echo", **options: Any) -> Iterator[websocket.WebSocket]:
    ws = websocket.create_connection(url(daemon, path), PATIENCE, **options)
    try:
        yield ws
    finally:
        ws.close(timeout=PATIENCE)
        ws.shutdown()  # `close` does nothing more if a close frame was sent


def echoes(ws: websocket.WebSocket, text: str = "hello") -> bool:
    ws.send(text)
    return bool(ws.recv() == text)


@EACH
def test_flask_sock(place: Place, kind: str) -> None:
    """Messages of all sizes come back; the connection is shown as what it is, and counted at its end."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "-w", "2", "ws:app", "--access-logfile", "-")
    with opened(daemon) as ws:
        for text in ("hello", "x" * 5000, "y" * 300_000, "äöü"):
            assert echoes(ws, text)
        ws.send_binary(b"\0\1\2" * 50_000)
        assert ws.recv() == b"\0\1\2" * 50_000
        request = daemon.in_app("/echo")
        assert request.upgraded
        assert request.deadline_in is None
    daemon.until(lambda: not any(w.in_flight for w in daemon.workers()), "its end")
    daemon.counted(requests=1, errors=0)
    assert daemon.events("request_failed") == []


# -- what is said about a connection, and what counts ----------------------------------------------------


@EACH
def test_the_deadline_does_not_apply(place: Place, kind: str) -> None:
    """`timeout` is for answers: a websocket outlives it, and its worker too, in every class."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "-t", "0.5", "--timeout-grace", "0.5", "ws:app")
    with opened(daemon) as ws:
        assert echoes(ws)
        began = daemon.in_app("/echo")
        daemon.until(lambda: daemon.in_app("/echo").age > 2.5, "it is older than any deadline")
        assert echoes(ws)
        assert daemon.in_app("/echo").pid == began.pid
    assert daemon.events("request_overdue") == daemon.events("worker_stalled") == []


@EACH
def test_it_is_shown(place: Place, kind: str) -> None:
    """API, `ctl` and metrics show it as a connection of its own kind, and which thread it holds."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "-w", "1", "ws:app")
    with ExitStack() as stack:
        count = 1 if kind == "sync" else 3
        for _ in range(count):
            assert echoes(stack.enter_context(opened(daemon)))
        daemon.until(lambda: daemon.status().upgraded == count, "they are counted")
        (worker,) = daemon.workers()
        assert worker.upgraded == len(worker.in_flight) == worker.connections == count
        assert all(request.upgraded for request in worker.in_flight)
        assert len({request.thread for request in worker.in_flight}) == count
        assert "/echo upgraded" in daemon.ctl("workers").out
        assert "upgraded" in daemon.ctl("requests").out
        assert f"({count} upgraded)" in daemon.ctl("status").out
        assert f"ostler_upgraded_connections {count}.0" in daemon.client.raw(METRICS).decode()
        if kind != "sync":
            assert daemon.get("/").text == "plain"
            daemon.until(lambda: daemon.status().in_flight == count, "only they are left")
    daemon.until(lambda: daemon.status().upgraded == 0, "their ends")
    assert daemon.get("/").text == "plain"
    daemon.counted(errors=0)


# -- bytes behind the head -------------------------------------------------------------------------------


def handshake(path: str = "/echo", upgrade: str = "websocket", more: str = "") -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {upgrade}\r\n{more}"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def frame(text: str) -> bytes:
    """A client's text frame; the mask is zero."""
    return b"\x81" + bytes((0x80 | len(text), 0, 0, 0, 0)) + text.encode()


def received(sock: socket.socket, end: bytes) -> bytes:
    """What comes up to `end`."""
    found = b""
    while end not in found:
        data = sock.recv(4096)
        assert data, f"it ended behind {found!r}"
        found += data
    return found


def statuses(sock: socket.socket, count: int) -> list[int]:
    """Of so many pipelined answers, each read to its end."""
    found = []
    with sock.makefile("rb", buffering=0) as file:
        for _ in range(count):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                byte = file.read(1)
                assert byte, f"it ended behind {head!r}"
                head += byte
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            while length:
                length -= len(file.read(length) or b"")
            found.append(int(head.split()[1]))
    return found


@EACH
@pytest.mark.parametrize("pings", [*thorough(""), "1"], ids=["", "pings"])
def test_a_frame_that_came_with_the_head(place: Place, kind: str, pings: str) -> None:
    """No byte behind the head is lost, and no library waits for it, also if it selects before it reads."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "ws:app", PINGS=pings)
    with socket.create_connection(daemon.address, PATIENCE) as sock:
        sock.sendall(handshake() + frame("first") + frame("second")[:3])
        assert b"101 Switching" in received(sock, b"\x81\x05first")
        sock.sendall(frame("second")[3:] + frame("third"))
        received(sock, b"\x81\x05third")
    daemon.until(lambda: daemon.status().in_flight == 0, "its end")


@EACH
def test_an_upgrade_that_the_app_does_not_take(place: Place, kind: str) -> None:
    """It is an ordinary request, and so is what the client has sent behind it; a frame is refused."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "ws:app")
    offer = handshake("/", "h2c", "HTTP2-Settings: \r\n")
    with socket.create_connection(daemon.address, PATIENCE) as sock:
        for _ in range(2):
            sock.sendall(offer + b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + offer)
            assert statuses(sock, 3) == [200, 404, 200]
        sock.sendall(offer + frame("x"))
        assert statuses(sock, 2) == [200, 400]
    daemon.counted(requests=8)


# -- reload and stop -------------------------------------------------------------------------------------


def close_code(ws: websocket.WebSocket) -> int:
    """Wait for the server's close frame, answer it, and wait for the end of the connection."""
    opcode, data = ws.recv_data()
    assert opcode == websocket.ABNF.OPCODE_CLOSE
    try:
        ws.send_close()
        assert ws.sock.recv(1) == b"", "something follows the close frame"
    except ConnectionError:
        pass  # the server has ended the connection already
    return int.from_bytes(data[:2], "big")


def assert_polite(daemon: Daemon) -> None:
    """Nothing was killed, nothing failed; no line of the log is a warning or an error.

    But the one at the start that eventlet is no longer developed.
    """
    bad = [event for event in daemon.events() if event["level"] not in ("debug", "info")]
    assert [event for event in bad if event["event"] != "configuration"] == []


@EACH
def test_a_reload(place: Place, kind: str) -> None:
    """A websocket goes on until `graceful_timeout` is over, and is closed with 1012.

    Its worker is not killed, and may become the spare as any other. The new worker serves meanwhile.
    """
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "--graceful-timeout", "5", "ws:app")
    with ExitStack() as stack:
        ws = stack.enter_context(opened(daemon))
        assert echoes(ws)
        others = [stack.enter_context(connect(url(daemon, "/echo"))) for _ in range(2 * (kind != "sync"))]
        before = daemon.in_app("/echo").pid
        daemon.send(signal.SIGHUP)
        daemon.until(lambda: any(w.state == "draining" for w in daemon.workers()), "it drains")
        assert daemon.get("/").text == "plain"
        assert echoes(ws)
        for other in others:
            other.send("to the others")
            assert other.recv() == "to the others"
        for other in others:
            with pytest.raises(ConnectionClosed) as caught:
                other.recv(PATIENCE)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
        assert close_code(ws) == 1012
    daemon.event("reload_done")
    daemon.until(lambda: before not in daemon.pids(), "the old worker serves no more")
    assert_polite(daemon)


@pytest.mark.thorough
def test_scaling_down(place: Place) -> None:
    """A worker too many keeps its websockets for `graceful_timeout`; those of the other one stay."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start("--threads", "8", "-w", "2", "--graceful-timeout", "2", "ws:app")
    daemon.settled(2)
    with ExitStack() as stack:
        clients: dict[int, list[websocket.WebSocket]] = {1: [], 2: []}

        def on_both() -> bool:
            before = {w.slot: w.upgraded for w in daemon.workers()}
            ws = stack.enter_context(opened(daemon))
            assert echoes(ws)
            now = daemon.until(
                lambda: [w.slot for w in daemon.workers() if w.upgraded > before[w.slot]], "it is shown"
            )
            clients[now[0]].append(ws)
            return all(clients.values())

        # Which worker accepts is the kernel's choice.
        daemon.until(on_both, "a websocket in each worker")
        assert daemon.ctl("scale", "1").code == 0
        for ws in clients[2]:
            assert close_code(ws) == 1012
        daemon.settled(1)
        assert all(map(echoes, clients[1]))
        daemon.until(lambda: daemon.status().upgraded == len(clients[1]), "those that are left")
    assert_polite(daemon)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["gevent", "eventlet"])
def test_many_in_one_worker(place: Place, kind: str) -> None:
    """Greenlets: no thread each, and ordinary requests are served between them."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start("-k", kind, "-w", "1", "ws:app")
    with ExitStack() as stack:
        clients = [stack.enter_context(opened(daemon)) for _ in range(100)]
        assert all(map(echoes, clients))
        daemon.until(lambda: daemon.status().upgraded == 100, "they are shown")
        assert daemon.get("/").text == "plain"
        assert all(map(echoes, clients))
    daemon.until(lambda: daemon.status().in_flight == 0, "their ends")
    daemon.counted(requests=101, errors=0)


@EACH
def test_a_stop(place: Place, kind: str) -> None:
    """The daemon ends with its websockets, which get 1001; a client that does not answer delays nothing."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "--graceful-timeout", "2", "ws:app")
    with ExitStack() as stack:
        ws = stack.enter_context(opened(daemon))
        assert echoes(ws)
        if kind != "sync":
            silent = stack.enter_context(opened(daemon))
            assert echoes(silent)
        daemon.send(signal.SIGTERM)
        assert close_code(ws) == 1001
        assert daemon.wait() == 0
    assert_polite(daemon)


@pytest.mark.thorough
@EACH
def test_a_stop_at_once(place: Place, kind: str) -> None:
    """SIGINT waits for no websocket, nor for the threads that a library has started for it."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "--graceful-timeout", "600", "ws:app", PINGS="1")
    with opened(daemon) as ws:
        assert echoes(ws)
        assert daemon.stop(signal.SIGINT) == 0
    assert [event["cause"] for event in daemon.events("worker_died")] == []


OTHER_PROTOCOL = """\
def app(environ, start_response):
    sock = environ["gunicorn.socket"]
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: lines\\r\\n\\r\\n")
    with sock.makefile("rwb") as lines:
        for line in lines:
            lines.write(line.upper())
            lines.flush()
    sock.close()
    return [b"not sent to any client"]
"""


@pytest.mark.thorough
@EACH
def test_another_protocol(place: Place, kind: str) -> None:
    """It gets no close frame at a drain: its connection ends, and the app's loop with it."""
    place.add("lines.py", OTHER_PROTOCOL)
    daemon = place.start(*arguments(kind), "--graceful-timeout", "2", "lines:app")
    with socket.create_connection(daemon.address, PATIENCE) as sock:
        sock.sendall(handshake("/", "lines") + b"early\nla")
        assert received(sock, b"EARLY\n").endswith(b"\r\n\r\nEARLY\n")
        sock.sendall(b"ter\n")
        assert received(sock, b"\n") == b"LATER\n"
        daemon.send(signal.SIGTERM)
        assert sock.recv(100) == b""
    assert daemon.wait() == 0
    assert_polite(daemon)


def test_a_client_that_leaves(place: Place) -> None:
    """Its thread is free again, in each of many rounds, however it leaves."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start("--threads", "3", "-w", "1", "ws:app")
    for way in range(12):
        with opened(daemon, ("/echo", "/once", "/bug")[way % 3]) as ws:
            ws.send("hello")
            if way % 3 == 0:
                assert ws.recv() == "hello"
            if way % 2:
                ws.shutdown()
    daemon.until(lambda: daemon.status().in_flight == 0, "their ends")
    daemon.until(lambda: daemon.workers()[0].connections == 0, "the ends of their connections")
    assert daemon.get("/").text == "plain"
    daemon.counted(requests=13)


# -- other libraries -------------------------------------------------------------------------------------

SOCKET_IO = """\
from flask import Flask
from flask_socketio import SocketIO, emit

app = Flask(__name__)
socketio = SocketIO(app)

@app.get("/mode")
def mode():
    return socketio.async_mode

@socketio.on("echo")
def echo(data):
    emit("echo", data)
"""

NOT_INSTALLED = "raise ImportError('as if it were not installed')\n"
GEVENT_WEBSOCKET = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"


@pytest.mark.parametrize(
    ("kind", "mode", "hidden"),
    [
        ("gthread", "threading", ("eventlet", "gevent")),
        ("gevent", "gevent", ("eventlet", "geventwebsocket")),
        (GEVENT_WEBSOCKET, "gevent", ("eventlet",)),
        ("eventlet", "eventlet", ()),
    ],
)
def test_flask_socketio(place: Place, kind: str, mode: str, hidden: tuple[str, ...]) -> None:
    """Its documented recipes: `-k gevent`, gevent-websocket's class, `--threads`, `-k eventlet`.

    The client begins with polling and upgrades to a websocket; another one begins with a websocket.
    """
    place.add("io_app.py", SOCKET_IO)
    for module in hidden:
        place.add(f"{module}.py", NOT_INSTALLED)
    daemon = place.start(*arguments(kind), "-w", "1", "io_app:app")
    assert daemon.get("/mode").text == mode
    for transports in (None, ["websocket"]):
        # The library leaves a session of its own open.
        with requests.Session() as session, ExitStack() as stack:
            client = socketio.SimpleClient(http_session=session)
            client.connect(daemon.url, transports=transports, wait_timeout=int(PATIENCE))
            stack.callback(client.disconnect)
            daemon.until(lambda c=client: c.client.transport() == "websocket", "the upgrade")
            daemon.until(lambda: daemon.status().upgraded == 1, "it is shown")
            for data in ("hello", {"n": [1, 2]}, b"\0\xff", "x" * 20_000):
                client.emit("echo", data)
                assert client.receive(PATIENCE) == ["echo", data]
        daemon.until(lambda: daemon.status().upgraded == 0, "its end")
    daemon.counted(errors=0)
    assert_polite(daemon)


GEVENT_APP = """\
def app(environ, start_response):
    ws = environ.get("wsgi.websocket")
    if ws is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"plain"]
    while (message := ws.receive()) is not None:
        ws.send(message)
    return []
"""


def test_gevent_websocket(place: Place) -> None:
    """`wsgi.websocket`, as of its own worker class; a handshake that it refuses is an ordinary answer."""
    place.add("ws.py", GEVENT_APP)
    daemon = place.start("-k", GEVENT_WEBSOCKET, "--graceful-timeout", "2", "ws:app")
    with opened(daemon, "/") as ws:
        assert echoes(ws)
        assert echoes(ws, "x" * 100_000)
        assert daemon.in_app("/").upgraded
        assert daemon.get("/").text == "plain"
        assert daemon.connect().asked("/", headers=refused_handshake()).answer().status == 426
        with socket.create_connection(daemon.address, PATIENCE) as sock:
            sock.sendall(handshake("/") + frame("early"))
            received(sock, b"\x81\x05early")
        daemon.send(signal.SIGTERM)
        assert close_code(ws) == 1001
    assert daemon.wait() == 0
    assert_polite(daemon)


def refused_handshake() -> dict[str, str]:
    return {"Connection": "Upgrade", "Upgrade": "websocket"}


def test_gevent_websocket_that_is_not_installed(place: Place) -> None:
    """One line says what to install."""
    place.add("geventwebsocket.py", NOT_INSTALLED)
    place.add("ws.py", GEVENT_APP)
    done = place.run("--check-config", "-k", GEVENT_WEBSOCKET, "ws:app")
    assert "pip install 'ostler[gevent]' gevent-websocket" in done.error


EVENTLET_APP = """\
from eventlet import websocket

@websocket.WebSocketWSGI
def app(ws):
    while (message := ws.wait()) is not None:
        ws.send(message)
"""


@pytest.mark.thorough
def test_eventlets_own(place: Place) -> None:
    """eventlet.websocket reads `gunicorn.socket`, too."""
    place.add("ws.py", EVENTLET_APP)
    daemon = place.start("-k", "eventlet", "--graceful-timeout", "2", "ws:app")
    with opened(daemon, "/") as ws:
        assert echoes(ws)
        assert echoes(ws, "x" * 100_000)
        daemon.send(signal.SIGTERM)
        assert close_code(ws) == 1001
    assert daemon.wait() == 0
    assert_polite(daemon)


# -- TLS -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("pings", [*thorough(""), "1"], ids=["", "pings"])
@EACH
def test_tls(place: Place, kind: str, pings: str) -> None:
    """The same over TLS, in both directions at once; also if the library selects before it reads.

    simple-websocket reads 4096 bytes at once, and records are longer.
    """
    place.add("ws.py", FLASK_SOCK)
    authority = Authority(place.folder)
    server = authority.issue("localhost")
    args = ("--certfile", server.cert, "--keyfile", server.key, "--graceful-timeout", "2")
    daemon = place.start(*arguments(kind), *args, "ws:app", PINGS=pings)
    context = authority.client_context()
    context.check_hostname = False
    with opened(daemon, sslopt={"context": context}) as ws:
        for text in ("hello", "x" * 50_000, "y" * 1_000_000):
            assert echoes(ws, text)
        if kind != "sync":
            with context.wrap_socket(socket.create_connection(daemon.address, PATIENCE)) as sock:
                sock.sendall(handshake() + frame("first"))
                received(sock, b"\x81\x05first")
        daemon.until(lambda: daemon.status().upgraded == 1, "the end of the other")
        daemon.send(signal.SIGTERM)
        assert close_code(ws) == 1001
    assert daemon.wait() == 0
    assert_polite(daemon)
