"""Requests to asgi workers that are out of the ordinary: upgrades, Expect, no body, half-closed clients.

All combinations are in tests/unit/workers/test_asgi_unusual.py; here each kind is seen to work in a daemon.
"""

import re
import socket

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
SIZE = 100_000


@pytest.fixture(scope="module", params=["asgi", "uvicorn.workers.UvicornH11Worker"], ids=["httptools", "h11"])
def site(request: pytest.FixtureRequest, shared_place: Place) -> Daemon:
    log = ("--access-logfile", "access.log", "--access-logformat", "%(h)s %(r)s %(s)s %(B)s")
    return shared_place.start("-k", request.param, *log, "waiter:app")


def connect(daemon: Daemon, sent: str) -> socket.socket:
    client = socket.create_connection(daemon.address, timeout=PATIENCE)
    client.sendall(sent.encode())
    return client


def everything(client: socket.socket) -> str:
    """All until the server closes the connection."""
    received = b""
    with client:
        while data := client.recv(65536):
            received += data
    return received.decode()


def test_the_protocol(site: Daemon) -> None:
    """`UvicornH11Worker` means h11, which refuses a head without `Host`; httptools takes it."""
    answer = everything(connect(site, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"))
    status = 400 if "H11" in site.status().worker_class else 200
    assert answer.startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize("upgrade", [H2C, "Connection: upgrade\r\nUpgrade: websocket\r\n"])
def test_bodies_of_upgrades_that_are_not_taken(site: Daemon, upgrade: str) -> None:
    """As Java's HttpClient sends them, in packets of their own; and as it comes, on the same connection."""
    head = f"POST /body HTTP/1.1\r\nHost: x\r\n{upgrade}Content-Length: {SIZE}\r\n\r\n"
    last = "GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    client = connect(site, head)
    client.sendall(b"x" * (SIZE // 2))
    client.sendall(b"x" * (SIZE // 2))
    client.sendall((head + "x" * SIZE + last).encode())
    answers = re.findall(r"HTTP/1.1 200 OK\r\n.*?\r\n\r\n(\d+)", everything(client), re.DOTALL)
    (pid,) = site.pids()
    assert answers == [str(SIZE), str(SIZE), str(pid)]
    assert site.events("uvicorn", message="Unsupported upgrade request.") == []


def test_a_half_closed_client(site: Daemon) -> None:
    """It gets the answer that was not there yet, and then the end."""
    client = connect(site, "GET /gate/half HTTP/1.1\r\nHost: x\r\n\r\n")
    client.shutdown(socket.SHUT_WR)
    site.in_app("/gate/half")
    gate = site.place.app_folder / "half.open"
    gate.touch()
    assert everything(client).endswith("\r\n\r\nhalf passed")
    gate.unlink()


def test_a_client_that_has_left(site: Daemon) -> None:
    """An app that waits for that is notified, although it looks like a half-closed client at first."""
    client = connect(site, "GET /until-gone HTTP/1.1\r\nHost: x\r\n\r\n")
    site.in_app("/until-gone")
    client.close()
    gone = site.place.app_folder / "gone"
    until(gone.exists, "the app was notified")
    gone.unlink()


def test_expect(site: Daemon) -> None:
    """Only a client of HTTP/1.1 gets `100 Continue`."""
    for version in ("1.0", "1.1"):
        head = f"POST /body HTTP/{version}\r\nHost: x\r\nExpect: 100-continue\r\n"
        client = connect(site, f"{head}Connection: close\r\nContent-Length: 3\r\n\r\nabc")
        answer = everything(client)
        assert answer.count("100 Continue") == (version == "1.1")
        assert answer.endswith("\r\n\r\n3")


def test_no_body(site: Daemon) -> None:
    """An app that sends a body and a length with 204, 304 and to HEAD does not disturb what follows."""
    asked = (
        ("GET", "/204", ""),
        ("GET", "/304", ""),
        ("HEAD", "/", ""),
        ("GET", "/", "Connection: close\r\n"),
    )
    sent = "".join(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n" for method, path, more in asked)
    heads = everything(connect(site, sent)).split("\r\n\r\n")
    assert [head[:12] for head in heads[:-1]] == [f"HTTP/1.1 {status}" for status in (204, 304, 200, 200)]
    assert heads[-1] == "one"
    assert ["content-length: 3" in head.lower() for head in heads[:-1]] == [False, True, True, True]
    assert site.events("request_failed") == []


def test_http_1_0(site: Daemon) -> None:
    """A body in parts is not chunked: it ends with the connection."""
    (site.place.app_folder / "old.open").touch()
    answer = everything(connect(site, "GET /stream/old HTTP/1.0\r\n\r\n"))
    assert answer.endswith("\r\n\r\nfirst last")
    assert "chunked" not in answer


CHUNKED = "Transfer-Encoding: chunked\r\n\r\n"
HANDSHAKE = "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "rule", "line"),
    [
        ("what is this\r\n\r\n", None, "what is this 400 30"),
        (f"POST /body HTTP/1.1\r\nHost: x\r\n{CHUNKED}zzz\r\n", "chunked", "POST /body HTTP/1.1 400 0"),
        (f"GET /ws HTTP/1.1\r\nHost: x\r\n{HANDSHAKE}", "other", "GET /ws HTTP/1.1 400 73"),
        ("CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", "method", "CONNECT x:443 HTTP/1.1 400 30"),
    ],
    ids=["no HTTP", "body", "handshake", "CONNECT"],
)
def test_refused(site: Daemon, request_: str, rule: str | None, line: str) -> None:
    """A refused request is answered, counted and logged once, also if its app was called already."""
    before, known = site.status().totals, len(site.events("request_refused"))
    lines = refusals(site)
    assert everything(connect(site, request_)).startswith("HTTP/1.1 400 ")
    assert site.event("request_refused", after=known)["rule"] in (rule, "method", "request_line")
    site.until(lambda: len(refusals(site)) > len(lines), "a line in the access log")
    assert refusals(site)[len(lines) :] == [f"127.0.0.1 {line}"]
    site.counted(requests=before.requests + 1, errors=before.errors)


def test_what_is_invalid_behind_a_request(site: Daemon) -> None:
    """The answer to the request comes first, and then the refusal."""
    lines = len(refusals(site))
    client = connect(site, "GET /gate/first HTTP/1.1\r\nHost: x\r\n\r\n")
    site.in_app("/gate/first")
    client.sendall(b"what is this\r\n\r\n")
    gate = site.place.app_folder / "first.open"
    gate.touch()
    assert re.findall(r"HTTP/1.1 (\d+) ", everything(client)) == ["200", "400"]
    gate.unlink()
    site.until(lambda: len(refusals(site)) == lines + 1, "a line in the access log")
    assert "127.0.0.1 GET /gate/first HTTP/1.1 200 12" in access(site)


def access(daemon: Daemon) -> list[str]:
    log = daemon.place.app_folder / "access.log"
    return log.read_text().splitlines() if log.exists() else []


def refusals(daemon: Daemon) -> list[str]:
    """Lines of refused requests; those of others, of the tests before, may still come."""
    return [line for line in access(daemon) if " 400 " in line]
