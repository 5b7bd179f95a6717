"""Workers can't boot any more: the survivors serve, the state shows it, and the fleet recovers by itself."""

import json
import os
import signal

import pytest

from tests.kit.daemon import Place, fork_server

pytestmark = pytest.mark.system

# Boots only while there is no file named broken.
FRAGILE = """\
import pathlib
if pathlib.Path('broken').exists():
    raise RuntimeError('no database')
from plain import app
"""


def test_degraded_and_recovered(place: Place) -> None:
    """After kill -9 the successor does not boot: backoff, and degraded in the API;
    when it boots again, the state is ready.
    """
    place.add("fragile.py", FRAGILE)
    daemon = place.start("-w", "2", "fragile:app")
    before = daemon.settled(2)
    (place.app_folder / "broken").touch()
    os.kill(before[0].pid or 0, signal.SIGKILL)
    waits = [daemon.event("worker_boot_failed", after=number)["retry_in"] for number in range(3)]
    assert waits == sorted(waits)
    assert waits[0] < waits[2], "the pause between attempts grows"
    failure = daemon.event("worker_boot_failed")
    assert (failure["slot"], failure["reason"]) == (1, "can't load 'fragile:app': RuntimeError: no database")
    assert 'fragile.py", line 3' in failure["traceback"]
    status = daemon.status()
    assert (status.state, status.ready, status.wanted) == ("degraded", 1, 2)
    assert status.health.startswith("Degraded: 1 of 2 workers ready; booting failed ")
    assert "no database" in status.health
    assert "Degraded" in daemon.ctl("status").out
    assert daemon.get().text == "one"
    assert [worker.pid for worker in daemon.workers() if worker.state == "ready"] == [before[1].pid]
    (place.app_folder / "broken").unlink()
    daemon.settled(2, state="ready")
    assert daemon.status().health == "Healthy: all 2 workers are ready."


def test_all_workers_lost(place: Place) -> None:
    """Without any worker the daemon continues and reports it; a waiting request is served in the end."""
    place.add("fragile.py", FRAGILE)
    daemon = place.start("fragile:app")
    (place.app_folder / "broken").touch()
    os.kill(daemon.pids()[0], signal.SIGKILL)
    daemon.event("worker_boot_failed")
    waiting = daemon.connect().asked("/")
    assert json.loads(daemon.ctl("status", "--json").out)["state"] == "degraded"
    (place.app_folder / "broken").unlink()
    assert waiting.answer().text == "one"
    daemon.settled(1, state="ready")


def test_ctl_does_not_wait_for_ever(place: Place) -> None:
    """`ctl scale` exits with 1 and the reason if workers do not boot."""
    place.add("fragile.py", FRAGILE)
    daemon = place.start("fragile:app")
    (place.app_folder / "broken").touch()
    done = daemon.ctl("scale", "2")
    assert done.code == 1
    assert "degraded" in done.error
    assert "no database" in done.error


def test_preloaded_app_breaks(place: Place) -> None:
    """With --preload a new fork server loads the code again, and reports a failure."""
    place.add("fragile.py", FRAGILE)
    daemon = place.start("--preload", "-w", "2", "fragile:app")
    before = [worker.pid for worker in daemon.settled(2)]
    (place.app_folder / "broken").touch()
    fork_server(daemon).send(signal.SIGKILL)
    daemon.event("fork_server_failed", after=1)
    status = daemon.status()
    assert (status.state, status.ready) == ("degraded", 2)
    assert "no database" in status.health
    (place.app_folder / "broken").unlink()
    daemon.until(lambda: daemon.status().state == "ready", "recovered")
    assert daemon.pids() == before
    assert daemon.ctl("scale", "3").code == 0


def test_stop_while_degraded(place: Place) -> None:
    """TERM during a backoff ends the daemon at once, with exit code 0."""
    place.add("fragile.py", FRAGILE)
    daemon = place.start("-w", "2", "fragile:app")
    victim = daemon.settled(2)[0].pid or 0
    (place.app_folder / "broken").touch()
    os.kill(victim, signal.SIGKILL)
    daemon.event("worker_boot_failed", after=1)
    assert daemon.stop(within=25) == 0
