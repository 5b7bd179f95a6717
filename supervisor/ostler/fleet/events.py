"""The input of the fleet, all frozen. What has happened is named in the past tense, requests end in `Asked`.

A `worker_id` names one worker process for good: worker ids are counted from 1 and never reused, unlike slots
and pids.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from ostler.fleet.model import ExitStatus, FleetPolicy, Load

# -- reports: fork servers ---------------------------------------------------------------------------


class ForkServerConfigured(Struct, frozen=True):
    """The configuration of a generation was evaluated and its listeners are bound.

    closes_listeners: some of the current generation's are not among them.
    """

    generation: int
    policy: FleetPolicy
    closes_listeners: bool = False


class AppLoaded(Struct, frozen=True):
    """The fork server can spawn (with `preload_app` the app is loaded)."""

    generation: int


class GenerationFailed(Struct, frozen=True):
    """The configuration, a listener or the app of a generation can't be loaded.

    reason: one line; traceback: the app's, or None if the reason says all; app_failed: the app can't be
    loaded, not the configuration; invalid: a value in the configuration is wrong in itself.
    """

    generation: int
    reason: str
    traceback: str | None = None
    app_failed: bool = False
    invalid: bool = False


class ForkServerExited(Struct, frozen=True):
    """The kernel reported the death of a generation's fork server.

    problem: the protocol error for which it was killed, or an empty text.
    """

    generation: int
    status: ExitStatus
    problem: str = ""


# -- reports: workers ---------------------------------------------------------------------------------


class WorkerForked(Struct, frozen=True):
    """The fork server has forked the worker."""

    worker_id: int
    pid: int


class SpawnFailed(Struct, frozen=True):
    """The fork server could not fork, or could not be asked to.

    unread: it has not read its channel for so long that the message did not fit in.
    """

    worker_id: int
    reason: str
    unread: bool = False


class WorkerReady(Struct, frozen=True):
    """The worker has loaded the app and accepts connections."""

    worker_id: int


class WorkerBootFailed(Struct, frozen=True):
    """The app could not be loaded in the worker, which is about to exit."""

    worker_id: int
    reason: str
    traceback: str | None


class WorkerExited(Struct, frozen=True):
    """A worker has ended, or is treated as ended. Submitted once for each worker.

    outsider: a signal ended it that came from neither the fleet nor the kernel (perhaps from the app, which
    looks the same), or its process is not known; request: what it had in flight or served last, e.g.
    `GET /path`; traceback: the stacks at its end, if it crashed; problem: the protocol error for which it was
    killed, or an empty text.
    """

    worker_id: int
    status: ExitStatus
    outsider: bool = False
    request: str = ""
    traceback: str | None = None
    problem: str = ""


class RecycleDue(Struct, frozen=True):
    """The worker has served `max_requests` requests and asks for a successor."""

    worker_id: int
    requests: int


class RequestOverdue(Struct, frozen=True):
    """A request passed its deadline: the setting of this name, which is so many seconds, allows no more."""

    worker_id: int
    thread: int
    method: str
    path: str
    age: float
    setting: str = "timeout"
    limit: float = 0.0


class OverdueEnded(Struct, frozen=True):
    """None of the worker's requests is overdue any more."""

    worker_id: int


class OnlyOverdueLeft(Struct, frozen=True):
    """All that is still in flight in a worker with an overdue request is overdue."""

    worker_id: int


class LoopStalled(Struct, frozen=True):
    """The worker's event loop has not run for `age` seconds although no request keeps it busy."""

    worker_id: int
    age: float


class ZygoteAudited(Struct, frozen=True):
    """A worker has checked whether it could be forked from.

    problems: why not, unless `force` was given; warnings: what may cause problems but does not prevent it.
    """

    worker_id: int
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ZygoteReady(Struct, frozen=True):
    """The worker has drained and can be its generation's fork server from now on."""

    worker_id: int


class Measured(Struct, frozen=True):
    """Once a second: what the workers did, by worker id. `memory_free`: bytes until the machine or the cgroup
    has none, or None if that is not known."""

    loads: Mapping[int, Load]
    memory_free: int | None = None


class CpusIdle(Struct, frozen=True):
    """How many CPUs were idle in the last second, while no more workers might boot (`boot_parallelism`)."""

    idle: float


class UpgradeChecked(Struct, frozen=True):
    """Whether the new program would start. `problem`: why not."""

    problem: str | None = None


class UpgradeDone(Struct, frozen=True):
    """The new program has taken over."""

    version: str


class DeadlinePassed(Struct, frozen=True):
    """The timer that `Fleet.next_deadline` asked for fired."""


# -- requests -----------------------------------------------------------------------------------------


class StartAsked(Struct, frozen=True):
    """The daemon came up: begin with the first generation."""


class ResizeAsked(Struct, frozen=True):
    """Set the wanted number of workers (`workers`) or change it (`delta`, never below 1).

    With neither the configuration's own number counts again.
    """

    by: str
    workers: int | None = None
    delta: int | None = None


class ReloadAsked(Struct, frozen=True):
    """Load the configuration and the app again and replace all workers."""

    by: str


class AbortReloadAsked(Struct, frozen=True):
    """Give up the reload that runs: the generation before serves on, or again."""

    by: str


class RollbackAsked(Struct, frozen=True):
    """Serve with the generation before again, as long as it is kept."""

    by: str


class RecycleAsked(Struct, frozen=True):
    """Replace the worker in a slot; its successor is ready first."""

    by: str
    slot: int


class ReforkAsked(Struct, frozen=True):
    """Make a warmed-up worker the zygote that the others are forked from.

    slot: which, or None for the one that has served most; force: even if the audit finds problems.
    """

    by: str
    slot: int | None = None
    force: bool = False


class UpgradeAsked(Struct, frozen=True):
    """Replace the supervisor's own program, keeping everything, then reload."""

    by: str


class PauseAsked(Struct, frozen=True):
    """Drain all workers; the daemon stays (WINCH). A resize or reload ends it."""

    by: str


class DrainAsked(Struct, frozen=True):
    """Report that the fleet is not ready, so that load balancers send nothing new; the workers serve on."""

    by: str


class ResumeAsked(Struct, frozen=True):
    """End a pause and a drain."""

    by: str


class StopAsked(Struct, frozen=True):
    """End the daemon. Asked a second time, a graceful stop becomes a quick one.

    A graceful stop begins after `shutdown_delay`, or at once if it is asked for again.
    """

    by: str
    how: Literal["graceful", "quick"]


Event = (
    ForkServerConfigured
    | AppLoaded
    | GenerationFailed
    | ForkServerExited
    | WorkerForked
    | SpawnFailed
    | WorkerReady
    | WorkerBootFailed
    | WorkerExited
    | RecycleDue
    | RequestOverdue
    | OverdueEnded
    | OnlyOverdueLeft
    | LoopStalled
    | ZygoteAudited
    | ZygoteReady
    | Measured
    | CpusIdle
    | UpgradeChecked
    | UpgradeDone
    | DeadlinePassed
    | StartAsked
    | ResizeAsked
    | ReloadAsked
    | AbortReloadAsked
    | RollbackAsked
    | RecycleAsked
    | ReforkAsked
    | UpgradeAsked
    | PauseAsked
    | DrainAsked
    | ResumeAsked
    | StopAsked
)
