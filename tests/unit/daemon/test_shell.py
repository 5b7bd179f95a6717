"""How the shell does what the fleet wants; each test is a play with stand-ins for children."""

import asyncio
import os
import signal
import time

import pytest

from ostler.daemon.children import stacks
from ostler.daemon.children.stacks import DUMP_TIME, Stacks
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages
from tests.kit.standins import Theatre


async def test_a_fork_server_whose_channel_is_full() -> None:
    """A worker that it can't be asked for has failed, with nothing left of it, and is asked for again."""
    with Theatre(workers=1) as theatre:
        await theatre.start().play()
        channel = theatre.shell.fork_servers[1].channel
        try:
            while True:
                channel.send(messages.ReopenLogs())
        except BlockingIOError:
            pass
        (worker,) = theatre.workers
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all there is
        worker.kill()
        await theatre.killed(worker)
        (failed,) = theatre.events("worker_boot_failed")
        expected = "can't fork: the fork server can't be asked: Resource temporarily unavailable"
        assert failed["reason"] == expected
        assert theatre.shell.workers == {}
        assert len(os.listdir("/proc/self/fd")) < before  # noqa: PTH208
        deadline = time.monotonic() + 15
        while theatre.shell.fleet.ready == 0:
            assert time.monotonic() < deadline, "it is not asked for again"
            await theatre.play(1)
            await asyncio.sleep(0.01)
        assert theatre.errors == []
        assert theatre.events("internal_error") == []
        await theatre.stopped()


async def test_a_fork_server_that_has_ended_is_no_failed_fork() -> None:
    """Its death says all that is to be said of what it was asked for."""
    with Theatre(workers=1) as theatre:
        await theatre.start().play()
        (worker,) = theatre.workers
        theatre.shell.loop.remove_reader(theatre.shell.fork_servers[1].channel.fileno())
        theatre.fork_server.sock.close()
        worker.kill()
        await theatre.killed(worker)
        assert len(theatre.shell.workers) == 1
        assert theatre.events("worker_boot_failed") == []
        assert theatre.errors == []


async def test_the_dump_of_an_abort_that_was_read_with_another() -> None:
    """An overdue request's dump and the abort's came in one read: the abort's event has them all the same."""
    with Theatre(workers=1) as theatre:
        await theatre.start().play()
        (handle,) = theatre.shell.workers.values()
        handle.dumps += b"Thread 0x1:\n  overdue\nFatal Python error: Aborted\n\nThread 0x1:\n  aborted\n"
        assert "overdue" in handle.take_dumps()
        handle.sent.add(signal.SIGABRT)
        taken = theatre.shell.reaper._take_dump(handle, ExitStatus(signal=signal.SIGABRT))
        assert taken.endswith("aborted\n")
        (event,) = theatre.events("worker_aborted")
        assert event["stack"] == taken
        await theatre.stopped()


async def test_an_overdue_requests_stack_is_in_the_dump_of_the_abort() -> None:
    """A worker that is aborted before it has answered the question for its stacks."""
    with Theatre(workers=1) as theatre:
        await theatre.start().play()
        (handle,) = theatre.shell.workers.values()
        (worker,) = theatre.workers
        found: list[str] = []
        Stacks(theatre.shell).ask(handle, found.append)
        await asyncio.sleep(0)  # it is asked
        handle.dumps += b"Fatal Python error: Aborted\n\nThread 0x1:\n  aborted\n"
        worker.kill()
        await theatre.killed(worker)
        deadline = time.monotonic() + 15
        while not found:
            assert time.monotonic() < deadline, "there is no answer"
            await asyncio.sleep(DUMP_TIME / 10)
        assert "aborted" in found[0]
        await theatre.stopped()


async def test_a_dump_that_is_written_slowly_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that gets no processor meanwhile: what ends within a line is not all."""
    monkeypatch.setattr(stacks, "_LOOKS", 1000)
    with Theatre(workers=1) as theatre:
        await theatre.start().play()
        (handle,) = theatre.shell.workers.values()
        monkeypatch.setattr(stacks, "DUMP_SIGNAL", 0)  # of which the stand-in would die
        found: list[str] = []
        Stacks(theatre.shell).ask(handle, found.append)
        await asyncio.sleep(0)  # it is asked
        dump = 'Current thread 0x1:\n  File "/app.py", line 1 in app\n  File "/ours.py", line 2 in run\n'
        for part in (dump[:30], dump[30:60], dump[60:]):
            handle.dumps += part.encode()
            await asyncio.sleep(DUMP_TIME * 0.6)
            assert found == [] or part == dump[60:]
        deadline = time.monotonic() + 15
        while not found:
            assert time.monotonic() < deadline, "there is no answer"
            await asyncio.sleep(DUMP_TIME / 10)
        assert found == [dump]
        await theatre.stopped()
