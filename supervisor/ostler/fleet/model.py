"""The fleet's nouns: workers, generations, policies. Plain data; what may happen to it is in `machine`."""

import enum
from dataclasses import dataclass, field


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
    DOWN = "down"  # its fork server is gone; another will be started
    SPARE = "standby"  # replaced by a reload on probation, which may be rolled back to it
    RETIRING = "retiring"  # its fork server was told to end


class ReloadPhase(enum.Enum):
    LOADING = "loading"
    CANARY = "canary"
    ROLLING = "rolling"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled back"


class Cause(enum.Enum):
    """Why a worker leaves, or why it died."""

    RECYCLE = "recycle"  # max_requests
    AGE = "age"
    MEMORY = "memory"
    ASKED = "asked"  # somebody asked for this one's replacement
    RELOAD = "reload"
    ROLLBACK = "rollback"
    REFORK = "refork"
    SCALE = "scale"
    DEADLINE = "deadline"
    STALLED = "stalled"  # its loop stopped beating
    BOOT_TIMEOUT = "boot timeout"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended, as waitid(2) tells. Exactly one of the two, or none if nobody could know."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"signal {self.signal}"
        return "unknown" if self.code is None else f"exit code {self.code}"


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """What a generation's configuration says about the fleet. Times in seconds; 0 turns a thing off."""

    workers: int = 1
    preload: bool = True
    """The fork server loads the app, so that its workers have it as it was then."""
    workers_most: int | None = None
    """With it the load decides on a number from `workers` to this."""
    graceful_timeout: float = 30.0
    drain_grace: float = 0.0
    """How much longer a draining worker may take to end by itself, before it is killed."""
    boot_timeout: float = 60.0
    timeout_grace: float = 2.0
    timeout_soft: bool = False
    """Try to end an overdue request alone before its worker is replaced."""
    max_surge: int = 1
    max_surge_share: float = 0.0
    """How many processes may exist beyond the wanted number because of planned replacements: the larger of
    a number and a share of the wanted number."""
    boot_parallelism: int = 2
    """How many workers may boot at once."""
    canary_time: float = 0.0
    probation: float = 0.0
    rollback_crashes: int = 0
    rollback_error_rate: float = 0.0
    refork_after: tuple[int, ...] = ()
    max_age: float = 0.0
    max_age_jitter: float = 0.0
    max_memory: int = 0
    autoscale_utilisation: float = 0.7
    autoscale_queue_wait: float = 0.05
    autoscale_cooldown: float = 60.0
    fork_server_grace: float = 1.0
    """How long a fork server may take to end, before it is killed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one worker did and does, as measured.

    requests, errors: answers since its start, and those of them with a status of 500 and above;
    rate: answers a second since the last measurement;
    in_flight: requests in the app right now;
    busy: share of its threads' time that they spent in the app since the last measurement;
    queue_wait: how long its slowest twentieth of requests waited for it since then at least (95th
    percentile, seconds);
    memory: its own (USS, bytes), or None if nobody has looked.
    """

    requests: int = 0
    errors: int = 0
    in_flight: int = 0
    busy: float = 0.0
    queue_wait: float = 0.0
    memory: int | None = None
    rate: float = 0.0


@dataclass(slots=True)
class Worker:
    """One worker process, from the wish to spawn it to its reaping."""

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
    """When the fleet acts again if nothing happens: boot time-out, drain time-out, kill."""
    overdue_since: float | None = None
    """When the first of its requests that are overdue passed its deadline."""
    only_overdue_left: bool = False
    boot_error: tuple[str, str | None] | None = None
    cancelled: bool = False
    """It was told to end while it booted."""
    zygote: int = 0
    """Which of its generation's fork servers made it: 0 is the one that loaded the app."""
    age_limit: float | None = None
    """When it is to be recycled for its age."""
    due: bool = False
    """It has served its share of requests or time: it must go whatever else it had to go for."""
    load: Load = Load()
    over_memory: int = 0
    """Measurements in a row that found its memory over max_memory."""

    @property
    def staying(self) -> bool:
        """Holds its slot: boots or serves, and nobody wants it gone."""
        return self.leaving is None and self.state in (WorkerState.BOOTING, WorkerState.READY)


@dataclass(slots=True)
class Generation:
    number: int
    state: GenerationState
    policy: FleetPolicy | None = None
    closes_listeners: bool = False
    """It does not listen on all addresses of the generation before."""
    failures: int = 0
    """Workers in a row that failed to boot; a ready worker sets it to 0."""
    unread_since: float | None = None
    """Since when its fork server could not be asked to fork, because it reads nothing."""
    server_failures: int = 0
    """The same for fork servers that failed or died."""
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
    """Worker id of the worker that is to be its fork server, so that the app is there when it is wanted."""
    spare_failed: bool = False
    """One was to be and ended instead; the others are like it."""
    refork_refused: bool = False
    """An audit found that its workers can't be forked from; nobody tries again unasked."""
    requests: int = 0
    errors: int = 0
    """Answers of its workers, and those with a status of 500 and above."""
    crashes: list[float] = field(default_factory=list)
    """When workers of it died without being asked to, lately."""


@dataclass(slots=True)
class Reload:
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


@dataclass(slots=True)
class Probation:
    """What is kept to roll a reload back.

    fallback: the generation before, whose fork server stands by; until: when nobody may want it back any
    more, known once the roll has ended; crashes: when workers of the new generation died, within the last
    `probation` seconds; before: how often the old one's did in as long a time; requests, errors: answers of
    the old generation until it was replaced; override, autoscaled: what the fleet's were then, or what was
    set by hand since.
    """

    fallback: int
    before: int
    requests: int
    errors: int
    crashes: list[float] = field(default_factory=list)
    until: float | None = None
    override: int | None = None
    autoscaled: int | None = None


@dataclass(slots=True)
class Refork:
    """A worker on its way to be its generation's fork server.

    audited: it may; deadline: when it must have said whether it may.
    """

    worker_id: int
    generation: int
    asked_by: str
    force: bool
    started: float
    deadline: float
    audited: bool = False
