"""Replacing processes under load: planned operations lose no request; deaths lose only requests on the dead
process's connections.

The client (tests/kit/load.py) accounts for every request. Of a few thousand in each test one in ten takes
some milliseconds, and one in seven asks for the end of its connection. A request that met a closed connection
counts as lost here, even if its retry was answered. contrib/bench/life.py and chaos.py do the same for
longer.
"""

import contextlib
import itertools
import random
import signal
import time
from collections.abc import Iterator, Sequence

import pytest

from ostler.control.routes import RELOAD, SCALE
from ostler.control.views import ReloadBody, Scale
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.load import Load
from tests.kit.processes import Killed, kill_holding
from tests.kit.report import Outcome, Record, Report
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

APP = """\
import itertools
import os
import time

COUNT = itertools.count(1)


def app(environ, start_response):
    if environ["PATH_INFO"] == "/sleep":
        time.sleep(60)
    elif next(COUNT) % 10 == 0:
        time.sleep(0.003)
    body = b"{version}"
    headers = [("Content-Length", str(len(body))), ("X-Worker", str(os.getpid()))]
    start_response("200 OK", headers)
    return [body]
"""
# The reloads follow each other without a pause.
QUICK_CANARY = ("--canary-time", "0.05")
RATE = 800
CONNECTIONS = 24
# How long after a process's death its clients may see it.
NEWS_WITHIN = 2.0


def write(place: Place, version: int) -> None:
    place.add("life.py", APP.format(version=version))


def fleet(place: Place, *args: str, workers: int = 4) -> Daemon:
    write(place, 1)
    daemon = place.start("-w", str(workers), "--keep-alive", "75", *args, "life:app")
    daemon.settled(workers)
    return daemon


def load(daemon: Daemon) -> Load:
    return Load(daemon.address, rate=RATE, connections=CONNECTIONS, close_every=7)


@contextlib.contextmanager
def planned(daemon: Daemon) -> Iterator[Load]:
    """A load of which no request may be lost; at the end the server's counts equal the client's."""
    with load(daemon) as client:
        client.wait_for(RATE // 4)
        yield client
        client.wait_for(client.ended + RATE // 4)
        report = client.finish()
    assert (report.lost, report.unasked) == ([], 0), report.summary()
    daemon.counted(requests=len(report), deaths=0)
    daemon.until(lambda: daemon.status().state == "ready", "ready")


def unexplained(report: Report, killed: Sequence[Killed]) -> list[Record]:
    """Lost requests on connections that none of these processes held when it was killed."""

    def excused(port: int, at: float) -> bool:
        return any(port in kill.ports and 0 <= at - kill.at < NEWS_WITHIN for kill in killed)

    return [record for record in report.lost if not all(excused(*loss) for loss in record.losses)]


@pytest.mark.parametrize(("kind", "times"), [("sync", 5), *thorough(("sync", 15), ("gthread", 5))])
def test_reloads(place: Place, kind: str, times: int) -> None:
    """Many reloads in a row: each ends with new code only, and no request is lost."""
    daemon = fleet(place, "-k", kind, *(["--threads", "3"] if kind == "gthread" else []), *QUICK_CANARY)
    with planned(daemon) as client:
        for version in range(2, times + 2):
            write(place, version)
            assert daemon.client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
            reloaded, ended = time.monotonic(), client.ended
            client.wait_for(ended + 1 + 2 * CONNECTIONS)
            # Requests that were under way when the reload ended may be answered by the old code.
            bodies = {record.body for record in client.records(ended) if record.sent > reloaded}
            assert bodies == {b"%d" % version}
    assert daemon.status().generation == times + 1


def test_recycling(place: Place) -> None:
    """Each worker is replaced after a hundred requests, one after the other all the time."""
    daemon = fleet(place, "--max-requests", "100", "--max-requests-jitter", "20")
    with planned(daemon) as client:
        client.wait_for(3000)
        daemon.event("recycle", after=19)


@pytest.mark.thorough
def test_scaling(place: Place) -> None:
    """From one worker to eight and back, three times."""
    daemon = fleet(place, workers=1)
    with planned(daemon):
        for workers in [8, 1] * 3:
            daemon.client.call(SCALE, Scale(workers=workers))
            daemon.settled(workers)


def test_killed_workers(place: Place) -> None:
    """kill -9 of a worker each 300 ms: at most the requests on its connections are lost."""
    daemon = fleet(place)
    dice = random.Random(4)
    killed: list[Killed] = []
    with load(daemon) as client:
        client.wait_for(RATE // 4)
        for number in range(10):
            # One that still boots would not count as dead, but as one that could not boot.
            ready = [worker.pid for worker in daemon.workers() if worker.pid and worker.state == "ready"]
            if kill := kill_holding(dice.choice(ready), daemon.port):
                killed.append(kill)
            client.wait_for(client.ended + int(RATE * 0.3))
            daemon.event("worker_died", after=number)
        daemon.settled(4)
        client.wait_for(client.ended + RATE // 4)
        report = client.finish()
    assert unexplained(report, killed) == [], report.summary()
    assert len(killed) == daemon.status().totals.deaths == 10
    # Each kept connection is held by some worker; if there were none the test would prove nothing.
    assert any(kill.ports for kill in killed)


@pytest.mark.thorough
def test_killed_fork_servers(place: Place) -> None:
    """kill -9 of the fork server: no request is lost, and its successor forks."""
    daemon = fleet(place, workers=2)
    with planned(daemon):
        for number, workers in enumerate(itertools.islice(itertools.cycle([3, 2]), 4)):
            fork_server(daemon).send(signal.SIGKILL)
            daemon.event("fork_server_failed", after=number)
            daemon.client.call(SCALE, Scale(workers=workers))
            daemon.settled(workers, state="ready")


@pytest.mark.thorough
def test_deadlines(place: Place) -> None:
    """Requests that sleep get 504 or are cut off at their deadline; no other request is lost."""
    daemon = fleet(place, "-t", "1", "--timeout-grace", "0.5")
    with (
        load(daemon) as client,
        Load(daemon.address, path="/sleep", rate=2, connections=4, requests=6) as sleepers,
    ):
        sleepers.wait_for(6)
        daemon.settled(4)
        client.wait_for(client.ended + RATE // 4)
        report, slept = client.finish(), sleepers.finish()
    assert (report.lost, report.unasked) == ([], 0), report.summary()
    assert len(slept) == slept.failed == 6
    cut = Outcome.UNANSWERED, Outcome.RESET
    assert all(record.status == 504 or record.outcome in cut for record in slept.records), slept.summary()
    assert all(1.0 <= record.ended - record.sent < 4 for record in slept.records)
    assert daemon.status().totals.deaths == 0


@pytest.mark.thorough
def test_refork(place: Place) -> None:
    """A warmed-up worker becomes the zygote of the others, again and again, and no request is lost."""
    daemon = fleet(place)
    with planned(daemon) as client:
        for _ in range(3):
            before = set(daemon.pids())
            done = daemon.ctl("refork")
            assert done.code == 0, done.err
            daemon.until(
                lambda before=before: not before & set(daemon.pids()), "all are forked from the zygote"
            )
            daemon.settled(4)
            client.wait_for(client.ended + RATE // 4)
    assert len(daemon.events("refork_done")) == 3


@pytest.mark.thorough
def test_upgrade(place: Place) -> None:
    """The supervisor's program is replaced in place, twice: same pid, other workers, no request is lost."""
    daemon = fleet(place, *QUICK_CANARY)
    with planned(daemon):
        for number in range(2):
            before = set(daemon.pids())
            done = daemon.ctl("upgrade")
            assert done.code == 0, done.err
            assert len(daemon.events("upgraded")) == number + 1
            assert not before & {worker.pid for worker in daemon.settled(4)}


def all_of(daemon: Daemon, generation: int) -> None:
    """Wait until the fleet consists of four workers of one generation."""

    def look() -> bool:
        return {worker.generation for worker in daemon.settled(4)} == {generation}

    daemon.until(look, f"workers of generation {generation} alone")


@pytest.mark.thorough
def test_rollback(place: Place) -> None:
    """A release that crashes on probation is rolled back:
    the old code serves, although the disk has the new code; only requests in the crashed workers are lost.
    """
    daemon = fleet(place, *QUICK_CANARY, "--probation", "30", "--rollback-crashes", "2")
    with load(daemon) as client:
        client.wait_for(RATE // 4)
        write(place, 2)
        assert daemon.client.call(RELOAD, ReloadBody(wait=True)).phase == "done"
        # A signal that counts as a crash, because programs usually cause it themselves, and that no handler
        # catches.
        killed = [kill_holding(pid, daemon.port, signal.SIGSYS) for pid in daemon.pids()[:2]]
        daemon.event("reload_rolled_back")
        all_of(daemon, 1)
        ended = client.ended
        client.wait_for(ended + RATE // 4)
        assert {record.body for record in client.records(ended + CONNECTIONS)} == {b"1"}
        report = client.finish()
    assert unexplained(report, [kill for kill in killed if kill]) == [], report.summary()
    assert None not in killed
    assert report.unasked == 0


@pytest.mark.thorough
def test_rollback_for_errors(place: Place) -> None:
    """A release that answers errors is rolled back on probation; no other request fails."""
    daemon = fleet(place, *QUICK_CANARY, "--probation", "30", "--rollback-error-rate", "0.2")
    with load(daemon) as client:
        client.wait_for(RATE // 4)
        broken = APP.replace('"200 OK"', '"500 Internal Server Error"').format(version=2)
        place.add("life.py", broken)
        daemon.client.call(RELOAD)  # on a busy machine it is rolled back before the reload is done
        assert "of its answers are errors" in daemon.event("reload_rolled_back")["reason"]
        all_of(daemon, 1)
        ended = client.ended
        client.wait_for(ended + RATE // 4)
        assert {record.body for record in client.records(ended + CONNECTIONS)} == {b"1"}
        report = client.finish()
    assert {record.body for record in report.records if record.status == 500} == {b"2"}
    assert {record.status for record in report.records} == {200, 500}
    assert daemon.status().totals.deaths == 0
