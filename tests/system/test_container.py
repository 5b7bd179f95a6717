"""A daemon as in a container: it is PID 1, and a cgroup limits how much of the machine it may use."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ostler.control.client import Client
from ostler.control.routes import WORKERS
from tests.kit.daemon import OSTLER, Daemon, Place
from tests.kit.http_client import Connection
from tests.kit.processes import children, zombies
from tests.kit.waiting import PATIENCE, until
from tests.system.test_systemd import sent

pytestmark = pytest.mark.system

# The program as PID 1 of a namespace of its own (unshare(1)); its descendants end with it.
AS_INIT = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child", *OSTLER]

# Leaves an orphan with each request, as a shell script in the background would.
LEAVES = """\
import os, subprocess
def app(environ, start_response):
    path = environ['PATH_INFO']
    if path == '/leave':
        subprocess.run(['sh', '-c', 'sh -c "exit 3" & sleep 1000 & echo $! > stranger'])
    start_response('200 OK', [])
    return [str(os.getppid()).encode()]
"""


def may_be_init() -> bool:
    try:
        subprocess.run([*AS_INIT[:5], "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


needs_namespaces = pytest.mark.skipif(not may_be_init(), reason="needs the right to make a pid namespace")


class Init:
    """A daemon that is PID 1; `pid` is its number in the namespace of the test."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        (self.pid,) = children(daemon.pid)

    def send(self, signum: int) -> None:
        # Its parent does not forward signals. From outside, the kernel delivers KILL, STOP and handled
        # signals to PID 1 (pid_namespaces(7)).
        os.kill(self.pid, signum)

    def asked(self, target: str) -> Connection:
        """A connection with a request that is in the app."""
        connection = self.daemon.connect().asked(target)
        client = Client.unix(next(self.daemon.place.runtime.glob("ostler/*.sock")))

        def look() -> bool:
            return any(r.path == target for worker in client.call(WORKERS) for r in worker.in_flight)

        try:
            self.daemon.until(look, f"{target} in the app")
        finally:
            client.close()
        return connection


@pytest.fixture
def start(place: Place) -> Iterator[Callable[..., Init]]:
    def start(*args: str, **environ: str) -> Init:
        daemon = place.start(*args, argv=AS_INIT, **environ)
        assert daemon.event("serving")["pid"] == 1
        return Init(daemon)

    yield start
    for daemon in place.daemons:
        if daemon.process.poll() is None:
            daemon.kill()  # a test that failed; the kernel ends the container with it
            until(lambda: not place.leftovers(), "all are gone")


@needs_namespaces
def test_stop_as_init(place: Place, start: Callable[..., Init]) -> None:
    """TERM from an orchestrator: the shutdown is announced, requests in flight are finished, exit code 0.

    The pid file of an earlier container, with the same number in it, is no obstacle.
    """
    pidfile = place.folder / "d.pid"
    pidfile.write_text("1\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(place.folder / "notify")
        notify.bind(path)
        notify.settimeout(PATIENCE)
        init = start("-w", "2", "-p", str(pidfile), "plain:app", NOTIFY_SOCKET=path)
        assert "MAINPID=1" in sent(notify, "READY=1")
        assert pidfile.read_text() == "1\n"
        connection = init.asked("/gate/slow")
        init.send(signal.SIGTERM)
        sent(notify, "STOPPING=1")
    assert init.daemon.event("stop")["by"] == "signal TERM"
    (place.app_folder / "slow.open").touch()
    assert connection.answer().text == "slow passed"
    assert init.daemon.wait() == 0
    assert not pidfile.exists()


@needs_namespaces
def test_second_term_as_init(start: Callable[..., Init]) -> None:
    """A second TERM makes the end quick but orderly."""
    init = start("--graceful-timeout", "60", "plain:app")
    init.asked("/gate/never")
    init.send(signal.SIGTERM)
    init.daemon.event("stop", how="graceful")
    init.send(signal.SIGTERM)
    init.daemon.event("stop", how="quick")
    assert init.daemon.wait(5) == 0


@needs_namespaces
def test_orphans_as_init(place: Place, start: Callable[..., Init]) -> None:
    """Orphans of the app become children of PID 1, and are reaped.
    They are not workers, and end with the container.
    """
    place.add("leaves.py", LEAVES)
    init = start("leaves:app")
    for _ in range(3):
        assert init.daemon.get("/leave").text == "1"
    init.daemon.until(lambda: len(children(init.pid)) == 5 and not zombies(init.pid), "only sleepers stay")
    assert init.daemon.events("worker_died") == []
    init.send(signal.SIGTERM)
    assert init.daemon.wait() == 0


@needs_namespaces
def test_signals_as_init(place: Place, start: Callable[..., Init]) -> None:
    """HUP reloads, TTIN scales, USR1 reopens logs, and none of them is forwarded to workers."""
    place.add(
        "hears.py",
        "import signal\n"
        "for signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1, signal.SIGURG):\n"
        "    signal.signal(signum, lambda *_: open('heard', 'w').close())\n"
        "from plain import app\n",
    )
    init = start("hears:app")
    init.send(signal.SIGHUP)
    init.daemon.event("reload_done")
    for signum in (signal.SIGURG, signal.SIGUSR1, signal.SIGTTIN):
        init.send(signum)
    init.daemon.event("logs_reopened")
    init.daemon.event("worker_ready", slot=2)
    assert init.daemon.get().text == "one"
    assert not (place.app_folder / "heard").exists()
    init.send(signal.SIGTERM)
    assert init.daemon.wait() == 0


@needs_namespaces
def test_exit_code_as_init(place: Place) -> None:
    """An app that does not boot: the container ends with our exit code, not with that of a signal."""
    place.add("broken.py", "raise RuntimeError('no database')\n")
    done = place.run("-b", "127.0.0.1:0", "broken:app", argv=AS_INIT)
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith("ostler: error: can't load 'broken:app'")


# -- what a cgroup allows --------------------------------------------------------------------------------


def _cgroup(controller: str, files: dict[str, str]) -> Path | None:
    """A new cgroup with the first of `files` that can be written; None if none can be made."""
    for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup", controller)):
        folder = root / f"ostler-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        for name, value in files.items():
            if (folder / name).exists():
                (folder / name).write_text(value)
                return folder
        folder.rmdir()
    return None


@pytest.mark.parametrize(
    ("controller", "files", "code", "most"),
    [
        (
            "cpu",
            {"cpu.max": "100000 100000", "cpu.cfs_quota_us": "100000"},
            "from ostler.osapi.cpus import usable_cpus as look",
            1,
        ),
        (
            "memory",
            {"memory.max": "67108864", "memory.limit_in_bytes": "67108864"},
            "from ostler.osapi.memory import memory_free as look",
            67108864,
        ),
    ],
)
def test_limits_of_a_real_cgroup(controller: str, files: dict[str, str], code: str, most: int) -> None:
    """A process in a cgroup with a limit uses that limit."""
    if (folder := _cgroup(controller, files)) is None:
        pytest.skip(f"needs the right to make a cgroup with the {controller} controller")
    try:
        script = (
            "import os, sys, pathlib\n"
            "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n"
            f"{code}\nprint(look())"
        )
        argv = [sys.executable, "-c", script, str(folder)]
        found = json.loads(subprocess.run(argv, check=True, capture_output=True, timeout=20).stdout)
        assert 0 < found <= most
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), "it is empty")
        folder.rmdir()
