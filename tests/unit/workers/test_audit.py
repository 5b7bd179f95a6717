"""What an audit finds in a process.
Threads and descriptors of the test runner existed before and do not count.
"""

import os
import select
import socket
import sqlite3
import subprocess
import sys
import threading
import types
from collections import Counter
from pathlib import Path

import pytest

from ostler.workers import audit as module
from ostler.workers.audit import Audit, Before, audit_drained, audit_preloaded, audit_serving

SHARED = "workers would share it and get each other's answers"


@pytest.fixture
def known() -> set[int]:
    """The descriptors that the test's own process has open."""
    links = list(Path("/proc/self/fd").iterdir())
    return {int(link.name) for link in links if os.path.lexists(link)}  # one was for looking


@pytest.fixture(autouse=True)
def _threads_of_the_test_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """They exist before the test and do not count; pytest-xdist has one that Python does not know."""
    look = module._unknown_threads
    before = Counter(look())
    monkeypatch.setattr(module, "_unknown_threads", lambda: list((Counter(look()) - before).elements()))


def found(known: set[int]) -> Audit:
    """The findings in a drained worker, without those that existed before the test."""
    return audit_drained(known)


def test_what_can_be_shared_is_no_problem(known: set[int]) -> None:
    """Listeners, pipes, files and sockets that are not connected can be shared."""
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)), socket.socket(), socket.socket(type=socket.SOCK_DGRAM):
        assert found(known).problems == []
    os.close(reading)
    os.close(writing)


def test_threads_are_named_with_what_they_run(known: set[int]) -> None:
    """Targets, timers, and classes with their own `run`."""

    class Flusher(threading.Thread):
        def run(self) -> None:
            end.wait()

    end = threading.Event()
    threads = [
        threading.Thread(target=end.wait, name="waits"),
        threading.Timer(1000, print),
        Flusher(name="flushes"),
    ]
    threads[1].name = "ticks"
    for thread in threads:
        thread.daemon = True
        thread.start()
    problems = found(known).problems
    threads[1].cancel()  # type: ignore[attr-defined]
    end.set()
    for thread in threads:
        thread.join()
    here = f"{__name__}.test_threads_are_named_with_what_they_run.<locals>.Flusher"
    assert problems == [
        "thread 'waits' runs threading.Event.wait",
        "thread 'ticks' runs builtins.print",
        f"thread 'flushes' runs {here}",
    ]


def test_threads_that_libraries_start_again(known: set[int]) -> None:
    """Threads of libraries that restart them cause a warning; similar names are a problem."""

    class Worker(threading.Thread):
        def run(self) -> None:
            end.wait()

    end = threading.Event()
    found: dict[str, Audit] = {}
    for place in ("sentry_sdk.worker", "opentelemetry.sdk.trace.export", "sentry_sdk_like"):
        Worker.__module__ = place
        thread = Worker(name="works")
        thread.start()
        found[place] = audit_drained(known)
        end.set()
        thread.join()
        end.clear()
    what = "test_threads_that_libraries_start_again.<locals>.Worker"
    for place in ("sentry_sdk.worker", "opentelemetry.sdk.trace.export"):
        assert found[place].problems == []
        line = f"thread 'works' runs {place}.{what}: its library starts it again in workers"
        assert found[place].warnings == [line]
    assert found["sentry_sdk_like"].problems == [f"thread 'works' runs sentry_sdk_like.{what}"]


def test_what_a_preloaded_app_has_opened() -> None:
    """Its threads and connections, those that exist already are not its; what can be shared is left out."""
    end = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        threads = [threading.Thread(target=end.wait, name=name) for name in ("before", "of the app")]
        threads[0].start()
        before = Before.now()
        assert audit_preloaded(before) == []
        port = server.getsockname()[1]
        threads[1].start()
        with socket.create_connection(server.getsockname()), socket.socket():
            found = audit_preloaded(before)
        end.set()
        for thread in threads:
            thread.join()
    assert found == [
        "thread 'of the app' runs threading.Event.wait: workers will not have it",
        f"connection to 127.0.0.1:{port}: {SHARED}",
    ]


def test_the_engines_threads_do_not_count_while_it_serves(known: set[int]) -> None:
    """They end when the worker is drained; threads that still exist then count."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="ostler-2")
    thread.start()
    serving, drained = audit_serving(known, busy=False), audit_drained(known)
    end.set()
    thread.join()
    assert serving.problems == []
    assert drained.problems == ["thread 'ostler-2' runs threading.Event.wait"]


_NATIVE = """\
import ctypes, os, sys
sys.path.insert(0, sys.argv[1])
from ostler.workers import audit
from ostler.workers.audit import audit_drained, audit_serving
if sys.argv[2] != "as it is":
    audit._has_openblas = lambda: True
forked = []
os.register_at_fork(before=lambda: forked.append(True))
libc = ctypes.CDLL(None)
libc.pthread_create.argtypes = [ctypes.c_void_p] * 4
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
known = {int(name) for name in os.listdir("/proc/self/fd")}
name = open(f"/proc/self/task/{os.getpid()}/comm").read().strip()
for found in (audit_serving(known, False), audit_drained(known)):
    print("; ".join(found.problems).replace(name, "NAME") or "-")
print(len(forked))
"""
_NATIVE_THREAD = "thread 'NAME' was started by a library, not by Python"


@pytest.mark.parametrize(
    ("libraries", "expected"),
    [
        ("as it is", [_NATIVE_THREAD, _NATIVE_THREAD, "0"]),
        # OpenBLAS ends its threads before a fork: after a test fork its threads are new ones.
        ("with OpenBLAS", ["-", _NATIVE_THREAD, "1"]),
    ],
)
def test_threads_that_python_does_not_know(tmp_path: Path, libraries: str, expected: list[str]) -> None:
    """A thread that a C library made is found, with its name in the kernel."""
    root = str(Path(module.__file__).parents[2])
    script = tmp_path / "native"
    script.write_text(_NATIVE)
    argv = [sys.executable, script, root, libraries]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("busy", [False, True])
def test_a_connection_is_named_by_its_peer(known: set[int], busy: bool) -> None:
    """While requests run it may belong to one of them, and is only a warning."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with socket.create_connection(server.getsockname()) as client:
            serving = audit_serving(known | {server.fileno()}, busy)
            assert client.getpeername() == server.getsockname()  # it is still usable
    line = f"connection to {address}: {SHARED}"
    assert (serving.warnings if busy else serving.problems) == [line]
    assert (serving.problems if busy else serving.warnings) == []


def test_unix_sockets_are_named_by_their_path(known: set[int], tmp_path: Path) -> None:
    """A pair within the process has no name;
    datagram sockets are not a problem, because no answer can be lost.
    """
    path = str(tmp_path / "db.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        ours = known | {server.fileno()}
        assert found(ours).problems == [f"connection to {path}: {SHARED}"]
    one, other = socket.socketpair()
    with one, other:
        nameless = f"connection to an unnamed socket, e.g. within a pair: {SHARED}"
        assert found(known).problems == [nameless, nameless]
    with socket.socket(type=socket.SOCK_DGRAM) as statsd:
        statsd.connect(("127.0.0.1", 8125))
        assert found(known) == Audit([], [f"connection to 127.0.0.1:8125: {SHARED}"])


def test_an_open_sqlite_database(known: set[int], tmp_path: Path) -> None:
    """It is recognised by the content of the file, not by its name; other files are no problem."""
    path = tmp_path / "shop.data"
    other = tmp_path / "fake.sqlite3"
    other.write_text("text")
    with other.open():
        database = sqlite3.connect(path)
        database.execute("create table t (x)")
        database.commit()
        problems = found(known).problems
        database.close()
        assert problems == [f"SQLite database {path} is open: workers can damage it"]
        assert found(known).problems == []


def test_event_loops_are_a_warning(known: set[int]) -> None:
    """All workers would share an epoll."""
    with select.epoll():
        assert found(known).warnings == [
            "an epoll, e.g. of an event loop: workers would share it: make it again there"
        ]


def test_child_processes_are_a_warning(known: set[int]) -> None:
    """All workers would write to the pipes of a child process."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        warnings = found(known).warnings
        process.kill()
    assert warnings == [f"process {process.pid} was started by this worker: workers would share its pipes"]


@pytest.mark.parametrize(("in_use", "warned"), [(True, ["torch"]), (False, [])])
def test_libraries_with_known_problems(
    known: set[int], monkeypatch: pytest.MonkeyPatch, in_use: bool, warned: list[str]
) -> None:
    """Imported ones are named with advice; CUDA only when it is in use."""
    monkeypatch.setitem(sys.modules, "grpc", types.ModuleType("grpc"))
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_initialized=lambda: in_use)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    warnings = found(known).warnings
    assert [line.partition(":")[0] for line in warnings] == ["grpc", *warned]
    assert warnings[0].endswith("make channels in each worker")


def test_forced_problems_become_warnings() -> None:
    """Problems become warnings and come before the other ones."""
    assert Audit(["a", "b"], ["c"]).forced() == Audit([], ["a", "b", "c"])


def test_problems_that_are_left_to_a_hook() -> None:
    """They become warnings that name the hook."""
    assert Audit(["a"], ["c"]).left_to("worker_exit") == Audit([], ["a; worker_exit has to end it", "c"])
