"""Forking a process that is the next subreaper's child, with the C extension and without."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from ostler import native

native_only = pytest.mark.skipif(native.module is None, reason="there is no C extension")
WAYS = [pytest.param("fork_orphan", marks=native_only, id="c"), pytest.param("_fork_twice", id="python")]

# What a test's program begins with: `fork`, and `run(child)`, which returns what a forked child writes.
PROGRAM = """\
import ctypes, json, os, sys, threading
from ostler.osapi import orphan_fork, original
fork = getattr(orphan_fork, sys.argv[1])
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

def run(child, own_group=True):
    read_fd, write_fd = os.pipe()
    go_read, go_write = os.pipe()
    pid = fork(own_group)
    if pid == 0:
        os.read(go_read, 1)
        os.write(write_fd, json.dumps(child()).encode())
        os._exit(7)
    # The process in between has ended now.
    os.write(go_write, b".")
    for fd in (write_fd, go_read, go_write):
        os.close(fd)
    with open(read_fd) as file:
        result = json.loads(file.read())
    assert os.waitpid(pid, 0) == (pid, 7 << 8)
    return pid, result
"""


def outcome(way: str, program: str) -> Any:
    """What a program, which goes on after PROGRAM, prints as JSON."""
    command = [sys.executable, "-c", PROGRAM + program, way]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, timeout=100, check=True).stdout)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("own_group", [True, False])
def test_the_new_process(way: str, own_group: bool) -> None:
    """Its parent is the subreaper, though this one has not forked it itself, and no descriptor is left."""
    mine, pid, child, before, after = outcome(
        way,
        f"""
before = os.listdir("/proc/self/fd")
pid, child = run(lambda: [os.getpid(), os.getppid(), os.getpgrp()], {own_group})
print(json.dumps([[os.getpid(), os.getpgrp()], pid, child, before, os.listdir("/proc/self/fd")]))
""",
    )
    assert child == [pid, mine[0], pid if own_group else mine[1]]
    assert before == after


@pytest.mark.parametrize("way", WAYS)
def test_functions_of_the_app(way: str) -> None:
    """Those of `register_at_fork` find out that it is our fork; with the C extension they run once."""
    program = """
ran = []
note = lambda name: lambda: ran.append([name, os.getpid(), original.is_forking()])
os.register_at_fork(before=note("before"), after_in_parent=note("parent"), after_in_child=note("child"))
pid, child = run(lambda: ran)
print(json.dumps([os.getpid(), pid, ran, child, original.is_forking()]))
"""
    mine, pid, here, there, forking = outcome(way, program)
    assert here == [["before", mine, True], ["parent", mine, True]]
    assert there[-1] == ["child", pid, True]
    assert not forking
    if way == "fork_orphan":
        assert there == [["before", mine, True], ["child", pid, True]]


@native_only
def test_threads_that_want_the_gil() -> None:
    """The child does not give the GIL to threads that it does not have."""
    program = """
sys.setswitchinterval(1e-6)
stop = False
def compute():
    while not stop:
        sum(range(100))
threads = [threading.Thread(target=compute) for _ in range(4)]
for thread in threads:
    thread.start()
answers = [run(lambda: threading.active_count())[1] for _ in range(30)]
stop = True
for thread in threads:
    thread.join()
print(json.dumps(answers))
"""
    assert outcome("fork_orphan", program) == [1] * 30


@pytest.mark.parametrize("way", WAYS)
def test_no_descriptors(way: str) -> None:
    program = """
import errno, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    fork(True)
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
    assert outcome(way, program) == "EMFILE"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can choose a user without other processes")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("processes", [0, 1])
def test_no_processes(way: str, processes: int) -> None:
    """The first fork, or the second one, is refused, and both leave no process behind."""
    program = f"""
import errno, resource
os.setuid(3_000_000_000 + os.getpid())
resource.setrlimit(resource.RLIMIT_NPROC, ({processes + 1}, {processes + 1}))
try:
    pid = fork(True)
    if pid == 0:
        os._exit(0)
    print(json.dumps("forked"))
except OSError as error:
    print(json.dumps([errno.errorcode[error.errno], len(open("/proc/thread-self/children").read().split())]))
"""
    assert outcome(way, program) == ["EAGAIN", 0]
