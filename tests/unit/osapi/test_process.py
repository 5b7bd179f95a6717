"""Signals reach the right thread and process; whether a process ends."""

import os
import signal
import subprocess
import sys

from ostler.osapi.process import DUMP_SIGNAL, is_ending, signal_main_thread
from tests.kit.processes import Process, freeze
from tests.kit.waiting import PATIENCE

CHILD = f"""\
import faulthandler, os, signal, threading, time
from ostler.osapi.process import enlarge_signal_stack

def handler(*_):
    os._exit(7)  # nothing is torn down while another thread may be in faulthandler's handler

signal.signal(signal.SIGUSR1, handler)
faulthandler.register({int(DUMP_SIGNAL)}, open("/dev/null", "w"))
enlarge_signal_stack()
for _ in range(20):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("ready", flush=True)
time.sleep(60)
"""


def test_main_thread_is_hit() -> None:
    """Its handler runs at once, although it waits, has another signal pending, and is not the only thread."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        process = Process(child.pid)
        freeze(process)
        child.send_signal(DUMP_SIGNAL)
        signal_main_thread(child.pid, signal.SIGUSR1)
        child.send_signal(signal.SIGCONT)
        try:
            assert child.wait(20) == 7
        finally:
            child.kill()


MANY = [int(signal.SIGRTMIN) + number for number in range(8, 24)]
STOPPED = f"""\
import faulthandler, os, signal, time
from ostler.osapi.process import enlarge_signal_stack

seen = []

def handler(number, _frame):
    seen.append(number)
    if len(seen) == {len(MANY)}:
        os._exit(0)

for number in {MANY}:
    signal.signal(number, handler)
faulthandler.register({int(DUMP_SIGNAL)}, open("/dev/null", "w"))
enlarge_signal_stack()
print("ready", flush=True)
time.sleep(60)
"""


def test_many_signals_at_once() -> None:
    """The stack has room for the handlers of all signals that were pending while the process was stopped."""
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        freeze(Process(child.pid))
        for number in (DUMP_SIGNAL, *MANY):
            child.send_signal(number)
        child.send_signal(signal.SIGCONT)
        try:
            assert child.wait(PATIENCE) == 0
        finally:
            child.kill()


def test_is_ending() -> None:
    """A process that is reaped, or runs, does not end; one that is to be reaped does."""
    assert not is_ending(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_ending(child.pid)
        child.wait()
        assert not is_ending(child.pid)


def test_is_ending_before_it_is_dead() -> None:
    """When the process's descriptors are closed, which is some time before its death."""
    for _ in range(20):
        read_fd, write_fd = os.pipe()
        with subprocess.Popen([sys.executable, "-c", ""], pass_fds=[write_fd]) as child:
            os.close(write_fd)
            assert os.read(read_fd, 1) == b""
            assert is_ending(child.pid)
        os.close(read_fd)
