"""Signals to the supervisor, as gunicorn has them."""

import os
import pty
import signal
import sys

import pytest

from tests.kit.daemon import OSTLER, Place
from tests.kit.processes import Process, children, descriptors
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system


def test_ttin_and_ttou(place: Place) -> None:
    """TTIN adds a worker, TTOU removes one, but never the last."""
    daemon = place.start("plain:app")
    for workers in (2, 3):
        daemon.send(signal.SIGTTIN)
        daemon.settled(workers, wanted=workers)
    for workers in (2, 1, 1):
        daemon.send(signal.SIGTTOU)
        daemon.event("scale", workers=workers, by="signal TTOU")
        daemon.settled(workers, wanted=workers)
    assert [event["workers"] for event in daemon.events("scale")] == [2, 3, 2, 1, 1]


def test_many_signals_at_once(place: Place) -> None:
    """Signals of one kind may merge, but no kind is lost; the fleet is settled in the end."""
    daemon = place.start("plain:app")
    for signum in [signal.SIGTTIN, signal.SIGUSR1, signal.SIGHUP, signal.SIGTTIN] * 4:
        daemon.send(signum)
    for event in ("logs_reopened", "reload_done", "scale"):
        daemon.event(event)
    wanted = daemon.status().wanted
    daemon.until(lambda: daemon.status().state == "ready", "ready")
    daemon.settled(wanted)
    assert daemon.get().status == 200


@pytest.mark.parametrize("preload", [[], *thorough(["--preload"])])
def test_hup_serves_new_code(place: Place, preload: list[str]) -> None:
    """HUP loads the app again, also with --preload; no old worker is left."""
    place.add("page.py", page("old"))
    daemon = place.start("-w", "2", *preload, "page:app")
    assert daemon.get().text == "old"
    before = daemon.pids()
    place.add("page.py", page("new"))
    daemon.send(signal.SIGHUP)
    daemon.event("reload_done", generation=2)
    assert daemon.get().text == "new"
    assert not set(daemon.pids()) & set(before)
    assert {worker.generation for worker in daemon.settled(2)} == {2}


def test_hup_reads_the_configuration_again(place: Place) -> None:
    """Numbers of workers and threads, and addresses, are those of the changed file."""
    place.add("conf.py", "workers = 1\nbind = ['127.0.0.1:0']\n")
    daemon = place.start("-c", "conf.py", "plain:app", bind=None)
    path = place.folder / "more.sock"
    place.add("conf.py", f"workers = 2\nthreads = 2\nbind = ['127.0.0.1:0', 'unix:{path}']\n")
    daemon.send(signal.SIGHUP)
    daemon.event("reload_done")
    daemon.settled(2, threads=2, worker_class="gthread")
    assert daemon.status().listeners == [daemon.url, f"unix:{path}"]
    place.add("conf.py", "workers = 2\nbind = ['127.0.0.1:0']\n")
    daemon.send(signal.SIGHUP)
    daemon.event("reload_done", generation=3)
    daemon.event("listener_closed", address=f"unix:{path}")
    assert daemon.status().listeners == [daemon.url]
    assert not path.exists()
    assert daemon.get().status == 200


def test_usr1_reopens_logs(place: Place) -> None:
    """After logrotate has moved the files, supervisor and workers write new ones and close the old ones."""
    log, access = place.folder / "error.log", place.folder / "access.log"
    daemon = place.start(
        "-w", "2", "--error-logfile", str(log), "--access-logfile", str(access), "plain:app", serving=False
    )
    until(lambda: log.exists() and "serving" in log.read_text(), "serving")
    daemon.settled(2)
    url = daemon.status().listeners[0]
    daemon.urls = [url]
    for path in (log, access):
        path.rename(f"{path}.1")
    daemon.send(signal.SIGUSR1)
    until(lambda: log.exists() and "logs_reopened" in log.read_text(), "a new log")
    until(access.exists, "a new access log")
    # Each worker reopens for itself.
    for pid in daemon.pids():
        until(lambda pid=pid: opens(pid, access) and not opens(pid, f"{access}.1"), f"{pid} to reopen")
    daemon.get("/after")
    assert "GET /after HTTP/1.1" in until(access.read_text, "a line")
    daemon.get("/fail")
    until(lambda: "request_failed" in log.read_text(), "the worker's event in the new log")
    holders = [
        pid
        for pid in [daemon.pid, *children(daemon.pid)]
        if opens(pid, f"{log}.1") or opens(pid, f"{access}.1")
    ]
    assert holders == []
    daemon.send(signal.SIGTTIN)
    daemon.settled(3)
    assert not opens(daemon.pids()[2], f"{log}.1")


@pytest.mark.parametrize("threads", ["3", *thorough("1")])
def test_term_is_graceful(place: Place, threads: str) -> None:
    """TERM: the slow request in flight is answered, nothing new is accepted, exit code 0."""
    daemon = place.start("-w", "2", "--threads", threads, "plain:app")
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    daemon.send(signal.SIGTERM)
    daemon.event("stop", how="graceful")
    daemon.until(lambda: daemon.status().ready == 0, "no worker accepts")
    (place.app_folder / "slow.open").touch()
    answer = slow.answer()
    assert (answer.status, answer.text) == (200, "slow passed")
    # Requests on the open connection are still answered, until an answer has `Connection: close`.
    until(lambda: slow.asked("/").answer().headers.get("connection") == "close", "the last answer")
    assert daemon.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        daemon.get()


def test_term_ends_at_graceful_timeout(place: Place) -> None:
    """A request that does not end in time is lost, and the log names it."""
    daemon = place.start("--graceful-timeout", "0.5", "plain:app")
    slow = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    assert daemon.stop(within=25) == 0
    slow.ended_by_server()
    assert daemon.events("request_lost")[0]["path"] == "/gate/never"
    assert daemon.events("drain_timeout")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("threads", ["3", *thorough("1")])
def test_int_and_quit_are_quick(place: Place, signum: int, threads: str) -> None:
    """INT and QUIT do not wait for requests in flight."""
    daemon = place.start("-w", "2", "--threads", threads, "plain:app")
    slow = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    assert daemon.stop(signum, within=25) == 0
    slow.ended_by_server()
    # They ended by themselves: otherwise they would have been killed two seconds later.
    assert [event["status"] for event in daemon.events("worker_exited")] == ["exit code 0"] * 2


@pytest.mark.thorough
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_makes_it_quick(place: Place, second: int) -> None:
    """A second TERM ends the wait."""
    daemon = place.start("plain:app")
    slow = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    daemon.send(signal.SIGTERM)
    daemon.event("stop", how="graceful")
    daemon.send(second)
    daemon.event("stop", how="quick")
    assert daemon.wait(5) == 0
    slow.ended_by_server()


@pytest.mark.thorough
def test_term_while_an_app_is_loaded_that_catches_all(place: Place) -> None:
    """The code that is being imported may catch the exception that ends a booting worker;
    the worker ends nevertheless.
    """
    place.add(
        "deaf.py",
        "import time\nfrom pathlib import Path\nfrom plain import app\n"
        "Path('loading').touch()\ntry:\n    time.sleep(60)\nexcept BaseException:\n    pass\n",
    )
    daemon = place.start("--graceful-timeout", "60", "deaf:app", serving=False)
    daemon.until((place.app_folder / "loading").exists, "the app being loaded")
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not daemon.events("worker_ready")


def test_winch_drains_all_and_ttin_brings_back(place: Place) -> None:
    """WINCH drains all workers and keeps daemon and socket; later clients are served after TTIN."""
    daemon = place.start("-w", "2", "plain:app")
    daemon.send(signal.SIGWINCH)
    daemon.event("pause")
    daemon.settled(0, state="paused", wanted=0)
    waiting = daemon.connect().asked("/")
    assert daemon.ctl("status").code == 0
    daemon.send(signal.SIGTTIN)
    assert waiting.answer().text == "one"
    daemon.settled(1, state="ready")


@pytest.mark.thorough
def test_a_resized_terminal_does_not_pause(place: Place) -> None:
    """A terminal sends WINCH when its window changes: a daemon in the foreground keeps its workers."""
    ours, theirs = pty.openpty()
    try:
        control = (
            "import fcntl, os, sys, termios; fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0); "
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        daemon = place.start(
            *("--log-level", "debug", "plain:app"),
            argv=[sys.executable, "-c", control, str(theirs), *OSTLER],
            popen={"pass_fds": [theirs]},
        )
        pids = daemon.pids()
        daemon.send(signal.SIGWINCH)
        daemon.event("winch_ignored", level="debug")
        assert daemon.pids() == pids
        assert daemon.get("/").text == "one"
    finally:
        os.close(ours)
        os.close(theirs)


def test_signals_to_a_worker(place: Place) -> None:
    """TERM and INT to one worker end it and it is replaced; signals of the terminal do not reach it."""
    daemon = place.start("-w", "2", "plain:app")
    for signum in (signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR2, signal.SIGTTIN):
        for pid in daemon.pids():
            os.kill(pid, signum)
    before = daemon.pids()
    for number, signum in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)):
        victim = Process(daemon.pids()[0])
        victim.send(signum)
        assert victim.ended()
        daemon.event("worker_died", after=number)
        daemon.settled(2)
    assert daemon.pids()[1] == before[1]


@pytest.mark.thorough
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_whole_group_is_signalled(place: Place, signum: signal.Signals) -> None:
    """INT as a terminal sends it, TERM as timeout(1) does: all processes end cleanly."""
    daemon = place.start("-w", "2", "plain:app")
    os.killpg(daemon.pid, signum)
    assert daemon.wait() == 0
    assert {event["status"] for event in daemon.events("worker_exited")} == {"exit code 0"}
    assert place.leftovers() == []
    assert "Traceback" not in daemon.log.read_text()
    assert [event for event in daemon.events() if event["level"] in ("warning", "error")] == []


def page(text: str) -> str:
    """A module with an app that answers `text`."""
    return (
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        f"    return [{text!r}.encode()]\n"
    )


def opens(pid: int, path: object) -> bool:
    return str(path) in descriptors(pid)
