"""Failures of the machine: full disks, log readers that go away, limits, files that vanish.

Each time the fleet continues to serve, nothing spins, and the problem is logged once.
"""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostler.osapi.needed import LIMITS
from tests.kit.daemon import OSTLER, Daemon, Place, fork_server
from tests.kit.http_client import Connection, ask
from tests.kit.processes import Process, children
from tests.kit.waiting import until

pytestmark = pytest.mark.system


def within(*commands: str) -> list[str]:
    """The program, executed by a shell after some shell commands."""
    return ["sh", "-c", f'{"; ".join(["set -e", *commands])}; exec "$@"', "sh", *OSTLER]


def redirected(to: str) -> list[str]:
    """The program, with standard descriptors redirected as in the shell's `to`."""
    return ["sh", "-c", f'exec "$@" {to}', "sh", *OSTLER]


def own_mounts(*commands: str) -> list[str]:
    """The program in a mount namespace of its own (unshare(1)), after the mounts of `commands`."""
    return ["unshare", "--mount", "--propagation", "private", *within(*commands)]


def may_mount() -> bool:
    try:
        subprocess.run(own_mounts("mount -t tmpfs tmpfs /mnt", "exec true"), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


needs_mounts = pytest.mark.skipif(not may_mount(), reason="needs the right to mount")


def served(daemon: Daemon, workers: int = 1) -> str:
    """The address, requested over the control socket, because the log may not be written."""
    daemon.settled(workers)
    return daemon.status().listeners[0]


def cpu(*pids: int) -> float:
    """CPU seconds that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def is_calm(daemon: Daemon) -> bool:
    """Whether daemon and fleet use hardly any CPU time while there are no requests."""
    pids = [daemon.pid, *children(daemon.pid)]
    before = cpu(*pids)
    process = Process(daemon.pid)
    assert not process.ended(0.3)
    return cpu(*pids) - before < 0.1


def fill(filler: Path, *logs: Path) -> None:
    """Write until the disk is full, including the last pages of the logs."""
    with filler.open("wb", buffering=0) as file:
        while _wrote_to(file.fileno()):
            pass
    for log in logs:
        with log.open("ab", buffering=0) as file:
            file.write(b"\n" * (-log.stat().st_size % 4096))


def lines(path: Path, event: str) -> list[dict[str, object]]:
    """The events of a kind in a log of JSON lines."""
    found = (json.loads(line) for line in path.read_text().splitlines() if line.startswith("{"))
    return [line for line in found if line["event"] == event]


# -- logs ------------------------------------------------------------------------------------------------


@needs_mounts
def test_log_disk_is_full(place: Place) -> None:
    """All processes continue to serve and do not spin.
    When there is room again, each logs how many lines it lost, and lines are whole.
    """
    disk = place.folder / "disk"
    disk.mkdir()
    daemon = place.start(
        *("--error-logfile", f"{disk}/error.log", "--access-logfile", f"{disk}/access.log", "plain:app"),
        argv=own_mounts(f"mount -t tmpfs -o size=64k tmpfs {disk}"),
        serving=False,
    )
    url = served(daemon)
    inside = Path(f"/proc/{daemon.pid}/root{disk}")
    fill(inside / "filler", inside / "error.log", inside / "access.log")
    for _ in range(20):
        assert ask(url).status == 200
    assert ask(url, "/fail").status == 500
    daemon.send(signal.SIGTTIN)
    daemon.settled(2)
    assert is_calm(daemon)
    (inside / "filler").unlink()
    for _ in range(4):  # to the worker that has lost lines as well
        assert ask(url, "/after").status == 200
    daemon.send(signal.SIGTTIN)
    lost = until(lambda: lines(inside / "error.log", "log_lines_lost"), "the report of the supervisor")
    assert lost[0]["reason"] == "No space left on device"
    assert int(str(lost[0]["lines"])) > 0
    until(lambda: "GET /after HTTP/1.1" in (inside / "access.log").read_text(), "the access log")
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_access_log_alone_can_not_be_written(place: Place) -> None:
    """The error log reports it once."""
    daemon = place.start("--access-logfile", "/dev/full", "plain:app")
    for _ in range(20):
        assert daemon.get().text == "one"
    event = daemon.event("access_log_unwritable")
    assert (event["file"], event["reason"]) == ("/dev/full", "No space left on device")
    assert is_calm(daemon)
    assert len(daemon.events("access_log_unwritable")) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_reader_of_the_log(place: Place, reader: str) -> None:
    """The reader has ended as in `ostler 2>&1 | head -1`, or exists but reads nothing:
    no process ends or waits for it.
    """
    fifo = place.folder / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        daemon = place.start(
            *("--access-logfile", "-", "-w", "2", "plain:app"),
            argv=redirected(f">{fifo} 2>&1"), serving=False,
        )  # fmt: skip
        url = served(daemon, 2)
        if reader == "gone":
            os.close(end)
            end = -1
        long = "x" * 1000
        for _ in range(100):  # a pipe holds 64 KiB
            assert ask(url, f"/{long}").status == 200
        assert ask(url, "/fail").status == 500
        daemon.send(signal.SIGTTIN)
        os.kill(daemon.settled(3)[0].pid or 0, signal.SIGKILL)
        daemon.until(lambda: daemon.status().totals.deaths == 1, "its death")
        daemon.settled(3)
        assert is_calm(daemon)
        if reader == "asleep":
            output = bytearray()

            def read(what: bytes) -> bool:
                output.extend(_read(end))
                return what in output

            assert read(b"GET /xxx")
            assert ask(url, "/awake").status == 200
            until(lambda: read(b"GET /awake"), "what is logged after the reader is back")
            until(lambda: read(b'"worker_died"'), "what the supervisor kept")
        assert daemon.stop() == 0
    finally:
        if end >= 0:
            os.close(end)


def test_app_prints_without_a_reader(place: Place) -> None:
    """The reader of stdout and stderr has ended: neither print nor wsgi.errors fails in the app."""
    place.add(
        "talks.py",
        "def app(environ, start_response):\n"
        "    print('hello', flush=True)\n"
        "    environ['wsgi.errors'].write('hello\\n')\n"
        "    environ['wsgi.errors'].flush()\n"
        "    start_response('200 OK', [])\n"
        "    return [b'fine']\n",
    )
    fifo = place.folder / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    daemon = place.start("talks:app", argv=redirected(f">{fifo} 2>&1"), serving=False)
    url = served(daemon)
    os.close(end)
    assert ask(url).text == "fine"


def test_failed_start_without_a_reader(place: Place) -> None:
    """A start that fails has its usual exit code, even when its output has no reader."""
    place.add("broken.py", "raise RuntimeError('no database')\n")
    fifo = place.folder / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        while _wrote_to(end):
            pass
        assert place.start("broken:app", argv=redirected(f"2>{fifo}"), serving=False).wait() == 3
    finally:
        os.close(end)


def _wrote_to(fd: int) -> bool:
    try:
        return bool(os.write(fd, b"x" * 4096))
    except OSError:  # full: a disk or a pipe
        return False


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


@pytest.mark.thorough
def test_standard_descriptors_closed(place: Place) -> None:
    """Started with `<&- >&- 2>&-`: no listener gets the descriptor number to which logs are written."""
    daemon = place.start(
        *("--access-logfile", "-", "plain:app"), argv=redirected("<&- >&- 2>&-"), serving=False
    )
    url = served(daemon)
    for _ in range(3):
        assert ask(url).text == "one"
    assert ask(url, "/fail").status == 500
    for pid in (daemon.pid, *children(daemon.pid)):
        for number in range(3):
            assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"  # noqa: PTH115 - one line less
    assert daemon.stop() == 0


# -- disks -----------------------------------------------------------------------------------------------

# No file can be written, and there is no shared memory except memfd_create(2).
READ_ONLY = (
    "while umount -l /dev/shm 2>/dev/null; do :; done",
    "mount --rbind / /",
    "mount -o remount,bind,ro /",
    "mount -o remount,bind,ro /dev 2>/dev/null || true",
)


@needs_mounts
def test_read_only_machine(place: Place) -> None:
    """It serves, with one warning for each missing feature;
    bodies too large for memory get 507 and one line.
    """
    daemon = place.start("plain:app", argv=own_mounts(*READ_ONLY))
    assert daemon.get().text == "one"
    assert daemon.get("/", method="POST", body=b"x" * 3_000_000).status == 507
    assert "No usable temporary directory" in daemon.event("body_not_stored")["reason"]
    assert daemon.get("/", method="POST", body=b"x" * 3_000).status == 200
    assert [event["event"] for event in daemon.events() if event["level"] != "info"] == [
        "control_unavailable",
        "body_not_stored",
    ]
    assert "read-only file system" in daemon.events("control_unavailable")[0]["problem"]
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.stop() == 0


@needs_mounts
def test_pid_file_on_a_read_only_disk(place: Place) -> None:
    """A pid file was asked for explicitly: one line, exit code 1."""
    argv = ["-b", "127.0.0.1:0", "--no-control-socket", "-p", "d.pid", "plain:app"]
    done = place.run(*argv, argv=own_mounts(*READ_ONLY))
    words = f"pidfile: can't write {place.app_folder}/d.pid: Read-only file system"
    assert (done.code, done.error) == (1, f"ostler: error: {words}")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def test_control_socket_deleted(place: Place) -> None:
    """Socket, token and folder are restored within seconds, with their permissions, and it is logged once."""
    daemon = place.start("--control-bind", "127.0.0.1:0", "plain:app")
    path = daemon.socket
    token = path.with_suffix(".token")
    secret = until(lambda: token.exists() and token.read_text(), "the token")
    shutil.rmtree(path.parent)
    daemon.event("control_socket_restored")
    daemon.event("control_token_restored")
    assert _listens(path)
    assert token.read_text() == secret
    modes = [file.stat().st_mode & 0o777 for file in (path.parent, path, token)]
    assert modes == [0o700, 0o600, 0o600]
    assert daemon.stop() == 0
    assert not path.exists()
    assert not token.exists()


# -- limits ----------------------------------------------------------------------------------------------


def limit_files(daemon: Daemon, most: int | None) -> None:
    """Set RLIMIT_NOFILE of the running supervisor; None: as before."""
    hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard if most is None else most, hard))


def test_supervisor_is_out_of_descriptors(place: Place) -> None:
    """Every call fails with EMFILE:
    survivors serve, each attempt is a line, and it recovers when there are descriptors.
    """
    daemon = place.start("-w", "2", "plain:app")
    workers = daemon.settled(2)
    lost = daemon.socket
    limit_files(daemon, 3)
    fork_server(daemon).send(signal.SIGKILL)
    os.kill(workers[0].pid or 0, signal.SIGKILL)
    assert "Too many open files" in daemon.event("fork_server_failed", after=1)["reason"]
    with socket.socket(socket.AF_UNIX) as refused:
        refused.connect(str(lost))  # the backlog accepts it; accept(2) fails
        assert "Too many open files" in daemon.event("control_unavailable")["problem"]
        assert daemon.get().text == "one"
        waits = [daemon.event("fork_server_failed", after=number)["retry_in"] for number in (1, 2)]
        assert waits[0] < waits[1], "the pause between attempts grows"
        assert is_calm(daemon)
        limit_files(daemon, None)
    daemon.settled(2, state="ready")
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.stop() == 0


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup that limits the number of processes (v1 or v2)."""
    roots = [Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")]
    for root in roots:
        folder = root / f"ostler-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / "pids.max").exists():
            break
        folder.rmdir()
    else:
        pytest.skip("needs the right to make a cgroup with the pids controller")
    yield folder
    (folder / "pids.max").write_text("max")
    until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup's processes are gone")
    folder.rmdir()


def test_fork_fails(cgroup: Path, place: Place) -> None:
    """EAGAIN for workers and fork servers:
    survivors serve, there is a line for each attempt, then it recovers.
    """
    daemon = place.start("-w", "2", "plain:app")
    victim = Process(daemon.settled(2)[0].pid or 0)
    for pid in (daemon.pid, *children(daemon.pid)):
        (cgroup / "cgroup.procs").write_text(str(pid))
    (cgroup / "pids.max").write_text("1")
    victim.send(signal.SIGKILL)
    event = daemon.event("worker_boot_failed", after=1)
    assert (event["slot"], event["reason"]) == (1, f"can't fork: Resource temporarily unavailable; {LIMITS}")
    fork_server(daemon).send(signal.SIGKILL)
    event = daemon.event("fork_server_failed", after=1)
    assert event["reason"] == f"can't start a fork server: Resource temporarily unavailable; {LIMITS}"
    assert daemon.status().state == "degraded"
    assert "Resource temporarily unavailable" in daemon.status().health
    assert daemon.get().text == "one"
    assert is_calm(daemon)
    (cgroup / "pids.max").write_text("max")
    daemon.settled(2, state="ready")
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.stop() == 0


# -- time ------------------------------------------------------------------------------------------------

# Loaded by every Python process of the fleet: shifts the wall clock by the offset in the file.
CLOCK = """\
import pathlib, time
_real, _file = time.time, pathlib.Path(__file__).with_name("offset")
def _wall():
    try:
        return _real() + float(_file.read_text())
    except (OSError, ValueError):
        return _real()
time.time = _wall
"""


@pytest.mark.thorough
def test_clock_jumps(place: Place) -> None:
    """The clock jumps one day forwards, then two back:
    no deadline fires, no worker is replaced, delays have their usual length.
    """
    (place.folder / "clock").mkdir()
    (place.folder / "clock" / "sitecustomize.py").write_text(CLOCK)
    offset = place.folder / "clock" / "offset"
    daemon = place.start(
        *("-w", "2", "-t", "30", "--max-age", "600", "plain:app"),
        PYTHONPATH=f"{place.folder}/clock:{os.environ.get('PYTHONPATH', '')}",
    )
    before = [worker.pid for worker in daemon.settled(2)]
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    for workers, jump in ((3, 86400), (4, -86400)):
        offset.write_text(str(jump))
        assert daemon.get().text == "one"
        daemon.send(signal.SIGTTIN)
        found = daemon.settled(workers)
        assert [worker.pid for worker in found][:2] == before
        assert daemon.events("worker_ready")[-1]["boot_seconds"] < 60
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    assert {event["level"] for event in daemon.events()} == {"info"}
    assert len({event["timestamp"][:10] for event in daemon.events()}) == 3, "the clock did jump"
    assert daemon.stop() == 0


# -- deaths ----------------------------------------------------------------------------------------------


def test_hung_fork_server(place: Place) -> None:
    """A fork server that does not fork when asked to is replaced, and does not delay the end;
    workers are not affected.
    """
    daemon = place.start("-w", "2", "--boot-timeout", "3", "plain:app")
    before = [worker.pid for worker in daemon.settled(2)]
    hung = fork_server(daemon)
    hung.send(signal.SIGSTOP)
    daemon.send(signal.SIGTTIN)
    assert "has not forked" in daemon.event("fork_server_failed")["reason"]
    assert [worker.pid for worker in daemon.settled(3)][:2] == before
    assert hung.ended(), "SIGKILL reaches stopped processes too"
    fork_server(daemon).send(signal.SIGSTOP)
    assert daemon.stop(within=25) == 0


@pytest.mark.thorough
def test_stop_while_a_hung_fork_server_owes_a_worker(place: Place) -> None:
    """The end does not wait for a worker that the hung fork server was asked to fork."""
    daemon = place.start("-w", "2", "--boot-timeout", "3", "plain:app")
    daemon.settled(2)
    hung = fork_server(daemon)
    hung.send(signal.SIGSTOP)
    daemon.send(signal.SIGTTIN)
    daemon.event("scale", workers=3)
    assert daemon.stop(within=25) == 0
    assert hung.ended()


def test_unix_socket_after_a_killed_daemon(place: Place) -> None:
    """A new daemon gets the path at once, and keeps it when the old daemon's workers end later."""
    path = place.folder / "app.sock"
    first = place.start("-b", f"unix:{path}", "plain:app", bind=None)
    slow = Connection(f"unix:{path}").asked("/gate/slow")
    first.in_app("/gate/slow")
    orphans = [Process(pid) for pid in children(first.pid)]
    first.kill()
    second = place.start("-b", f"unix:{path}", "plain:app", bind=None)
    assert ask(second.url).text == "one"
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    slow.close()
    assert len(orphans) == 2, "worker and fork server"
    assert all(orphan.ended(10) for orphan in orphans)
    assert ask(second.url).text == "one"
    assert second.stop() == 0
    assert not path.exists()
