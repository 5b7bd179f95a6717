"""How the supervisor treats fork servers that have hooks to call."""

from types import SimpleNamespace
from typing import Any

import pytest

from ostler.daemon.children.hooks import HookDispatcher, HooksState
from ostler.daemon.children.records import ForkServerRecord
from ostler.daemon.configurations import Configurations
from ostler.fleet.state import State
from ostler.ipc import messages, wire
from tests.unit.daemon.fakes import fake_ports


@pytest.mark.parametrize(("due", "killed"), [("retire", True), ("on_exit", False), (None, False)], ids=str)
def test_a_fork_server_that_was_sent_retire(due: str | None, killed: bool) -> None:
    """It is killed if it has not handled that message in time, but not because of later messages."""
    ended: list[Any] = []
    record = ForkServerRecord(generation=1, spawned_at=0.0, pid=7, may_run_background_work=True)
    server: Any = SimpleNamespace(pid=7, generation=1, record=record)
    server.channel = SimpleNamespace(send=lambda _message: None)
    timers: list[tuple[Any, ...]] = []
    loop = SimpleNamespace(call_later=lambda *timer: timers.append(timer))
    ports = fake_ports(leaving={7: server}, loop=loop)
    caller = HookDispatcher(ports, Configurations(ports.state), hang_up=ended.append, kill=ended.append)
    caller.leave(server)
    if due != "retire":
        record.pending_hooks.clear()
    if due == "on_exit":
        record.pending_hooks.append(messages.HookDue("on_exit"))
    ((_, late, argument),) = timers
    late(argument)
    assert ended == ([server] if killed else [])


def test_waiting_calls_after_an_upgrade() -> None:
    """`child_exit` calls that were pending before an upgrade in place are sent after it, in order."""
    calls = [messages.HookDue("child_exit", number, 1, 100 + number, 0) for number in (1, 2)]
    sent: list[Any] = []
    record = ForkServerRecord(generation=2, spawned_at=0.0, pid=8, hooks=["child_exit"])
    server: Any = SimpleNamespace(pid=8, generation=2, record=record)
    server.channel = SimpleNamespace(send=sent.append)
    ports = fake_ports(fork_servers={2: server}, state=State(current=2))
    before = HookDispatcher(ports, Configurations(ports.state), hang_up=sent.append, kill=sent.append)
    before.restore(HooksState(names={1: ["child_exit"]}, waiting=list(calls)))
    after = HookDispatcher(ports, Configurations(ports.state), hang_up=sent.append, kill=sent.append)
    after.restore(wire.decoder(HooksState)(wire.encode(before.snapshot())))
    after.loaded(server, "upgrade")
    assert sent == calls
    assert record.pending_hooks == calls
    assert after.snapshot().waiting == []
