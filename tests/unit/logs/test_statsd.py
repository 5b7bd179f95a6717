"""Statsd: gunicorn's metrics, several per datagram."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ostler.logs.statsd import Statsd, statsd_of
from ostler.settings.table import Settings


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.0)
        yield sock


made: list[Statsd] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while made:
        made.pop().close()


def new(sock: socket.socket, prefix: str = "", tags: str = "", clock: Clock | None = None) -> Statsd:
    made.append(Statsd(f"127.0.0.1:{sock.getsockname()[1]}", prefix, tags, clock or Clock()))
    return made[-1]


def answered(statsd: Statsd, status: str = "200 OK", nanoseconds: int = 1_234_567) -> None:
    statsd.answered("GET", "/", "HTTP/1.1", {}, status, [], 2, nanoseconds)


def received(sock: socket.socket) -> list[list[str]]:
    """The lines of each datagram that has arrived."""
    datagrams = []
    while True:
        try:
            datagrams.append(sock.recv(65536).decode().split("\n"))
        except BlockingIOError:
            return datagrams


def test_requests(sock: socket.socket) -> None:
    """Each duration in milliseconds; counters are added up."""
    statsd = new(sock)
    answered(statsd)
    answered(statsd, "404 Not Found", 2_000)
    answered(statsd, "200 OK", 999)
    statsd.flush()
    assert received(sock) == [
        [
            "gunicorn.request.duration:1.234|ms",
            "gunicorn.request.duration:0.002|ms",
            "gunicorn.request.duration:0.0|ms",
            "gunicorn.requests:3|c|@1.0",
            "gunicorn.request.status.200:2|c|@1.0",
            "gunicorn.request.status.404:1|c|@1.0",
        ]
    ]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("", "gunicorn."), ("shop", "shop.gunicorn."), ("shop.", "shop.gunicorn."), ("a.b..", "a.b.gunicorn.")],
)
def test_prefix_and_tags(sock: socket.socket, prefix: str, expected: str) -> None:
    """One dot follows the prefix; tags are at the end of every metric."""
    statsd = new(sock, prefix, "env:test,region:x")
    answered(statsd)
    statsd.gauge("workers", 3)
    statsd.gauge("backlog", 7, "h")
    statsd.flush()
    ((duration, requests, status, workers, backlog),) = received(sock)
    assert duration == f"{expected}request.duration:1.234|ms|#env:test,region:x"
    assert requests == f"{expected}requests:1|c|@1.0|#env:test,region:x"
    assert status == f"{expected}request.status.200:1|c|@1.0|#env:test,region:x"
    assert workers == f"{expected}workers:3|g|#env:test,region:x"
    assert backlog == f"{expected}backlog:7|h|#env:test,region:x"


@pytest.mark.parametrize(
    ("level", "fields", "expected"),
    [
        ("info", {}, []),
        ("debug", {}, []),
        ("warning", {"traceback": "Trace"}, ["gunicorn.log.warning:1|c|@1.0"]),
        ("error", {}, ["gunicorn.log.error:1|c|@1.0"]),
        ("error", {"traceback": "Trace"}, ["gunicorn.log.exception:1|c|@1.0"]),
        ("critical", {}, ["gunicorn.log.critical:1|c|@1.0"]),
    ],
)
def test_lines_of_the_log(
    sock: socket.socket, level: str, fields: dict[str, Any], expected: list[str]
) -> None:
    """Warnings and errors are counted by level; an error with a traceback is an exception."""
    statsd = new(sock)
    statsd.event(level, "name", fields)
    statsd.flush()
    assert received(sock) == ([expected] if expected else [])


def test_when_datagrams_are_sent(sock: socket.socket) -> None:
    """The first at once, later ones after half a second, or as soon as they fill a datagram."""
    clock = Clock()
    statsd = new(sock, clock=clock)
    answered(statsd)
    statsd.flush()
    assert len(received(sock)) == 1
    answered(statsd)
    statsd.flush()
    assert received(sock) == []
    clock.now += 0.5
    statsd.flush()
    assert len(received(sock)) == 1
    for _ in range(1000):
        answered(statsd, "200 OK", 123_456_000_000)
    statsd.close()
    datagrams = received(sock)
    assert all(len("\n".join(lines)) <= 1400 for lines in datagrams)
    durations = [line for lines in datagrams for line in lines if "duration" in line]
    counts = [
        int(line.split(":")[1].split("|")[0]) for lines in datagrams for line in lines if "requests" in line
    ]
    assert (len(durations), sum(counts)) == (1000, 1000)
    assert len(datagrams) < 60


def test_long_tags_split_datagrams(sock: socket.socket) -> None:
    """No datagram is larger than what networks carry in one packet, unless a single metric is."""
    statsd = new(sock, tags="t" * 600)
    for _ in range(5):
        statsd.gauge("workers", 1)
    statsd.flush()
    assert [len(lines) for lines in received(sock)] == [2, 2, 1]


def test_unix_socket(tmp_path: Path) -> None:
    """unix://PATH, as of the DogStatsD agent; one that does not exist, or is full, is not an error."""
    path = tmp_path / "statsd"
    statsd = Statsd(f"unix://{path}", "", "", Clock())
    answered(statsd)
    statsd.flush_all()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(0.0)
        answered(statsd, "201 Created")
        statsd.flush_all()
        assert "gunicorn.request.status.201:1|c|@1.0" in received(sock)[0]
        for _ in range(2000):
            answered(statsd)
            statsd.flush_all()
    statsd.close()


def test_off_unless_asked_for() -> None:
    """It is off without a host; an unknown host is not an error."""
    assert statsd_of(Settings()) is None
    statsd = statsd_of(Settings(statsd_host="nowhere.invalid:8125"))
    assert statsd is not None
    answered(statsd)
    statsd.flush_all()
    statsd.close()
