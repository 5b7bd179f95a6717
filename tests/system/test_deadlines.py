"""Requests that take too long, workers that boot too long, workers that have reached max_requests."""

import signal
import time
from http.client import IncompleteRead

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import Place
from tests.kit.load import Load
from tests.kit.processes import Process, freeze
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

# A request that can't be ended alone.
HARD = ("--no-timeout-soft",)
GRACE = (*HARD, "--timeout-grace", "0.2")

# An app whose requests do not end, each in a different way, with some other paths for tests.
STUBBORN = """
import collections
import itertools
import pathlib
import socket
import time

import plain

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/system-call":
        one, other = socket.socketpair()
        one.recv(1)
    elif path == "/loop":
        while True:
            pass
    elif path == "/half":
        return half(start_response)
    elif path == "/swallows":
        while True:
            try:
                time.sleep(0.01)
            except BaseException:
                pathlib.Path("swallowed").touch()
    elif path == "/keeps-the-lock":
        collections.deque(itertools.count(), maxlen=0)
    elif path == "/extended":
        environ["ostler.extend_deadline"](20)
        plain.wait_at_gate("extended")
    return plain.app(environ, start_response)

def half(start_response):
    start_response("200 OK", [("Content-Length", "10")])
    yield b"half"
    time.sleep(1000)
"""


@pytest.mark.parametrize("threads", ["4", *thorough("1")])
@pytest.mark.parametrize("path", ["/loop", "/gate/never", *thorough("/system-call")])
def test_a_request_is_ended_alone(place: Place, path: str, threads: str) -> None:
    """504 at the time-out, the stack in the log, and the worker continues to serve."""
    if path == "/system-call" and threads == "4":
        pytest.skip("only the main thread's system calls can be ended")
    place.add("stubborn.py", STUBBORN)
    options = ("--threads", threads, "--access-logfile", "access.log")
    daemon = place.start("-t", "1", "--timeout-grace", "30", *options, "stubborn:app")
    (pid,) = daemon.pids()
    began = time.monotonic()
    connection = daemon.connect().asked(f"{path}?secret=token")
    answer = connection.answer()
    assert 0.8 < time.monotonic() - began < 20
    assert (answer.status, answer.text) == (504, "Gateway Timeout\n")
    assert answer.headers["connection"] == "close"
    event = daemon.event("request_overdue", level="error")
    assert event["path"] == path
    assert "in app" in event["stack"]
    assert daemon.get("/pid").text == str(pid)
    assert daemon.pids() == [pid]
    daemon.counted(errors=1)
    assert daemon.events("worker_exited") == []
    assert daemon.events("request_failed") == []
    line = daemon.until(
        lambda: [line for line in (place.app_folder / "access.log").read_text().splitlines() if path in line],
        "the access log has it",
    )
    assert '" 504 ' in line[0]


def test_an_answer_that_has_begun_is_cut(place: Place) -> None:
    """The client sees that the rest is missing, and the worker continues to serve."""
    place.add("stubborn.py", STUBBORN)
    daemon = place.start("-t", "0.5", "--timeout-grace", "30", "stubborn:app")
    (pid,) = daemon.pids()
    connection = daemon.connect().asked("/half")
    with pytest.raises(IncompleteRead) as caught:
        connection.answer()
    assert caught.value.partial == b"half"
    assert daemon.get("/pid").text == str(pid)


@pytest.mark.parametrize("path", ["/swallows", *thorough("/keeps-the-lock")])
def test_a_request_that_can_not_be_ended_alone(place: Place, path: str) -> None:
    """The app swallows the exception or never returns from C: after the grace time its worker is replaced."""
    place.add("stubborn.py", STUBBORN)
    daemon = place.start("-t", "0.5", "--timeout-grace", "0.5", "stubborn:app")
    victim = Process(daemon.pids()[0])
    connection = daemon.connect().asked(path)
    daemon.event("request_overdue", path=path)
    daemon.event("worker_ready", after=1)
    connection.ended_by_server()
    assert victim.ended()
    assert (place.app_folder / "swallowed").exists() == (path == "/swallows")
    assert daemon.event("worker_exited")["cause"] == "deadline"
    daemon.settled(1, state="ready")
    assert daemon.get().text == "one"


def test_more_time(place: Place) -> None:
    """A request that asks for more time may take longer, and the API shows how long; the next one may not."""
    place.add("stubborn.py", STUBBORN)
    daemon = place.start("-t", "0.5", "stubborn:app")
    connection = daemon.connect().asked("/extended")
    daemon.in_app("/extended")
    daemon.until(lambda: daemon.in_app("/extended").age > 1.0, "it is there for longer than usual")
    deadline_in = daemon.in_app("/extended").deadline_in
    assert deadline_in is not None
    assert 5 < deadline_in < 20
    (place.app_folder / "extended.open").touch()
    assert connection.answer().text == "one"
    assert daemon.events("request_overdue") == []
    assert connection.asked("/gate/never").answer().status == 504


def test_a_stopped_worker_is_replaced(place: Place) -> None:
    """SIGSTOP while it is idle: no request is overdue, but its loop makes no progress."""
    daemon = place.start("-w", "2", "-t", "1", "--timeout-grace", "0.2", "plain:app")
    victim = Process(daemon.settled(2)[0].pid or 0)
    victim.send(signal.SIGSTOP)
    event = daemon.event("worker_stalled")
    assert event["pid"] == victim.pid
    assert event["seconds"] >= 4
    assert victim.ended()
    assert daemon.event("worker_exited")["cause"] == "stalled"
    daemon.settled(2, state="ready")


WAYS = {
    "tcp": (),
    "threads": ("--threads", "2"),
    "workers": ("-w", "2"),
    "long": ("--queue-timeout", "3"),
}


@pytest.mark.parametrize(
    ("way", "known"),
    [
        *(("tcp", True), ("threads", False), ("workers", True), ("unix", False)),
        *thorough(("long", False), ("unix-workers", True), ("tls", False)),
        *thorough(("tcp", False), ("threads", True), ("workers", False), ("long", True)),
        *thorough(("unix", True), ("unix-workers", False), ("tls", True)),
    ],
)
def test_queue_timeout(place: Place, way: str, known: bool) -> None:
    """A request that waits for too long is refused when that is so, although no thread is free; a later one
    is served. Whether its connection is a new one makes no difference.
    """
    options = ["--queue-timeout", "0.5", *WAYS.get(way, WAYS["workers"] if way == "unix-workers" else ())]
    if way == "tls":
        certificate = Authority(place.folder).issue("localhost")
        options += ["--certfile", str(certificate.cert), "--keyfile", str(certificate.key)]
    bind = f"unix:{place.folder}/s.sock" if way.startswith("unix") else "127.0.0.1:0"
    daemon = place.start(*options, "plain:app", bind=bind)
    late = daemon.connect()
    if known:
        assert late.asked("/pid").answer().status == 200
    busy = []
    for number in range(2 if way in ("threads", "workers", "unix-workers") else 1):
        busy.append(daemon.connect().asked(f"/gate/long?{number}"))
        daemon.until(
            lambda count=number + 1: sum(len(worker.in_flight) for worker in daemon.workers()) == count,
            "it is in the app",
        )
    began = time.monotonic()
    late.asked("/late")
    answer = late.answer()
    took = time.monotonic() - began
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    limit = 3.0 if way == "long" else 0.5
    assert took > 0.9 * limit
    assert sum(len(worker.in_flight) for worker in daemon.workers()) == len(busy), "no thread was free"
    if way == "long":
        assert took < 2 * limit
    daemon.counted(errors=1)
    waiting = late.asked("/pid")
    (place.app_folder / "long.open").touch()
    for connection in busy:
        assert connection.answer().text == "long passed"
    assert waiting.answer().status == 200


@pytest.mark.parametrize("kind", ["gevent", *thorough("eventlet")])
def test_queue_timeout_of_greenlets(place: Place, kind: str) -> None:
    """No request waits for a greenlet, but clients wait when a worker has all the connections it may have."""
    options = ("-k", kind, "--worker-connections", "2", "--queue-timeout", "0.5")
    daemon = place.start(*options, "plain:app")
    busy = [daemon.connect().asked(f"/gate/long?{number}") for number in range(2)]
    daemon.until(lambda: len(daemon.workers()[0].in_flight) == 2, "both are in the app")
    assert daemon.connect().asked("/late").answer().status == 503
    assert len(daemon.workers()[0].in_flight) == 2
    (place.app_folder / "long.open").touch()
    assert [connection.answer().text for connection in busy] == ["long passed"] * 2


@pytest.mark.thorough
def test_queue_timeout_while_others_serve(place: Place) -> None:
    """What a worker in a long request leaves alone is served by another one, and not refused."""
    daemon = place.start("-w", "2", "--queue-timeout", "0.5", "plain:app")
    daemon.settled(2)
    busy = daemon.connect().asked("/gate/long")
    daemon.in_app("/gate/long")
    known = daemon.connect()
    daemon.until(
        lambda: (
            {daemon.get().status, known.asked("/pid").answer().status} == {200}
            and daemon.in_app("/gate/long").age > 2
        ),
        "all are served for longer than requests may wait",
    )
    (place.app_folder / "long.open").touch()
    assert busy.answer().status == 200
    assert daemon.status().totals.errors == 0


def test_queue_timeout_of_a_worker_that_did_not_run(place: Place) -> None:
    """A connection counts as waiting since it was made, also at an idle worker whose process was stopped."""
    daemon = place.start("--queue-timeout", "1.2", "plain:app")
    worker = Process(daemon.pids()[0])
    assert daemon.get().status == 200
    freeze(worker)
    came = time.monotonic()
    late = daemon.connect().asked("/late")
    daemon.until(lambda: time.monotonic() - came > 2.5, "it has waited for longer")
    worker.send(signal.SIGCONT)
    assert late.answer().status == 503
    assert daemon.get().status == 200


def test_timeout(place: Place) -> None:
    """-t 1: the log names method, path and stack with the app's function; worker replaced, client cut off."""
    daemon = place.start("-t", "1", *GRACE, "plain:app")
    victim = Process(daemon.pids()[0])
    began = time.monotonic()
    connection = daemon.connect().asked("/gate/never?secret=token", "POST", body=b"x")
    event = daemon.event("request_overdue", level="error")
    assert 0.9 < time.monotonic() - began < 20
    assert (event["method"], event["path"], event["pid"]) == ("POST", "/gate/never", victim.pid)
    assert "in wait_at_gate" in event["stack"]
    assert "plain.py" in event["stack"]
    assert "secret" not in daemon.log.read_text(), "queries hold tokens"
    connection.ended_by_server()
    assert victim.ended()
    assert daemon.event("worker_exited")["cause"] == "deadline"
    assert [event["path"] for event in daemon.events("request_lost")] == ["/gate/never"]
    daemon.settled(1, state="ready")
    assert daemon.get().text == "one"
    assert daemon.status().totals.deaths == 0


@pytest.mark.thorough
def test_timeout_with_threads(place: Place) -> None:
    """In gthread, requests in other threads finish, while the worker accepts no new ones."""
    daemon = place.start("-t", "1.5", *HARD, "--timeout-grace", "2", "--threads", "4", "plain:app")
    victim = Process(daemon.pids()[0])
    hung = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    daemon.until(lambda: daemon.workers()[0].in_flight[0].age > 1.0, "it has been there for a second")
    sibling = daemon.connect().asked("/gate/sibling")
    daemon.in_app("/gate/sibling")
    event = daemon.event("request_overdue")
    assert event["path"] == "/gate/never"
    assert event["stack"].count("Thread 0x") == 1, "the stack of that thread only"
    assert "in wait_at_gate" in event["stack"]
    daemon.event("worker_ready", after=1)
    (place.app_folder / "sibling.open").touch()
    assert sibling.answer().text == "sibling passed"
    assert victim.ended()
    hung.ended_by_server()
    assert [event["path"] for event in daemon.events("request_lost")] == ["/gate/never"]
    assert [event["path"] for event in daemon.events("request_overdue")] == ["/gate/never"]
    daemon.settled(1)


def test_late_but_not_lost(place: Place) -> None:
    """A request that ends within timeout_grace is answered; its worker is replaced nevertheless."""
    daemon = place.start("-t", "0.5", *HARD, "--timeout-grace", "30", "plain:app")
    victim = Process(daemon.pids()[0])
    connection = daemon.connect().asked("/gate/late")
    daemon.event("request_overdue")
    daemon.event("worker_ready", after=1)
    (place.app_folder / "late.open").touch()
    assert connection.answer().text == "late passed"
    connection.close()
    assert victim.ended()
    assert daemon.events("request_lost") == []


def test_timeout_of_zero_is_never(place: Place) -> None:
    """-t 0 turns deadlines off, also in the API."""
    daemon = place.start("-t", "0", "plain:app")
    connection = daemon.connect().asked("/gate/long")
    assert daemon.in_app("/gate/long").deadline_in is None
    assert daemon.workers()[0].deadline_in is None
    (place.app_folder / "long.open").touch()
    assert connection.answer().status == 200


@pytest.mark.thorough
def test_others_serve_while_one_hangs(place: Place) -> None:
    """A hung request under load: only connections of its own worker can be lost with it."""
    daemon = place.start("-w", "2", "-t", "0.5", *GRACE, "plain:app")
    daemon.settled(2)
    with Load(daemon.address, rate=50, connections=4) as load:
        load.wait_for(10)
        hung = daemon.connect().asked("/gate/never")
        daemon.event("request_lost", path="/gate/never")
        daemon.settled(2, state="ready")
        load.wait_for(load.ended + 50)
        report = load.finish()
    hung.ended_by_server()
    assert report.failed <= 3, report.summary()


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_boot_timeout(place: Place, preload: list[str]) -> None:
    """An app that hangs at import ends the start with one line and exit code 3, soon after --boot-timeout."""
    place.add("hangs.py", "import time\ntime.sleep(1000)\n")
    began = time.monotonic()
    done = place.run("-b", "127.0.0.1:0", "--boot-timeout", "1", *preload, "hangs:app")
    assert 0.9 < time.monotonic() - began < 30
    assert done.code == 3
    last = done.err.splitlines()[-1]
    assert last.startswith("ostler: error: ")
    assert "boot_timeout" in last


@pytest.mark.thorough
def test_boot_timeout_of_a_successor(place: Place) -> None:
    """After the start a hanging boot is a failure like others: backoff, the survivors serve."""
    place.add(
        "sometimes.py",
        "import pathlib, time\n"
        "while pathlib.Path('hang').exists():\n"
        "    time.sleep(0.01)\n"
        "from plain import app\n",
    )
    daemon = place.start("-w", "2", "--boot-timeout", "1.5", "sometimes:app")
    before = daemon.settled(2)
    (place.app_folder / "hang").touch()
    Process(before[0].pid or 0).send(signal.SIGKILL)
    assert "boot_timeout" in daemon.event("worker_boot_failed", slot=1)["reason"]
    assert daemon.status().state == "degraded"
    assert daemon.get().text == "one"
    (place.app_folder / "hang").unlink()
    daemon.settled(2, state="ready")


@pytest.mark.thorough
def test_max_requests(place: Place) -> None:
    """Each worker is replaced after max_requests plus jitter, successor first, and no request fails."""
    daemon = place.start("-w", "2", "--max-requests", "40", "--max-requests-jitter", "20", "plain:app")
    daemon.settled(2)
    with Load(daemon.address, rate=300, connections=8, requests=600) as load:
        load.wait_for(600)
        report = load.finish()
    assert report.failed == 0, report.summary()
    assert report.unasked == 0
    recycled = [event for event in daemon.events("recycle") if "requests" in event]
    assert len(recycled) >= 4
    # It serves until its successor is ready; the number at which it asks for one is exact.
    assert all(40 <= event["requests"] <= 60 for event in recycled)
    assert len({event["requests"] for event in recycled}) > 1, "jitter"
    daemon.counted(requests=600)
    assert daemon.status().totals.deaths == 0
    successor_first(daemon.events())


def successor_first(events: list[dict[str, object]]) -> None:
    """No worker leaves as planned before another one is ready in its slot."""
    ready: dict[object, int] = {}
    for event in events:
        slot = event.get("slot")
        if event["event"] == "worker_ready":
            ready[slot] = ready.get(slot, 0) + 1
        elif event["event"] == "worker_exited" and event["cause"] in ("recycle", "asked", "reload"):
            assert ready[slot] > 1, f"slot {slot} was empty for a while"
            ready[slot] -= 1
