"""Whatever a child sends over its channel, or into the pair between workers, can at worst end that child.

The attacks themselves are in attack_channels.py, which is the app's code.
"""

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from ostler.control.routes import EXITS
from ostler.control.views import ExitView
from tests.kit.daemon import Daemon, Place, fork_server
from tests.kit.hostile import CLASSES, assert_unharmed, each_class, every_class
from tests.kit.http_client import Connection
from tests.kit.processes import Process, until_stopped, zombies
from tests.kit.tiers import thorough
from tests.kit.waiting import until

pytestmark = pytest.mark.system
ATTACKS = Path(__file__).with_name("attack_channels.py").read_text()


@pytest.fixture
def place(hostile_place: Place) -> Iterator[Place]:
    """A place whose app attacks; the app may connect to a port where nothing is read."""
    hostile_place.add("attack.py", ATTACKS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (hostile_place.app_folder / "port").write_text(str(listener.getsockname()[1]))
        yield hostile_place


def attack(daemon: Daemon, name: str, times: int = 1) -> None:
    """Request an attack, of which the worker may die. The answer does not matter."""
    for _ in range(times):
        connection = Connection(daemon.url, 5.0)
        try:
            connection.asked(f"/{name}").answer()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()


def exits(daemon: Daemon) -> list[ExitView]:
    return daemon.client.call(EXITS)


def killed_for(daemon: Daemon, words: str) -> ExitView:
    """Wait until the ledger has an end with a protocol error that contains these words."""

    def look() -> ExitView | None:
        found = (e for e in exits(daemon) if e.cause == "protocol error" and words in (e.stack or ""))
        return next(found, None)

    return daemon.until(look, f"an end because of {words!r}")


def is_well(daemon: Daemon, workers: int) -> None:
    """The daemon works: it has its workers, reloads, and ends."""
    daemon.settled(workers)
    assert daemon.ctl("reload").code == 0
    daemon.settled(workers)
    assert "Healthy" in daemon.status().health
    assert daemon.stop() == 0


@every_class
def test_all_die_after_garbage(place: Place, words: Sequence[str]) -> None:
    """Each worker sends bytes that can't be decoded and dies at once:
    each death is recorded, each worker is replaced.
    """
    daemon = place.start("--preload", "-w", "3", *words)
    before = set(daemon.pids())

    def all_have_ended() -> bool:
        if {found.pid for found in exits(daemon)} >= before:
            return True
        attack(daemon, "garbage/die")  # a successor may get it as well
        return False

    daemon.until(all_have_ended, "three ends")
    assert {e.cause for e in exits(daemon)} == {"protocol error"}
    assert before.isdisjoint(daemon.pids())
    is_well(daemon, 3)


WORDS = {
    "garbage": "no message",
    "no_utf8": "no message",
    "deep": "no message",
    "wrong_type": "no message",
    "huge_number": "no message",
    "unknown": "no message",
    "empty": "an empty message",
    "large": "more than",
    "descriptors": "descriptors",
    "reload_files": "without --reload",
    "twice_ready": "Ready while it is",
    "not_booted": "BootFailed while it is",
    "zygote": "without having been asked",
    "audited": "without having been asked",
    "odd_signal": "no message",
    "flood": "more than any worker",
    "escaped_large": "an escaped message of more than",
}


def test_each_is_the_end_of_its_worker(place: Place) -> None:
    """A worker that sends a forbidden message is killed, with the reason in ledger and log;
    no other worker is.
    """
    # So many workers that these crashes in a row do not lead to a pause before the next successor.
    count = len(WORDS)
    daemon = place.start("--preload", "-w", str(count), *CLASSES["sync"])
    daemon.settled(count)
    for name in WORDS:
        attack(daemon, name)
    for words in WORDS.values():
        killed_for(daemon, words)
    daemon.until(lambda: len(exits(daemon)) == count, "as many ends as attacks")
    events = daemon.events("protocol_error")
    assert len(events) == count
    assert {e["pid"] for e in events} == {e.pid for e in exits(daemon)}
    is_well(daemon, count)


@pytest.mark.thorough
@each_class
def test_a_descriptor_whose_close_waits(place: Place, words: Sequence[str]) -> None:
    """Closing a connection with SO_LINGER whose peer does not read does not block the supervisor."""
    daemon = place.start("--preload", "-w", "2", *words)
    attack(daemon, "lingering")
    killed_for(daemon, "descriptors")
    assert_unharmed(daemon)
    is_well(daemon, 2)


@pytest.mark.parametrize("attackers", [1, *thorough(3)])
def test_flood(place: Place, attackers: int) -> None:
    """Workers that send endlessly are soon killed; meanwhile workers are replaced and the API answers."""
    daemon = place.start("--preload", "-w", "5", *CLASSES["threads"])
    daemon.settled(5)
    attack(daemon, "flood")
    killed_for(daemon, "more than any worker")
    attack(daemon, "flood", attackers)
    assert_unharmed(daemon)
    is_well(daemon, 5)


@pytest.mark.thorough
def test_orphans(place: Place) -> None:
    """An app leaves thousands of dead children to the supervisor, which still records deaths and handles
    signals.

    Their SIGCHLDs once filled the socket from which asyncio reads signals, which blocked the supervisor.
    """
    daemon = place.start("--preload", "-w", "3", *CLASSES["sync"])
    daemon.settled(3)
    for _ in range(3):
        for _ in range(3):
            attack(daemon, "orphans")
        assert_unharmed(daemon, 1)
    daemon.until(lambda: not zombies(daemon.pid), "all are reaped")
    is_well(daemon, 3)


@contextmanager
def going_on(daemon: Daemon, name: str, workers: int) -> Iterator[None]:
    """An endless attack in some of the workers, including successors of those that are killed."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.05):
            attack(daemon, name)

    asking = threading.Thread(target=ask)
    for _ in range(workers):
        attack(daemon, name)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "why"),
    [("escaped_marks", "more than any worker"), ("escaped_items", "too many values or escapes")],
)
def test_messages_that_take_long_to_decode(place: Place, name: str, why: str) -> None:
    """The form for text that is not UTF-8 is decoded in Python, so a child may send less of it."""
    daemon = place.start("--preload", "-w", "5", *CLASSES["threads"])
    with going_on(daemon, name, 2):
        killed_for(daemon, why)
        assert_unharmed(daemon, 3)
    is_well(daemon, 5)


@pytest.mark.thorough
@each_class
def test_what_goes_on(place: Place, words: Sequence[str]) -> None:
    """Endless stack dumps, and garbage between workers, affect neither supervisor nor siblings."""
    daemon = place.start("--preload", "-w", "3", *words)
    for name in ("write_forever", "relay_garbage", "relay_flood"):
        with going_on(daemon, name, 2):
            assert_unharmed(daemon, 3)
    # Only the workers died that the measurement killed.
    assert {e.cause for e in exits(daemon)} == {"killed by an outsider"}
    is_well(daemon, 3)


@pytest.mark.thorough
@each_class
def test_between_workers(place: Place, words: Sequence[str]) -> None:
    """A worker that sends sockets whose close waits, or shuts the pair down, does not affect its siblings."""
    daemon = place.start("--preload", "-w", "3", *words)
    before = daemon.pids()
    for name in ("relay_lingering", "relay_shut"):
        attack(daemon, name)
        answers = {daemon.get().text for _ in range(30)}
        assert answers <= set(map(str, before))
        assert daemon.pids() == before
    is_well(daemon, 3)


def leave(place: Place, name: str) -> None:
    (place.app_folder / name).touch()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("garbage", "no message"),
        *thorough(("descriptors", "descriptors"), ("hook_done", "which is not the next")),
        *thorough(("lingering", "descriptors"), ("flood", "no message")),
        *thorough(("forked_other", "never asked for"), ("configured", "LoadFailed while it is forking")),
    ],
)
def test_fork_server(place: Place, name: str, words: str) -> None:
    """A fork server that sends a forbidden message is killed and replaced; workers continue to serve."""
    leave(place, "waits")
    daemon = place.start("--preload", "-w", "2", *CLASSES["sync"])
    before = daemon.pids()
    leave(place, f"{name}.fork_server")
    found = killed_for(daemon, words)
    assert found.kind == "fork server"
    assert daemon.pids() == before
    assert_unharmed(daemon, 3)
    is_well(daemon, 2)


@pytest.mark.thorough
def test_fork_server_that_adopts_workers(place: Place) -> None:
    """An app that makes itself a subreaper once has no effect; one that repeats it loses its fork server."""
    place.add("attack.py", f"{ATTACKS}\nadopt()\n")
    leave(place, "waits")
    daemon = place.start("--preload", "-w", "2", *CLASSES["sync"])
    daemon.settled(2)
    assert_unharmed(daemon, 3)
    insists = fork_server(daemon)
    leave(place, "adopts.fork_server")
    until(lambda: not (place.app_folder / "adopts.fork_server").exists(), "it is so")
    daemon.settled(2)
    os.kill(daemon.pids()[0], signal.SIGKILL)
    found = killed_for(daemon, "no child of the supervisor's")
    assert found.pid == insists.pid
    assert insists.ended()
    assert_unharmed(daemon, 3)
    is_well(daemon, 2)


@pytest.mark.thorough
def test_fork_server_that_attacks_while_it_loads(place: Place) -> None:
    """At the start that ends the daemon, with one line; in a reload it ends the reload."""
    leave(place, "garbage.import")
    done = place.run("-b", "127.0.0.1:0", "--preload", *CLASSES["sync"])
    assert done.code == 3
    assert "protocol error" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    (place.app_folder / "garbage.import").unlink()
    daemon = place.start("--preload", "-w", "2", *CLASSES["sync"])
    before = daemon.pids()
    leave(place, "garbage.import")
    reload = daemon.ctl("reload")
    assert reload.code == 1
    assert "protocol error" in reload.err
    assert daemon.pids() == before
    (place.app_folder / "garbage.import").unlink()
    is_well(daemon, 2)


@pytest.mark.thorough
def test_fork_server_that_is_stopped(place: Place) -> None:
    """A fork server that is stopped is killed when it has not forked in time."""
    leave(place, "waits")
    daemon = place.start("--preload", "-w", "2", "--boot-timeout", "5", *CLASSES["sync"])
    stopped = fork_server(daemon)
    leave(place, "stop.fork_server")
    until_stopped(stopped)
    victim = daemon.pids()[0]
    os.kill(victim, signal.SIGKILL)
    assert stopped.ended()
    daemon.settled(2)
    is_well(daemon, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["garbage", *thorough("flood")])
def test_zygote(place: Place, name: str) -> None:
    """The same attacks by a worker that has become the fork server,
    in a hook of the app that is called at a fork.
    """
    daemon = place.start("--preload", "-w", "2", *CLASSES["sync"])
    daemon.settled(2)
    assert daemon.ctl("refork").code == 0
    daemon.settled(2)
    leave(place, f"{name}.zygote")
    os.kill(daemon.pids()[0], signal.SIGKILL)
    found = killed_for(daemon, "no message")
    assert found.kind == "fork server"
    (place.app_folder / f"{name}.zygote").unlink()
    is_well(daemon, 2)


@pytest.mark.thorough
def test_worker_that_reads_nothing(place: Place) -> None:
    """A stopped worker does not read its messages, and is ended nevertheless."""
    daemon = place.start("--preload", "-w", "2", "--graceful-timeout", "1", *CLASSES["sync"])
    stopped = Process(daemon.pids()[0])
    stopped.send(signal.SIGSTOP)
    for _ in range(3):
        daemon.send(signal.SIGUSR1)
    assert daemon.ctl("reload").code == 0
    assert stopped.ended()
    is_well(daemon, 2)


@pytest.mark.thorough
def test_upgrade_with_garbage_pending(place: Place) -> None:
    """The new program handles what a worker has sent before an upgrade in the same way."""
    daemon = place.start("--preload", "-w", "2", *CLASSES["sync"])
    daemon.settled(2)
    before = daemon.pids()
    daemon.send(signal.SIGUSR2)
    attack(daemon, "garbage")
    daemon.event("upgraded")
    killed_for(daemon, "no message")
    until(lambda: not set(before) & set(daemon.pids()), "successors")
    is_well(daemon, 2)


LASTING = """\
import threading

def when_ready(server):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


@pytest.mark.thorough
def test_upgrade_with_a_fork_server_that_does_not_end(place: Place) -> None:
    """A retired fork server ends with the old program, or is killed. In both cases its end is recorded."""
    place.add("gunicorn.conf.py", LASTING)
    daemon = place.start("--preload", "-w", "2", *CLASSES["sync"])
    daemon.settled(2)
    retired = fork_server(daemon)
    assert daemon.ctl("reload").code == 0
    daemon.settled(2)
    assert not retired.gone
    retired.send(signal.SIGSTOP)
    daemon.send(signal.SIGUSR2)
    daemon.event("upgraded")
    assert retired.ended()
    found = daemon.until(lambda: [e for e in exits(daemon) if e.pid == retired.pid], "its end in the ledger")
    assert (found[0].kind, found[0].signal) == ("fork server", signal.SIGKILL)
    is_well(daemon, 2)
