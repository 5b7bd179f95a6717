"""Behind nginx, as most WSGI servers are: keep-alive to the daemon, over TCP and a Unix socket."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import Answer, Connection, ask
from tests.kit.load import Load
from tests.kit.tiers import thorough
from tests.system.real.bodies import sha256
from tests.system.real.nginx import PROGRAM, Nginx

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROGRAM is None, reason="there is no nginx (apt install nginx-light)"),
]

# Longer than nginx's 60 s for an idle connection to its upstream: the side that is about to send must be
# the one that closes. The daemon's short default is for browsers.
PATIENT = ("--keep-alive", "75")
KINDS = {"sync": [], "gthread": ["--threads", "4"]}


def start(place: Place, upstream: str, *args: str) -> Daemon:
    """Start a daemon at a TCP address or a Unix socket."""
    bind = "127.0.0.1:0" if upstream == "tcp" else f"unix:{place.folder}/app.sock"
    daemon = place.start("-w", "2", *PATIENT, *args, "behind:app", bind=bind)
    daemon.settled(2)
    return daemon


@pytest.fixture(scope="module", params=["tcp", "unix"])
def upstream(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def daemon(shared_place: Place, upstream: str) -> Daemon:
    return start(shared_place, upstream, "--threads", "4")


@pytest.fixture(scope="module")
def nginx(shared_place: Place, daemon: Daemon) -> Iterator[Nginx]:
    with Nginx(shared_place, daemon.url) as nginx:
        yield nginx
        daemon.close_connections()
        assert nginx.complaints() == []


def test_many_at_once(nginx: Nginx) -> None:
    """Hundreds of requests on 32 connections: the daemon answers each, nginx none by itself."""
    before = len(nginx.passed())
    report = Load(nginx.socket, rate=400, connections=32, requests=400).run()
    assert (len(report), report.failed, report.stale, report.unasked) == (400, 0, 0, 0), report.summary()
    passed = nginx.passed()[before:]
    assert {(line.status, line.upstream_status) for line in passed} == {(200, "200")}


def test_connections_are_kept(nginx: Nginx, upstream: str) -> None:
    """Requests of one client one after the other use one connection to the daemon, not one each."""
    if upstream == "unix":
        pytest.skip("a Unix socket's client has no port to tell its connections by")
    connection = Connection(nginx.url)
    ports = {json.loads(connection.asked("/environ").answer().body)["REMOTE_PORT"] for _ in range(50)}
    connection.close()
    assert len(ports) == 1


def test_forwarded(nginx: Nginx, upstream: str) -> None:
    """The app sees the client and the scheme that nginx, a trusted peer, reports."""
    environ = json.loads(ask(nginx.url, "/environ", headers={"X-Forwarded-For": "198.51.100.7"}).body)
    assert environ["HTTP_X_FORWARDED_FOR"] == "198.51.100.7, unix:"
    assert environ["HTTP_CONNECTION"] == ""
    assert environ["REMOTE_ADDR"] == ("127.0.0.1" if upstream == "tcp" else "")
    assert environ["wsgi.url_scheme"] == "https"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_uploads_at_once(nginx: Nginx, chunked: bool) -> None:
    """Eight clients upload at the same time, piece by piece;
    each digest is that of the data that was sent.
    """

    def upload(number: int) -> bool:
        body = random.Random(number).randbytes(1_000_000 + number)
        pieces = iter([body[:1], body[1:100_000], body[100_000:]])
        connection = Connection(nginx.url)
        try:
            sent = {"body": pieces, "encode_chunked": True} if chunked else {"body": body}
            answers = [connection.asked("/upload", "PUT", **sent).answer()]
            answers.append(connection.asked("/upload", "POST", body=b"small").answer())
        finally:
            connection.close()
        return [answer.text for answer in answers] == [sha256(body), sha256(b"small")]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(upload, range(16))) == [True] * 16


def test_downloads_at_once(nginx: Nginx) -> None:
    """Eight clients get a large answer at the same time, unbuffered, with every byte of it."""
    expected = b"0123456789abcdef" * 250_000
    with ThreadPoolExecutor(8) as pool:
        answers: list[Answer] = list(pool.map(lambda _: ask(nginx.url, "/large"), range(16)))
    assert all(answer.body == expected for answer in answers)


def test_streaming(nginx: Nginx, shared_place: Place) -> None:
    """The client has the first part of a generator's answer before the second exists."""
    gate = shared_place.app_folder / "second.open"
    connection = Connection(nginx.url)
    response = connection.asked("/slowly").getresponse()
    assert response.read(5) == b"first"
    assert not gate.exists()
    gate.touch()
    assert response.read() == b"second"
    gate.unlink()
    connection.close()


def test_head_and_expect(nginx: Nginx) -> None:
    """HEAD has no body to wait for; an upload that asks first is answered once."""
    connection = Connection(nginx.url)
    head = connection.asked("/large", "HEAD").answer()
    assert (head.status, head.headers["content-length"], head.body) == (200, "4000000", b"")
    answer = connection.asked("/", "POST", body=b"asked", headers={"Expect": "100-continue"}).answer()
    assert answer.text == sha256(b"asked")
    connection.close()


class Uploaders:
    """Clients that post one upload after the other until they are stopped. A context manager."""

    def __init__(self, nginx: Nginx, clients: int) -> None:
        self._nginx = nginx
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._runs = [self._pool.submit(self._run, number) for number in range(clients)]

    def _run(self, number: int) -> list[str]:
        pauses = random.Random(number)
        body = pauses.randbytes(20_000)
        connection = Connection(self._nginx.url)
        answers = []
        while not self._stop.is_set():
            answer = connection.asked("/upload", "POST", body=body).answer()
            answers.append("right" if answer.text == sha256(body) else f"{answer.status} {answer.body!r}")
            # Irregular pauses, so that connections to the daemon are idle for different lengths of time.
            self._stop.wait(pauses.uniform(0, 0.1))
        connection.close()
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> list[str]:
        """The result of each upload: `right`, or what was wrong."""
        self._stop.set()
        self._pool.shutdown()
        return [answer for run in self._runs for answer in run.result()]


@pytest.mark.parametrize("kind", ["gthread", *thorough("sync")])
def test_reload(place: Place, upstream: str, kind: str) -> None:
    """Three reloads under load: no 502, although nginx repeats nothing, and afterwards only the new code."""
    daemon = start(place, upstream, *KINDS[kind])
    source = (place.app_folder / "behind.py").read_text()
    with (
        Nginx(place, daemon.url) as nginx,
        Uploaders(nginx, 4) as uploaders,
        Load(nginx.socket, rate=200, connections=16) as load,
    ):
        load.wait_for(50)
        for version in ("two", "three", "four"):
            place.add("behind.py", source.replace('"one"', f'"{version}"'))
            done = daemon.ctl("reload")
            assert done.code == 0, done.err
            load.wait_for(load.ended + 50)
        report = load.finish()
        uploaded = uploaders.finish()
        complaints = nginx.complaints()
    assert set(uploaded) == {"right"}, complaints
    assert (report.failed, report.unasked) == (0, 0), f"{report.summary()}\n{complaints}"
    assert complaints == []
    assert report.records[-1].body == b"four"
