"""The worker class meinheld: its C server, with the same features around it as other worker classes."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.load import Load
from tests.kit.processes import Process
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE, until

pytest.importorskip("meinheld.server", reason="meinheld is not installed", exc_type=ImportError)

pytestmark = pytest.mark.system

MEINHELD = ("-k", "meinheld")

# An app whose requests end in special ways.
SPECIAL = """
import os
import time

import plain

LARGE = bytes(range(256)) * 40_000

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/large":
        start_response("200 OK", [("Content-Length", str(len(LARGE)))])
        return [LARGE]
    if path == "/parts":
        start_response("200 OK", [])
        return iter([b"some ", b"parts"])
    if path == "/sleep":
        time.sleep(1000)
    if path == "/half":
        return half(start_response)
    if path == "/begun":
        start_response("200 OK", [])
        time.sleep(1000)
    if path == "/leave":
        raise SystemExit(7)
    if path == "/abort":
        os.abort()
    if path == "/extended":
        environ["ostler.extend_deadline"](60)
        plain.wait_at_gate("extended")
    if path == "/echo":
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(len(body))), ("X-Length", str(len(body)))])
        return [body]
    return plain.app(environ, start_response)

def half(start_response):
    start_response("200 OK", [("Content-Length", "10")])
    yield b"half"
    time.sleep(1000)
"""


@pytest.fixture
def special(place: Place) -> Place:
    place.add("special.py", SPECIAL)
    return place


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    ["meinheld", *thorough("egg:meinheld#gunicorn_worker", "meinheld.gmeinheld.MeinheldWorker")],
)
def test_all_its_names(place: Place, name: str) -> None:
    """Under each name meinheld's own server answers."""
    daemon = place.start("-k", name, "plain:app")
    answer = daemon.get()
    assert answer.text == "one"
    assert answer.headers["server"].startswith("meinheld/")
    assert daemon.status().worker_class == "meinheld"
    assert "meinheld" in daemon.ctl("status").out


def test_environ(place: Place) -> None:
    """The app gets the address that clients have connected to, and theirs,
    on all connections that stay open.
    """
    daemon = place.start(*MEINHELD, "-b", "0.0.0.0:0", "plain:app")
    ports = [int(url.rpartition(":")[2]) for url in daemon.urls]
    first = daemon.connect()
    second = socket.create_connection(("127.0.0.1", ports[1]), PATIENCE, source_address=("127.0.0.2", 0))
    request = b"GET /environ HTTP/1.1\r\nHost: a\r\n\r\n"
    first.asked("/").answer()
    with second:
        second.sendall(request)
        received = b""
        while b'"REMOTE_ADDR": "127.0.0.2"' not in received:
            received += (data := second.recv(65536))
            assert data, received
        # meinheld's own value would be that of the newest connection.
        environ = first.asked("/environ").answer().text
    assert '"REMOTE_ADDR": "127.0.0.1"' in environ
    assert f'"SERVER_PORT": "{ports[0]}"' in environ


@pytest.mark.thorough
def test_unix_socket(place: Place) -> None:
    """Behind a proxy on this machine; clients have no address there."""
    daemon = place.start(*MEINHELD, "plain:app", bind=f"unix:{place.folder}/s.sock")
    environ = json.loads(daemon.get("/environ", headers={"Host": "example.com"}).body)
    assert environ["REMOTE_ADDR"] == ""
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("example.com", "80")


@pytest.mark.thorough
def test_bodies(special: Place) -> None:
    """Small and large bodies, in memory and in a temporary file, whole and in parts."""
    daemon = special.start(*MEINHELD, "--buffer-request", "10000", "special:app")
    for size in (0, 1, 9_999, 300_000, 20_000_000):
        answer = daemon.get("/echo", method="POST", body=b"x" * size)
        assert answer.headers["x-length"] == str(size)
        assert len(answer.body) == size
    assert daemon.get("/parts").text == "some parts"


@pytest.mark.thorough
def test_a_body_that_is_too_large(special: Place) -> None:
    """`limit_request_body` applies."""
    daemon = special.start(*MEINHELD, "--limit-request-body", "1000", "special:app")
    assert daemon.get("/echo", method="POST", body=b"x" * 1000).status == 200
    # The body is not sent: meinheld closes at once, and unread bytes would cause a reset.
    with socket.create_connection(daemon.address, PATIENCE) as client, client.makefile("rb") as answer:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
        assert answer.readline().split()[1] == b"413"


def test_slow_clients_get_whole_answers(special: Place) -> None:
    """A client that waits before it reads gets the whole answer and nothing else; three in a row."""
    daemon = special.start(*MEINHELD, "special:app")
    for _ in range(3):
        with socket.create_connection(daemon.address, PATIENCE) as client, client.makefile("rb") as answer:
            client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
            assert client.recv(1, socket.MSG_PEEK)  # the answer has begun, and does not fit
            head, _, body = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200")
        assert body == bytes(range(256)) * 40_000


@pytest.mark.thorough
def test_counts(special: Place) -> None:
    """Answers by class, bytes, and times, as for any worker class; refused requests count as well."""
    daemon = special.start(*MEINHELD, "special:app")
    for _ in range(5):
        assert daemon.get().text == "one"
    assert daemon.get("/fail").status == 500
    assert daemon.get("/leave").status == 500
    with socket.create_connection(daemon.address, PATIENCE) as client:
        client.sendall(b"G?T / HTTP/1.1\r\n\r\n")
        assert b"400" in client.recv(4096)
    daemon.until(lambda: daemon.status().totals.requests == 8, "eight requests")
    assert daemon.status().totals.errors == 2
    event = daemon.event("request_failed", path="/fail")
    assert "RuntimeError: the app's own mistake" in event["traceback"]
    assert "ostler/workers" not in event["traceback"]


def test_access_log(special: Place) -> None:
    """Gunicorn's format, with header fields of both directions; USR1 reopens; each line is written soon."""
    log = special.app_folder / "access.log"
    form = '%(h)s "%(r)s" %(s)s %(B)s "%({x-length}o)s" "%({x-ask}i)s" %(q)s %(U)s'
    daemon = special.start(
        *MEINHELD, "--access-logfile", "access.log", "--access-logformat", form, "special:app"
    )
    daemon.get("/echo?a=b%20c", method="POST", body=b"12345", headers={"X-Ask": "me\\"})
    line = '127.0.0.1 "POST /echo?a=b%20c HTTP/1.1" 200 5 "5" "me\\\\" a=b%20c /echo'
    daemon.until(lambda: log.read_text().splitlines() == [line], "the line")
    log.rename(special.app_folder / "access.log.1")
    daemon.send(signal.SIGUSR1)
    daemon.until(log.exists, "a new log")

    def logged() -> bool:
        daemon.get("/%41%0a")
        return "/A%0A" in log.read_text()

    daemon.until(logged, "a line in the new log")
    assert "\\x0a" in log.read_text() or "%0A" in log.read_text()


def test_keep_alive(place: Place) -> None:
    """Connections stay open as long as the setting says; with 0 each answer ends its connection."""
    daemon = place.start(*MEINHELD, "--keep-alive", "30", "plain:app")
    connection = daemon.connect()
    pids = {connection.asked("/pid").answer().text for _ in range(3)}
    assert len(pids) == 1
    assert connection.sock is not None
    second = place.start(*MEINHELD, "--keep-alive", "0", "plain:app")
    assert second.connect().asked("/").answer().headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/sleep", "/gate/never"])
def test_a_request_is_ended_alone(special: Place, path: str) -> None:
    """504 at the time-out, and the worker continues to serve."""
    daemon = special.start(*MEINHELD, "-t", "0.5", "--timeout-grace", "30", "special:app")
    (pid,) = daemon.pids()
    answer = daemon.connect().asked(path).answer()
    assert (answer.status, answer.text) == (504, "Gateway Timeout\n")
    assert "in app" in daemon.event("request_overdue", path=path)["stack"]
    assert daemon.get("/pid").text == str(pid)
    assert daemon.events("worker_exited") == []
    assert daemon.events("request_failed") == []


@pytest.mark.thorough
def test_a_client_that_takes_nothing(special: Place) -> None:
    """A client that reads nothing blocks its worker for `timeout`, and is then cut off;
    the worker continues to serve.
    """
    daemon = special.start(*MEINHELD, "-t", "0.5", "--timeout-grace", "30", "special:app")
    (pid,) = daemon.pids()
    with socket.create_connection(daemon.address, PATIENCE) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        daemon.event("request_overdue", path="/large")
        assert daemon.get("/pid").text == str(pid)


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["/half", "/begun"])
def test_a_begun_answer_is_cut(special: Place, path: str) -> None:
    """504 can't be sent any more: the client sees an error, and the worker continues to serve."""
    daemon = special.start(*MEINHELD, "-t", "0.5", "--timeout-grace", "30", "special:app")
    (pid,) = daemon.pids()
    with socket.create_connection(daemon.address, PATIENCE) as client:
        client.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
        with client.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    if path == "/half":
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b"half"
    else:
        assert head.startswith(b"HTTP/1.0 500")
    assert daemon.get("/pid").text == str(pid)


@pytest.mark.thorough
def test_more_time(special: Place) -> None:
    """A request that asks for it may take longer."""
    daemon = special.start(*MEINHELD, "-t", "0.5", "special:app")
    connection = daemon.connect().asked("/extended")
    daemon.until(
        lambda: [r for w in daemon.workers() for r in w.in_flight if r.age > 1], "older than the time-out"
    )
    (special.app_folder / "extended.open").touch()
    assert connection.answer().status == 200


@pytest.mark.thorough
def test_recycling(place: Place) -> None:
    """`max_requests` with jitter replaces workers without a lost request, each at its own number."""
    daemon = place.start(
        *MEINHELD, "-w", "2", "--max-requests", "100", "--max-requests-jitter", "20", "plain:app"
    )
    with Load(daemon.address, rate=400, connections=8) as load:
        daemon.event("worker_exited", after=5, cause="recycle")
    report = load.report()
    assert report.failed == 0, report.summary()
    assert daemon.status().totals.deaths == 0


@pytest.mark.thorough
def test_reload_under_load(place: Place) -> None:
    """New code without a lost request; idle connections are closed, not waited for."""
    daemon = place.start(*MEINHELD, "-w", "2", "--keep-alive", "60", "plain:app")
    before = set(daemon.pids())
    idle = daemon.connect()
    idle.asked("/").answer()
    with Load(daemon.address, rate=300, connections=8) as load:
        for number in (2, 3):
            daemon.send(signal.SIGHUP)
            daemon.event("reload_done", generation=number)
    report = load.report()
    assert report.failed == 0, report.summary()
    daemon.until(lambda: not before & set(daemon.pids()), "none of the old workers")
    idle.ended_by_server()


def test_term_finishes_what_is_in_flight(place: Place) -> None:
    """A request in the app is answered; then the worker ends at once, even with idle connections."""
    daemon = place.start(*MEINHELD, "--keep-alive", "60", "plain:app")
    idle = daemon.connect()
    idle.asked("/").answer()
    busy = daemon.connect().asked("/gate/term")
    daemon.in_app("/gate/term")
    daemon.send(signal.SIGTERM)
    daemon.event("stop")
    (place.app_folder / "term.open").touch()
    assert busy.answer().text == "term passed"
    assert daemon.wait() == 0
    assert daemon.events("worker_exited")[-1]["status"] == "exit code 0"


# meinheld's own time-outs are shortened, so that a test can exceed them. The time-out for a body
# is its keep-alive time-out.
SHORT_TIMEOUTS = """\
import ostler.workers.meinheld.worker as worker
worker._LONGEST, worker._RENEW_AT = 5, 4
"""
PATIENT = ("--keep-alive", "60")


def upload_slowly(daemon: Daemon, seconds: float) -> bytes:
    """Make the worker drain, and send it a body for that long; returns its answer."""
    with socket.create_connection(daemon.address, PATIENCE) as client:
        count = int(seconds / 0.25)
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % count)
        client.sendall(b"x")
        daemon.get()  # accepted later than the slow one
        daemon.send(signal.SIGTERM)
        daemon.event("stop")
        answer = b""
        try:
            for _ in range(count - 1):
                time.sleep(0.25)  # a slow client
                client.sendall(b"x")
            while part := client.recv(1000):
                answer += part
        except OSError:
            pass
        return answer


@pytest.mark.thorough
@pytest.mark.parametrize("bind", [(), *thorough((("-b", "127.0.0.1:0", "-b", "[::1]:0"),))])
def test_draining_longer_than_the_servers_timeouts(special: Place, bind: tuple[str, ...]) -> None:
    """meinheld's time-outs are at most 127 s, graceful_timeout may be longer: a request may use all of it."""
    special.add("conf.py", SHORT_TIMEOUTS)
    daemon = special.start(
        *MEINHELD, "-c", "conf.py", *bind, *PATIENT, "--graceful-timeout", "60", "special:app"
    )
    assert upload_slowly(daemon, 10.0).endswith(b"x" * 40)
    assert daemon.wait() == 0
    assert daemon.event("worker_exited")["status"] == "exit code 0"


@pytest.mark.thorough
def test_draining_is_over_when_its_time_is(special: Place) -> None:
    """After graceful_timeout remaining connections are cut, and the worker ends by itself."""
    special.add("conf.py", SHORT_TIMEOUTS)
    daemon = special.start(*MEINHELD, "-c", "conf.py", *PATIENT, "--graceful-timeout", "4", "special:app")
    began = time.monotonic()
    assert upload_slowly(daemon, 12.0) == b""
    assert time.monotonic() - began > 3.9
    assert daemon.wait() == 0
    assert daemon.event("worker_exited")["status"] == "exit code 0"


@pytest.mark.thorough
def test_idle_workers_are_prompt(place: Place) -> None:
    """A loop that waits for clients handles the supervisor's messages and signals without waiting for a
    client.
    """
    daemon = place.start(*MEINHELD, "-w", "3", "plain:app")
    daemon.settled(3)
    for number in range(2):
        daemon.send(signal.SIGTTOU)
        daemon.event("worker_exited", after=number)
    took = []
    for _ in range(4):
        victim = Process(daemon.settled(1)[0].pid or 0)
        began = time.monotonic()
        victim.send(signal.SIGTERM)
        assert victim.ended()
        took.append(time.monotonic() - began)
    # Its loop wakes up once a second by itself. On a busy machine not every end is prompt.
    assert min(took) < 0.5, took


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["/", "/gate/never"])
def test_quit(place: Place, path: str) -> None:
    """QUIT ends the worker at once, both in its loop and in the app."""
    daemon = place.start(*MEINHELD, "--keep-alive", "60", "plain:app")
    connection = daemon.connect().asked(path)
    if path == "/":
        connection.answer()
    else:
        daemon.in_app(path)
    assert daemon.stop(signal.SIGQUIT, within=25) == 0
    assert "Traceback" not in daemon.log.read_text()


def test_lost_supervisor(place: Place) -> None:
    """Without its supervisor it finishes and ends, and its address is free at once."""
    daemon = place.start(*MEINHELD, "plain:app")
    worker = Process(daemon.pids()[0])
    busy = daemon.connect().asked("/gate/orphan")
    daemon.in_app("/gate/orphan")
    port = daemon.port
    daemon.kill()
    (place.app_folder / "orphan.open").touch()
    assert busy.answer().text == "orphan passed"
    assert worker.ended()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


@pytest.mark.thorough
def test_a_crash_costs_its_worker_only(special: Place) -> None:
    """Whatever ends its process, the other worker serves, and there is soon a new one."""
    daemon = special.start(*MEINHELD, "-w", "2", "special:app")
    daemon.settled(2)
    try:
        daemon.get("/abort")
    except OSError:
        pass
    assert daemon.event("worker_died")["status"] == "signal 6"
    daemon.settled(2)
    assert daemon.get().text == "one"


@pytest.mark.thorough
def test_preload_and_refork(place: Place) -> None:
    """It starts in a process that has loaded the app, and in a child of a worker that has served."""
    daemon = place.start(*MEINHELD, "--preload", "-w", "2", "plain:app")
    assert daemon.get().text == "one"
    daemon.settled(2)
    done = daemon.ctl("refork")
    assert done.code == 0, done
    assert daemon.get().text == "one"
    daemon.settled(2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--proxy-protocol"], "proxy_protocol"),
        (["--stream-request"], "stream_request"),
    ],
)
def test_what_it_can_not_do(place: Place, options: list[str], words: str) -> None:
    """Unsupported settings are reported when the configuration is checked,
    in one line that names the setting.
    """
    done = place.run("--check-config", *MEINHELD, *options, "plain:app")
    assert done.code == 1
    assert words in done.error
    assert "meinheld" in done.error


@pytest.mark.thorough
def test_no_descriptor_is_left(place: Place) -> None:
    """After many connections and signals the process has the same descriptors as before."""
    daemon = place.start(*MEINHELD, "plain:app")
    (pid,) = daemon.pids()

    def count() -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    daemon.get()
    before = until(count, "descriptors")
    for _ in range(200):
        daemon.get()
    for _ in range(20):
        daemon.send(signal.SIGUSR1)
    # The connection to itself may exist twice for a moment.
    until(lambda: count() <= before + 2, "as many descriptors as before")
