"""How processes ended: the newest ends with their causes, and counts by cause.

The cause follows only from what the reaper knows when it reaps the process (`ExitInfo`). A death by a signal
that the supervisor did not send takes precedence over what the fleet wanted: a worker that was being recycled
and crashed has crashed.
"""

import signal
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from ostler.control.views import UNPLANNED, ExitCause, ExitKind, ExitView
from ostler.daemon.reporting.journal import shortened
from ostler.fleet.model import Cause, ExitStatus, GenerationState, ReloadPhase, Worker, WorkerState
from ostler.fleet.state import State
from ostler.osapi.oom import OomWatch

_KEPT = 1000
_STACKS_KEPT = 100
_LAST_REQUESTS = 8

_LEFT: dict[Cause, ExitCause] = {
    Cause.RECYCLE: "recycled",
    Cause.AGE: "aged",
    Cause.MEMORY: "memory",
    Cause.ASKED: "asked",
    Cause.RELOAD: "rolled",
    Cause.ROLLBACK: "rolled back",
    Cause.REFORK: "reforked",
    Cause.SCALE: "scaled down",
    Cause.DEADLINE: "deadline",
    Cause.STALLED: "stalled",
    Cause.BOOT_TIMEOUT: "boot timeout",
    Cause.PAUSE: "paused",
    Cause.STOP: "stopped",
}
# What people and programs send to end a process. A process causes other deadly signals itself: by faults, by
# timers, by limits (signal(7)).
_ENDING = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """What is known of a process that has ended.

    Args:
        status: as wait4(2) reports it.
        age: seconds.
        worker: as the fleet knows it before it knows of the death; None for a fork server and for a worker
            that the fleet has given up.
        leaving: of a fork server, why it had to end (see `fork_server_leaving`); None: it did not have to.
        sent: the signals that the supervisor sent to it.
        signalled: the signal that it has left for, as it reported.
        requests: answers given.
        last_requests: as the scoreboard's `last_requests` returns them.
        peak_memory: bytes (getrusage(2), ru_maxrss).
        dump: its last stack dump, or an empty text.
        problem: its violation of the protocol, or an empty text.
    """

    kind: ExitKind
    pid: int
    generation: int
    status: ExitStatus
    age: float
    slot: int | None = None
    worker: Worker | None = None
    leaving: ExitCause | None = None
    sent: Collection[int] = ()
    signalled: int | None = None
    requests: int = 0
    last_requests: Sequence[str] = ()
    peak_memory: int | None = None
    dump: str = ""
    problem: str = ""


def cause_of(info: ExitInfo, oom_killed: bool) -> ExitCause:
    """Why a process ended.

    oom_killed: the kernel has killed a process for memory lately; looked at only for SIGKILLs not ours.
    """
    if info.problem:
        return "protocol error"
    signum = info.status.signal
    if signum is not None and signum not in info.sent:
        if signum not in _ENDING:
            return "crashed"
        return (
            "killed by the kernel for memory"
            if signum == signal.SIGKILL and oom_killed
            else "killed by an outsider"
        )
    known = info.leaving if info.worker is None else _cause_known(info.worker)
    if known is not None:
        return known
    if info.signalled is not None and info.signalled not in info.sent:
        return "killed by an outsider"  # by a signal that let it end in order
    if info.status.code is None and signum is None:
        return "unknown"
    return "exited" if signum is None else "stopped"


def _cause_known(worker: Worker) -> ExitCause | None:
    """Why the fleet had the worker end, or what the worker has reported; None if neither."""
    if worker.boot_error is not None and worker.leaving in (None, Cause.BOOT_TIMEOUT):
        return "boot failed"
    if worker.state is WorkerState.READY or worker.leaving is None:
        # Until it is drained, a worker that must go serves like any other: its end has another cause.
        return "boot failed" if worker.state is WorkerState.BOOTING else None
    return _LEFT[worker.leaving]


def fork_server_leaving(state: State, number: int, replaced: bool = False) -> ExitCause | None:
    """Why a generation's fork server has to end, or None if it is wanted.

    To be called before the fleet knows of its death. replaced: a worker has become the generation's fork
    server.
    """
    if replaced:
        return "reforked"
    generation = state.generations.get(number)
    if generation is not None and generation.state is GenerationState.FAILED:
        return "boot failed"
    if generation is not None and generation.state is not GenerationState.RETIRING:
        return None
    if state.stopping:
        return "stopped"
    reload = state.reload
    if reload is not None and reload.generation == number:
        if reload.phase is ReloadPhase.FAILED:
            return "boot failed"
        if reload.phase is ReloadPhase.ROLLED_BACK:
            return "rolled back"
    return "rolled"


def signal_name(signum: int) -> str:
    """`KILL`, `SEGV`, `RTMIN+5`."""
    try:
        return signal.Signals(signum).name.removeprefix("SIG")
    except ValueError:
        return f"RTMIN+{signum - signal.SIGRTMIN}" if signum >= signal.SIGRTMIN else str(signum)


def status_text(status: ExitStatus) -> str:
    if status.signal is not None:
        return f"signal {status.signal} ({signal_name(status.signal)})"
    return str(status)


class LedgerState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries."""

    newest: int
    exits: list[ExitView]
    counts: list[tuple[ExitKind, ExitCause, int]]


class Ledger:
    """The newest ends of processes, and all of them counted.

    Attributes:
        counts: by kind and cause, since the daemon's start; never go backwards.
    """

    def __init__(self, oom: OomWatch | None = None) -> None:
        self._oom = oom or OomWatch()
        self._exits: deque[ExitView] = deque(maxlen=_KEPT)
        self._newest = 0
        self.counts: dict[tuple[ExitKind, ExitCause], int] = {}

    def record(self, info: ExitInfo) -> ExitView:
        """Add an end; to be called once for each process."""
        # Called only when it matters: the watch reports each kill by the kernel once.
        suspicious = info.status.signal == signal.SIGKILL and signal.SIGKILL not in info.sent
        cause = cause_of(info, suspicious and self._oom.grew())
        traceback = info.worker.boot_error[1] if info.worker and info.worker.boot_error else None
        problem = f"protocol error: {info.problem}" if info.problem else ""
        stack = "\n".join(filter(None, (problem, info.dump or traceback)))
        self._newest += 1
        view = ExitView(
            id=self._newest,
            at=round(time.time(), 3),
            kind=info.kind,
            slot=info.slot,
            pid=info.pid,
            generation=info.generation,
            cause=cause,
            status=status_text(info.status),
            code=info.status.code,
            signal=info.status.signal,
            age=round(info.age, 3),
            requests=info.requests,
            last_requests=list(info.last_requests[:_LAST_REQUESTS]),
            peak_memory=info.peak_memory,
            stack=shortened(stack) or None,
            planned=cause not in UNPLANNED,
        )
        self._exits.append(view)
        if len(self._exits) > _STACKS_KEPT:
            place = len(self._exits) - 1 - _STACKS_KEPT
            self._exits[place] = msgspec.structs.replace(self._exits[place], stack=None)
        self.counts[info.kind, cause] = self.counts.get((info.kind, cause), 0) + 1
        return view

    def read_oom_kills(self) -> None:
        """To be called once a second: kills by the kernel are attributed only for a short time."""
        self._oom.look()

    @property
    def newest(self) -> int:
        """The newest entry's id; 0 before the first."""
        return self._newest

    def newest_first(self, limit: int) -> list[ExitView]:
        return [self._exits[-n] for n in range(1, min(limit, len(self._exits)) + 1)]

    def snapshot(self) -> LedgerState:
        counts = [(kind, cause, count) for (kind, cause), count in self.counts.items()]
        return LedgerState(self._newest, list(self._exits), counts)

    def restore(self, state: LedgerState) -> None:
        """Continue where the program before this one stopped; before the first `record`."""
        self._newest = state.newest
        self._exits.extend(state.exits)
        self.counts = {(kind, cause): count for kind, cause, count in state.counts}
