"""Resetting what a process inherits; each test is a process of its own, because signals and umask change."""

import subprocess
import sys

SCRIPT = """\
import os, signal
everything = signal.valid_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, everything)
for signum in everything - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(signum, signal.SIG_IGN)
for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
    signal.setitimer(timer, 600, 600)
os.umask(0o727)
from ostler.osapi.inherited import set_right
set_right({signal.SIGHUP}, {signal.SIGTERM})
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGTERM}
ignored = {signum for signum in everything if signal.getsignal(signum) == signal.SIG_IGN}
assert ignored == {signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ}, ignored
for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
    assert signal.getitimer(timer) == (0, 0)
assert os.umask(0) == 0o027
"""


def test_set_right() -> None:
    """Only the given signals are blocked or ignored, no timer runs, and the umask still restricts others."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
