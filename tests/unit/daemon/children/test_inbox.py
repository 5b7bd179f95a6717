"""The effects of messages from children.
Stand-ins take the place of children, and the test sends their messages.
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ostler.daemon.children.message_budget import MessageBudget
from ostler.fleet import events
from ostler.fleet.model import GenerationState
from ostler.ipc import messages
from tests.kit.standins import ShellHarness, StandIn
from tests.unit.osapi.test_received import lingering


async def ended(harness: ShellHarness, one: StandIn, words: str) -> None:
    """A stand-in was killed for a protocol error with these words, which log and ledger contain."""
    await harness.killed(one)
    assert [e["pid"] for e in harness.events("protocol_error")] == [one.pid]
    (view,) = harness.ledger.newest_first(1)
    assert (view.pid, view.cause, view.signal, view.planned) == (one.pid, "protocol error", 9, False)
    assert words in (view.stack or "")
    assert harness.errors == []
    assert harness.events("internal_error") == []


WORKER = [
    (b"\xff\x00", "no message"),
    (b"", "an empty message"),
    (b"\x91" * 5000, "no message"),
    (messages.Ready([]), "Ready while it is serving"),
    (messages.BootFailed("x", None), "BootFailed while it is serving"),
    (messages.ZygoteReady(), "ZygoteReady without having been asked"),
    (messages.ZygoteAudited([], []), "ZygoteAudited without having been asked"),
    (messages.Watch(["/x"]), "Watch without --reload"),
    (messages.AppBroken("x", None), "AppBroken without --reload"),
    (messages.Signalled(65), "no message"),
    (messages.Forked(1, 1), "no message"),
]


@pytest.mark.parametrize(("sent", "words"), WORKER, ids=[words for _, words in WORKER])
async def test_worker(sent: Any, words: str) -> None:
    """A worker that sends a forbidden message is killed;
    the other one continues to serve, and a successor is forked.
    """
    with ShellHarness() as harness:
        await harness.start().play()
        one, other = harness.workers
        one.send(sent if isinstance(sent, bytes) else msgspec.msgpack.encode(sent))
        await ended(harness, one, words)
        await harness.play()
        assert other in harness.workers
        assert harness.shell.state.ready == 2
        await harness.stopped()


def forked_by_another(harness: ShellHarness) -> messages.Forked:
    return messages.Forked(harness.workers[0].worker_id, harness.workers[1].pid)


FORK_SERVER = [
    (b"\xff\x00", "no message"),
    (messages.AppLoaded(), "AppLoaded while it is forking"),
    (messages.LoadFailed("x", None), "LoadFailed while it is forking"),
    (messages.Forked(99, 1), "never asked for"),
    (messages.ForkFailed(0, "x"), "never asked for"),
    (forked_by_another, "it was not asked to fork"),
    (messages.HookBegun(), "no hook is due"),
    (messages.HookDone("on_exit"), "not the next that is due"),
    (messages.Ready([]), "no message"),
]


@pytest.mark.parametrize(("sent", "words"), FORK_SERVER, ids=[words for _, words in FORK_SERVER])
async def test_fork_server(sent: Any, words: str) -> None:
    """The same for a fork server; workers continue to serve, and a new one takes its place."""
    with ShellHarness() as harness:
        await harness.start().play()
        one, workers = harness.fork_server, harness.workers
        sent = sent(harness) if callable(sent) else sent
        one.send(sent if isinstance(sent, bytes) else msgspec.msgpack.encode(sent))
        await ended(harness, one, words)
        await harness.play()
        assert harness.workers == workers
        assert harness.shell.state.generations[1].state is GenerationState.UP
        assert harness.fork_server is not one
        await harness.stopped()


async def test_configured_twice() -> None:
    """A fork server may report its configuration once."""
    with ShellHarness() as harness:
        await harness.start().play()
        one = harness.fork_server
        one.send_message(messages.Configured(harness.loaded, []))
        await ended(harness, one, "Configured while it is forking")


async def test_settings_that_can_not_be() -> None:
    """Settings that a fork server reports must be such as our own loading produces."""
    with ShellHarness() as harness:
        harness.start()
        settings = msgspec.structs.replace(harness.loaded.settings, boot_timeout=float("inf"))
        one = harness.fork_server
        one.send_message(messages.Decided(None, harness.loaded))
        one.send_message(messages.Configured(msgspec.structs.replace(harness.loaded, settings=settings), []))
        await ended(harness, one, "settings that can't be: boot_timeout")


async def test_settings_of_a_restart() -> None:
    """A restarted fork server may already have run the app, so settings that it reports are ignored."""
    with ShellHarness() as harness:
        await harness.start().play()
        harness.fork_server.kill()
        await harness.killed(harness.fork_server)
        settings = msgspec.structs.replace(harness.loaded.settings, workers=7, pidfile="/etc/shadow")
        before, harness.loaded = harness.loaded, msgspec.structs.replace(harness.loaded, settings=settings)
        await harness.play()
        assert harness.shell.configurations.get(1) == before
        assert harness.shell.state.wanted == 2


async def test_a_sibling_as_a_worker() -> None:
    """A fork server can't report another child as the worker that it was asked for."""
    with ShellHarness() as harness:
        await harness.start().play()
        one, sibling = harness.fork_server, harness.workers[0]
        harness.shell.submit(events.ResizeAsked("a test", workers=3))
        one.send_message(messages.Forked(harness.shell.state.spawned, sibling.pid))
        await ended(harness, one, "but it is another process of Ostler's")
        assert harness.shell.children.worker_with_pid(sibling.pid).worker_id == sibling.worker_id


@asynccontextmanager
async def unreported_worker(harness: ShellHarness, message: messages.FromWorker) -> AsyncIterator[int]:
    """A worker that sends a message before its fork server has reported its pid; its channel stays open."""
    harness.shell.submit(events.ResizeAsked("a test", workers=3))
    data, descriptors = harness.fork_server.receive()
    spawn = msgspec.msgpack.decode(data, type=messages.ToForkServer)
    assert isinstance(spawn, messages.Spawn)
    with socket.socket(fileno=descriptors[0]) as channel:
        channel.send(msgspec.msgpack.encode(message))
        await harness.turn()
        yield spawn.worker_id
    os.close(descriptors[1])


async def test_a_message_before_the_worker_is_known() -> None:
    """Only its fork server can cause that: there is no process to kill, and the boot counts as failed."""
    with ShellHarness() as harness:
        await harness.start().play()
        async with unreported_worker(harness, messages.Ready([])) as worker_id:
            pass
        assert worker_id not in harness.shell.children.workers
        assert "Ready while it is not reported as forked" in harness.shell.state.generations[1].last_failure
        assert len(harness.events("protocol_error")) == 1


async def test_a_signal_before_it_is_known() -> None:
    """A worker may end because of a signal (of a terminal,
    for instance) before its fork server has reported its pid.
    """
    with ShellHarness() as harness:
        await harness.start().play()
        async with unreported_worker(harness, messages.Signalled(2)) as worker_id:
            assert harness.shell.children.workers[worker_id].record.signalled == 2
        assert harness.events("protocol_error") == []


def dead_children(number: int) -> list[int]:
    pids = [os.posix_spawn("/bin/true", ["true"], {}) for _ in range(number)]
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pids


def waiting(pids: list[int]) -> list[int]:
    """The children that are not reaped yet."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_many_deaths_are_processed_in_parts() -> None:
    """One pass of the loop handles some, and later passes the others."""
    with ShellHarness() as harness:
        await harness.start().play()
        one = harness.workers[0]
        pids = dead_children(150)
        one.die()
        reaper = harness.shell.reaper
        reaper.reap()
        reaper.reap()
        assert 0 < len(waiting(pids)) < 150
        for _ in range(4):
            await asyncio.sleep(0)
        assert waiting(pids) == []
        assert one.worker_id not in harness.shell.state.workers


async def test_all_die_with_garbage_unread() -> None:
    """Deaths of children whose messages can't be decoded are recorded, whichever is noticed first."""
    with ShellHarness() as harness:
        await harness.start().play()
        children = [harness.fork_server, *harness.workers]
        for one in children:
            one.send(b"\xff")
            one.die()
        harness.shell.reaper.reap()
        assert not harness.shell.state.workers
        causes = [(view.pid, view.cause) for view in harness.ledger.newest_first(9)]
        assert sorted(causes) == sorted((one.pid, "protocol error") for one in children)
        await harness.stopped()


async def test_flood_is_read_in_small_parts() -> None:
    """One pass reads a few of very many messages, and messages of other children in the same pass."""
    with ShellHarness() as harness:
        await harness.start().play()
        one, other = harness.workers
        for _ in range(100):
            one.send_message(messages.Signalled(15))
        other.send_message(messages.Signalled(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert harness.shell.children.workers[other.worker_id].record.signalled == 2
        left = 0
        one.sock.close()
        handle = harness.shell.children.workers[one.worker_id]
        # A stand-in that was forked later also holds the other end: then the channel has no end, only no more
        # data.
        with suppress(BlockingIOError):
            while handle.channel.receive_unvouched() is not None:
                left += 1
        assert 50 < left < 100


async def test_flood() -> None:
    """A child that sends far more than any real one is killed."""
    with ShellHarness() as harness:
        await harness.start().play()
        one = harness.workers[0]
        for _ in range(200):
            for _ in range(20):
                one.send_message(messages.Signalled(15))
            await harness.turn()
            if one.dead:
                break
        await ended(harness, one, "more than any worker")


def test_allowance() -> None:
    """Bursts are allowed, and so are messages that are answers; a lasting flood is not."""
    allowance = MessageBudget(0.0)
    assert all(allowance.spend(100, 0, 0.0) for _ in range(1000))
    assert not allowance.spend(100, 0, 0.0)
    assert all(allowance.spend(100, 0, second / 20) for second in range(40, 400))
    answering = MessageBudget(0.0)
    assert all(answering.spend(100, number, 0.0) for number in range(5000))
    large = MessageBudget(0.0)
    assert not all(large.spend(100_000, 0, 0.0) for _ in range(100))


async def test_descriptors_are_not_received() -> None:
    """A child that sends descriptors is killed; a connection with SO_LINGER among them blocks nothing."""
    with ShellHarness() as harness:
        await harness.start().play()
        one = harness.workers[0]
        ours, theirs = lingering()
        one.send(b"x", [ours.fileno()] * 253)
        ours.detach()
        began = time.monotonic()
        await ended(harness, one, "descriptors")
        await harness.play()
        assert time.monotonic() - began < 30
        theirs.close()


async def test_dead_zygote() -> None:
    """A worker that reports that it is a zygote and dies at once does not become the fork server."""
    with ShellHarness() as harness:
        await harness.start().play()
        one, fork_server = harness.workers[0], harness.fork_server
        harness.shell.submit(events.ReforkAsked("a test", None, False))
        harness.shell.children.workers[one.worker_id].record.zygote_asked = True
        one.send_message(messages.ZygoteReady())
        one.die()
        harness.shell.reaper.reap()
        assert harness.shell.children.fork_servers[1].pid == fork_server.pid
        assert one.worker_id not in harness.shell.state.workers


async def test_stacks_without_end() -> None:
    """The pipe of a worker that writes stack dumps endlessly is read at intervals, and little at a time."""
    with ShellHarness() as harness:
        await harness.start().play()
        one = harness.workers[0]
        handle = harness.shell.children.workers[one.worker_id]
        os.set_blocking(one.stacks, False)
        written = 0
        for _ in range(50):
            try:
                written += os.write(one.stacks, b"x" * 65536)
            except BlockingIOError:
                pass
            await harness.turn()
        assert written <= 5 * 65536
        assert len(handle.record.dumps) <= 65536


@pytest.mark.parametrize("step", ["ledger", "last_requests", "counts", "hooks", "free_cell", "read_last"])
async def test_a_death_is_processed_whatever_fails(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of handling a death may fail: the other steps are done, and the fleet gets the event."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    with ShellHarness() as harness:
        await harness.start().play()
        shell = harness.shell
        owner, name = {
            "ledger": (harness.ledger, "record"),
            "last_requests": (harness.scoreboard, "last_requests"),
            "counts": (harness.scoreboard, "counts"),
            "hooks": (shell.hooks, "worker_ended"),
            "free_cell": (harness.scoreboard, "free_cell"),
            "read_last": (shell.inbox, "read_last"),
        }[step]
        workers = harness.workers
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            for one in workers:
                one.die()
            shell.reaper.reap()
        assert not {one.worker_id for one in workers} & shell.state.workers.keys()
        assert not {one.worker_id for one in workers} & shell.children.workers.keys()
        assert len(harness.events("internal_error")) >= 2
        assert len(harness.ledger.newest_first(9)) == (0 if step == "ledger" else 2)
        await harness.play()
        assert shell.state.ready == 2


async def test_a_message_that_our_code_fails_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """If our own code raises while it handles a message, its sender is killed and the error is logged."""

    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    with ShellHarness() as harness:
        await harness.start().play()
        one = harness.workers[0]
        monkeypatch.setattr(harness.shell.workers, "received", fail)
        one.send_message(messages.Signalled(15))
        await harness.killed(one)
        (view,) = harness.ledger.newest_first(1)
        assert view.cause == "protocol error"
        assert len(harness.events("internal_error")) == 1
        assert harness.errors == []
