"""Process groups: who is a member, and that nothing else is signalled."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ostler.osapi import process_groups
from tests.kit.waiting import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]
# Starts a process, which stays in its group, writes its pid, and ends.
PARENT = (
    "import subprocess, sys; "
    "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'], stdout=2).pid)"
)


@contextmanager
def process(argv: list[str], **more: object) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(argv, **more)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        if started.stdin is not None:
            started.stdin.close()


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[bytes]]:
    with process(SLEEP, process_group=0) as started:
        yield started


def test_members(leader: subprocess.Popen[bytes]) -> None:
    """The members of a group that descend from us; not others, not a group of other processes."""
    group = leader.pid
    assert process_groups.own_group(group) == group
    with process(SLEEP, process_group=group) as member, process(SLEEP):
        assert sorted(process_groups.members(group, os.getpid())) == sorted([group, member.pid])
        assert process_groups.members(group, member.pid) == []
    assert process_groups.has_members(group)


def test_signals(leader: subprocess.Popen[bytes]) -> None:
    """Members are signalled, except for those that are left out."""
    group = leader.pid
    with process(SLEEP, process_group=group) as member:
        assert process_groups.signal_members(group, os.getpid(), signal.SIGTERM, {group}) == [member.pid]
        assert member.wait() == -signal.SIGTERM
        assert leader.poll() is None


def test_an_empty_group(leader: subprocess.Popen[bytes]) -> None:
    """When its last process was reaped there is no group."""
    leader.kill()
    leader.wait()
    assert not process_groups.has_members(leader.pid)
    assert process_groups.members(leader.pid, os.getpid()) == []
    assert process_groups.own_group(leader.pid) is None


def test_sessions(leader: subprocess.Popen[bytes]) -> None:
    """All groups of our session, but not a session of its own."""
    with process(SLEEP, start_new_session=True) as detached:
        found = process_groups.members(process_groups.SESSION, os.getpid())
        assert leader.pid in found
        assert detached.pid not in found


def test_children() -> None:
    """A process has children as long as one of them lives."""
    with process([sys.executable, "-c", f"{PARENT}; input()"], stdin=subprocess.PIPE) as parent:
        until(lambda: process_groups.has_children(parent.pid), "it has a child")
        for pid in process_groups.members(os.getpgrp(), parent.pid):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not process_groups.has_children(parent.pid), "the child has ended")
