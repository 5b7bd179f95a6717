"""How many workers of a real daemon boot side by side, with an app whose import takes long."""

import sys

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

# Its import waits for a file; how many have begun and ended it is in `notes`.
SLOW = """\
import os, time
from pathlib import Path

def note(word):
    with open("notes", "a") as file:
        file.write(f"{word}\\n")

note("begins")
while not Path("go").exists():
    time.sleep(0.01)
note("ends")
from plain import app
"""
# An Ostler on a single CPU, so that two boots are allowed by default, which finds IDLE CPUs idle whenever it
# measures: the machine of a test may be busy.
MACHINE = """\
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from ostler.osapi.cpus import IdleCpus
IdleCpus.read = lambda self: IDLE
from ostler.__main__ import main
main()
"""


def begin(place: Place, *args: str, idle: float = 0.0) -> Daemon:
    place.add("slow.py", SLOW)
    program = MACHINE.replace("IDLE", str(idle))
    return place.start(*args, "slow:app", argv=(sys.executable, "-c", program), serving=False)


def side_by_side(place: Place) -> int:
    """The most imports that ran at the same time so far."""
    path, most, now = place.app_folder / "notes", 0, 0
    for word in path.read_text().split() if path.exists() else ():
        now += 1 if word == "begins" else -1
        most = max(most, now)
    return most


@pytest.mark.parametrize(("args", "most"), [(("--boot-parallelism", "3"), 3), *thorough(((), 2))])
def test_as_many_as_are_allowed(place: Place, args: tuple[str, ...], most: int) -> None:
    """They are in their imports at the same time; the next one begins when one of them is ready."""
    daemon = begin(place, *args, "-w", "5")
    daemon.until(lambda: side_by_side(place) == most, f"{most} imports at the same time")
    (place.app_folder / "go").touch()
    daemon.settled(5)
    assert side_by_side(place) == most


def test_more_while_cpus_are_idle(place: Place) -> None:
    """Imports that wait for something else than a CPU do not hold up the others."""
    daemon = begin(place, "-w", "6", idle=2.5)
    daemon.until(lambda: side_by_side(place) == 6, "all imports at the same time")
    assert daemon.status().ready == 0
    (place.app_folder / "go").touch()
    daemon.settled(6)
