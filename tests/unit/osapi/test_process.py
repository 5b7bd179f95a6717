"""Signals hit whom they are meant for."""

import signal
import subprocess
import sys

from supervisor.osapi.process import DUMP_SIGNAL, signal_main_thread
from tests.kit.daemon import Process, freeze

CHILD = f"""\
import faulthandler, signal, threading, time

def handler(*_):
    raise SystemExit(7)

signal.signal(signal.SIGUSR1, handler)
faulthandler.register({int(DUMP_SIGNAL)}, open("/dev/null", "w"))
for _ in range(20):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print("ready", flush=True)
time.sleep(60)
"""


def test_main_thread_is_hit() -> None:
    """Its handler runs at once, though it waits, has another signal pending, and is not alone."""
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
