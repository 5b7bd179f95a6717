"""Reading what children send, so that it is at worst the end of the child that sent it.

In one pass of the event loop a child gets a small share of the loop's time, and over time a rate that no
honest child comes near. One that goes beyond it, or sends what it may not, is killed; its death is booked as
any other's, with the reason.
"""

import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ostler.daemon.children.handles import ForkServerHandle, WorkerHandle
from ostler.fleet import events
from ostler.ipc.channel import BadMessage

if TYPE_CHECKING:
    from ostler.daemon.shell import Shell

# What is read of one child in one pass of the loop.
_MESSAGES_A_PASS, _BYTES_A_PASS = 16, 64 * 1024
# What is read of a child that is dead: there is no later pass.
_LAST_MESSAGES, _LAST_BYTES = 256, 2 * 1024 * 1024


class Inbox:
    """Reads the shell's children.

    Args:
        shell: hears what each says, by `hear_worker` and `hear_fork_server`. These raise BadMessage if it is
            nothing that the child may say.
    """

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell

    def read(self, child: WorkerHandle | ForkServerHandle) -> None:
        """Read a share of what waits in a channel; called by the loop when something does.

        The channel's end is not reported: the kernel reports the death.
        """
        size = 0
        chan = child.channel
        try:
            for _ in range(_MESSAGES_A_PASS):
                received = chan.receive_unvouched()
                if received is None:
                    self._shell.loop.remove_reader(chan.fileno())
                    return
                if not child.allowance.spend(received[1], chan.sent, time.monotonic()):
                    raise BadMessage("more than any worker or fork server has to say")
                self._hear(child, received[0])
                size += received[1]
                # What a message brings about may close the channel, or make a fork server of a worker.
                if child.problem or chan.fileno() < 0 or size >= _BYTES_A_PASS:
                    return
        except BlockingIOError:
            return
        except BadMessage as error:
            self.end(child, f"it sent {error}")

    def read_last(self, child: WorkerHandle | ForkServerHandle) -> None:
        """Read what a child said before its death."""
        size = 0
        chan = child.channel
        try:
            for _ in range(_LAST_MESSAGES):
                if child.problem or chan.fileno() < 0 or size >= _LAST_BYTES:
                    return
                received = chan.receive_unvouched()
                if received is None:
                    return
                self._hear(child, received[0])
                size += received[1]
        except BlockingIOError:
            return  # it has left a process behind that holds its end
        except BadMessage as error:
            self.note(child, f"it sent {error}")

    def end(self, child: WorkerHandle | ForkServerHandle, problem: str) -> None:
        """Kill a child that does what it may not. The rest follows from its death."""
        self.note(child, problem)
        if child.channel.fileno() >= 0:
            self._shell.loop.remove_reader(child.channel.fileno())
        if isinstance(child, WorkerHandle) and (child.pid is None or not child.is_ours):
            # There is no such process, so no death would be reported: the fork server has spoken for it.
            self._shell.forget(child.worker_id)
            self._shell.submit(events.SpawnFailed(child.worker_id, f"protocol error: {problem}"))
        else:
            self._shell.reaper.kill(child)

    def _hear(self, child: WorkerHandle | ForkServerHandle, message: Any) -> None:
        """Raises BadMessage, also if the message makes our own code fail: it must not do so twice."""
        shell = self._shell
        hear: Callable[[Any, Any], None] = (
            shell.hear_worker if isinstance(child, WorkerHandle) else shell.hear_fork_server
        )
        try:
            hear(child, message)
        except BadMessage:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, only the child that sent it may suffer
            name = type(message).__name__
            fields = {"problem": f"can't handle {name}", "traceback": traceback.format_exc()}
            shell.journal.record("error", "internal_error", fields)
            raise BadMessage(f"{name}, which Ostler failed to handle (see the log)") from None

    def note(self, child: WorkerHandle | ForkServerHandle, problem: str) -> None:
        """Log what a child does that it may not, and remember it for the ledger."""
        child.problem = problem
        worker = isinstance(child, WorkerHandle)
        fields = {
            "process": "worker" if worker else "fork server",
            "slot": child.slot if isinstance(child, WorkerHandle) else None,
            "pid": child.pid,
            "generation": child.generation,
            "problem": problem,
        }
        known = {name: value for name, value in fields.items() if value is not None}
        self._shell.journal.record("error", "protocol_error", known)
