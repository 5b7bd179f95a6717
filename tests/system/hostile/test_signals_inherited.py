"""A daemon that inherits blocked or ignored signals, or an unusual umask, from its parent process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.daemon import Place, end_with_parent, fork_server
from tests.kit.http_client import ask
from tests.kit.processes import Process
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.thorough]

# Without those that can't be blocked, and those that the C library uses (nptl(7)).
ALL = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def blocked() -> None:
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL)


def ignored() -> None:
    end_with_parent()
    for signum in ALL:
        signal.signal(signum, signal.SIG_IGN)


def masks(pid: int) -> tuple[set[int], set[int]]:
    """The signals that a process blocks and ignores (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    numbers = [int(words[name], 16) for name in ("SigBlk", "SigIgn")]
    blocks, ignores = ({bit + 1 for bit in range(64) if number >> bit & 1} for number in numbers)
    return blocks, ignores


CHILD = """\
import subprocess
def request(path):
    if path == "/child":
        global child
        child = subprocess.Popen(["sleep", "600"], restore_signals=False)
        open("child.pid", "w").write(str(child.pid))
    if path == "/end":
        child.kill()
        child.wait()
"""


@pytest.mark.parametrize("inherit", [blocked, *thorough(ignored)])
def test_inherited_signals(hostile_place: Place, inherit: Callable[[], None]) -> None:
    """All signals are blocked, or all are ignored:
    dead workers are replaced and signals have their effect, also after an upgrade.
    """
    hostile_place.add("attack.py", CHILD)
    daemon = hostile_place.start("attacked:app", popen={"preexec_fn": inherit})
    assert ask(daemon.url, "/child").status == 200
    child = int((hostile_place.app_folder / "child.pid").read_text())
    pythons = {signal.SIGPIPE, signal.SIGXFSZ}
    worker = int(ask(daemon.url).text)
    for pid in (daemon.pid, fork_server(daemon).pid, worker, child):
        found = masks(pid)
        assert found[0] == set(), pid
        # The C library uses 32; Python can't change it.
        assert {signum for signum in found[1] if signum in ALL} <= pythons, pid
    assert ask(daemon.url, "/end").status == 200
    Process(worker).send(signal.SIGKILL)
    daemon.event("worker_died", status="signal 9")
    daemon.settled(1)
    daemon.send(signal.SIGHUP)
    daemon.event("reload_done")
    daemon.send(signal.SIGTTIN)
    daemon.settled(2)
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    daemon.event("reload_done", after=1)
    assert masks(daemon.pid)[0] == set()
    worker = daemon.pids()[0]
    Process(worker).send(signal.SIGKILL)
    daemon.event("worker_died", status="signal 9", after=1)
    daemon.settled(2)
    assert daemon.stop() == 0


def test_check_with_ignored_children(hostile_place: Place) -> None:
    """SIGCHLD is ignored: the kernel discards the exit status that a check waits for."""

    def ignore() -> None:
        end_with_parent()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    daemon = hostile_place.start(
        "--check-config", "attacked:app", serving=False, popen={"preexec_fn": ignore}
    )
    assert (daemon.wait(60), daemon.log.read_text()) == (0, "")


def test_inherited_umask(hostile_place: Place) -> None:
    """A umask of 0777 makes files that their owner can't open: only we must be able to open ours."""

    def mask() -> None:
        end_with_parent()
        os.umask(0o777)

    daemon = hostile_place.start("-p", "pid", "--access-logfile", "access.log", "attacked:app",
                                 popen={"preexec_fn": mask})  # fmt: skip
    assert ask(daemon.url).status == 200
    assert daemon.status().ready == 1
    made = [
        *(hostile_place.app_folder / name for name in ("pid", "access.log")),
        daemon.socket.parent,
        daemon.socket,
    ]
    until(made[1].exists, "the access log")
    for path in made:
        mode = path.stat().st_mode
        assert mode & 0o600 == 0o600, path
        assert mode & 0o077 == 0, path
    assert daemon.stop() == 0
