"""An app that kills its own worker with a signal, which looks the same as an administrator's kill."""

import ctypes
import http.client
import os
import signal
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest

from ostler.control.routes import EXITS
from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import REPLACED_WITHIN, SLACK, STATUS_WITHIN, each_class, status_time
from tests.kit.http_client import Connection, ask
from tests.kit.processes import Process, title
from tests.kit.waiting import PATIENCE

pytestmark = [pytest.mark.system, pytest.mark.thorough]

KILLS = """\
import os
def request(path):
    if path == "/kill":
        os.kill(os.getpid(), 9)
"""
# So many per minute are replaced at once; see fleet.policies.
AT_ONCE = 33


def seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def deaths(daemon: Daemon, number: int) -> list[dict[str, Any]]:
    """Let workers kill themselves until there were this many deaths."""
    deadline = time.monotonic() + 6 * PATIENCE
    while len(found := daemon.events("worker_died")) < number:
        assert time.monotonic() < deadline, f"{len(found)} of {number}"
        with suppress(OSError, http.client.HTTPException):
            ask(daemon.url, "/kill")
    return found


@pytest.mark.thorough
@each_class
def test_a_worker_that_kills_itself_again_and_again(hostile_place: Place, words: tuple[str, ...]) -> None:
    """The supervisor does not fork without limit:
    after more kills than an administrator makes, each pause is longer.
    """
    hostile_place.add("attack.py", KILLS)
    daemon = hostile_place.start("--preload", "-w", "1", *words)
    daemon.settled(1)
    died = deaths(daemon, AT_ONCE + 5)
    # 0.1, 0.2, 0.4, 0.8 s, or a quarter less, and the boots.
    assert seconds(died[AT_ONCE + 4]) - seconds(died[AT_ONCE]) > 0.75 * 1.5
    assert {e.cause for e in daemon.client.call(EXITS)} == {"killed by an outsider"}
    assert status_time(daemon) < SLACK * STATUS_WITHIN
    daemon.until(lambda: daemon.status().state == "degraded", "the state says that something is wrong")
    assert "were killed" in daemon.status().health
    daemon.settled(1)
    assert daemon.get().status == 200
    assert daemon.stop() == 0


@pytest.mark.thorough
def test_an_administrator_kills_several_in_a_row(hostile_place: Place) -> None:
    """Each is replaced at once, the twentieth as fast as the first."""
    daemon = hostile_place.start("--preload", "-w", "1", "attacked:app")
    daemon.settled(1)
    times = []
    for _ in range(20):
        (worker,) = daemon.settled(1)
        began = time.monotonic()
        os.kill(worker.pid or 0, signal.SIGKILL)
        daemon.until(lambda old=worker.pid: daemon.settled(1)[0].pid != old, "another worker")
        times.append(time.monotonic() - began)
    assert sorted(times)[10] < SLACK * REPLACED_WITHIN, times
    assert daemon.stop() == 0


OTHER_RIGHTS = """\
import os
def request(path):
    if path == "/other":
        os.setresuid(65534, 65534, 65534)
        os.execv("/bin/sleep", ["sleep", "1000"])
"""
_PR_CAPBSET_DROP, _CAP_KILL = 24, 5  # linux/prctl.h, linux/capability.h


@pytest.mark.skipif(os.geteuid() != 0, reason="workers take other rights, which takes root")
@each_class
def test_a_worker_that_may_not_be_killed(hostile_place: Place, words: tuple[str, ...]) -> None:
    """For example one that executes sudo(8), if the daemon is not root: it is given up and delays nothing."""
    hostile_place.add("attack.py", OTHER_RIGHTS)
    daemon = hostile_place.start(
        *("--preload", "-w", "2", "-t", "1", "--graceful-timeout", "1", *words),
        popen={"preexec_fn": lambda: ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_KILL, 0, 0, 0)},
    )
    daemon.settled(2)
    before = set(daemon.pids())
    with suppress(OSError, http.client.HTTPException):
        Connection(daemon.url, 0.5).asked("/other").answer()
    (pid,) = (pid for pid in before if title(pid).startswith("sleep"))
    sleeper = Process(pid)
    try:
        (end,) = daemon.until(lambda: daemon.client.call(EXITS), "its end")
        assert (end.pid, end.cause) == (pid, "protocol error")
        daemon.settled(2)
        assert daemon.events("internal_error") == []
        daemon.send(signal.SIGTERM)
        assert daemon.wait() == 0
    finally:
        sleeper.send(signal.SIGKILL)
        assert sleeper.ended()
