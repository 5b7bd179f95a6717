"""The exit ledger of a real daemon: the causes of ends, in the API, `ctl exits` and the metrics."""

import os
import signal

import msgspec
import pytest

from ostler.control.routes import EXITS, METRICS
from ostler.control.views import ExitView
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.processes import Process

pytestmark = pytest.mark.system

APP = """\
import ctypes, os, threading, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/crash":
        ctypes.string_at(0)
    if path == "/leave":
        os._exit(3)
    if path == "/hang":
        hang()
    if path == "/large":
        bytearray(64 << 20)
    start_response("200 OK", [])
    return [b"fine"]
def hang():
    threading.Event().wait()
"""


def exits(daemon: Daemon, **wanted: object) -> list[ExitView]:
    found = daemon.client.call(EXITS, limit=1000)
    return [view for view in found if all(getattr(view, name) == value for name, value in wanted.items())]


def an_exit(daemon: Daemon, **wanted: object) -> ExitView:
    """Wait for an end with these attributes; returns the newest."""
    return daemon.until(lambda: exits(daemon, **wanted), f"an exit with {wanted}")[0]


@pytest.fixture(scope="module")
def shared(shared_place: Place) -> Daemon:
    shared_place.add("ends.py", APP)
    return shared_place.start("-w", "2", "-t", "1", "--no-timeout-soft", "--timeout-grace", "0.2", "ends:app")


@pytest.fixture
def daemon(shared: Daemon) -> Daemon:
    """Two ready workers at the beginning of each test."""
    shared.settled(2)
    return shared


def test_crash(daemon: Daemon) -> None:
    """A segfault: the cause is crashed, with the signal, the request and its stack."""
    daemon.connect().asked("/crash?token=secret").ended_by_server()
    view = an_exit(daemon, cause="crashed")
    assert (view.status, view.signal, view.code) == ("signal 11 (SEGV)", signal.SIGSEGV, None)
    assert view.last_requests[0] == "GET /crash"
    assert "in app" in (view.stack or "")
    assert "secret" not in repr(view)
    out = daemon.ctl("exits", str(view.id)).out
    assert "crashed" in out
    assert "in app" in out


def test_exit_of_its_own(daemon: Daemon) -> None:
    """os._exit in the app: the cause is exited, with the code."""
    daemon.connect().asked("/leave").ended_by_server()
    view = an_exit(daemon, cause="exited", last_requests=["GET /leave"])
    assert (view.status, view.code, view.signal) == ("exit code 3", 3, None)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_sigterm_from_outside(daemon: Daemon, signum: int) -> None:
    """A signal from outside that a worker handles, so that it ends in order,
    has the cause of an outsider as well.
    """
    pid = daemon.pids()[0]
    Process(pid).send(signum)
    view = an_exit(daemon, pid=pid)
    assert (view.cause, view.status) == ("killed by an outsider", "exit code 0")
    daemon.settled(2)


def test_sigkill_from_outside(daemon: Daemon) -> None:
    """kill -9 from outside: neither the supervisor nor the kernel's OOM killer is the cause."""
    pid = daemon.pids()[0]
    Process(pid).send(signal.SIGKILL)
    view = an_exit(daemon, pid=pid)
    assert (view.cause, view.status) == ("killed by an outsider", "signal 9 (KILL)")


def test_deadline(daemon: Daemon) -> None:
    """A hung request: the cause is the deadline, not the signal we sent; the stack shows where it hung."""
    daemon.connect().asked("/hang").ended_by_server()
    view = an_exit(daemon, cause="deadline")
    assert view.last_requests[0] == "GET /hang"
    assert "in hang" in (view.stack or "")


def test_what_a_worker_has_done(daemon: Daemon) -> None:
    """An entry has the worker's requests, age and peak memory."""
    before = daemon.status().totals.requests
    for _ in range(6):
        daemon.get("/large")
    daemon.counted(requests=before + 6)
    busiest = max(daemon.workers(), key=lambda worker: worker.requests)
    assert daemon.ctl("recycle", str(busiest.slot)).code == 0
    view = an_exit(daemon, pid=busiest.pid)
    assert (view.kind, view.slot, view.cause, view.status) == ("worker", busiest.slot, "asked", "exit code 0")
    assert (view.requests, view.last_requests) == (busiest.requests, ["GET /large"])
    assert view.age >= busiest.age
    assert 64 << 20 < (view.peak_memory or 0) < 512 << 20


def test_planned_ends(place: Place) -> None:
    """Scaling, reloads (and their fork server), reforks and failed boots each have a cause of their own."""
    place.add("ends.py", APP)
    daemon = place.start("-w", "2", "--probation", "0", "--canary-time", "0", "ends:app")
    daemon.settled(2)
    assert daemon.ctl("scale", "1").code == 0
    assert [view.slot for view in exits(daemon, cause="scaled down")] == [2]
    assert daemon.ctl("reload").code == 0
    assert an_exit(daemon, cause="rolled", kind="worker").generation == 1
    assert an_exit(daemon, cause="rolled", kind="fork server").generation == 1
    assert daemon.ctl("refork").code == 0
    an_exit(daemon, cause="reforked", kind="worker")
    an_exit(daemon, cause="reforked", kind="fork server")
    place.add("ends.py", "import no_such_module")
    assert daemon.ctl("reload").code == 1
    view = an_exit(daemon, cause="boot failed", kind="worker")
    assert "no_such_module" in (view.stack or "")
    assert "no_such_module" in (an_exit(daemon, cause="boot failed", kind="fork server").stack or "")


def test_killed_fork_server(place: Place) -> None:
    """The end of the fork server is in the ledger as well, without a slot."""
    daemon = place.start("plain:app")
    process = fork_server(daemon)
    process.send(signal.SIGKILL)
    view = an_exit(daemon, kind="fork server")
    assert (view.pid, view.cause, view.slot) == (process.pid, "killed by an outsider", None)


def test_metrics_agree_with_the_ledger(daemon: Daemon) -> None:
    """Counters by cause, answers and workers, from a scrape of the real daemon."""
    before, earlier = _scraped(daemon), len(exits(daemon, cause="exited"))
    daemon.get("/")
    daemon.connect().asked("/leave").ended_by_server()
    daemon.until(lambda: len(exits(daemon, cause="exited")) > earlier, "the exit in the ledger")
    daemon.settled(2)
    after = _scraped(daemon)
    for name in ('ostler_exits_total{cause="exited",kind="worker"}', 'ostler_requests_total{status="2xx"}'):
        assert after[name] == before[name] + 1
    answers = sum(value for name, value in after.items() if name.startswith("ostler_requests_total"))
    assert after["ostler_request_duration_seconds_count"] == answers
    assert after["ostler_queue_wait_seconds_count"] == after["ostler_request_duration_seconds_count"]
    assert after[f'ostler_accept_queue_limit{{listener="{daemon.url}"}}'] == 2048
    assert after["ostler_workers_ready"] == 2
    assert all(value >= before.get(name, 0) for name, value in after.items() if "_total" in name)


def _scraped(daemon: Daemon) -> dict[str, float]:
    lines = daemon.client.raw(METRICS).decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


@pytest.mark.thorough
def test_the_ledger_survives_an_upgrade(place: Place) -> None:
    """Entries, their ids and the counters continue in the next program; `ctl upgrade` waits for its end."""
    daemon = place.start("-w", "2", "--probation", "0", "plain:app")
    daemon.settled(2)
    assert daemon.ctl("recycle", "1").code == 0
    before, counted = exits(daemon), _scraped(daemon)
    done = daemon.ctl("upgrade", within=60)
    assert (done.code, done.err) == (0, "")
    assert f"pid {daemon.pid}: Ostler" in done.out
    assert "2 workers replaced" in done.out
    after = exits(daemon)
    assert after[-len(before) :] == before
    assert [view.id for view in after] == list(range(len(after), 0, -1))
    assert len(exits(daemon, cause="rolled", kind="worker")) == 2
    totals = {name for name in counted if "_total" in name}
    assert all(_scraped(daemon)[name] >= counted[name] for name in totals)
    assert "upgraded in place" in daemon.ctl("status").out


def test_ctl_exits(daemon: Daemon) -> None:
    """A table for people, the API's views for programs."""
    pid = daemon.pids()[1]
    os.kill(pid, signal.SIGKILL)
    newest = an_exit(daemon, pid=pid)
    lines = daemon.ctl("exits", "-n", "1").out.splitlines()
    assert len(lines) == 2
    for words in (str(newest.id), "worker 2", str(pid), "killed by an outsider", "signal 9 (KILL)"):
        assert words in lines[1]
    views = msgspec.json.decode(daemon.ctl("exits", "--json", "-n", "2").out, type=list[ExitView])
    assert views == exits(daemon)[:2]
    assert "killed by an outsider" in daemon.ctl("exits", "--last").out
