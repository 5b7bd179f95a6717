"""What the fleet wants done. The shell performs actions in order and decides nothing."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class StartForkServer:
    generation: int


@dataclass(frozen=True, slots=True)
class LoadApp:
    """Give the fork server its listeners and let it load what it must."""

    generation: int


@dataclass(frozen=True, slots=True)
class StopForkServer:
    generation: int


@dataclass(frozen=True, slots=True)
class KillForkServer:
    generation: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker. `urgent`: nobody serves in the slot, so it need not step back while it boots."""

    worker_id: int
    slot: int
    generation: int
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop accepting, finish what is there, leave.

    hand_over: idle connections go to other workers; zygote: then be the generation's fork server.
    """

    worker_id: int
    hand_over: bool
    zygote: bool = False


@dataclass(frozen=True, slots=True)
class AuditZygote:
    """Let the worker look whether it could be forked from; the answer is `ZygoteAudited`."""

    worker_id: int
    force: bool


@dataclass(frozen=True, slots=True)
class UseZygote:
    """The worker is its generation's fork server now; the one before is to end."""

    worker_id: int
    generation: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raise an exception in the thread that serves an overdue request."""

    worker_id: int
    thread: int


@dataclass(frozen=True, slots=True)
class DumpStack:
    """Log an overdue request with the stack of the thread that serves it."""

    worker_id: int
    thread: int
    method: str
    path: str
    age: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """The worker boots, and need not any more. Should it serve by now, it drains as if it were told to."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Quit:
    """End the worker at once, letting Python clean up."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Abort:
    """SIGABRT: end the worker, its stacks go to the log."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Kill:
    worker_id: int


@dataclass(frozen=True, slots=True)
class Report:
    """Log an event and tell subscribers."""

    level: Literal["debug", "info", "warning", "error"]
    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Serving:
    """The first worker is ready."""


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    generation: int


@dataclass(frozen=True, slots=True)
class CheckUpgrade:
    """See in a child whether the program on the disk would start; the answer is `UpgradeChecked`."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Replace this process's program by the one on the disk, keeping everything."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """The fleet began to stop."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left: end the daemon. `reason` and `traceback` say why it failed, if it did."""

    failed: bool = False
    app_failed: bool = False
    reason: str | None = None
    traceback: str | None = None


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
    | CheckUpgrade
    | Upgrade
    | Stopping
    | Finish
)
