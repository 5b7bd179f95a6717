"""For tests of attacks: an app that answers with its process's pid, and measurements of the daemon's health.

daemon = place.start(*CLASSES["threads"], "attacked:app")
with flood(...):
    assert_unharmed(daemon)
"""

import os
import signal
import statistics
import time
from contextlib import suppress
from typing import NamedTuple

import pytest

from ostler.control.client import Client
from ostler.control.routes import STATUS
from tests.kit.daemon import Daemon
from tests.kit.http_client import ask
from tests.kit.tiers import tiers
from tests.kit.waiting import until

APP = '''\
"""Answers with its process's pid, under WSGI and ASGI. Code in `attack.py`, if there, runs before that."""
import os
try:
    import attack
except ModuleNotFoundError:
    attack = None

def app(environ, start_response):
    if attack is not None and hasattr(attack, "request"):
        attack.request(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    if attack is not None and hasattr(attack, "request"):
        attack.request(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
'''

CLASSES: dict[str, tuple[str, ...]] = {
    "sync": ("attacked:app",),
    "threads": ("--threads", "4", "attacked:app"),
    "gevent": ("-k", "gevent", "attacked:app"),
    "asgi": ("-k", "asgi", "attacked:asgi"),
}
"""Command lines for each kind of worker, to be used with `APP` as attacked.py."""

EVERY_CLASS = {
    **CLASSES,
    "eventlet": ("-k", "eventlet", "attacked:app"),
    "meinheld": ("-k", "meinheld", "attacked:app"),
}
"""With those that few use, for the tests that cost little."""

USUAL = ("threads", "asgi")
"""What the usual tests attack; the others in `CLASSES` are left to the thorough ones."""

each_class = pytest.mark.parametrize("words", tiers(CLASSES.items(), USUAL))
every_class = pytest.mark.parametrize("words", tiers(EVERY_CLASS.items(), USUAL))

REPLACED_WITHIN = 0.1
STATUS_WITHIN = 0.5
"""Seconds: what users are promised while an attack runs. contrib/bench measures; tests allow for a slow
and busy machine."""
SLACK = 10.0
ROUNDS = 5


class Health(NamedTuple):
    """replaced: seconds from kill -9 of the worker that answers to an answer of another worker; status:
    seconds for `GET /v1/status` over the Unix socket on a connection of its own. One figure per round.
    """

    replaced: list[float]
    status: list[float]


def health(daemon: Daemon, rounds: int = ROUNDS) -> Health:
    """Kill workers and ask for the status, in turn. The daemon serves `APP`."""
    replaced, status = [], []
    for _ in range(rounds):
        status.append(status_time(daemon))
        # Connections end with the worker that holds them.
        victim = until(lambda: _pid(daemon), "an answer", 30)
        began = time.monotonic()
        with suppress(ProcessLookupError):  # the attack may have ended it already
            os.kill(victim, signal.SIGKILL)
        while _pid(daemon) in (None, victim):
            assert time.monotonic() - began < 30, f"worker {victim} has no successor after 30 s"
        replaced.append(time.monotonic() - began)
    return Health(replaced, status)


def assert_unharmed(daemon: Daemon, rounds: int = ROUNDS) -> None:
    """While an attack runs, the median times to replace a killed worker and to answer `ctl status` are within
    their limits.
    """
    found = health(daemon, rounds)
    assert statistics.median(found.replaced) < SLACK * REPLACED_WITHIN, found
    assert statistics.median(found.status) < SLACK * STATUS_WITHIN, found


def _pid(daemon: Daemon) -> int | None:
    try:
        return int(ask(daemon.url).text)
    except (OSError, ValueError):
        return None  # the worker was killed while it held the connection


def client_time(daemon: Daemon) -> float:
    """Seconds that a new client's request takes."""
    began = time.monotonic()
    ask(daemon.url)
    return time.monotonic() - began


def status_time(daemon: Daemon) -> float:
    """Seconds that the status takes, asked for over the Unix socket on a connection of its own."""
    began = time.monotonic()
    client = Client.unix(daemon.socket)
    try:
        client.call(STATUS)
    finally:
        client.close()
    return time.monotonic() - began
