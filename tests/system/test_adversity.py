"""What the machine does to a daemon: disks that fill up, readers that go away, limits, files that vanish.

Each time the fleet serves on, nothing spins, and what is wrong is said once.
"""

import json
import os
import signal
import subprocess
from io import FileIO
from pathlib import Path

import pytest

from tests.kit.daemon import OSTLER, Daemon, Place, Process, ask, children, until

pytestmark = pytest.mark.system


def within(*commands: str) -> list[str]:
    """The program, run by a shell after some commands of it."""
    return ["sh", "-c", f'{"; ".join(["set -e", *commands])}; exec "$@"', "sh", *OSTLER]


def redirected(to: str) -> list[str]:
    """The program, with its standard descriptors as the shell's `to` says."""
    return ["sh", "-c", f'exec "$@" {to}', "sh", *OSTLER]


def own_mounts(*commands: str) -> list[str]:
    """The program in a mount namespace of its own (unshare(1)), in which `commands` mount things."""
    return ["unshare", "--mount", "--propagation", "private", *within(*commands)]


def may_mount() -> bool:
    try:
        subprocess.run(own_mounts("mount -t tmpfs tmpfs /mnt", "exec true"), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


needs_mounts = pytest.mark.skipif(not may_mount(), reason="needs the right to mount")


def served(daemon: Daemon, workers: int = 1) -> str:
    """The address, asked for over the control socket: the log may be out of order."""
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
    """Whether daemon and fleet use next to no CPU time for a moment in which nothing is asked of them."""
    pids = [daemon.pid, *children(daemon.pid)]
    before = cpu(*pids)
    process = Process(daemon.pid)
    assert not process.ended(0.3)
    return cpu(*pids) - before < 0.1


def fill(path: Path) -> None:
    """Write until the disk is full, but for what is left in the last pages of other files."""
    with path.open("wb", buffering=0) as file:
        while _wrote(file):
            pass


def _wrote(file: FileIO) -> bool:
    try:
        return bool(file.write(b"x" * 4096))
    except OSError:
        return False


def lines(path: Path, event: str) -> list[dict[str, object]]:
    """The events of a kind in a log of JSON lines."""
    found = (json.loads(line) for line in path.read_text().splitlines() if line.startswith("{"))
    return [line for line in found if line["event"] == event]


# -- logs ------------------------------------------------------------------------------------------------


@needs_mounts
def test_log_disk_is_full(place: Place) -> None:
    """All serve on and calm; when there is room again each says what it lost, and lines are whole."""
    disk = place.folder / "disk"
    disk.mkdir()
    daemon = place.start(
        *("--error-logfile", f"{disk}/error.log", "--access-logfile", f"{disk}/access.log", "plain:app"),
        argv=own_mounts(f"mount -t tmpfs -o size=64k tmpfs {disk}"),
        serving=False,
    )
    url = served(daemon)
    inside = Path(f"/proc/{daemon.pid}/root{disk}")
    fill(inside / "filler")
    for _ in range(60):  # more than fits into the last page
        assert ask(url, f"/{'x' * 200}").status == 200
    assert ask(url, "/fail").status == 500
    for _ in range(5):
        assert daemon.ctl("recycle", "1").code == 0
    assert is_calm(daemon)
    (inside / "filler").unlink()
    assert ask(url, "/fail").status == 500
    assert ask(url, "/after").status == 200
    assert daemon.ctl("scale", "2").code == 0
    lost = until(lambda: lines(inside / "error.log", "log_lines_lost"), "the supervisor's confession")
    assert lost[0]["reason"] == "No space left on device"
    assert int(str(lost[0]["lines"])) > 0
    assert "GET /after HTTP/1.1" in (inside / "access.log").read_text()
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.stop() == 0


def test_logs_that_can_never_be_written(place: Place) -> None:
    """/dev/full for both logs: start, requests, errors, reload and stop are as ever."""
    daemon = place.start(
        *("--error-logfile", "/dev/full", "--access-logfile", "/dev/full", "-w", "2", "plain:app"),
        serving=False,
    )
    url = served(daemon, 2)
    for _ in range(20):
        assert ask(url).text == "one"
    assert ask(url, "/fail").status == 500
    assert daemon.ctl("reload").code == 0
    assert is_calm(daemon)
    assert daemon.stop() == 0
    assert daemon.log.read_text() == ""


def test_access_log_alone_can_not_be_written(place: Place) -> None:
    """The error log says so, once."""
    daemon = place.start("--access-logfile", "/dev/full", "plain:app")
    for _ in range(20):
        assert daemon.get().text == "one"
    event = daemon.event("access_log_unwritable")
    assert (event["file"], event["reason"]) == ("/dev/full", "No space left on device")
    assert is_calm(daemon)
    assert len(daemon.events("access_log_unwritable")) == 1


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_reader_of_the_log(place: Place, reader: str) -> None:
    """Gone as in `ostler 2>&1 | head -1`, or there but reading nothing: nobody ends, nobody waits for it."""
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
        assert daemon.ctl("reload").code == 0
        assert daemon.ctl("scale", "3").code == 0
        os.kill(daemon.pids()[0], signal.SIGKILL)
        daemon.settled(3)
        assert is_calm(daemon)
        if reader == "asleep":
            story = b""
            daemon.until(lambda: daemon.status().ready == 3, "ready")
            while piece := _read(end):
                story += piece
            assert ask(url, "/awake").status == 200
            daemon.send(signal.SIGTTOU)
            found = until(lambda: _read(end), "lines, now that they are read")
            assert b'"worker_died"' in story + found, "the supervisor kept what was most important"
        assert daemon.stop() == 0
    finally:
        if end >= 0:
            os.close(end)


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


def test_standard_descriptors_closed(place: Place) -> None:
    """Started with `<&- >&- 2>&-`: no listener gets the number that logs go to."""
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
    assert daemon.ctl("reload").code == 0
    assert daemon.stop() == 0
