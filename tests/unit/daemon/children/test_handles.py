"""Handles of child processes."""

import os
import signal
import subprocess

import pytest

from ostler.daemon.children.handles import Child
from ostler.daemon.children.records import ChildRecord


def child_process() -> Child:
    return Child(ChildRecord(generation=1, spawned_at=0.0))


@pytest.fixture
def unrelated() -> int:
    """A process that is not a child of this process."""
    done = subprocess.run(
        ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, check=True
    )
    return int(done.stdout)


def test_only_children_are_signalled(unrelated: int) -> None:
    """A fork server may report any pid; only children of the supervisor are signalled."""
    try:
        child = child_process()
        assert not child.forked(unrelated)
        child.send_signal(signal.SIGKILL)
        os.kill(unrelated, 0)
        assert not [pid for pid in (os.getpid(), 1, 0, -1, 1 << 40) if child_process().forked(pid)]
    finally:
        os.kill(unrelated, signal.SIGKILL)


def test_children_are_known_until_they_are_reaped() -> None:
    """A process that has ended is still a child until it is reaped."""
    with subprocess.Popen(["sleep", "600"]) as process:
        child = child_process()
        assert child.forked(process.pid)
        child.send_signal(signal.SIGTERM)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        ended = child_process()
        assert ended.forked(process.pid)
        ended.close_pidfd()
        child.close_pidfd()
    assert process.returncode == -signal.SIGTERM
    assert not child_process().forked(process.pid)
