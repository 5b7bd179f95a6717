"""Connections outlive their worker, and do not wait for a busy worker while another one is free."""

from pathlib import Path

import pytest

from ostler.control.routes import RECYCLE
from tests.kit.daemon import Daemon, Place
from tests.kit.http_client import Connection
from tests.kit.tiers import thorough
from tests.system.test_signals import page

pytestmark = pytest.mark.system

PLAIN = (Path(__file__).parent / "apps" / "plain.py").read_text()
KINDS = pytest.mark.parametrize("kind", [["--threads", "3"], *thorough([])], ids=["gthread", "sync"])

# A long request takes longer than the time after which a worker treats a request as long.
GATED = """
import os, time
from pathlib import Path

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/gate/"):
        began = time.monotonic()
        gate = Path(environ["PATH_INFO"].removeprefix("/gate/"))
        while not gate.exists() or time.monotonic() - began < 0.05:
            time.sleep(0.005)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


class Kept:
    """Connections that stay open; their requests must use the same sockets."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        self.connections = [daemon.connect() for _ in range(number)]
        self.ask()
        self.sockets = [connection.sock for connection in self.connections]

    def ask(self) -> list[str]:
        return [connection.asked("/").answer().text for connection in self.connections]

    def ask_again(self) -> list[str]:
        answers = self.ask()
        assert [connection.sock for connection in self.connections] == self.sockets
        return answers

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@KINDS
def test_connections_survive_reloads(place: Place, kind: list[str]) -> None:
    """The same connection is served by old code, and after a reload by new code."""
    place.add("page.py", page("0"))
    daemon = place.start("-w", "2", "--keep-alive", "60", *kind, "page:app")
    daemon.settled(2)
    kept = Kept(daemon, 6)
    for version in ("1", "2"):
        place.add("page.py", page(version))
        assert daemon.ctl("reload").code == 0
        assert set(kept.ask_again()) == {version}
    daemon.counted(connections=6)
    daemon.until(
        lambda: sum(worker.connections for worker in daemon.workers()) == 6, "each belongs to one worker"
    )
    kept.close()


@pytest.mark.thorough
def test_connections_survive_recycling_and_scaling(place: Place) -> None:
    """The same when a worker leaves for another reason."""
    place.add("plain.py", PLAIN)
    daemon = place.start("-w", "3", "--keep-alive", "60", "plain:app")
    daemon.settled(3)
    kept = Kept(daemon, 6)
    daemon.client.call(RECYCLE, slot=1)
    daemon.event("worker_exited", slot=1)
    kept.ask_again()
    assert daemon.ctl("scale", "1").code == 0
    daemon.settled(1)
    kept.ask_again()
    kept.close()


def test_a_stop_closes_what_no_worker_can_have(place: Place) -> None:
    """When all workers leave, idle connections are closed soon."""
    place.add("plain.py", PLAIN)
    daemon = place.start("-w", "2", "--keep-alive", "60", "plain:app")
    daemon.settled(2)
    kept = Kept(daemon, 4)
    assert daemon.stop(within=25) == 0
    for connection in kept.connections:
        connection.ended_by_server()
    kept.close()


@KINDS
def test_quick_requests_do_not_wait_for_busy_workers(place: Place, kind: list[str]) -> None:
    """If all threads of a worker are in long requests, the other worker answers its connections."""
    place.add("gated.py", GATED)
    daemon = place.start("-w", "2", "--keep-alive", "60", *kind, "gated:app")
    daemon.settled(2)
    each = 3 if kind else 1

    def occupy(gate: str, number: int) -> list[Connection]:
        """Put this many requests into the app at the same time."""
        asked = []
        for _ in range(number):
            asked.append(daemon.connect().asked(f"/gate/{gate}"))
            daemon.until(
                lambda: sum(len(w.in_flight) for w in daemon.workers()) == len(asked), "it is in the app"
            )
        return asked

    def release(gate: str, asked: list[Connection]) -> None:
        place.add(gate, "")
        for connection in asked:
            assert connection.answer().status == 200
            connection.close()

    # Both workers have had a long request now.
    release("first", occupy("first", 2 * each))
    kept = Kept(daemon, 8)
    # All threads but one are busy: the worker that has it must answer all.
    asked = occupy("second", 2 * each - 1)
    assert len(set(kept.ask_again())) == 1
    release("second", asked)
    kept.close()
