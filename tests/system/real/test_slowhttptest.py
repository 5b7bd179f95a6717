"""The attacks of slowhttptest: many clients that send or read as slowly as they can, against one thread."""

import csv
import re
import shutil
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.daemon import Daemon, Done, Place
from tests.kit.http_client import Connection

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.system,
    pytest.mark.skipif(
        not shutil.which("slowhttptest"), reason="there is no slowhttptest (apt install slowhttptest)"
    ),
]

ATTACKERS = 100
SECONDS = 5
"""How long the attack lasts; the daemon's time-outs are shorter by far."""
LONGEST, USUAL = SECONDS / 2, 0.1
"""Seconds that a client beside the attack waits at most, and half of the time, on a busy machine. Where an
attack works, it waits as long as that lasts."""

PAGE = """
LARGE = b"x" * 1_500_000

def app(environ, start_response):
    environ["wsgi.input"].read()
    body = LARGE if environ["PATH_INFO"] == "/large" else b"ok"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


class Attack(NamedTuple):
    """The result of an attack, as slowhttptest reports it."""

    ending: str
    """Why it ended, e.g. `No open connections left`."""
    connected: int
    """The most connections that were open in any second."""
    available: bool
    """Whether slowhttptest's own probe was answered each second."""


def parsed(done: Done, table: Path) -> Attack:
    """Parse its output, and the table that has a row for each second."""
    assert done.code == 0, done.out + done.err
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.out)
    ending = re.search("Exit status: (.*)", plain)
    assert ending is not None, plain
    with table.open() as file:
        rows = list(csv.DictReader(file))
    return Attack(
        ending[1].strip(),
        max(int(row["Connected"]) for row in rows),
        all(row["Service Available"] == "100" for row in rows),
    )


class Siege:
    """A running attack, and a client beside it, on one connection and on new ones."""

    def __init__(self, daemon: Daemon, *args: str, target: str = "/") -> None:
        self._daemon = daemon
        prefix = daemon.place.folder / "attack"
        self._table = prefix.with_suffix(".csv")
        common = f"-c {ATTACKERS} -r {ATTACKERS} -i 1 -l {SECONDS} -p 3 -v 1 -g -o {prefix}".split()
        self._pool = ThreadPoolExecutor(1)
        self._attack: Future[Done] = self._pool.submit(
            daemon.place.run, *args, *common, "-u", daemon.url + target, argv=("slowhttptest",), within=60
        )

    def waits(self) -> Iterator[float]:
        """Send requests until the attack is over; returns the seconds that each answer took."""
        kept = self._daemon.connect()
        while not wait([self._attack], timeout=0.01).done:
            for connection in (kept, fresh := Connection(self._daemon.url)):
                began = time.monotonic()
                assert connection.asked("/").answer().text == "ok"
                yield time.monotonic() - began
            fresh.close()

    def outcome(self) -> Attack:
        return parsed(self._attack.result(), self._table)

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def daemon(place: Place) -> Daemon:
    """One worker with one thread, which is the easiest to block."""
    place.add("page.py", PAGE)
    # slowhttptest takes a second to open its connections, and counts them once a second.
    limits = "--header-timeout 3 --body-timeout 3 --body-min-rate 5000 --keep-alive 10"
    return place.start(*limits.split(), "page:app")


def besieged(daemon: Daemon, *args: str, target: str = "/") -> Attack:
    """Run the attack; every answer to others is quick."""
    siege = Siege(daemon, *args, target=target)
    try:
        waits = list(siege.waits())
        outcome = siege.outcome()
    finally:
        siege.close()
    assert max(waits) < LONGEST, sorted(waits)[-5:]
    assert statistics.median(waits) < USUAL
    assert outcome.available, outcome
    # For a while nearly all of them were connected at the same time.
    assert outcome.connected > 0.8 * ATTACKERS, outcome
    assert daemon.events("worker_died") == []
    assert daemon.events("request_failed") == []
    return outcome


def test_slow_headers(daemon: Daemon) -> None:
    """Slowloris: endless heads are cut off at their deadline, although a line arrives each second."""
    assert besieged(daemon, "-H").ending == "No open connections left"


def test_slow_bodies(daemon: Daemon) -> None:
    """R-U-Dead-Yet: bodies slower than the minimum rate are cut off, and the app is not called."""
    assert besieged(daemon, "-B", "-s", "100000").ending == "No open connections left"


def test_slow_readers(daemon: Daemon) -> None:
    """Clients that read five bytes of a large answer each second:
    their answers wait for them, others do not.
    """
    outcome = besieged(daemon, "-X", "-n", "1", "-w", "64", "-y", "512", "-z", "5", target="/large")
    # A client that reads a little from time to time is not cut off.
    assert outcome.ending == "Hit test time limit"
