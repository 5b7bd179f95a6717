"""What is known of each child process, apart from its descriptors.

One struct for each child. An upgrade in place carries it whole, so a field that is added here is carried
without further code. A field that is added later needs a default.
"""

import enum
from typing import Literal

import msgspec

from ostler.control.views import ExitCause
from ostler.ipc import messages

StartCause = Literal["start", "reload", "upgrade", "restart"]


class ChildPhase(enum.Enum):
    """How far a child has come, which says what it may send (see `protocol`).

    The first four are a worker's, the next five a fork server's. Both can fail.
    """

    UNREPORTED = "not reported as forked"
    BOOTING = "booting"
    SERVING = "serving"
    ZYGOTE_READY = "a zygote that is not in use yet"
    CONFIGURING = "reading the configuration"
    DECIDED = "reading the configuration that it has decided on"
    CONFIGURED = "configured"
    LOADING = "loading the app"
    FORKING = "forking"
    FAILED = "failed"


class ChildRecord(msgspec.Struct, kw_only=True):
    """What is known of any child.

    Attributes:
        generation: the generation it belongs to.
        spawned_at: CLOCK_MONOTONIC, seconds.
        pid: None until the process is known.
        is_ours: as far as is known, the process with this pid is a child that was not reaped yet.
        sent_signals: the signals that were sent to it.
        phase: what it may send.
        problem: the violation of the protocol that it was killed for, or an empty text.
        groups: process groups with processes that it may use: the group that it leads, and those that the
            processes lead from which it was forked. Empty if the daemon is in the foreground of a terminal.
    """

    generation: int
    spawned_at: float
    pid: int | None = None
    is_ours: bool = True
    sent_signals: set[int] = msgspec.field(default_factory=set)
    phase: ChildPhase = ChildPhase.UNREPORTED
    problem: str = ""
    groups: list[int] = msgspec.field(default_factory=list)


class ForkServerRecord(ChildRecord, kw_only=True):
    """What is known of a fork server.

    Attributes:
        cause: why it was started.
        listener_keys: the addresses that its configuration names.
        decision: what it reported before it ran anything that the app's user can write. Later messages of
            that kind are ignored.
        modules_sent: it was sent the names of the modules that its workers need.
        remarked: what one of its processes has remarked on the app was logged.
        wants_log_lines: it wants the supervisor's log lines, for loggers of its own.
        hooks: names of the hooks in its configuration file.
        can_call_hooks: it has loaded, and calls the hooks that it is sent.
        pending_hooks: the hooks that it was sent and has not reported as done, oldest first.
        hook_running: it has begun with the first of them.
        reported_workers: the wanted number of workers that it was last sent.
        stops_when_idle: its channel is closed as soon as no hook is pending.
        calls_on_exit: it was sent `on_exit`.
        replaces_background_work: what the hooks of earlier fork servers have started is not needed any more.
        may_run_background_work: its hooks may have started a thread or process that must outlive its
            generation.
        kept_for_workers: its generation has ended, but not yet the workers that use what it has started.
        background_only: that is all it is still there for; exit_cause then says why its generation ended.
    """

    phase: ChildPhase = ChildPhase.CONFIGURING
    cause: StartCause = "restart"
    listener_keys: list[str] = []
    decision: messages.Decided | None = None
    modules_sent: bool = False
    remarked: bool = False
    wants_log_lines: bool = False
    hooks: list[str] = []
    can_call_hooks: bool = False
    pending_hooks: list[messages.HookDue] = []
    hook_running: bool = False
    reported_workers: int | None = None
    stops_when_idle: bool = False
    calls_on_exit: bool = False
    replaces_background_work: bool = False
    may_run_background_work: bool = False
    kept_for_workers: bool = False
    background_only: bool = False
    exit_cause: ExitCause | None = None


class WorkerRecord(ChildRecord, kw_only=True):
    """What is known of a worker.

    Attributes:
        cell: its cell of the scoreboard.
        threads: requests that it handles at a time.
        one_loop: one event loop serves all of its requests.
        signalled: the signal that it reports to leave for.
        wants_log_lines: as for a fork server, which it may become.
        audits_pending: how many audits (can it be forked from?) it has not answered.
        zygote_asked: it was asked to become a zygote.
        recycle_reported: it has reported that it is due to be recycled.
        dumps: stack dumps that were read and not taken yet.
        last_dump: the text that was taken last.
    """

    worker_id: int
    slot: int
    cell: int
    threads: int
    one_loop: bool
    signalled: int | None = None
    wants_log_lines: bool = False
    audits_pending: int = 0
    zygote_asked: bool = False
    recycle_reported: bool = False
    dumps: bytearray = msgspec.field(default_factory=bytearray)
    last_dump: str = ""


class CarriedForkServer(msgspec.Struct, frozen=True):
    """A fork server as an upgrade in place carries it. channel: its descriptor, -1 if it is closed."""

    record: ForkServerRecord
    channel: int


class CarriedWorker(msgspec.Struct, frozen=True):
    """A worker as an upgrade in place carries it. channel, stacks: descriptors, -1 if closed."""

    record: WorkerRecord
    channel: int
    stacks: int
