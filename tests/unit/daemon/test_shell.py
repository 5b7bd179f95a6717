"""How the shell performs actions and handles events, with stand-ins for children."""

import asyncio
import os
import signal
import time

import pytest

from ostler.daemon.children import stack_dumps
from ostler.daemon.children.stack_dumps import DUMP_TIME
from ostler.fleet import actions, events
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages
from tests.kit.standins import ShellHarness


async def test_a_fork_server_whose_channel_is_full() -> None:
    """A worker that can't be requested has failed, without leftovers, and is requested again."""
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        channel = harness.shell.children.fork_servers[1].channel
        try:
            while True:
                channel.send(messages.ReopenLogs())
        except BlockingIOError:
            pass
        (worker,) = harness.workers
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are all there is
        worker.kill()
        await harness.killed(worker)
        (failed,) = harness.events("worker_boot_failed")
        expected = "can't fork: the fork server can't be asked: Resource temporarily unavailable"
        assert failed["reason"] == expected
        assert harness.shell.children.workers == {}
        assert len(os.listdir("/proc/self/fd")) < before  # noqa: PTH208
        deadline = time.monotonic() + 15
        while harness.shell.state.ready == 0:
            assert time.monotonic() < deadline, "it is not asked for again"
            await harness.play(1)
            await asyncio.sleep(0.01)
        assert harness.errors == []
        assert harness.events("internal_error") == []
        await harness.stopped()


async def test_a_spawn_of_a_fork_server_that_has_ended() -> None:
    """Its death is the answer to the request."""
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        (worker,) = harness.workers
        harness.shell.ports.loop.remove_reader(harness.shell.children.fork_servers[1].channel.fileno())
        harness.fork_server.sock.close()
        worker.kill()
        await harness.killed(worker)
        assert len(harness.shell.children.workers) == 1
        assert harness.events("worker_boot_failed") == []
        assert harness.errors == []


async def test_the_dump_of_an_abort_that_was_read_with_another() -> None:
    """The dumps of an overdue request and of the abort came in one read:
    the abort's event still has its own.
    """
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        (handle,) = harness.shell.children.workers.values()
        handle.record.dumps += (
            b"Thread 0x1:\n  overdue\nFatal Python error: Aborted\n\nThread 0x1:\n  aborted\n"
        )
        assert "overdue" in handle.take_dumps()
        handle.record.sent_signals.add(signal.SIGABRT)
        taken = harness.shell.reaper._take_dump(handle, ExitStatus(signal=signal.SIGABRT))
        assert taken.endswith("aborted\n")
        (event,) = harness.events("worker_aborted")
        assert event["stack"] == taken
        await harness.stopped()


async def test_an_overdue_requests_stack_is_in_the_dump_of_the_abort() -> None:
    """The worker is aborted before it has answered the request for its stacks."""
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        (handle,) = harness.shell.children.workers.values()
        (worker,) = harness.workers
        found: list[str] = []
        harness.shell.stacks.ask(handle, found.append)
        await asyncio.sleep(0)  # it is asked
        handle.record.dumps += b"Fatal Python error: Aborted\n\nThread 0x1:\n  aborted\n"
        worker.kill()
        await harness.killed(worker)
        deadline = time.monotonic() + 15
        while not found:
            assert time.monotonic() < deadline, "there is no answer"
            await asyncio.sleep(DUMP_TIME / 10)
        assert "aborted" in found[0]
        await harness.stopped()


async def test_a_dump_that_is_written_slowly_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker gets no CPU time meanwhile: a dump that ends within a line is not complete."""
    monkeypatch.setattr(stack_dumps, "_LOOKS", 1000)
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        (handle,) = harness.shell.children.workers.values()
        monkeypatch.setattr(stack_dumps, "DUMP_SIGNAL", 0)  # which would end the stand-in
        found: list[str] = []
        harness.shell.stacks.ask(handle, found.append)
        await asyncio.sleep(0)  # it is asked
        dump = 'Current thread 0x1:\n  File "/app.py", line 1 in app\n  File "/ours.py", line 2 in run\n'
        for part in (dump[:30], dump[30:60], dump[60:]):
            handle.record.dumps += part.encode()
            await asyncio.sleep(DUMP_TIME * 0.6)
            assert found == [] or part == dump[60:]
        deadline = time.monotonic() + 15
        while not found:
            assert time.monotonic() < deadline, "there is no answer"
            await asyncio.sleep(DUMP_TIME / 10)
        assert found == [dump]
        await harness.stopped()


async def test_a_fleet_that_fails_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called again a bounded number of times, each failure is logged, and serving continues."""
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        shell, calls = harness.shell, 0
        handle = shell.fleet.handle

        def fail(event: events.Event, now: float) -> list[actions.Action]:
            nonlocal calls
            if isinstance(event, events.DeadlinePassed):
                calls += 1
                raise RuntimeError("a defect")
            return handle(event, now)

        with monkeypatch.context() as patch:
            patch.setattr(shell.fleet, "handle", fail)
            patch.setattr(shell.fleet, "next_deadline", lambda: time.monotonic() - 5.0)
            shell.submit(events.DeadlinePassed())
            ends = time.monotonic() + 1.5
            while time.monotonic() < ends:  # the test checks the number of calls within this time
                await harness.turn()
                await asyncio.sleep(0.01)
            # At once, and after a second.
            assert calls == 2
            assert len(harness.events("internal_error")) == calls
            shell.submit(events.ResizeAsked("a test", workers=2))
            await harness.play()
            assert shell.state.ready == 2
        shell.submit(events.DeadlinePassed())
        assert harness.errors == []
        await harness.stopped()


async def test_a_deadline_that_stays_in_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that does not change a past deadline is called a bounded number of times as well."""
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        shell, calls = harness.shell, 0
        handle = shell.fleet.handle

        def count(event: events.Event, now: float) -> list[actions.Action]:
            nonlocal calls
            calls += isinstance(event, events.DeadlinePassed)
            return handle(event, now)

        with monkeypatch.context() as patch:
            patch.setattr(shell.fleet, "handle", count)
            patch.setattr(shell.fleet, "next_deadline", lambda: 1.0)
            shell.submit(events.DeadlinePassed())
            ends = time.monotonic() + 1.5
            while time.monotonic() < ends:  # the test checks the number of calls within this time
                await harness.turn()
                await asyncio.sleep(0.01)
        # A few calls at once, then one after a second.
        assert calls < 10
        shell.submit(events.DeadlinePassed())
        await harness.stopped()


async def test_a_fleet_that_fails_at_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event is lost, later events are handled."""
    with ShellHarness(workers=1) as harness:
        await harness.start().play()
        shell, handle = harness.shell, harness.shell.fleet.handle

        def fail(event: events.Event, now: float) -> list[actions.Action]:
            if isinstance(event, events.ReloadAsked):
                raise RuntimeError("a defect")
            return handle(event, now)

        monkeypatch.setattr(shell.fleet, "handle", fail)
        shell.submit(events.ReloadAsked("a test"))
        shell.submit(events.ResizeAsked("a test", workers=2))
        await harness.play()
        assert shell.state.ready == 2
        (error,) = harness.events("internal_error")
        assert "the fleet can't handle ReloadAsked" in error["problem"]
        await harness.stopped()


@pytest.mark.parametrize(
    "second", [events.ReloadAsked("a test"), events.StopAsked("a test", "graceful")], ids=["reload", "stop"]
)
async def test_before_the_first_configuration_is_known(second: events.Event) -> None:
    """Two reloads, or a reload and a stop, while the first configuration is still evaluated."""
    with ShellHarness(workers=1) as harness:
        harness.start()
        harness.shell.submit(events.ReloadAsked("a test"))
        harness.shell.submit(second)
        assert harness.ended_reloads == [2]
        assert harness.events("internal_error") == []
        if isinstance(second, events.ReloadAsked):
            await harness.play(30)
            assert harness.shell.state.ready == 1
            await harness.stopped()
        else:
            for _ in range(2000):
                await harness.play(1)
                if harness.finished:
                    break
                await asyncio.sleep(0.002)
            assert harness.finished
        assert harness.events("internal_error") == []
        assert harness.errors == []


async def test_a_remark_on_the_app_is_logged_once() -> None:
    """Every worker that has called the factory says so; the log has one line for a generation."""
    with ShellHarness(workers=2) as harness:
        await harness.start().play()
        manager = harness.shell.workers
        for remark in ("called", "called again", ""):
            manager.report_remark(1, remark)
        manager.report_remark(99, "of a generation that is gone")
        assert [event["note"] for event in harness.events("factory_called")] == ["called"]
        await harness.stopped()
