"""What the supervisor does with fork servers that have hooks to call."""

import signal
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.daemon.children.hooks import HookCaller
from ostler.ipc.messages import HookDue


@pytest.mark.parametrize(
    ("due", "killed"), [("retire", [signal.SIGKILL]), ("on_exit", []), (None, [])], ids=str
)
def test_one_that_was_told_to_retire(due: str | None, killed: list[int]) -> None:
    """It is killed if it has not heard that in time, and not for what it was told since."""
    sent: list[int] = []
    server = SimpleNamespace(
        pid=7, lasting=True, retired=False, due=deque[HookDue](), send_signal=sent.append
    )
    server.channel = SimpleNamespace(send=lambda _message: None)
    timers: list[tuple[Any, ...]] = []
    shell: Any = SimpleNamespace(
        reaper=SimpleNamespace(leaving={7: server}, kill=lambda child: child.send_signal(signal.SIGKILL)),
        loop=SimpleNamespace(call_later=lambda *timer: timers.append(timer)),
    )
    caller = HookCaller(shell)
    handle: Any = server
    caller.leave(handle)
    if due != "retire":
        server.due.clear()
    if due == "on_exit":
        server.due.append(HookDue("on_exit"))
    ((_, late, argument),) = timers
    late(argument)
    assert sent == killed
