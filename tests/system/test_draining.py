"""A daemon that serves on and is reported as not ready (`ctl drain`, --shutdown-delay), and one without
workers (`ctl pause`).
"""

import signal

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import ask
from tests.system.test_control_tcp import url

pytestmark = pytest.mark.system


def readiness(daemon: Daemon) -> str:
    """What /readyz says."""
    answer = ask(url(daemon), "/readyz")
    assert answer.status == (200 if answer.text == "ready\n" else 503)
    return answer.text.strip()


def test_shutdown_delay(place: Place) -> None:
    """After SIGTERM all is served and nothing is ready; a second SIGTERM begins the graceful stop."""
    daemon = place.start("-w", "2", "--shutdown-delay", "600", "--control-bind", "127.0.0.1:0", "plain:app")
    assert readiness(daemon) == "ready"
    workers = daemon.pids()
    daemon.send(signal.SIGTERM)
    assert daemon.event("stop")["delay"] == 600
    assert daemon.status().state == "draining"
    assert readiness(daemon) == "draining"
    assert daemon.get().text == "one"
    assert daemon.pids() == workers
    refused = daemon.ctl("resume")
    assert (refused.code, "about to stop" in refused.err) == (1, True)
    daemon.send(signal.SIGTERM)
    assert daemon.wait() == 0


def test_end_of_the_shutdown_delay(place: Place) -> None:
    """The stop begins by itself, and a request that came during the delay is answered."""
    daemon = place.start("--shutdown-delay", "1", "plain:app")
    slow = daemon.connect()
    daemon.send(signal.SIGTERM)
    daemon.event("stop")
    slow.asked("/gate/slow")
    daemon.until(lambda: daemon.status().state == "stopping", "the end of the delay")
    (place.app_folder / "slow.open").touch()
    assert slow.answer().text == "slow passed"
    assert daemon.wait() == 0


def test_drain_and_resume(place: Place) -> None:
    """`ctl drain` changes what /readyz says, and `ctl resume` takes that back."""
    daemon = place.start("--control-bind", "127.0.0.1:0", "plain:app")
    assert daemon.ctl("drain").code == 0
    assert readiness(daemon) == "draining"
    assert daemon.get().text == "one"
    assert daemon.ctl("status").out.count("draining") >= 1
    assert daemon.ctl("resume").code == 0
    assert readiness(daemon) == "ready"


def test_pause_and_resume(place: Place) -> None:
    """`ctl pause` returns when no worker is left; clients wait until `ctl resume`."""
    daemon = place.start("-w", "2", "plain:app")
    done = daemon.ctl("pause")
    assert (done.code, done.out) == (0, "paused; `ctl resume` serves again\n")
    assert daemon.workers() == []
    waiting = daemon.connect().asked("/")
    done = daemon.ctl("resume")
    assert (done.code, done.out) == (0, "2 of 2 workers ready\n")
    assert waiting.answer().text == "one"
