"""ptrace(2): a tracer hides a worker's end from the supervisor, and an app can make the supervisor one."""

import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence

import pytest

from ostler.control.routes import EXITS
from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import REPLACED_WITHIN, SLACK, assert_unharmed, each_class
from tests.kit.http_client import ask
from tests.kit.processes import Process
from tests.kit.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.thorough]

TRACES = """\
import ctypes
import os
import signal
import threading

libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
FOLDER = os.path.dirname(os.path.abspath(__file__))
MAIN = os.getpid()

def trace_me():
    libc.ptrace(0, 0, None, None)  # PTRACE_TRACEME
    signal.raise_signal(signal.SIGUSR1)  # of this thread

def wait_for():
    while os.getpid() == MAIN:
        if os.path.exists(FOLDER + "/fork_server_traces"):
            os.unlink(FOLDER + "/fork_server_traces")
            trace_me()
        threading.Event().wait(0.02)

def request(path):
    if path == "/trace_me":
        trace_me()
    if path == "/orphan":
        if os.fork() == 0:
            if os.fork() == 0:
                while os.getppid() != int(open(FOLDER + "/supervisor").read()):
                    pass
                trace_me()
            os._exit(0)
        os.wait()
    if path.startswith("/trace/"):
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
        ready, notify = os.pipe()
        if os.fork() == 0:
            os.setsid()
            for pid in path.split("/")[2:]:
                libc.ptrace(0x4206, int(pid), None, None)  # PTRACE_SEIZE
            with open(FOLDER + "/tracer", "w") as file:
                file.write(str(os.getpid()))
            os.write(notify, b"1")
            while True:
                signal.pause()
        os.read(ready, 1)

if os.path.exists(FOLDER + "/waits"):
    threading.Thread(target=wait_for, daemon=True).start()
"""


@pytest.fixture
def place(hostile_place: Place) -> Iterator[Place]:
    hostile_place.add("attack.py", TRACES)
    yield hostile_place
    for path in hostile_place.app_folder.glob("tracer"):
        try:
            os.kill(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def ask_badly(daemon: Daemon, path: str) -> None:
    try:
        ask(daemon.url, path)
    except OSError:
        pass


def no_traceback(daemon: Daemon) -> None:
    assert daemon.events("internal_error") == []


@each_class
def test_a_worker_that_has_us_trace_it(place: Place, words: Sequence[str]) -> None:
    """It stops at its next signal, which wait(2) reports as it reports deaths.
    It is killed, without other effects.
    """
    daemon = place.start("--preload", "-w", "2", *words)
    daemon.settled(2)
    (place.app_folder / "supervisor").write_text(str(daemon.pid))
    ask_badly(daemon, "/trace_me")
    found = daemon.until(
        lambda: [e for e in daemon.client.call(EXITS) if e.cause == "protocol error"], "its end"
    )
    assert "tracer" in (found[0].stack or "")
    daemon.settled(2)
    ask_badly(daemon, "/orphan")
    assert_unharmed(daemon, 3)
    daemon.settled(2)
    no_traceback(daemon)
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_a_fork_server_that_has_us_trace_it(place: Place) -> None:
    """The same for a fork server;
    here a thread other than the main one asks for it, and wait(2) then reports that thread.
    """
    (place.app_folder / "waits").touch()
    daemon = place.start("--preload", "-w", "2", "attacked:app")
    before = {worker.pid for worker in daemon.settled(2)}
    (place.app_folder / "fork_server_traces").touch()
    found = daemon.until(lambda: daemon.client.call(EXITS), "its end")
    assert (found[0].kind, found[0].cause) == ("fork server", "protocol error")
    assert {worker.pid for worker in daemon.settled(2)} == before
    assert_unharmed(daemon, 3)
    no_traceback(daemon)
    assert daemon.stop() == 0


@pytest.mark.thorough
@each_class
def test_workers_that_are_traced(place: Place, words: Sequence[str]) -> None:
    """A process of the app traces all workers: their deaths are still recorded and they are replaced."""
    daemon = place.start("--preload", "-w", "2", *words)
    times = []
    for _ in range(3):
        pids = [worker.pid or 0 for worker in daemon.settled(2)]
        daemon.get(f"/trace/{pids[0]}/{pids[1]}")
        tracer = Process(int((place.app_folder / "tracer").read_text()))
        began = time.monotonic()
        os.kill(pids[0], signal.SIGKILL)
        daemon.until(lambda old=pids[0]: old not in daemon.pids(), "its successor")
        times.append(time.monotonic() - began)
        assert daemon.client.call(EXITS)[0].pid == pids[0]
        assert daemon.client.call(EXITS)[0].signal == signal.SIGKILL
        tracer.send(signal.SIGKILL)
        assert tracer.ended()
    assert statistics.median(times) < SLACK * REPLACED_WITHIN, times
    no_traceback(daemon)
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_the_end_of_a_daemon_whose_workers_are_traced(place: Place) -> None:
    """The daemon ends, and does not wait for the tracer."""
    daemon = place.start("--preload", "-w", "2", "attacked:app")
    pids = [worker.pid or 0 for worker in daemon.settled(2)]
    daemon.get(f"/trace/{pids[0]}/{pids[1]}")
    daemon.send(signal.SIGQUIT)
    assert daemon.wait() == 0
    tracer = Process(int((place.app_folder / "tracer").read_text()))
    tracer.send(signal.SIGKILL)
    assert tracer.ended()
    until(lambda: not place.leftovers(), "nothing is left")
    no_traceback(daemon)
