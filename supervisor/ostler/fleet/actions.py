"""The output of the fleet: what the shell is to do. It performs actions in order and decides nothing."""

from typing import Any, Literal

from msgspec import Struct, field

Level = Literal["debug", "info", "warning", "error"]


class StartForkServer(Struct, frozen=True):
    """Execute a fork server, which evaluates the configuration and reports `ForkServerConfigured`."""

    generation: int


class LoadApp(Struct, frozen=True):
    """Send the fork server its listeners; it then loads the app, if that is preloaded."""

    generation: int


class StopForkServer(Struct, frozen=True):
    """Let the fork server end. If it does not, `KillForkServer` follows."""

    generation: int


class KillForkServer(Struct, frozen=True):
    """SIGKILL."""

    generation: int


class Spawn(Struct, frozen=True):
    """Fork a worker. `urgent`: no worker serves in the slot, so it boots with full priority."""

    worker_id: int
    slot: int
    generation: int
    urgent: bool = False


class Drain(Struct, frozen=True):
    """Stop accepting, finish the requests that are in flight, end.

    hand_over: idle connections go to other workers; zygote: do not end, but become the generation's fork
    server; seconds: the budget for all this. The fleet kills the worker when that and `drain_grace` are over;
    empty_queue: the daemon stops, so the worker accepts what waits in the listeners' queues before.
    """

    worker_id: int
    hand_over: bool
    zygote: bool
    seconds: float
    empty_queue: bool = False


class AuditZygote(Struct, frozen=True):
    """Let the worker check whether it could be forked from; the answer is `ZygoteAudited`."""

    worker_id: int
    force: bool


class UseZygote(Struct, frozen=True):
    """The worker is its generation's fork server from now on; the one before is to end."""

    worker_id: int
    generation: int


class Interrupt(Struct, frozen=True):
    """Raise an exception in the thread that serves an overdue request."""

    worker_id: int
    thread: int


class DumpStack(Struct, frozen=True):
    """Log an overdue request with the stack of the thread that serves it; see events.RequestOverdue."""

    worker_id: int
    thread: int
    method: str
    path: str
    age: float
    setting: str = "timeout"
    limit: float = 0.0


class Cancel(Struct, frozen=True):
    """End a worker that boots and is not needed. If it is ready by the time it gets the signal, it drains."""

    worker_id: int


class Quit(Struct, frozen=True):
    """End the worker at once, letting Python clean up."""

    worker_id: int


class Abort(Struct, frozen=True):
    """SIGABRT: end the worker, its stacks go to the log."""

    worker_id: int


class Kill(Struct, frozen=True):
    """SIGKILL."""

    worker_id: int


class Report(Struct, frozen=True):
    """Log an event, and send it to the subscribers of the API's events."""

    level: Level
    name: str
    fields: dict[str, Any] = field(default_factory=dict)


class Serving(Struct, frozen=True):
    """The first worker of the current generation is ready."""


class ReloadEnded(Struct, frozen=True):
    """A reload has come to its end, whatever that is. Once for each reload."""

    generation: int


class RolledBack(Struct, frozen=True):
    """A reload was rolled back after its end: the settings of the generation before are current again."""

    generation: int


class CheckUpgrade(Struct, frozen=True):
    """Check in a child whether the program on the disk would start; the answer is `UpgradeChecked`."""


class Upgrade(Struct, frozen=True):
    """Replace this process's program by the one on the disk, keeping everything."""


class Stopping(Struct, frozen=True):
    """The fleet began to stop; or, with `State.stop_at`, will do so after `shutdown_delay`."""


class Finish(Struct, frozen=True):
    """The fleet has no process any more: end the daemon.

    Fork servers that run background work are killed now.

    app_failed, reason, traceback, invalid: why the daemon failed, if it did; as in `events.GenerationFailed`.
    """

    failed: bool = False
    app_failed: bool = False
    reason: str | None = None
    traceback: str | None = None
    invalid: bool = False


Action = (
    StartForkServer
    | LoadApp
    | StopForkServer
    | KillForkServer
    | Spawn
    | Drain
    | AuditZygote
    | UseZygote
    | Interrupt
    | DumpStack
    | Cancel
    | Quit
    | Abort
    | Kill
    | Report
    | Serving
    | ReloadEnded
    | RolledBack
    | CheckUpgrade
    | Upgrade
    | Stopping
    | Finish
)
