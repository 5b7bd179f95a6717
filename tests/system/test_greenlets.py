"""The worker classes `gevent` and `eventlet`, and configuration files that monkey-patch for other classes."""

import json
import signal
import socket

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.load import Load
from tests.kit.processes import Process, title
from tests.kit.tiers import thorough, tiers
from tests.kit.waiting import PATIENCE

pytestmark = pytest.mark.system

GEVENT_FIRST = pytest.mark.parametrize("kind", ["gevent", *thorough("eventlet")])

# An app for greenlets; the path selects what it does.
GREEN = """\
import contextvars
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import plain

PATCHED = [time.sleep.__module__, socket.socket.__module__]
KIND = "gevent" if "gevent" in PATCHED[0] else "eventlet"
local = threading.local()
variable = contextvars.ContextVar("variable", default=None)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = b""
    if path == "/patched":
        body = json.dumps(PATCHED).encode()
    elif path == "/flags":
        body = json.dumps([environ["wsgi.multithread"], environ["wsgi.multiprocess"]]).encode()
    elif path == "/compute":
        compute("computed")
    elif path == "/compute-behind":
        behind(compute, "never")
    elif path == "/local":
        body = json.dumps([getattr(local, "left", None), variable.get()]).encode()
        local.left = "a secret"
        variable.set("a secret")
        threading.current_thread()
        time.sleep(0)
    elif path == "/children":
        body = b"".join(children())
    elif path == "/time-out":
        body = timed_out()
    elif path == "/time-out-left-behind":
        import gevent
        gevent.Timeout(0.3).start()
    elif path == "/late":
        time.sleep(0.6)
    elif path == "/swallows":
        while not Path("enough.open").exists():
            try:
                time.sleep(0.01)
            except BaseException:
                pass
    elif path == "/extended":
        environ["ostler.extend_deadline"](30)
        body = plain.wait_at_gate("extended").encode()
    elif path == "/large":
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(256))
    elif path == "/echo":
        body = environ["wsgi.input"].read()
    elif path == "/fork":
        body = forked()
    elif path == "/lookup":
        body = socket.getaddrinfo("localhost", 80)[0][4][0].encode()
    else:
        return plain.app(environ, start_response)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

def compute(name):
    while not Path(name + ".open").exists():
        pass

def behind(function, *args):
    if KIND == "gevent":
        import gevent
        gevent.spawn(function, *args)
    else:
        import eventlet
        eventlet.spawn_n(function, *args)

def children():
    if KIND == "gevent":
        from gevent.pool import Pool
        return Pool(4).imap(child, range(10))
    import eventlet
    return eventlet.GreenPool(4).imap(child, range(10))

def child(number):
    time.sleep(0.01)
    return b"%d" % number

def timed_out():
    if KIND == "gevent":
        from gevent import Timeout
    else:
        from eventlet import Timeout
    try:
        with Timeout(0.05):
            time.sleep(1000)
    except Timeout:
        return b"timed out"

def forked():
    pid = os.fork()
    if not pid:
        for _ in range(20):
            time.sleep(0.01)
        Path("child.open").touch()
        os._exit(0)
    body = plain.wait_at_gate("child").encode()
    os.waitpid(pid, 0)
    return body
"""


@pytest.fixture
def green(place: Place) -> Place:
    place.add("green.py", GREEN)
    return place


def start(place: Place, kind: str, *options: str) -> Daemon:
    return place.start("-k", kind, *options, "green:app")


def open_gate(daemon: Daemon, name: str) -> None:
    (daemon.place.app_folder / f"{name}.open").touch()


def in_flight(daemon: Daemon) -> int:
    return sum(len(worker.in_flight) for worker in daemon.workers())


# -- many at once ----------------------------------------------------------------------------------------


@GEVENT_FIRST
def test_requests_wait_together(green: Place, kind: str) -> None:
    """A hundred requests are in the app of one worker at the same time, and keep their connections."""
    daemon = start(green, kind)
    clients = [daemon.connect().asked("/gate/all") for _ in range(100)]
    daemon.until(lambda: in_flight(daemon) == 100, "all are in the app")
    assert daemon.get().text == "one"
    open_gate(daemon, "all")
    assert {client.answer().text for client in clients} == {"all passed"}
    assert {client.asked("/pid").answer().text for client in clients} == {str(daemon.pids()[0])}
    daemon.until(lambda: in_flight(daemon) == 0, "none is in flight")
    daemon.until(lambda: daemon.status().totals.requests >= 201, "all are counted")


@GEVENT_FIRST
@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
def test_patched_before_the_app_is_imported(green: Place, kind: str, preload: list[str]) -> None:
    """At its import the app finds the patched standard library; wsgi.multithread is true, as in gunicorn."""
    daemon = start(green, kind, "-w", "2", *preload)
    sleep, sockets = json.loads(daemon.get("/patched").text)
    assert sleep.startswith(kind)
    assert sockets.startswith(kind)
    assert json.loads(daemon.get("/flags").text) == [True, True]
    assert daemon.get("/children").text == "0123456789"
    assert daemon.get("/lookup").text in ("127.0.0.1", "::1")


@pytest.mark.thorough
@GEVENT_FIRST
def test_nothing_is_left_for_the_next_request(green: Place, kind: str) -> None:
    """Thread-locals and context variables are new in each request, also on one connection."""
    daemon = start(green, kind)
    client = daemon.connect()
    for _ in range(5):
        assert json.loads(client.asked("/local").answer().text) == [None, None]
    assert client.asked("/time-out").answer().text == "timed out"
    assert client.asked("/patched").answer().status == 200


@pytest.mark.thorough
def test_a_time_out_that_was_left_behind(green: Place) -> None:
    """A gevent.Timeout that is never cancelled hits no other request,
    although greenlets serve several requests.
    """
    daemon = start(green, "gevent")
    client = daemon.connect()
    for _ in range(3):
        assert client.asked("/time-out-left-behind").answer().status == 200
        assert client.asked("/late").answer().status == 200
    assert daemon.events("request_failed") == []


@GEVENT_FIRST
def test_a_process_that_the_app_forks(green: Place, kind: str) -> None:
    """A child may wait in the hub that it has inherited; meanwhile only its parent serves."""
    daemon = start(green, kind)
    client = daemon.connect().asked("/fork")
    pids = {daemon.get("/pid").text for _ in range(20)}
    assert client.answer().text == "child passed"
    assert pids == {str(daemon.pids()[0])}


@pytest.mark.thorough
@GEVENT_FIRST
def test_slow_clients_delay_no_other(green: Place, kind: str) -> None:
    """One client reads nothing of a large answer, one sends its body in parts to an app that waits for it."""
    daemon = start(green, kind, "--stream-request", "--buffer-response", "1K", "--buffer-response-file", "0")
    with (
        socket.create_connection(daemon.address) as taker,
        socket.create_connection(daemon.address) as sender,
    ):
        taker.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        sender.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\none")
        daemon.in_app("/large")
        daemon.in_app("/echo")
        for _ in range(20):
            assert daemon.get().text == "one"
        sender.sendall(b"two")
        sender.settimeout(PATIENCE)
        echoed = b""
        while not echoed.endswith(b"onetwo"):
            echoed += (data := sender.recv(4096))
            assert data, echoed
        taker.settimeout(PATIENCE)
        received = 0
        while data := taker.recv(1 << 20):
            received += len(data)
        assert received > 256 * 65536


@pytest.mark.thorough
@GEVENT_FIRST
def test_tls(green: Place, kind: str) -> None:
    """Encrypted connections wait at the same time, as plain ones do."""
    authority = Authority(green.folder)
    certificate = authority.issue("localhost")
    daemon = start(green, kind, "--certfile", str(certificate.cert), "--keyfile", str(certificate.key))
    context = authority.client_context()
    clients = []
    for _ in range(10):
        plain = socket.create_connection(("127.0.0.1", daemon.port), timeout=PATIENCE)
        clients.append(context.wrap_socket(plain, server_hostname="localhost"))
        clients[-1].sendall(b"GET /gate/tls HTTP/1.1\r\nHost: x\r\n\r\n")
    daemon.until(lambda: in_flight(daemon) == 10, "all are in the app")
    open_gate(daemon, "tls")
    for client in clients:
        with client:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")


# -- deadlines -------------------------------------------------------------------------------------------


@GEVENT_FIRST
def test_an_overdue_request_is_ended_alone(green: Place, kind: str) -> None:
    """504 for the request whose time is over, with the stack of its greenlet; other requests continue."""
    daemon = start(green, kind, "-t", "1", "--timeout-grace", "30")
    (pid,) = daemon.pids()
    extended = daemon.connect().asked("/extended")
    daemon.in_app("/extended")
    client = daemon.connect().asked("/gate/never?secret=token")
    answer = client.answer()
    assert (answer.status, answer.text) == (504, "Gateway Timeout\n")
    event = daemon.event("request_overdue", path="/gate/never")
    assert "in wait_at_gate" in event["stack"]
    assert event["stack"].count("Thread 0x") == 1
    open_gate(daemon, "extended")
    assert extended.answer().text == "extended passed"
    assert daemon.get("/pid").text == str(pid)
    assert daemon.events("worker_exited") == []
    assert daemon.events("request_failed") == []


@GEVENT_FIRST
def test_hundreds_of_requests_at_once(green: Place, kind: str) -> None:
    """All are visible while they are in the app, and none afterwards."""
    daemon = start(green, kind)
    clients = [daemon.connect(60).asked("/gate/many") for _ in range(300)]
    daemon.until(lambda: len(daemon.workers()[0].in_flight) == 300, "all are shown", within=60)
    open_gate(daemon, "many")
    assert {client.answer().text for client in clients} == {"many passed"}
    daemon.until(lambda: daemon.status().totals.requests == 300, "all are counted")
    assert daemon.workers()[0].in_flight == []


@pytest.mark.thorough
@GEVENT_FIRST
def test_many_overdue_at_once(green: Place, kind: str) -> None:
    """Each is ended, and each is logged with a stack."""
    daemon = start(green, kind, "-t", "2", "--timeout-grace", "30")
    (pid,) = daemon.pids()
    clients = [daemon.connect(60).asked("/gate/never") for _ in range(300)]
    assert {client.answer().status for client in clients} == {504}
    daemon.until(lambda: len(daemon.events("request_overdue")) == 300, "all are logged")
    stacks = [event["stack"] for event in daemon.events("request_overdue")]
    # On a busy machine the greenlet's own stack comes too late, and that of the main thread is shown.
    assert all(stack.count("hread 0x") == 1 for stack in stacks)
    assert sum("in wait_at_gate" in stack for stack in stacks) >= 10
    assert daemon.get("/pid").text == str(pid)


@GEVENT_FIRST
def test_a_blocked_hub(green: Place, kind: str) -> None:
    """A request that computes blocks all others: the log names the code, and its deadline ends it."""
    daemon = start(green, kind, "-t", "3", "--timeout-grace", "30")
    (pid,) = daemon.pids()
    client = daemon.connect().asked("/compute")
    event = daemon.event("loop_blocked", level="warning")
    assert "in compute" in event["stack"]
    assert event["seconds"] >= 1
    assert client.answer().status == 504
    overdue = daemon.event("request_overdue", path="/compute")
    assert "in compute" in overdue["stack"]
    assert event["timestamp"] < overdue["timestamp"]
    assert daemon.get("/pid").text == str(pid)


@pytest.mark.thorough
@GEVENT_FIRST
def test_a_hub_that_stays_blocked(green: Place, kind: str) -> None:
    """Code outside of a request can't be ended alone: the worker is replaced."""
    daemon = start(green, kind, "-t", "1", "--timeout-grace", "0.2")
    victim = Process(daemon.pids()[0])
    daemon.get("/compute-behind")
    assert "in compute" in daemon.event("loop_blocked")["stack"]
    daemon.event("worker_stalled")
    assert victim.ended()
    daemon.settled(1, state="ready")
    assert daemon.get().text == "one"


@GEVENT_FIRST
def test_a_request_that_swallows_the_exception_costs_its_worker(green: Place, kind: str) -> None:
    """After the grace time the worker is replaced; requests beside it finish."""
    daemon = start(green, kind, "-t", "1", "--timeout-grace", "1")
    victim = Process(daemon.pids()[0])
    extended = daemon.connect().asked("/extended")
    daemon.in_app("/extended")
    daemon.connect().asked("/swallows")
    daemon.event("worker_ready", after=1)
    open_gate(daemon, "extended")
    assert extended.answer().text == "extended passed"
    assert victim.ended()
    assert daemon.event("worker_exited")["cause"] == "deadline"


# -- the worker's life -----------------------------------------------------------------------------------


@GEVENT_FIRST
@pytest.mark.parametrize("signum", [signal.SIGTERM, *thorough(signal.SIGQUIT)])
def test_signals_to_a_worker(green: Place, kind: str, signum: int) -> None:
    """SIGTERM lets requests end, SIGQUIT does not; without requests both end the worker at once."""
    daemon = start(green, kind)
    idle = Process(daemon.pids()[0])
    idle.send(signum)
    assert idle.ended()
    daemon.event("worker_ready", after=1)
    busy = Process(daemon.settled(1)[0].pid or 0)
    client = daemon.connect().asked("/gate/late")
    daemon.in_app("/gate/late")
    busy.send(signum)
    if signum == signal.SIGTERM:
        daemon.until(lambda: "draining" in title(busy.pid), "it drains")
        open_gate(daemon, "late")
        assert client.answer().text == "late passed"
    else:
        client.ended_by_server()
    assert busy.ended()
    daemon.event("worker_died", after=1)
    assert {event["status"] for event in daemon.events("worker_died")} == {"exit code 0"}
    assert "Traceback" not in daemon.log.read_text()


@GEVENT_FIRST
def test_reload_and_scale_lose_nothing(green: Place, kind: str) -> None:
    """Idle connections move to other workers, requests in the app are answered."""
    daemon = start(green, kind, "-w", "2", "--max-requests", "400")
    daemon.settled(2)
    with Load(daemon.address, rate=300, connections=16) as load:
        load.wait_for(100)
        assert daemon.ctl("reload").code == 0
        assert daemon.ctl("scale", "4").code == 0
        daemon.settled(4)
        assert daemon.ctl("scale", "1").code == 0
        load.wait_for(load.ended + 200)
        report = load.finish()
    assert (report.failed, report.unasked) == (0, 0), report.summary()
    assert daemon.status().totals.deaths == 0


@pytest.mark.thorough
def test_refork(green: Place) -> None:
    """A drained gevent worker becomes the fork server, and its children have hubs of their own."""
    daemon = start(green, "gevent", "-w", "2")
    daemon.settled(2)
    done = daemon.ctl("refork")
    assert done.code == 0, done.err
    daemon.event("refork_done")
    fork_server(daemon)
    daemon.settled(2)
    clients = [daemon.connect().asked("/gate/all") for _ in range(20)]
    daemon.until(lambda: in_flight(daemon) == 20, "all are in the app")
    open_gate(daemon, "all")
    assert {client.answer().text for client in clients} == {"all passed"}


# -- what else may be ------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("patch", ["gevent.monkey.patch_all()", "eventlet.monkey_patch()"])
@pytest.mark.parametrize("kind", ["itself", *thorough("gthread")])
@pytest.mark.parametrize("preload", [True, *thorough(False)])
def test_a_file_that_patches(place: Place, patch: str, kind: str, preload: bool) -> None:
    """The fork server uses the original functions nevertheless, with every worker class."""
    library = patch.partition(".")[0]
    lines = [f"import {library}", "import gevent.monkey" if library == "gevent" else "", patch]
    place.add(
        "gunicorn.conf.py", "\n".join([*lines, f"preload_app = {preload}", "warmup_request = ['/']", ""])
    )
    daemon = place.start(
        "-w", "2", "--threads", "2", "-k", library if kind == "itself" else kind, "plain:app"
    )
    assert len({worker.pid for worker in daemon.settled(2)}) == 2
    client = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    assert daemon.get().text == "one"
    open_gate(daemon, "slow")
    assert client.answer().text == "slow passed"
    daemon.close_connections()
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "one"
    assert daemon.stop() == 0


FILE = """
import ssl
import time
{more}
import urllib3
context = urllib3.util.ssl_.create_urllib3_context()
context.minimum_version = ssl.TLSVersion.TLSv1_2
context.options |= ssl.OP_NO_COMPRESSION
with open("seen", "w") as file:
    file.write(time.sleep.__module__)
"""
DYNAMIC = "import os\nworker_class = os.environ.get('KIND', '{kind}')"


@GEVENT_FIRST
@pytest.mark.parametrize("where", ["flag", *thorough("file", "variable")])
def test_patched_before_the_file_is_evaluated(green: Place, kind: str, where: str) -> None:
    """Where the class is named by a flag, a variable with arguments, or one plain assignment of the file,
    what the file imports is patched: ssl, and the libraries that use it, work, and nothing is reported.
    """
    green.add("tls.conf.py", FILE.format(more=f"worker_class = {kind!r}" if where == "file" else ""))
    flags = ["-k", kind] if where == "flag" else []
    variables = {"GUNICORN_CMD_ARGS": f"--worker-class {kind}"} if where == "variable" else {}
    daemon = green.start(*flags, "-c", "tls.conf.py", "green:app", **variables)
    assert (green.app_folder / "seen").read_text().startswith(kind)
    assert daemon.status().worker_class == kind
    assert json.loads(daemon.get("/patched").text)[0].startswith(kind)
    assert daemon.ctl("reload").code == 0
    assert daemon.get().text == "one"
    assert daemon.events("patched_late") == []


@pytest.mark.thorough
@pytest.mark.parametrize("preload", tiers({"lazy": [], "preload": ["--preload"]}.items(), ["lazy"]))
def test_patched_too_late(green: Place, preload: list[str]) -> None:
    """A file that computes the class is evaluated before; what it has imported is named in one warning,
    whatever it has frozen, and however many workers there are.
    """
    more = DYNAMIC.format(kind="gevent") + "\nimport gc\ngc.freeze()"
    green.add("late.conf.py", FILE.format(more=more))
    daemon = green.start("-w", "3", *preload, "-c", "late.conf.py", "green:app")
    daemon.settled(3)
    (event,) = daemon.events("patched_late")
    assert "urllib3.util" in event["problem"]
    assert "if -k names the worker class" in event["problem"]
    done = green.run("--check-config", "-c", "late.conf.py", "green:app")
    assert done.code == 0
    assert "patched_late" in done.err


@GEVENT_FIRST
def test_a_package_that_is_missing(place: Place, kind: str) -> None:
    """The error is one line that names what to install."""
    place.add(f"{kind}.py", f"raise ModuleNotFoundError(\"No module named '{kind}'\")")
    done = place.run("-k", kind, "plain:app", PYTHONPATH=str(place.app_folder))
    assert done.code == 1
    assert f"pip install 'ostler[{kind}]'" in done.error
