"""Processes that die or hang are replaced, and the others continue to serve."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.kit.daemon import Place, fork_server
from tests.kit.load import Load
from tests.kit.processes import Process, children
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_killed_worker_is_replaced_at_once(place: Place, preload: list[str]) -> None:
    """kill -9: a successor is ready in the same slot well within a second; the others continue to serve."""
    daemon = place.start("-w", "3", *preload, "plain:app")
    before = daemon.settled(3)
    took = []
    for number in range(3):
        victim = Process(daemon.settled(3)[1].pid or 0)
        began = time.monotonic()
        victim.send(signal.SIGKILL)
        daemon.event("worker_ready", slot=2, after=number + 1)
        took.append(time.monotonic() - began)
        event = daemon.event("worker_died", slot=2, after=number)
        assert (event["pid"], event["status"], event["cause"]) == (victim.pid, "signal 9", "unexpected")
    assert min(took) < 0.8, took  # 0.03 on a quiet machine, and once in three times on a busy one
    after = daemon.settled(3)
    assert [worker.pid for worker in after if worker.slot != 2] == [before[0].pid, before[2].pid]
    assert daemon.status().totals.deaths == 3


def test_deaths_of_all_workers(place: Place) -> None:
    """All at once: all are replaced, connections meanwhile wait in the backlog, no request is refused."""
    daemon = place.start("-w", "3", "plain:app")
    for pid in [worker.pid or 0 for worker in daemon.settled(3)]:
        os.kill(pid, signal.SIGKILL)
    assert daemon.get().text == "one"
    daemon.event("worker_died", after=2)
    daemon.settled(3)
    assert len(daemon.events("worker_died")) == 3


def test_app_that_crashes_in_a_request(place: Place) -> None:
    """A segfault loses only its own request; the log has the stack of the crash with the app's function."""
    place.add(
        "crash.py",
        "import ctypes\n"
        "def blow_up():\n"
        "    ctypes.string_at(0)\n"
        "def app(environ, start_response):\n"
        "    if environ['PATH_INFO'] == '/crash':\n"
        "        blow_up()\n"
        "    start_response('200 OK', [])\n"
        "    return [b'fine']\n",
    )
    daemon = place.start("crash:app")
    connection = daemon.connect().asked("/crash")
    connection.ended_by_server()
    assert "in blow_up" in daemon.event("worker_crashed", status="signal 11")["stack"]
    daemon.event("worker_died", status="signal 11")
    assert daemon.get().text == "fine"


def test_killed_fork_server(place: Place) -> None:
    """The fork server's death affects no worker; a new one takes its place and forks as before."""
    daemon = place.start("-w", "2", "plain:app")
    before = [worker.pid for worker in daemon.settled(2)]
    fork_server(daemon).send(signal.SIGKILL)
    daemon.event("fork_server_failed")
    done = daemon.ctl("scale", "+1")
    assert done.code == 0, done.err
    assert [worker.pid for worker in daemon.settled(3, state="ready")][:2] == before
    assert len(children(daemon.pid)) == 4


def test_fork_server_and_worker_killed_together(place: Place) -> None:
    """Both are replaced."""
    daemon = place.start("-w", "2", "plain:app")
    before = daemon.settled(2)
    server = fork_server(daemon)
    server.send(signal.SIGSTOP)
    os.kill(before[0].pid or 0, signal.SIGKILL)
    daemon.event("worker_died", slot=1)
    server.send(signal.SIGKILL)
    after = daemon.settled(2, state="ready")
    assert after[0].pid != before[0].pid
    assert after[1].pid == before[1].pid


@pytest.mark.thorough
def test_stopped_worker_with_an_overdue_request(place: Place) -> None:
    """A worker that can't report its stack (SIGSTOP) is replaced, killed, and its request logged."""
    daemon = place.start("-w", "1", "-t", "0.5", "--timeout-grace", "0.2", "plain:app")
    connection = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    victim = Process(daemon.pids()[0])
    victim.send(signal.SIGSTOP)
    event = daemon.event("request_overdue")
    assert (event["path"], event["pid"]) == ("/gate/never", victim.pid)
    assert "stopped" in event["stack"]
    assert daemon.get().text == "one", "the successor serves already"
    assert victim.ended(), "SIGKILL reaches stopped processes too"
    connection.ended_by_server()
    assert daemon.event("request_lost")["path"] == "/gate/never"
    daemon.settled(1, state="ready")


@pytest.mark.parametrize("threads", ["1", "2"])
def test_killed_supervisor(place: Place, threads: str) -> None:
    """Without their supervisor workers finish their requests and end, and so does the fork server."""
    daemon = place.start("-w", "2", "--threads", threads, "--graceful-timeout", "10", "plain:app")
    daemon.settled(2)
    idle = daemon.connect().asked("/")
    idle.answer()
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    fleet = [Process(pid) for pid in children(daemon.pid)]
    assert len(fleet) == 3
    daemon.kill()
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    assert all(process.ended(10) for process in fleet)
    assert place.leftovers() == []


@pytest.mark.thorough
def test_killed_supervisor_and_a_hung_request(place: Place) -> None:
    """With a request that never ends, no process lives much longer than graceful_timeout."""
    fleets = []
    for threads in ("1", "2"):
        daemon = place.start("--threads", threads, "--graceful-timeout", "0.5", "plain:app")
        daemon.connect().asked("/gate/never")
        daemon.in_app("/gate/never")
        fleets.append([Process(pid) for pid in children(daemon.pid)])
        daemon.kill()
    for fleet in fleets:
        assert all(process.ended(5) for process in fleet)


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_killed_supervisor_while_the_app_loads(place: Place, preload: list[str]) -> None:
    """The same while an app never finishes loading."""
    place.add("hangs.py", "import time\nopen('loading', 'w').close()\ntime.sleep(1000)\n")
    daemon = place.start("--graceful-timeout", "0.2", *preload, "hangs:app", serving=False)
    daemon.until((place.app_folder / "loading").exists, "the app is loading")
    fleet = [Process(pid) for pid in children(daemon.pid)]
    daemon.kill()
    assert all(process.ended(5) for process in fleet)


@pytest.mark.thorough
def test_new_daemon_after_a_killed_one(place: Place) -> None:
    """A new daemon is started at once, while the old workers still drain:
    same port, same sockets, same pid file.
    """
    app_socket = place.folder / "app.sock"
    pidfile = place.folder / "daemon.pid"
    first = place.start("-w", "2", "-b", f"unix:{app_socket}", "-p", str(pidfile), "plain:app")
    address = f"127.0.0.1:{first.port}"
    slow = first.connect().asked("/gate/slow")
    first.in_app("/gate/slow")
    control = first.socket
    orphans = [Process(pid) for pid in children(first.pid)]
    first.kill()
    second = place.start("-w", "2", "-b", f"unix:{app_socket}", "-p", str(pidfile), "plain:app", bind=address)
    assert second.get().text == "one"
    assert second.socket == control
    assert pidfile.read_text() == f"{second.pid}\n"
    assert place.run("ctl", "status", OSTLER_SOCKET=str(control)).code == 0
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    assert all(orphan.ended(10) for orphan in orphans)
    second.settled(2)


def test_orphans_are_reaped(place: Place) -> None:
    """Orphans of an app become children of the supervisor, which is a subreaper, and are reaped."""
    place.add(
        "leaves.py",
        "import subprocess\n"
        "def app(environ, start_response):\n"
        "    subprocess.run(['sh', '-c', 'cat forever & echo $! > stranger'])\n"
        "    start_response('200 OK', [])\n"
        "    return [b'left']\n",
    )
    os.mkfifo(place.app_folder / "forever")
    daemon = place.start("leaves:app")
    daemon.get()
    pid = int(until((place.app_folder / "stranger").read_text, "its pid"))
    stranger = Process(pid)
    daemon.until(lambda: pid in children(daemon.pid), "adopted")
    stranger.send(signal.SIGKILL)
    assert stranger.ended()
    daemon.until(lambda: not Path(f"/proc/{pid}").exists(), "reaped")
    assert daemon.events("worker_died") == []


def test_kills_under_load(place: Place) -> None:
    """One worker after the other is killed under load: only requests in them are lost, none hangs."""
    daemon = place.start("-w", "3", "plain:app")
    daemon.settled(3)
    with Load(daemon.address, rate=200, connections=8) as load:
        load.wait_for(50)
        for number in range(5):
            os.kill(daemon.pids()[number % 3], signal.SIGKILL)
            daemon.event("worker_died", after=number)
            daemon.settled(3)
        load.wait_for(load.ended + 100)
        report = load.finish()
    # At most what was in flight, or sent on a connection that died: one a connection and kill.
    assert report.failed <= 5 * 3, report.summary()
    assert {record.detail for record in report.records if record.outcome.name == "TIMED_OUT"} == set()
    assert daemon.status().totals.deaths == 5
