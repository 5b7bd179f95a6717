"""What the supervisor does with fork servers that have hooks to call."""

from types import SimpleNamespace
from typing import Any

import pytest

from ostler.daemon.children.hooks import HookDispatcher
from ostler.daemon.children.records import ForkServerRecord
from ostler.daemon.configurations import Configurations
from ostler.ipc import messages
from tests.unit.daemon.fakes import fake_ports


@pytest.mark.parametrize(("due", "killed"), [("retire", True), ("on_exit", False), (None, False)], ids=str)
def test_a_fork_server_that_was_sent_retire(due: str | None, killed: bool) -> None:
    """It is killed if it has not processed that in time, and not for what it was sent since."""
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
