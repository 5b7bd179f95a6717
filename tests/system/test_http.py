"""Usual HTTP through real sockets: a validated WSGI app and Flask, both kinds of worker."""

import json
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ostler.control.routes import METRICS
from ostler.logs.limiter import FIRST
from tests.kit.daemon import Daemon, Place
from tests.kit.tiers import thorough
from tests.kit.waiting import PATIENCE

pytestmark = pytest.mark.system

# HAProxy's `option httpchk GET / HTTP/1.1` sends this.
NO_HOST = b"GET / HTTP/1.1\r\n\r\n"
MEINHELD_REASON = (
    "meinheld gives no reason: malformed, a line or a field of more than 8 KB, or more than 129 fields"
)


@pytest.fixture(scope="module", params=["sync", "gthread"])
def strict(request: pytest.FixtureRequest, shared_place: Place) -> Iterator[Daemon]:
    """An app under wsgiref.validate: a broken rule of PEP 3333 is a 500 and an error in the log."""
    threads = ["--threads", "4"] if request.param == "gthread" else []
    daemon = shared_place.start(*threads, "strict:app")
    yield daemon
    assert daemon.events("request_failed") == []
    assert daemon.events("worker_died") == []
    daemon.close_connections()
    daemon.stop()


@pytest.fixture(scope="module")
def shop(shared_place: Place) -> Daemon:
    return shared_place.start("-w", "2", "shop:app")


def test_get(strict: Daemon) -> None:
    """The app gets the query, the length is sent, the connection stays open for a second request."""
    connection = strict.connect()
    for query in ("a=1", "b=%20"):
        answer = connection.asked(f"/?{query}").answer()
        assert (answer.status, answer.text) == (200, f"GET {query}")
        assert answer.headers["content-length"] == str(len(answer.body))
        assert {"date", "server"} <= answer.headers.keys()
        assert "connection" not in answer.headers


def test_head(strict: Daemon) -> None:
    """HEAD has GET's header fields and no body, and the connection continues."""
    connection = strict.connect()
    answer = connection.asked("/", "HEAD").answer()
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "5", b"")
    assert connection.asked("/").answer().text == "GET "


def test_post(strict: Daemon) -> None:
    """A body of known length, small or larger than any buffer, comes back unchanged."""
    connection = strict.connect()
    for body in (b"x", b"", b"0123456789" * 100_000):
        answer = connection.asked("/echo", "POST", body=body).answer()
        assert (answer.status, len(answer.body), answer.body) == (200, len(body), body)


def test_chunked_post(strict: Daemon) -> None:
    """A chunked body reaches the app completely, and readline() finds its lines."""
    connection = strict.connect()
    chunks = [b"line one\nli", b"ne two\n", b"x" * 70, b"\n"]
    answer = connection.asked("/lines", "POST", body=iter(chunks), encode_chunked=True).answer()
    assert (answer.status, answer.text) == (200, "3")
    chunked = connection.asked("/echo", "POST", body=iter(chunks), encode_chunked=True).answer()
    assert chunked.body == b"".join(chunks)


def test_streaming(strict: Daemon) -> None:
    """An iterable without a length is sent in chunks; to HTTP/1.0 until the end of the connection."""
    answer = strict.get("/stream")
    expected = b"".join(b"part %d\n" % n for n in range(50))
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.body == expected
    old = speak(strict, b"GET /stream HTTP/1.0\r\n\r\n")
    head, _, body = old.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == expected


def test_write_callable(strict: Daemon) -> None:
    """Data of write() comes before the returned data."""
    assert strict.get("/write").text == "written, returned"


def test_not_found(strict: Daemon) -> None:
    """The app's own 404 is sent unchanged."""
    answer = strict.get("/nowhere")
    assert (answer.status, answer.text) == (404, "no such page\n")


def test_pipelining(strict: Daemon) -> None:
    """Requests that arrive in one packet are answered one after the other, in order."""
    requests = b"".join(b"GET /?%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(9))
    answers = speak(strict, requests + b"GET /?9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    bodies = [part.rpartition(b"\r\n\r\n")[2][:5] for part in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"GET %d" % n for n in range(10)]


def test_garbage_is_refused(strict: Daemon) -> None:
    """Bytes that are not HTTP get a 400 and the connection is closed; the worker continues to serve."""
    answer = speak(strict, b"this is no request\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert strict.get("/").status == 200


def test_head_in_pieces(strict: Daemon) -> None:
    """A request that arrives byte by byte is served, and others do not wait for it."""
    with socket.create_connection(strict.address, timeout=PATIENCE) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b"GET /?slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        for n, byte in enumerate(request):
            slow.send(bytes([byte]))
            if n % 10 == 0:
                assert strict.get("/").status == 200
        assert everything(slow).endswith(b"\r\n\r\nGET slow")


def test_length_is_sent(shop: Daemon) -> None:
    """An answer whose blocks are known is not chunked, although the app gave no length."""
    answer = shop.get("/pid")
    assert answer.headers["content-length"] == str(len(answer.body))
    assert "transfer-encoding" not in answer.headers


def test_flask_json(shop: Daemon) -> None:
    """JSON in, JSON out, 201."""
    body = json.dumps({"tea": 3, "ünïcode": "☕"}).encode()
    answer = shop.get("/orders", method="POST", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 201
    assert json.loads(answer.body) == {"ordered": {"tea": 3, "ünïcode": "☕"}, "length": len(body)}


def test_flask_chunked_upload(shop: Daemon) -> None:
    """Werkzeug reads a body of unknown length because the server marks its end."""
    answer = shop.get("/upload", method="POST", body=iter([b"x" * 9000] * 10), encode_chunked=True)
    assert (answer.status, answer.text) == (200, "90000 bytes")


def test_flask_stream_and_errors(shop: Daemon) -> None:
    """Generators stream; abort(403), unknown pages and unhandled errors have their status."""
    assert shop.get("/stream").text.splitlines()[-1] == "line 99"
    assert [shop.get(path).status for path in ("/forbidden", "/none", "/fail")] == [403, 404, 500]


def test_error_in_the_app(place: Place) -> None:
    """An exception is a plain 500 for the client and a log event with the traceback; the worker continues."""
    daemon = place.start("plain:app")
    pids = daemon.pids()
    answer = daemon.get("/fail")
    assert (answer.status, answer.headers["connection"]) == (500, "close")
    assert "mistake" not in answer.text
    event = daemon.event("request_failed")
    assert (event["method"], event["path"]) == ("GET", "/fail")
    assert "plain.py" in event["traceback"]
    assert "the app's own mistake" in event["traceback"]
    assert daemon.get("/").status == 200
    assert daemon.pids() == pids
    daemon.counted(errors=1)


@pytest.mark.parametrize(
    ("worker_class", "request_", "rule", "reason"),
    [
        ("gthread", NO_HOST, "missing_host", "Host is missing (RFC 9112 section 3.2)"),
        *thorough(
            ("sync", NO_HOST, "missing_host", "Host is missing (RFC 9112 section 3.2)"),
            ("gevent", NO_HOST, "missing_host", "Host is missing (RFC 9112 section 3.2)"),
            ("eventlet", NO_HOST, "missing_host", "Host is missing (RFC 9112 section 3.2)"),
        ),
        ("asgi", b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", "fields", "Invalid header token (RFC 9112 section 5)"),
        ("meinheld", b"GET\r\n\r\n", "other", MEINHELD_REASON),
    ],
)
def test_refused_requests(place: Place, worker_class: str, request_: bytes, rule: str, reason: str) -> None:
    """Each refusal is a line with the client and the rule, some times a minute; /metrics counts them all, and
    goes on counting when the worker is replaced.
    """
    if worker_class == "meinheld":
        pytest.importorskip("meinheld.server", reason="meinheld is not installed", exc_type=ImportError)
    app = "waiter:app" if worker_class == "asgi" else "plain:app"
    daemon = place.start("-k", worker_class, "--threads", "2" if worker_class == "gthread" else "1", app)
    for _ in range(FIRST + 2):
        assert speak(daemon, request_).startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    event = daemon.event("request_refused")
    assert (event["level"], event["client"], event["rule"]) == ("info", "127.0.0.1", rule)
    assert (event["status"], event["reason"]) == (400, reason)
    daemon.until(lambda: refused(daemon) == {rule: FIRST + 2}, "all are counted")
    assert len(daemon.events("request_refused")) == FIRST
    (before,) = daemon.pids()
    assert daemon.ctl("reload").code == 0
    daemon.until(lambda: before not in daemon.pids(), "the old worker has gone")
    assert refused(daemon) == {rule: FIRST + 2}
    speak(daemon, request_)
    daemon.until(lambda: refused(daemon) == {rule: FIRST + 3}, "counting goes on")


def refused(daemon: Daemon) -> dict[str, float]:
    """The refused requests by rule, as a scrape of the metrics shows them."""
    name = "ostler_refused_requests_total"
    families = text_string_to_metric_families(daemon.client.raw(METRICS).decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels["rule"]: sample.value for sample in samples if sample.value}


def speak(daemon: Daemon, data: bytes) -> bytes:
    """Send bytes; returns everything that arrives until the server closes."""
    with socket.create_connection(daemon.address, timeout=PATIENCE) as sock:
        sock.sendall(data)
        return everything(sock)


def everything(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))
