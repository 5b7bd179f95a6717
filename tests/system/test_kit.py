"""Tests of the test kit itself."""

import shutil
import signal
import subprocess
import sys

import pytest

from tests.kit.daemon import Place
from tests.kit.processes import Process

pytestmark = pytest.mark.system

STARTS = """\
import signal
from tests.kit.daemon import Place
place = Place()
place.add("plain.py", "app = print")
print(place.folder, place.start("-w", "1", "plain:app").pid, flush=True)
signal.pause()
"""


def test_tests_that_are_killed(place: Place) -> None:
    """A run of the tests that is killed leaves no daemon."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True, env=place.environ
    ) as tests:
        assert tests.stdout is not None
        line = tests.stdout.readline()
        folder, pid = line.split()
        daemon = Process(int(pid))
        tests.send_signal(signal.SIGKILL)
    assert daemon.ended()
    shutil.rmtree(folder)
