"""The deadline counts the app's own time since its last progress, in every worker class."""

import http.client
import socket
import time
from collections.abc import Callable

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE

pytestmark = pytest.mark.system

# A WSGI app and an ASGI app that do the same. Between two parts they wait for a tenth of the time-out.
APPS = """
import asyncio
import time
from pathlib import Path

PAUSE = 0.1
PARTS = 30
BLOCK = b"x" * 65536
BLOCKS = 512

def app(environ, start_response):
    path = environ["PATH_INFO"]
    fields = [("Content-Type", "text/plain")]
    if path == "/upload":
        size = 0
        while piece := environ["wsgi.input"].read(1000):
            size += len(piece)
        body = b"%d" % size
        start_response("200 OK", [*fields, ("Content-Length", str(len(body)))])
        return [body]
    if path == "/written":
        write = start_response("200 OK", fields)
        for number in range(PARTS):
            time.sleep(PAUSE)
            write(b"%d " % number)
        return []
    if path == "/empty-parts":
        start_response("200 OK", fields)
        return empty_parts()
    if path == "/events":
        fields = [("Content-Type", "text/event-stream; charset=utf-8")]
    start_response("200 OK", fields)
    return PRODUCERS[path]()

def events():
    yield b"data: first\\n\\n"
    while not Path("go").exists():
        time.sleep(0.01)
    yield b"data: last\\n\\n"

def stream():
    for number in range(PARTS):
        time.sleep(PAUSE)
        yield b"%d " % number

def late_parts():
    for part in (b"first ", b"second ", b"last"):
        time.sleep(0.4)
        yield part

def endless():
    while True:
        time.sleep(PAUSE)
        yield b"more "

def large():
    for _ in range(BLOCKS):
        yield BLOCK

def hangs():
    yield b"half"
    while True:
        time.sleep(0.05)  # a thread is interrupted between two system calls

def empty_parts():
    yield b"half"
    while True:
        time.sleep(PAUSE)
        yield b""

def fails():
    yield b"half"
    raise RuntimeError("the app's own mistake")

PRODUCERS = {
    "/stream": stream, "/late-parts": late_parts, "/endless": endless, "/large": large, "/hangs": hangs,
    "/fails": fails, "/events": events,
}

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    path = scope["path"]
    async def answer(body, more=True):
        await send({"type": "http.response.body", "body": body, "more_body": more})
    if path == "/upload":
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        length = [(b"content-length", b"%d" % len(b"%d" % size))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await answer(b"%d" % size, False)
        return
    kind = b"text/event-stream; charset=utf-8" if path == "/events" else b"text/plain"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if path == "/events":
        await answer(b"data: first\\n\\n")
        while not Path("go").exists():
            await asyncio.sleep(0.01)
        await answer(b"data: last\\n\\n")
    elif path in ("/stream", "/endless"):
        number = 0
        while path == "/endless" or number < PARTS:
            await asyncio.sleep(PAUSE)
            await answer(b"%d " % number)
            number += 1
    elif path == "/large":
        for _ in range(BLOCKS):
            await answer(BLOCK)
    elif path == "/hangs":
        await answer(b"half")
        await asyncio.sleep(1000)
    elif path == "/fails":
        await answer(b"half")
        raise RuntimeError("the app's own mistake")
    elif path == "/late-parts":
        for part in (b"first ", b"second ", b"last"):
            await asyncio.sleep(0.4)
            await answer(part)
    elif path == "/returns-early":
        await answer(b"half")
        return
    await answer(b"", False)
"""
PARTS = 30
LARGE = 65536 * 512
WHOLE = "".join(f"{number} " for number in range(PARTS))
TIMEOUT = 1.0
# Longer than anything may take without progress.
LONG = 3 * TIMEOUT

CLASSES: dict[str, tuple[str, ...]] = {
    "sync": ("-k", "sync", "progress:app"),
    "gthread": ("-k", "gthread", "--threads", "2", "progress:app"),
    "gevent": ("-k", "gevent", "progress:app"),
    "eventlet": ("-k", "eventlet", "progress:app"),
    "asgi": ("-k", "asgi", "progress:asgi"),
    "meinheld": ("-k", "meinheld", "progress:app"),
}
# eventlet has the code of gevent for all of this.
ALL = pytest.mark.parametrize(
    "kind", ["gthread", "asgi", *thorough("sync", "gevent", "eventlet", "meinheld")]
)
NOT_MEINHELD = pytest.mark.parametrize("kind", ["gthread", "gevent", "asgi", *thorough("sync", "eventlet")])
Start = Callable[..., Daemon]


@pytest.fixture
def start(place: Place) -> Start:
    place.add("progress.py", APPS)

    def start(kind: str, *options: str) -> Daemon:
        log = ("--access-logfile", "access.log", "--access-logformat", "%(U)s %(s)s %(B)s")
        return place.start("-t", f"{TIMEOUT:g}", "--timeout-grace", "30", *log, *options, *CLASSES[kind])

    return start


def logged(daemon: Daemon, path: str) -> str:
    """Wait for the line of a path in the access log; returns its status and bytes."""
    log = daemon.place.app_folder / "access.log"

    def look() -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith(f"{path} ")]

    return daemon.until(look, f"the access log has {path}")[0].removeprefix(f"{path} ")


def age(daemon: Daemon, path: str) -> float:
    return daemon.in_app(path).age


def client_of(daemon: Daemon, *buffer: int) -> socket.socket:
    client = socket.socket()
    for size in buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    client.settimeout(PATIENCE)
    client.connect(daemon.address)
    return client


# -- the client's time ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gthread", "asgi", *thorough("gevent", "sync", "eventlet")])
def test_a_slow_upload(start: Start, kind: str) -> None:
    """An app that reads the body while it comes may wait for it for longer than its time-out."""
    daemon = start(kind, *(["--stream-request"] if kind != "asgi" else []))
    with client_of(daemon) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0

        def longer() -> bool:
            nonlocal sent
            client.sendall(b"3e8\r\n" + bytes(1000) + b"\r\n")
            sent += 1000
            return age(daemon, "/upload") > LONG

        daemon.until(longer, "the upload takes longer than the time-out")
        client.sendall(b"0\r\n\r\n")
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert (answer.status, answer.read()) == (200, b"%d" % sent)
    assert daemon.events("request_overdue") == []
    assert logged(daemon, "/upload").startswith("200 ")


@pytest.mark.thorough
def test_a_slow_upload_to_meinheld(start: Start) -> None:
    """There the app is called when the body has come whole, which may take longer than its time-out."""
    daemon = start("meinheld", "--keep-alive", "60")  # a request must have come whole within that
    (worker,) = daemon.pids()
    began = time.monotonic()
    with client_of(daemon) as client:
        head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        client.sendall(head)
        left = 1_000_000

        def longer() -> bool:
            nonlocal left
            client.sendall(bytes(100))
            left -= 100
            return time.monotonic() - began > LONG

        daemon.until(longer, "the upload takes longer than the time-out")
        client.sendall(bytes(left))
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert (answer.status, answer.read()) == (200, b"1000000")
    assert daemon.pids() == [worker]
    assert daemon.events("request_overdue") == daemon.events("worker_stalled") == []


@pytest.mark.thorough
@NOT_MEINHELD
def test_an_upload_that_stops(start: Start, kind: str) -> None:
    """The client's own limits end it: the request does not wait for ever, and is no error of the app."""
    limits = ("--body-timeout", "2", "--body-min-rate", "1000000")
    daemon = start(kind, *limits, *(["--stream-request"] if kind != "asgi" else []))
    with client_of(daemon) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
        while client.recv(65536):
            pass
    assert logged(daemon, "/upload").startswith("499 ")
    daemon.counted(requests=1, errors=0)
    assert daemon.events("request_overdue") == []
    assert daemon.events("request_failed") == [] or kind != "asgi"


@ALL
def test_a_slow_reader(start: Start, kind: str) -> None:
    """An answer that its client reads slowly, but steadily, comes whole, although the app waits for room."""
    small = ("--buffer-response", "1K", "--buffer-response-file", "0")
    daemon = start(kind, *(small if kind not in ("asgi", "meinheld") else ()))
    with client_of(daemon, 4096) as client:
        client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
        received = 0

        def longer() -> bool:
            nonlocal received
            # Slow, but so that a block of the app is not under way for as long as the time-out.
            for _ in range(16):
                received += len(client.recv(1 << 14))
            return age(daemon, "/large") > LONG

        daemon.until(longer, "the answer takes longer than the time-out")
        while data := client.recv(1 << 20):
            received += len(data)
    assert received > LARGE
    assert daemon.events("request_overdue") == []
    assert logged(daemon, "/large").startswith("200 ")


# -- progress -------------------------------------------------------------------------------------------


@ALL
def test_a_stream(start: Start, kind: str) -> None:
    """Events for three times as long as the time-out, each of which comes in time."""
    daemon = start(kind)
    assert daemon.get("/stream").text == WHOLE
    if kind not in ("asgi", "meinheld"):  # meinheld has no write()
        assert daemon.get("/written").text == WHOLE
    assert daemon.get("/late-parts").text == "first second last"
    assert daemon.events("request_overdue") == []
    assert logged(daemon, "/stream").startswith("200 ")


@ALL
@pytest.mark.parametrize("path", ["/hangs", *thorough("/empty-parts")])
def test_a_stream_that_hangs(start: Start, kind: str, path: str) -> None:
    """It is cut at the time-out, logged and counted as 504, and the log says which setting did that."""
    if kind == "asgi" and path == "/empty-parts":
        pytest.skip("an empty message is a message")
    daemon = start(kind)
    with client_of(daemon) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = whole(client)
        assert answer.startswith(b"HTTP/1.1 200")
        assert not answer.endswith(b"0\r\n\r\n")
    event = daemon.event("request_overdue", path=path)
    assert (event["setting"], event["limit"]) == ("timeout", TIMEOUT)
    assert "ostler.extend_deadline" in event["advice"]
    assert logged(daemon, path) == "504 4"
    daemon.counted(requests=1, errors=1)


@ALL
def test_a_limit_for_the_whole_request(start: Start, kind: str) -> None:
    """`limit_request_time` ends what goes on for ever, whatever progress it makes."""
    daemon = start(kind, "--limit-request-time", "2.5")
    with client_of(daemon) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        whole(client)
    event = daemon.event("request_overdue", path="/endless")
    assert (event["setting"], event["limit"]) == ("limit_request_time", 2.5)
    assert event["age"] >= 2.5
    assert "extend_deadline gives more" in event["advice"]
    assert logged(daemon, "/endless").startswith("504 ")
    daemon.counted(requests=1, errors=1)


# The first request of a worker with one thread: nothing else may ever wake that.
EVENT_STREAMS = pytest.mark.parametrize("kind", ["sync", "asgi", *thorough("gthread", "gevent", "eventlet")])


@EVENT_STREAMS
def test_a_silent_event_stream(start: Start, kind: str) -> None:
    """It may be silent for any time while its client is there."""
    daemon = start(kind)
    events = daemon.connect().asked("/events")
    daemon.until(lambda: age(daemon, "/events") > LONG, "it is silent for longer than the time-out")
    assert daemon.in_app("/events").deadline_in is None
    (daemon.place.app_folder / "go").touch()
    assert events.answer().text == "data: first\n\ndata: last\n\n"
    assert daemon.events("request_overdue") == []
    assert logged(daemon, "/events").startswith("200 ")


@EVENT_STREAMS
def test_a_silent_event_stream_whose_client_has_left(start: Start, kind: str) -> None:
    """An app that does not notice it is ended at the time-out, which begins then."""
    daemon = start(kind)
    with client_of(daemon) as client:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        daemon.in_app("/events")
        assert daemon.events("request_overdue") == []
    assert daemon.event("request_overdue", path="/events")["setting"] == "timeout"
    assert logged(daemon, "/events").startswith("504 ")


# -- cut answers ----------------------------------------------------------------------------------------


@pytest.mark.thorough
@ALL
def test_an_answer_that_the_app_cuts(start: Start, kind: str) -> None:
    """It raises in the middle: the answer counts as 500, although its head said 200."""
    daemon = start(kind)
    with client_of(daemon) as client:
        client.sendall(b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\n")
        assert whole(client).startswith(b"HTTP/1.1 200")
    assert "own mistake" in daemon.event("request_failed")["traceback"]
    assert logged(daemon, "/fails") == "500 4"
    daemon.counted(requests=1, errors=1)


def test_an_answer_that_an_asgi_app_leaves(start: Start) -> None:
    """It returns before the last part: a mistake of the app."""
    daemon = start("asgi")
    with client_of(daemon) as client:
        client.sendall(b"GET /hangs HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(65536)
    with client_of(daemon) as client:
        client.sendall(b"GET /returns-early HTTP/1.1\r\nHost: x\r\n\r\n")
        whole(client)
    assert "before the end" in daemon.event("request_failed", path="/returns-early")["reason"]
    assert logged(daemon, "/returns-early") == "500 4"


@pytest.mark.thorough
@NOT_MEINHELD
def test_a_client_that_leaves_in_the_middle(start: Start, kind: str) -> None:
    """It counts as 499: no error, but no whole answer either."""
    daemon = start(kind)
    with client_of(daemon) as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert logged(daemon, "/stream").startswith("499 ")
    daemon.counted(requests=1, errors=0)


def whole(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection, or cuts it."""
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received
