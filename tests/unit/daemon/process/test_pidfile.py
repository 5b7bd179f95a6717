"""To which process a pid file belongs: only to a live one that may have written it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ostler.daemon.process.pidfile import PidFile
from ostler.errors import SettingError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.pid"


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a live process that is not this one."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def ours(path: Path) -> bool:
    return path.read_text() == f"{os.getpid()}\n"


def test_written_and_removed(path: Path) -> None:
    """It has one line that every user may read.
    No other file is left in the folder, and none at all afterwards.
    """
    file = PidFile(str(path))
    file.write()
    assert ours(path)
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]
    file.remove()
    file.remove()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"rubbish", b"\xff\xfe\x00", b"-1", b"0", b"1" * 5000, b"1.5"]
)
def test_a_file_without_a_pid_is_replaced(path: Path, content: bytes) -> None:
    """A file without a pid in it (empty after a crash, or of another program) belongs to no process."""
    path.write_bytes(content)
    PidFile(str(path)).write()
    assert ours(path)


def test_a_process_that_may_have_written_it(path: Path, sleeper: int) -> None:
    """It keeps the file, whatever process it is, and the error names it."""
    path.write_text(f"{sleeper}\n")
    with pytest.raises(SettingError, match=f"belongs to process {sleeper}, which is alive"):
        PidFile(str(path)).write()
    assert path.read_text() == f"{sleeper}\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_process_that_is_younger_than_the_file(path: Path, sleeper: int) -> None:
    """Another process has the pid now, as after a reboot: the file is stale, which is logged."""
    path.write_text(f"{sleeper}\n")
    os.utime(path, (time.time() - 60, time.time() - 60))
    with capture_logs() as logs:
        PidFile(str(path)).write()
    assert ours(path)
    (event,) = logs
    assert (event["event"], event["log_level"]) == ("pidfile_taken_over", "info")
    assert event["problem"] == f"process {sleeper} is younger than the file: another one that got the number"


def test_a_process_that_has_ended(path: Path) -> None:
    """One that is reaped, and one that is a zombie, to which signals can still be sent."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        path.write_text(f"{process.pid}\n")
        PidFile(str(path)).write()
        assert ours(path)
    path.unlink()
    path.write_text(f"{process.pid}\n")
    PidFile(str(path)).write()
    assert ours(path)


def test_a_daemons_own_file_after_the_clock_jumped(path: Path) -> None:
    """Another Ostler holds a lock, so the file is its own even if it looks older than the process."""
    script = (
        "import sys, os; from ostler.daemon.process.pidfile import PidFile;"
        "file = PidFile(sys.argv[1]); file.write(); os.utime(sys.argv[1], (1, 1));"
        "print('written', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        with pytest.raises(SettingError, match=f"belongs to process {process.pid}"):
            PidFile(str(path)).write()
        process.communicate("")
    PidFile(str(path)).write()
    assert ours(path)


def test_our_own_pid_in_the_file(path: Path) -> None:
    """In a container the daemon before had the same pid; so has the program that was upgraded in place."""
    path.write_text(f"{os.getpid()}\n")
    PidFile(str(path)).write()
    assert ours(path)


def test_a_link_is_replaced_not_followed(path: Path, tmp_path: Path) -> None:
    """The daemon does not write to another file through a link, dangling or not."""
    target = tmp_path / "target"
    for content in (None, "precious"):
        if content:
            target.write_text(content)
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        PidFile(str(path)).write()
        assert ours(path)
        assert not path.is_symlink()
    assert target.read_text() == "precious"


def test_what_is_no_file(path: Path) -> None:
    """A folder, a FIFO, or a device, which must not even be opened, is one error, at once."""
    path.mkdir()
    with pytest.raises(SettingError, match=r"^pidfile: can't read .*: Is a directory"):
        PidFile(str(path)).write()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(SettingError, match=r"^pidfile: can't read .*: it is a FIFO, not a file"):
        PidFile(str(path)).write()
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(SettingError, match=r"^pidfile: can't read .*: it is a device, not a file"):
        PidFile(str(path)).write()


def test_a_file_that_is_anothers_by_now_stays(path: Path) -> None:
    """The file was deleted and another one written: the end of the daemon does not remove that one."""
    file = PidFile(str(path))
    file.write()
    path.unlink()
    path.write_text("17\n")
    file.remove()
    assert path.read_text() == "17\n"
