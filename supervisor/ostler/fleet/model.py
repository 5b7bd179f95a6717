"""The data types of the fleet: workers, generations, reloads, policies. Plain data.

`lifecycle` says which changes of state are legal, and `machine` what happens.
"""

import enum

from msgspec import Struct, field


class WorkerState(enum.Enum):
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"  # a signal that ends it was sent


class GenerationState(enum.Enum):
    CONFIGURING = "configuring"  # fork server started, configuration not evaluated yet
    LOADING = "loading"  # configured; the app may be loading
    UP = "up"  # can spawn
    FAILED = "failed"  # could not load; its fork server is being ended
    DOWN = "down"  # its fork server has ended; another will be started
    SPARE = "spare"  # replaced by a reload on probation, which may be rolled back to it
    RETIRING = "retiring"  # its fork server is to end


class ReloadPhase(enum.Enum):
    LOADING = "loading"
    CANARY = "canary"
    ROLLING = "rolling"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled back"


class Cause(enum.Enum):
    """Why a worker leaves."""

    RECYCLE = "recycle"  # max_requests
    AGE = "age"
    MEMORY = "memory"
    ASKED = "asked"  # its replacement was asked for
    RELOAD = "reload"
    ROLLBACK = "rollback"
    REFORK = "refork"
    SCALE = "scale"
    DEADLINE = "deadline"
    STALLED = "stalled"  # its event loop is stalled
    BOOT_TIMEOUT = "boot timeout"
    PAUSE = "pause"
    STOP = "stop"


class ExitStatus(Struct, frozen=True):
    """How a process ended, as wait4(2) reports it. Exactly one of the two, or none if it is not known."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"signal {self.signal}"
        return "unknown" if self.code is None else f"exit code {self.code}"


class FleetPolicy(Struct, frozen=True, kw_only=True):
    """What a generation's configuration says about the fleet. Times in seconds; 0 turns a thing off.

    It has no defaults: those are the settings'.
    """

    workers: int
    preload: bool
    """The fork server loads the app, so that its workers have it as it was then."""
    workers_most: int | None
    """With it the load decides on a number from `workers` to this."""
    graceful_timeout: float
    """A draining worker's budget, which is sent to it."""
    drain_grace: float
    """How long after that it is killed: it ends by itself in time, and its atexit functions may run."""
    shutdown_delay: float
    """How long the fleet serves on, reported as not ready, before a graceful stop."""
    boot_timeout: float
    timeout_grace: float
    timeout_soft: bool
    """Try to end an overdue request alone before its worker is replaced."""
    max_surge: int
    max_surge_share: float
    """How many processes may exist beyond the wanted number because of planned replacements: the larger of
    a number and a share of the wanted number."""
    boot_retries: int
    """How often the app is loaded again if it can't be loaded at the start."""
    boot_parallelism: int
    """How many workers may boot at once."""
    boot_when_idle: bool
    """More may boot at once while CPUs are idle: their boots wait for something else."""
    canary_time: float
    probation: float
    keep_generations: int
    """How many replaced generations are kept for a roll-back that is asked for: 0 or 1."""
    rollback_crashes: int
    rollback_error_rate: float
    refork_after: tuple[int, ...]
    max_age: float
    max_age_jitter: float
    max_memory: int
    autoscale_utilisation: float
    autoscale_queue_wait: float
    autoscale_cooldown: float
    fork_server_grace: float
    """How long a fork server may take to end, before it is killed."""


class Load(Struct, frozen=True):
    """What one worker did and does, as measured.

    requests, errors: answers since its start, and those of them with a status of 500 and above;
    rate: answers a second since the last measurement;
    in_flight: requests in the app right now;
    busy: share of its threads' time that they spent in the app since the last measurement;
    queue_wait: how long requests waited for it since then (95th percentile, seconds);
    memory: its own (USS, bytes), or None if that was not measured.
    """

    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    busy: float = 0.0
    queue_wait: float = 0.0
    memory: int | None = None
    rate: float = 0.0


class Worker(Struct):
    """One worker process, from the request to spawn it until it is reaped."""

    worker_id: int
    slot: int
    generation: int
    state: WorkerState
    since: float
    """When it entered the state."""
    spawned_at: float
    pid: int | None = None
    leaving: Cause | None = None
    """Set as soon as it is known that the worker must go, also while it still serves."""
    leaving_since: float | None = None
    deadline: float | None = None
    """When the fleet acts if nothing else happens: boot time-out, drain time-out, kill."""
    drain_time: float = 0.0
    """How long it may take to drain before it is killed; set when it is drained or cancelled."""
    overdue_since: float | None = None
    """When the first of its requests that are overdue passed its deadline."""
    only_overdue_left: bool = False
    boot_error: tuple[str, str | None] | None = None
    cancelled: bool = False
    """It is to end, and was booting when that was decided."""
    zygote: int = 0
    """Which of its generation's fork servers made it: 0 is the one that loaded the app."""
    age_limit: float | None = None
    """When it is to be recycled for its age."""
    due: bool = False
    """It has reached max_requests or max_age: it must go even if another cause no longer applies."""
    load: Load = Load()
    over_memory: int = 0
    """Measurements in a row that found its memory over max_memory."""

    @property
    def staying(self) -> bool:
        """Holds its slot: it boots or serves, and is to stay."""
        return self.leaving is None and self.state in (WorkerState.BOOTING, WorkerState.READY)


class Generation(Struct):
    number: int
    state: GenerationState
    policy: FleetPolicy | None = None
    closes_listeners: bool = False
    """It does not listen on all addresses of the generation before."""
    failures: int = 0
    """Workers in a row that failed to boot; a ready worker sets it to 0."""
    unread_since: float | None = None
    """Since when its fork server has not read its channel, so that it can't be asked to fork."""
    server_failures: int = 0
    """Fork servers in a row that failed or died."""
    last_failure: str = ""
    up_since: float | None = None
    """Since when its fork server can fork."""
    retry_at: float | None = None
    """No boot before this time."""
    deadline: float | None = None
    zygote: int = 0
    """How often a worker has become its fork server."""
    has_app: bool = False
    """Its fork server has the app."""
    spare: int | None = None
    """Worker id of the worker that drains to be its fork server for a roll-back: it has the old code."""
    spare_failed: bool = False
    """One was to be and ended instead. No other is tried."""
    refork_refused: bool = False
    """An audit found that its workers can't be forked from: `refork_after` does not apply any more."""
    requests: int = 0
    errors: int = 0
    """Answers of its workers, and those with a status of 500 and above."""
    crashes: list[float] = field(default_factory=list)
    """When its workers crashed, within the last minute."""


class Reload(Struct):
    """The newest reload, running or ended."""

    generation: int
    phase: ReloadPhase
    asked_by: str
    started: float
    of: int
    replaced: int = 0
    ended: float | None = None
    reason: str | None = None
    traceback: str | None = None
    canary_worker_id: int | None = None
    canary_until: float | None = None
    """When the canary, which is ready, has lived long enough."""
    resumes: bool = False
    """It was asked for during a pause, which ends when the new generation takes over."""

    @property
    def running(self) -> bool:
        return self.ended is None


class Probation(Struct):
    """What is kept to roll a reload back.

    fallback: the generation before, whose fork server is kept; until: when the probation ends, known once the
    roll has ended; over: it has ended, and the generation is kept for a roll-back that is asked for;
    crashes: when workers of the new generation died, within the last `probation` seconds; before: how often
    the old one's did in as long a time; requests, errors: answers of the old generation until it was
    replaced; override, autoscaled: what the fleet's were then, or what was set by hand since.
    """

    fallback: int
    before: int
    requests: int
    errors: int
    crashes: list[float] = field(default_factory=list)
    until: float | None = None
    over: bool = False
    override: int | None = None
    autoscaled: int | None = None


class Refork(Struct):
    """A worker on its way to be its generation's fork server.

    audited: the audit was passed; deadline: when it must be.
    """

    worker_id: int
    generation: int
    asked_by: str
    force: bool
    started: float
    deadline: float
    audited: bool = False
