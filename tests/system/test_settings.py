"""Rows of the settings table in a running daemon:
which worker classes use them, and when a change takes effect.
"""

import signal
import time

import pytest

from tests.kit.daemon import Place, until
from tests.kit.tiers import thorough

pytestmark = pytest.mark.system

CLASSES = {
    "sync": ("-k", "sync", "plain:app"),
    "gthread": ("-k", "gthread", "--threads", "2", "plain:app"),
    "gevent": ("-k", "gevent", "plain:app"),
    "asgi": ("-k", "asgi", "waiter:app"),
}


@pytest.mark.parametrize("kind", ["gthread", *thorough("asgi", "sync", "gevent")])
def test_longer_graceful_timeout(place: Place, kind: str) -> None:
    """After a reload that makes graceful_timeout longer, the new time applies to requests of old workers."""
    place.add("conf.py", "graceful_timeout = 0.5\n")
    daemon = place.start("-c", "conf.py", "--preload", *CLASSES[kind])
    slow = daemon.connect().asked("/gate/slow")
    daemon.in_app("/gate/slow")
    place.add("conf.py", "graceful_timeout = 30\n")
    daemon.send(signal.SIGHUP)
    daemon.until(lambda: daemon.status().draining == 1, "the old worker drains")
    later = time.monotonic() + 2.5  # the old value, the extra second of the fleet (drain_grace), and one more
    until(lambda: time.monotonic() > later, "both old limits are over")
    (place.app_folder / "slow.open").touch()
    answer = slow.answer()
    assert (answer.status, answer.text) == (200, "slow passed")
    assert daemon.event("worker_exited")["status"] == "exit code 0"
    assert not daemon.events("drain_timeout")


@pytest.mark.parametrize("kind", ["gthread", *thorough("asgi", "sync", "gevent")])
def test_shorter_graceful_timeout(place: Place, kind: str) -> None:
    """After a reload that makes it shorter, old workers end requests before they would be killed."""
    place.add("conf.py", "graceful_timeout = 30\n")
    daemon = place.start("-c", "conf.py", "--preload", *CLASSES[kind])
    slow = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    place.add("conf.py", "graceful_timeout = 0.5\n")
    daemon.send(signal.SIGHUP)
    if kind == "asgi":
        assert slow.answer().status == 500
    else:
        slow.ended_by_server()
    exited = daemon.event("worker_exited")
    if kind == "sync":
        # Its only thread is in the app: only a signal can end that.
        assert exited["status"] == "signal 9"
        assert daemon.events("drain_timeout")
    else:
        assert exited["status"] == "exit code 0"
        assert not daemon.events("drain_timeout")


@pytest.mark.parametrize(
    ("kind", "unused"), [("asgi", "threads, limit_request_line"), ("gevent", "threads"), ("sync", None)]
)
def test_settings_without_effect(place: Place, kind: str, unused: str | None) -> None:
    """Settings that the worker class does not use are named in one warning."""
    given = ("--threads", "2", "--limit-request-line", "99", "--check-config", CLASSES[kind][-1])
    done = place.run("-k", kind, *given)
    assert done.code == 0
    warned = [line for line in (done.out + done.err).splitlines() if "without effect" in line]
    assert len(warned) == (unused is not None)
    assert unused is None or f"without effect in {kind} workers: {unused}" in warned[0]


@pytest.mark.parametrize("kind", ["gthread", *thorough("asgi")])
def test_shorter_timeout(place: Place, kind: str) -> None:
    """A reload that makes the time-out shorter ends a request that is in the app of an old worker."""
    place.add("conf.py", "timeout = 0\ngraceful_timeout = 60\n")
    daemon = place.start("-c", "conf.py", "--preload", *CLASSES[kind])
    slow = daemon.connect().asked("/gate/never")
    daemon.in_app("/gate/never")
    place.add("conf.py", "timeout = 1\ngraceful_timeout = 60\n")
    daemon.send(signal.SIGHUP)
    assert slow.answer().status == 504
    assert daemon.event("worker_exited", generation=1)["status"] == "exit code 0"
