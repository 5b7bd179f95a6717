"""Reads the messages of children. The worst effect of a message is that its sender is killed.

In one pass of the event loop only a few messages of each child are read. In the long run a child may send at
a limited rate, which is far above what a worker or fork server normally sends. A child that exceeds it, or
sends what its phase does not allow, is killed. Its end is recorded like any other, with the reason.
"""

import time
from collections.abc import Callable
from typing import Any

from ostler.daemon.children.handles import AnyChild, ForkServerHandle, WorkerHandle
from ostler.daemon.children.ports import Ports
from ostler.ipc.channel import BadMessage

# What is read of one child in one pass of the loop.
_MESSAGES_A_PASS, _BYTES_A_PASS = 16, 64 * 1024
# What is read of a child that is dead: there is no later pass.
_LAST_MESSAGES, _LAST_BYTES = 256, 2 * 1024 * 1024


class Inbox:
    """Reads the channels of children. Called only by the event loop's thread.

    Args:
        ports: the loop and the log are used.
        on_worker_message, on_fork_server_message: called with each message and the handle of its sender.
            They raise BadMessage if the child may not send it.
        on_violation: called with a child that is to be killed, and what it did.
    """

    def __init__(
        self,
        ports: Ports,
        on_worker_message: Callable[[WorkerHandle, Any], None],
        on_fork_server_message: Callable[[ForkServerHandle, Any], None],
        on_violation: Callable[[AnyChild, str], None],
    ) -> None:
        self._ports = ports
        self._on_worker_message = on_worker_message
        self._on_fork_server_message = on_fork_server_message
        self._on_violation = on_violation

    def watch(self, child: AnyChild) -> None:
        """Read the child's channel whenever there is something in it."""
        if child.channel.fileno() >= 0:
            self._ports.loop.add_reader(child.channel.fileno(), self.read, child)

    def unwatch(self, child: AnyChild) -> None:
        """To be called before the channel is closed."""
        if child.channel.fileno() >= 0:
            self._ports.loop.remove_reader(child.channel.fileno())

    def read(self, child: AnyChild) -> None:
        """Read a share of what waits in a channel.

        The channel's end is not reported: the kernel reports the death.
        """
        size = 0
        chan = child.channel
        try:
            for _ in range(_MESSAGES_A_PASS):
                received = chan.receive_unvouched()
                if received is None:
                    self.unwatch(child)
                    return
                if not child.budget.spend(received[1], chan.sent, time.monotonic()):
                    raise BadMessage("more than any worker or fork server has to send")
                self._dispatch(child, received[0])
                size += received[1]
                # A message may lead to the end of the channel, or make a fork server of a worker.
                if child.record.problem or chan.fileno() < 0 or size >= _BYTES_A_PASS:
                    return
        except BlockingIOError:
            return
        except BadMessage as error:
            self._on_violation(child, f"it sent {error}")

    def read_last(self, child: AnyChild) -> None:
        """Read what a child has sent before its death."""
        size = 0
        chan = child.channel
        try:
            for _ in range(_LAST_MESSAGES):
                if child.record.problem or chan.fileno() < 0 or size >= _LAST_BYTES:
                    return
                received = chan.receive_unvouched()
                if received is None:
                    return
                self._dispatch(child, received[0])
                size += received[1]
        except BlockingIOError:
            return  # it has left a process behind that holds its end
        except BadMessage as error:
            self.record_violation(child, f"it sent {error}")

    def record_violation(self, child: AnyChild, problem: str) -> None:
        """Log what a child did that it may not, and keep it for the ledger."""
        child.record.problem = problem
        fields = {
            "process": "worker" if isinstance(child, WorkerHandle) else "fork server",
            "slot": child.slot if isinstance(child, WorkerHandle) else None,
            "pid": child.pid,
            "generation": child.generation,
            "problem": problem,
        }
        known = {name: value for name, value in fields.items() if value is not None}
        self._ports.journal.record("error", "protocol_error", known)

    def _dispatch(self, child: AnyChild, message: Any) -> None:
        """Raises BadMessage; also if our own code fails at the message, so that this happens only once."""
        try:
            if isinstance(child, WorkerHandle):
                self._on_worker_message(child, message)
            else:
                self._on_fork_server_message(child, message)
        except BadMessage:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, only the child that sent the message is ended
            name = type(message).__name__
            self._ports.attempt.failed(f"can't handle {name}")
            raise BadMessage(f"{name}, which Ostler failed to handle (see the log)") from None
