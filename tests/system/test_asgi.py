"""ASGI apps in the real daemon: uvicorn inside Ostler's life cycle."""

import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import IncompleteRead

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from tests.kit.daemon import Daemon, Place
from tests.kit.load import Load
from tests.kit.processes import Process
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

ASGI = ("-k", "asgi", "waiter:app")


@contextmanager
def websocket(daemon: Daemon) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{daemon.port}/socket", open_timeout=PATIENCE, close_timeout=1) as client:
        yield client


def said(client: ClientConnection, text: str) -> int:
    """Echo `text`; returns the pid of the worker that answered."""
    client.send(text)
    pid, _, rest = str(client.recv(timeout=PATIENCE)).partition(" ")
    assert rest == text
    return int(pid)


def test_an_app(place: Place) -> None:
    """Requests, bodies, state of the startup, counters and the access log in gunicorn's format."""
    form = '%(h)s "%(r)s" %(s)s %(B)s %({user-agent}i)s %({content-type}o)s %(U)s %(q)s'
    log = ("--access-logfile", "access.log", "--access-logformat", form, "--root-path", "/here")
    daemon = place.start(*log, "-k", "uvicorn.workers.UvicornWorker", "waiter:app")
    (worker,) = daemon.settled(1)
    answer = daemon.get("/any?q=1", headers={"User-Agent": "test"})
    assert (answer.status, answer.text) == (200, "one")
    assert answer.headers["server"] == "ostler"
    assert "date" in answer.headers
    assert daemon.get("/body", method="POST", body=b"x" * 300_000).text == "300000"
    scope = json.loads(
        daemon.get("/scope", headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "1.2.3.4"}).body
    )
    assert scope == {
        "client": ["1.2.3.4", 0], "scheme": "https", "root_path": "/here", "path": "/here/scope",
        "http_version": "1.1", "server": ["127.0.0.1", daemon.port],
    }  # fmt: skip
    totals = daemon.until(lambda: daemon.status().totals.requests == 3 and daemon.status().totals, "counted")
    assert totals.errors == 0
    assert totals.bytes_sent >= len("one") + len("300000")
    assert daemon.workers()[0].pid == worker.pid
    lines = daemon.until(
        lambda: len(found := (place.app_folder / "access.log").read_text().splitlines()) == 3 and found,
        "lines",
    )
    assert lines[0] == '127.0.0.1 "GET /here/any?q=1 HTTP/1.1" 200 3 test text/plain /here/any q=1'
    assert lines[2].startswith('1.2.3.4 "GET /here/scope')


@pytest.mark.parametrize("app", ["waiter:make()", *thorough("waiter:make", "waiter:OldStyle")])
def test_shapes_of_apps(place: Place, app: str) -> None:
    """Factories, as a name and as a call, and apps of ASGI 2."""
    daemon = place.start("-k", "asgi", app)
    assert daemon.get().text == "one"


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (("-k", "asgi", "plain:app"), "is a WSGI app"),
        (("waiter:app",), "-k asgi"),
        (("--preload", "waiter:app"), "-k asgi"),
    ],
)
def test_the_wrong_kind_of_app(place: Place, argv: tuple[str, ...], advice: str) -> None:
    """A WSGI app under asgi and an ASGI app under sync: the log says what to do."""
    daemon = place.start(*argv, serving=False)
    assert daemon.wait() != 0
    assert advice in daemon.log.read_text()


def test_a_failing_app(place: Place) -> None:
    """500 to the client, one event with the traceback from the app's frame on; the worker continues."""
    daemon = place.start(*ASGI)
    (pid,) = daemon.pids()
    assert daemon.get("/fail").status == 500
    event = daemon.event("request_failed", path="/fail")
    assert "the app's own mistake" in event["traceback"]
    assert "/ostler/" not in event["traceback"]
    assert daemon.get("/pid").text == str(pid)
    daemon.until(lambda: daemon.status().totals.errors == 1, "counted")
    assert daemon.events("uvicorn") == []


def test_requests_in_flight_are_shown(place: Place) -> None:
    """Many requests at once in one worker are shown, each with its path."""
    daemon = place.start(*ASGI)
    clients = [daemon.connect().asked(f"/gate/many?{number}") for number in range(20)]
    daemon.until(lambda: len(daemon.workers()[0].in_flight) == 20, "all are shown")
    assert {request.path for request in daemon.workers()[0].in_flight} == {"/gate/many"}
    assert "/gate/many" in daemon.ctl("requests").out
    (place.app_folder / "many.open").touch()
    assert {client.answer().text for client in clients} == {"many passed"}
    daemon.until(lambda: daemon.workers()[0].in_flight == [], "none is in flight")
    daemon.counted(requests=20)


# -- life cycle ------------------------------------------------------------------------------------------


def test_a_startup_that_fails(place: Place) -> None:
    """A reload whose startup raises is abandoned with its traceback;
    the generation before continues to serve.
    """
    daemon = place.start("-w", "2", *ASGI)
    pids = {worker.pid for worker in daemon.settled(2)}
    source = (place.app_folder / "waiter.py").read_text()
    broken = source.replace("    started.append(os.getpid())", "    raise RuntimeError('no database')")
    place.add(
        "waiter.py",
        broken.replace(
            "    await receive()\n",
            """    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database today"})
""",
            1,
        ),
    )
    done = daemon.ctl("reload")
    assert done.code != 0
    assert "no database" in done.out + done.err
    assert {worker.pid for worker in daemon.settled(2)} == pids
    assert daemon.get().text == "one"
    place.add("waiter.py", source.replace('"one"', '"two"'))
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "two"


def test_reload_under_load(place: Place) -> None:
    """No request is lost, not even one on a connection that the server closed just then."""
    daemon = place.start("-w", "2", *ASGI)
    daemon.settled(2)
    with Load(daemon.address, rate=300, connections=16) as load:
        load.wait_for(150, within=PATIENCE)
        for version in ("two", "three"):
            source = (place.app_folder / "waiter.py").read_text()
            place.add("waiter.py", source.replace('VERSION = "', f'VERSION = "{version} '))
            assert daemon.ctl("reload").code == 0
        assert daemon.ctl("recycle", "--all").code in (0, 2)
        load.wait_for(900, within=PATIENCE)
        report = load.finish()
    assert report.failed == 0, report.summary()
    assert report.stale == 0, report.summary()
    assert len(list(place.app_folder.glob("shutdown-*"))) >= 4, "each of the old ones has shut down"


def test_websockets(place: Place) -> None:
    """A websocket echoes and is shown as in flight without a deadline;
    a reload closes it with 1012, and new ones work.
    """
    daemon = place.start("-t", "0.5", *ASGI)
    (old,) = daemon.pids()
    with websocket(daemon) as client:
        assert said(client, "hello") == old
        shown = daemon.in_app("/socket")
        assert (shown.method, shown.deadline_in) == ("WS", None)
        daemon.until(lambda: daemon.in_app("/socket").age > 1.2, "it is older than the time-out")
        assert said(client, "still there") == old
        assert daemon.ctl("reload").code == 0
        with pytest.raises(ConnectionClosedError) as caught:
            client.recv(timeout=PATIENCE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    until(lambda: (place.app_folder / "closed-1012").exists(), "the app was notified")
    with websocket(daemon) as client:
        assert said(client, "again") != old
    assert daemon.events("request_overdue") == []
    daemon.until(lambda: daemon.status().totals.requests == 2, "both count")


def test_term_drains(place: Place) -> None:
    """Requests in flight are answered with `Connection: close`; then the app's shutdown runs."""
    daemon = place.start(*ASGI)
    (pid,) = daemon.pids()
    idle = daemon.connect()
    assert idle.asked("/").answer().text == "one"
    busy = daemon.connect().asked("/gate/late")
    daemon.in_app("/gate/late")
    daemon.send(signal.SIGTERM)
    daemon.until(lambda: daemon.workers()[0].state == "draining", "draining")
    idle.ended_by_server()
    (place.app_folder / "late.open").touch()
    answer = busy.answer()
    assert (answer.text, answer.headers["connection"]) == ("late passed", "close")
    assert daemon.wait() == 0
    assert (place.app_folder / f"shutdown-{pid}").exists()


def test_a_head_that_has_begun(place: Place) -> None:
    """A worker that drains waits longer for its rest than for a request on an idle connection."""
    daemon = place.start(*ASGI)
    with socket.create_connection(daemon.address, PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHo")
        with socket.create_connection(daemon.address, PATIENCE) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
            daemon.send(signal.SIGTERM)
            while idle.recv(65536):
                pass
        client.sendall(b"st: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert daemon.wait() == 0


def test_the_end_is_bounded(place: Place) -> None:
    """A request that never ends is cut when graceful_timeout is over; the app's shutdown still runs."""
    daemon = place.start("--graceful-timeout", "1", *ASGI)
    (pid,) = daemon.pids()
    busy = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert busy.answer().status == 500
    assert (place.app_folder / f"shutdown-{pid}").exists()
    assert daemon.event("worker_exited")["status"] == "exit code 0"


@pytest.mark.parametrize("signum", [signal.SIGQUIT, *thorough(signal.SIGINT)])
def test_a_quick_end(place: Place, signum: int) -> None:
    """Nothing is waited for, and there are no errors in the log."""
    daemon = place.start(*ASGI)
    busy = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    assert daemon.stop(signum) == 0
    assert "Traceback" not in daemon.log.read_text()
    assert "destroyed" not in daemon.log.read_text()
    busy.close()


def test_the_daemon_is_killed(place: Place) -> None:
    """A worker whose supervisor is gone finishes its requests and ends."""
    daemon = place.start(*ASGI)
    worker = Process(daemon.pids()[0])
    busy = daemon.connect().asked("/gate/late")
    daemon.in_app("/gate/late")
    daemon.kill()
    (place.app_folder / "late.open").touch()
    assert busy.answer().text == "late passed"
    assert worker.ended()


def test_max_requests(place: Place) -> None:
    """Workers are recycled after this number, and no request is lost."""
    daemon = place.start("--max-requests", "50", *ASGI)
    with Load(daemon.address, rate=200, connections=4) as load:
        daemon.event("worker_exited", after=1)
        report = load.finish()
    assert report.failed == 0, report.summary()
    assert daemon.event("worker_exited")["cause"] == "recycle"


def test_streams_and_clients_that_leave(place: Place) -> None:
    """Parts reach the client as they are sent;
    an app that waits for it is notified when the client disconnects.
    """
    daemon = place.start(*ASGI)
    with socket.create_connection(daemon.address, timeout=PATIENCE) as client:
        client.sendall(b"GET /stream/parts HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while b"first " not in received:
            received += client.recv(4096)
        (place.app_folder / "parts.open").touch()
        while data := client.recv(4096):
            received += data
    assert received.endswith(b"4\r\nlast\r\n0\r\n\r\n")
    gone = socket.create_connection(daemon.address, timeout=PATIENCE)
    gone.sendall(b"GET /until-gone HTTP/1.1\r\nHost: x\r\n\r\n")
    daemon.in_app("/until-gone")
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    until(lambda: (place.app_folder / "gone").exists(), "the app was notified")
    daemon.until(lambda: daemon.status().totals.requests == 2, "both count")
    assert daemon.events("request_failed") == []


@pytest.mark.thorough
def test_background_work(place: Place) -> None:
    """Work after the answer is not a request any more, but the worker does not end before it is done."""
    daemon = place.start("-t", "0.5", *ASGI)
    old = Process(daemon.pids()[0])
    assert daemon.get("/then-works").text == "one"
    daemon.until(lambda: daemon.workers()[0].in_flight == [], "none is in flight")
    assert daemon.ctl("reload", "--no-wait").code == 0
    daemon.event("worker_ready", after=1)
    assert not old.ended(1.0)
    (place.app_folder / "work.open").touch()
    assert old.ended()
    assert (place.app_folder / "worked").exists()


@pytest.mark.thorough
def test_a_startup_can_be_left(place: Place) -> None:
    """SIGTERM while the app's startup waits for something: the worker ends at once."""
    source = (place.app_folder / "waiter.py").read_text()
    complete = 'await send({"type": "lifespan.startup.c'
    slow = f'Path("starting").touch()\n    await wait_at_gate("startup")\n    {complete}'
    place.add("waiter.py", source.replace(complete, slow))
    daemon = place.start(*ASGI, serving=False)
    daemon.until(lambda: (place.app_folder / "starting").exists(), "in its startup")
    assert daemon.stop() == 0


# -- deadlines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/gate/never", "/computes", *thorough("/computes-elsewhere")])
def test_a_request_is_ended_alone(place: Place, path: str) -> None:
    """504 for a request that waits, and for one that blocks the whole loop; the log has its own stack."""
    daemon = place.start("-t", "1", "--timeout-grace", "30", *ASGI)
    (pid,) = daemon.pids()
    answer = daemon.connect().asked(path).answer()
    assert (answer.status, answer.text) == (504, "Gateway Timeout\n")
    assert answer.headers["connection"] == "close"
    event = daemon.event("request_interrupted", path=path)
    assert ("in answer" if path == "/gate/never" else "in compute") in event["stack"]
    assert "/ostler/" not in event["stack"]
    overdue = daemon.event("request_overdue", path=path)
    assert ("in wait_at_gate" if path == "/gate/never" else "in compute") in overdue["stack"]
    assert "select" not in overdue["stack"] or path != "/gate/never", "it is not that of the loop"
    assert daemon.get("/pid").text == str(pid)
    assert daemon.events("worker_exited") == []
    assert daemon.events("request_failed") == []
    daemon.until(lambda: daemon.status().totals.errors == 1, "counted")


@pytest.mark.thorough
def test_a_loop_that_stays_blocked(place: Place) -> None:
    """A websocket has no deadline: if it blocks the loop, the worker is replaced."""
    source = """
import waiter

async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return await waiter.app(scope, receive, send)
    await receive()
    await send({"type": "websocket.accept"})
    await receive()
    block()

def block():
    while True:
        pass
"""
    place.add("blocks.py", source)
    daemon = place.start("-t", "1", "--timeout-grace", "0.2", "-k", "asgi", "blocks:app")
    victim = Process(daemon.pids()[0])
    with websocket(daemon) as idle, websocket(daemon) as client:
        assert idle.ping()
        client.send("block")
        assert "in block" in daemon.event("loop_blocked", level="warning")["stack"]
        daemon.event("worker_stalled")
        assert victim.ended()
    daemon.settled(1, state="ready")
    assert daemon.get().text == "one"


def test_others_go_on(place: Place) -> None:
    """Requests beside the one that is ended are not affected."""
    daemon = place.start("-t", "1.5", "--timeout-grace", "30", *ASGI)
    late = daemon.connect().asked("/gate/never")
    daemon.until(lambda: daemon.in_app("/gate/never").age > 1.0, "a second old")
    beside = daemon.connect().asked("/gate/beside")
    assert late.answer().status == 504
    (place.app_folder / "beside.open").touch()
    assert beside.answer().text == "beside passed"


def test_an_answer_that_has_begun_is_cut(place: Place) -> None:
    """It has sent nothing for as long as the time-out: the client sees that the rest is missing."""
    daemon = place.start("-t", "0.5", "--timeout-grace", "30", *ASGI)
    (pid,) = daemon.pids()
    with pytest.raises(IncompleteRead) as caught:
        daemon.connect().asked("/begins-and-waits").answer()
    assert caught.value.partial == b"half"
    assert daemon.get("/pid").text == str(pid)


@pytest.mark.thorough
def test_more_time(place: Place) -> None:
    """A request may ask for more time, and an event stream has no time limit."""
    daemon = place.start("-t", "0.5", *ASGI)
    extended = daemon.connect().asked("/extended")
    events = daemon.connect().asked("/stream/events")
    for path in ("/extended", "/stream/events"):
        daemon.until(lambda path=path: daemon.in_app(path).age > 1.2, f"{path} is older than the time-out")
    assert daemon.in_app("/stream/events").deadline_in is None
    for gate in ("extended", "events"):
        (place.app_folder / f"{gate}.open").touch()
    assert extended.answer().text == "extended passed"
    assert events.answer().text == "first last"
    assert daemon.events("request_overdue") == []


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_warm_up(place: Place) -> None:
    """Warm-up requests come after the startup, and a failing one makes the reload fail."""
    daemon = place.start("--warmup-request", "/pid", *ASGI)
    assert daemon.status().totals.requests == 0
    place.add("gunicorn.conf.py", "warmup_request = ['/fail']\n")
    other = place.start("--warmup-request", "/fail", *ASGI, serving=False)
    assert other.wait() == 3
    assert "the app's own mistake" in other.log.read_text()


@pytest.mark.thorough
def test_a_class_made_from_uvicorns(place: Place) -> None:
    """A project's own subclass of uvicorn's worker:
    its CONFIG_KWARGS count, and those without effect are reported.
    """
    place.add(
        "own.py",
        """
from uvicorn.workers import UvicornWorker

class MyWorker(UvicornWorker):
    CONFIG_KWARGS = {"loop": "asyncio", "http": "h11", "lifespan": "off", "headers": [("X-Own", "yes")]}

    def notify(self):
        pass

class Limited(UvicornWorker):
    CONFIG_KWARGS = {"limit_concurrency": 1}

class Strange(UvicornWorker):
    CONFIG_KWARGS = {"no_such": 1}
""",
    )
    daemon = place.start("-k", "own.MyWorker", "waiter:app")
    answer = daemon.get("/pid")
    assert (answer.text, answer.headers["x-own"]) == ("None", "yes"), "there was no startup"
    assert "only CONFIG_KWARGS counts" in daemon.log.read_text()
    assert daemon.status().threads == 1
    limited = place.start("-k", "own.Limited", "waiter:app")
    assert limited.get("/").status == 503
    limited.counted(requests=1, errors=1)
    refused = place.run("-k", "own.Strange", "-b", "127.0.0.1:0", "waiter:app")
    assert refused.code == 1
    assert "no_such" in refused.err
    nothing = place.run("-k", "own.None", "-b", "127.0.0.1:0", "waiter:app")
    assert "module 'own' has no attribute 'None'" in nothing.err


@pytest.mark.thorough
def test_unix_sockets_and_changing_the_class(place: Place) -> None:
    """A proxy on a Unix socket is trusted; reloads switch from sync to asgi and back, connections stay."""
    place.add("gunicorn.conf.py", "worker_class = 'sync'\nwsgi_app = 'plain:app'\n")
    daemon = place.start("--keep-alive", "60", bind=f"unix:{place.folder}/app.sock")
    kept = daemon.connect()
    assert kept.asked("/").answer().text == "one"
    place.add("gunicorn.conf.py", "worker_class = 'asgi'\nwsgi_app = 'waiter:app'\n")
    assert daemon.ctl("reload").code == 0
    scope = json.loads(daemon.get("/scope", headers={"Host": "x", "X-Forwarded-Proto": "https"}).body)
    assert (scope["scheme"], scope["server"]) == ("https", ["x", 443])
    assert json.loads(kept.asked("/scope").answer().body)["scheme"] == "http", "the connection has moved"
    place.add("gunicorn.conf.py", "worker_class = 'sync'\nwsgi_app = 'plain:app'\n")
    assert daemon.ctl("reload").code == 0
    assert kept.asked("/").answer().text == "one"
    assert os.fspath(place.folder) in daemon.url


@pytest.mark.thorough
def test_hundreds_of_requests_at_once(place: Place) -> None:
    """Each is visible while it is in the app, and logged with its own method:
    the answer to HEAD has no body.
    """
    log = ("--access-logfile", "access.log", "--access-logformat", "%(m)s %(s)s %(B)s")
    daemon = place.start("-k", "asgi", *log, "--worker-connections", "700", "waiter:app")
    methods = ["HEAD", "GET", "GET", "GET"] * 100
    clients = [daemon.connect(60).asked("/gate/many", method) for method in methods]

    def shown() -> list[str] | None:
        found = [request.method for request in daemon.workers()[0].in_flight if request.path == "/gate/many"]
        return found if len(found) == 400 else None

    assert sorted(daemon.until(shown, "all are shown", within=60)) == ["GET"] * 300 + ["HEAD"] * 100
    (place.app_folder / "many.open").touch()
    assert {client.answer().status for client in clients} == {200}
    daemon.until(lambda: daemon.status().totals.requests == 400, "all are counted", within=60)
    daemon.until(lambda: daemon.status().in_flight == 0, "none is shown")
    access = place.app_folder / "access.log"
    lines = daemon.until(lambda: len(found := access.read_text().splitlines()) == 400 and found, "lines")
    size = len("many passed")
    assert sorted(lines) == [f"GET 200 {size}"] * 300 + ["HEAD 200 0"] * 100
    assert daemon.status().totals.bytes_sent == 300 * size


# -- websockets at a reload ------------------------------------------------------------------------------

STARLETTE = """\
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

async def echo(ws):
    await ws.accept()
    while True:
        await ws.send_text(await ws.receive_text())

async def bug(ws):
    await ws.accept()
    try:
        await ws.receive_text()
    finally:
        raise KeyError("a bug of the app")

async def plain(request):
    return PlainTextResponse("plain")

app = Starlette(routes=[WebSocketRoute("/echo", echo), WebSocketRoute("/bug", bug), Route("/", plain)])
"""


def test_open_websockets_at_a_reload(place: Place) -> None:
    """Each is closed with 1012; all together are one line of log. A bug that an app has then is an error."""
    place.add("stars.py", STARLETTE)
    daemon = place.start("-k", "asgi", "stars:app")
    url = daemon.url.replace("http", "ws", 1)
    with ExitStack() as stack:
        open_ones = [stack.enter_context(connect(f"{url}/echo")) for _ in range(3)]
        open_ones.append(stack.enter_context(connect(f"{url}/bug")))
        for ws in open_ones[:3]:
            ws.send("hello")
            assert ws.recv(PATIENCE) == "hello"
        daemon.until(lambda: daemon.status().upgraded == 4, "they are shown")
        daemon.send(signal.SIGHUP)
        for ws in open_ones:
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(PATIENCE)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012
        daemon.event("reload_done")
    assert daemon.event("upgraded_closed")["level"] == "info"
    assert sum(event["count"] for event in daemon.events("upgraded_closed")) == 4
    (failure,) = daemon.events("request_failed")
    assert "KeyError: 'a bug of the app'" in failure["traceback"]
    daemon.counted(requests=4)
