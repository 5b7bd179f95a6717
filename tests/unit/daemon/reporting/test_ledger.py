"""The cause of each end of a process, and what is recorded of it."""

import signal
from typing import Any

import msgspec
import pytest

from ostler.daemon.reporting.ledger import (
    ExitInfo,
    Ledger,
    LedgerState,
    cause_of,
    fork_server_leaving,
    signal_name,
)
from ostler.fleet import events
from ostler.fleet.machine import Fleet
from ostler.fleet.model import Cause, ExitStatus, GenerationState, Worker, WorkerState
from tests.kit.policies import fleet_policy

BOOTING, READY, DRAINING, STOPPING = WorkerState
QUIT, ABRT, KILL, TERM, SEGV = (
    signal.SIGQUIT,
    signal.SIGABRT,
    signal.SIGKILL,
    signal.SIGTERM,
    signal.SIGSEGV,
)


def a_worker(state: WorkerState, leaving: Cause | None = None, **more: Any) -> Worker:
    return Worker(1, 2, 3, state, 0.0, 0.0, leaving=leaving, **more)


def an_exit(status: ExitStatus = ExitStatus(0), **more: Any) -> ExitInfo:  # noqa: B008 - frozen
    return ExitInfo(
        **{"kind": "worker", "pid": 7, "generation": 3, "status": status, "age": 1.5, "slot": 2} | more
    )


class FakeOom:
    """Reports that the kernel has killed this many processes."""

    def __init__(self, kills: int = 0) -> None:
        self.kills = kills

    def look(self) -> None:
        pass

    def grew(self) -> bool:
        self.kills -= 1
        return self.kills >= 0


def code(number: int) -> ExitStatus:
    return ExitStatus(code=number)


def killed(signum: int) -> ExitStatus:
    return ExitStatus(signal=signum)


FAILED_BOOT = a_worker(BOOTING, boot_error=("no such module", None))


def test_protocol_error() -> None:
    """A protocol violation is the cause of an end, whatever else is known of it."""
    for status in (killed(KILL), killed(SEGV), code(0)):
        end = Ledger().record(
            an_exit(status, worker=a_worker(READY), sent=[KILL], dump="a stack", problem="it sent x")
        )
        assert (end.cause, end.planned) == ("protocol error", False)
        assert end.stack == "protocol error: it sent x\na stack"


@pytest.mark.parametrize(
    ("worker", "sent", "cause"),
    [
        (a_worker(READY), [], "killed by an outsider"),
        (a_worker(READY), [TERM], "exited"),
        (a_worker(DRAINING, Cause.SCALE), [], "scaled down"),
        (FAILED_BOOT, [], "boot failed"),
    ],
)
def test_left_for_a_signal(worker: Worker, sent: list[int], cause: str) -> None:
    """A signal that a worker handled counts if it was not ours and the fleet had not asked the worker to
    leave.
    """
    assert cause_of(an_exit(code(0), worker=worker, sent=sent, signalled=TERM), False) == cause


@pytest.mark.parametrize(
    ("worker", "status", "sent", "oom", "cause"),
    [
        # Asked to end, and ended.
        (a_worker(DRAINING, Cause.RECYCLE), code(0), [], False, "recycled"),
        (a_worker(DRAINING, Cause.AGE), code(0), [], False, "aged"),
        (a_worker(DRAINING, Cause.MEMORY), code(0), [], False, "memory"),
        (a_worker(DRAINING, Cause.ASKED), code(0), [], False, "asked"),
        (a_worker(DRAINING, Cause.RELOAD), code(0), [], False, "rolled"),
        (a_worker(DRAINING, Cause.ROLLBACK), code(0), [], False, "rolled back"),
        (a_worker(DRAINING, Cause.REFORK), code(0), [], False, "reforked"),
        (a_worker(DRAINING, Cause.SCALE), code(0), [], False, "scaled down"),
        (a_worker(DRAINING, Cause.PAUSE), code(0), [], False, "paused"),
        (a_worker(DRAINING, Cause.STOP), code(0), [], False, "stopped"),
        (a_worker(DRAINING, Cause.SCALE), code(3), [], False, "scaled down"),
        (a_worker(STOPPING, Cause.SCALE), code(0), [QUIT], False, "scaled down"),
        # By our signals.
        (a_worker(STOPPING, Cause.DEADLINE), killed(ABRT), [ABRT], False, "deadline"),
        (a_worker(STOPPING, Cause.DEADLINE), killed(KILL), [ABRT, KILL], True, "deadline"),
        (a_worker(STOPPING, Cause.STALLED), killed(KILL), [KILL], False, "stalled"),
        (a_worker(STOPPING, Cause.STOP), killed(QUIT), [QUIT], False, "stopped"),
        (a_worker(STOPPING, Cause.BOOT_TIMEOUT), killed(ABRT), [ABRT], False, "boot timeout"),
        # At boot.
        (FAILED_BOOT, code(1), [], False, "boot failed"),
        (a_worker(BOOTING), code(1), [], False, "boot failed"),
        (a_worker(BOOTING), killed(SEGV), [], False, "crashed"),
        (a_worker(BOOTING, Cause.SCALE), code(0), [], False, "scaled down"),
        # By signals that are not ours, whatever its state was.
        (a_worker(READY), killed(SEGV), [], False, "crashed"),
        (a_worker(READY), killed(ABRT), [], False, "crashed"),
        (a_worker(READY), killed(signal.SIGBUS), [], False, "crashed"),
        (a_worker(READY), killed(signal.SIGFPE), [], False, "crashed"),
        (a_worker(READY), killed(signal.SIGILL), [], False, "crashed"),
        (a_worker(READY), killed(signal.SIGXCPU), [], False, "crashed"),
        (a_worker(READY), killed(signal.SIGALRM), [], False, "crashed"),
        (a_worker(DRAINING, Cause.RECYCLE), killed(SEGV), [], False, "crashed"),
        (a_worker(STOPPING, Cause.STOP), killed(SEGV), [QUIT], False, "crashed"),
        (a_worker(READY), killed(KILL), [], False, "killed by an outsider"),
        (a_worker(READY), killed(TERM), [], False, "killed by an outsider"),
        (a_worker(READY), killed(signal.SIGINT), [], False, "killed by an outsider"),
        (a_worker(READY), killed(QUIT), [], False, "killed by an outsider"),
        (a_worker(DRAINING, Cause.RELOAD), killed(KILL), [], False, "killed by an outsider"),
        (a_worker(READY), killed(KILL), [], True, "killed by the kernel for memory"),
        (a_worker(DRAINING, Cause.SCALE), killed(KILL), [TERM], True, "killed by the kernel for memory"),
        (a_worker(READY), killed(TERM), [], True, "killed by an outsider"),
        # By itself.
        (a_worker(READY), code(0), [], False, "exited"),
        (a_worker(READY, Cause.RECYCLE), code(3), [], False, "exited"),
        (None, code(0), [], False, "exited"),
        (None, ExitStatus(), [], False, "unknown"),
        (a_worker(READY), ExitStatus(), [], False, "unknown"),
        (a_worker(DRAINING, Cause.SCALE), ExitStatus(), [], False, "scaled down"),
    ],
)
def test_cause(worker: Worker | None, status: ExitStatus, sent: list[int], oom: bool, cause: str) -> None:
    """The cause of a worker's death, from the fleet's wishes,
    the exit status and the signals that were sent.
    """
    assert cause_of(an_exit(status, worker=worker, sent=sent), oom) == cause


@pytest.mark.parametrize("cause", Cause)
def test_every_reason_to_leave_has_a_cause(cause: Cause) -> None:
    """Each reason of the fleet has a cause in the ledger."""
    assert cause_of(an_exit(worker=a_worker(DRAINING, cause)), False) not in ("exited", "unknown")


def a_fleet(state: GenerationState | None = None, **more: Any) -> Fleet:
    """A fleet whose first generation is in this state, or unknown."""
    fleet = Fleet()
    fleet.handle(events.StartAsked(), 0.0)
    fleet.handle(events.ForkServerConfigured(1, fleet_policy()), 0.0)
    fleet.handle(events.AppLoaded(1), 0.0)
    if state is None:
        del fleet.state.generations[1]
    else:
        fleet.state.generations[1].state = state
    for name, value in more.items():
        setattr(fleet.state, name, value)
    return fleet


@pytest.mark.parametrize(
    ("fleet", "replaced", "status", "sent", "cause"),
    [
        (a_fleet(GenerationState.UP), False, killed(KILL), [], "killed by an outsider"),
        (a_fleet(GenerationState.UP), False, killed(SEGV), [], "crashed"),
        (a_fleet(GenerationState.UP), False, code(1), [], "exited"),
        (a_fleet(GenerationState.SPARE), False, code(1), [], "exited"),
        (a_fleet(GenerationState.UP), True, code(0), [], "reforked"),
        (a_fleet(GenerationState.FAILED), False, killed(KILL), [KILL], "boot failed"),
        (a_fleet(GenerationState.RETIRING), False, code(0), [], "rolled"),
        (a_fleet(None), False, killed(KILL), [KILL], "rolled"),
        (a_fleet(GenerationState.RETIRING, stopping="graceful"), False, code(0), [], "stopped"),
    ],
)
def test_cause_of_a_fork_servers_end(
    fleet: Fleet, replaced: bool, status: ExitStatus, sent: list[int], cause: str
) -> None:
    """The same for a fork server, from the state of its generation."""
    leaving = fork_server_leaving(fleet.state, 1, replaced)
    assert cause_of(an_exit(status, kind="fork server", leaving=leaving, sent=sent), False) == cause


def test_a_failed_reloads_fork_server() -> None:
    """The cause of a candidate that could not load is not a roll."""
    fleet = a_fleet(GenerationState.UP)
    fleet.handle(events.ReloadAsked("test"), 1.0)
    fleet.handle(events.GenerationFailed(2, "no such module"), 2.0)
    assert fork_server_leaving(fleet.state, 2) == "boot failed"
    assert fork_server_leaving(fleet.state, 1) is None


def test_what_is_kept() -> None:
    """All fields, with the status in words."""
    ledger = Ledger(FakeOom())  # type: ignore[arg-type]
    view = ledger.record(
        an_exit(
            killed(KILL),
            worker=a_worker(READY),
            requests=12,
            last_requests=["GET /a", "GET /b"],
            peak_memory=41 << 20,
            dump="Thread 1\n",
        )
    )
    assert (view.id, view.kind, view.slot, view.pid, view.generation) == (1, "worker", 2, 7, 3)
    assert (view.status, view.code, view.signal) == ("signal 9 (KILL)", None, 9)
    assert (view.age, view.requests, view.last_requests) == (1.5, 12, ["GET /a", "GET /b"])
    assert (view.peak_memory, view.stack) == (41 << 20, "Thread 1\n")
    assert ledger.newest_first(5) == [view]


def test_planned_or_not() -> None:
    """An end that the fleet asked for without a fault is planned;
    a death, and an end for a request or a boot, is not.
    """
    ledger = Ledger(FakeOom())  # type: ignore[arg-type]
    for leaving, planned in ((Cause.RECYCLE, True), (Cause.STOP, True), (Cause.DEADLINE, False)):
        assert ledger.record(an_exit(code(0), worker=a_worker(DRAINING, leaving))).planned is planned
    assert not ledger.record(an_exit(killed(SEGV), worker=a_worker(READY))).planned


def test_the_traceback_of_a_failed_boot() -> None:
    """Without a stack dump the entry has what the worker reported about its failure."""
    worker = a_worker(BOOTING, boot_error=("no such module", "Traceback ..."))
    view = Ledger(FakeOom()).record(an_exit(code(1), worker=worker))  # type: ignore[arg-type]
    assert (view.cause, view.status, view.stack) == ("boot failed", "exit code 1", "Traceback ...")


def test_one_kill_by_the_kernel_accounts_for_one_death() -> None:
    """Two workers die of SIGKILL, the kernel has killed once: the second was killed by an outsider."""
    ledger = Ledger(FakeOom(1))  # type: ignore[arg-type]
    causes = [ledger.record(an_exit(killed(KILL), worker=a_worker(READY))).cause for _ in range(2)]
    assert causes == ["killed by the kernel for memory", "killed by an outsider"]


def test_other_deaths_do_not_use_up_the_kernels_kill() -> None:
    """Only for a SIGKILL that was not ours the kernel's counter is read, because reading uses the kill up."""
    ledger = Ledger(FakeOom(1))  # type: ignore[arg-type]
    ledger.record(an_exit(killed(SEGV), worker=a_worker(READY)))
    ledger.record(an_exit(killed(KILL), worker=a_worker(STOPPING, Cause.DEADLINE), sent=[KILL]))
    view = ledger.record(an_exit(killed(KILL), worker=a_worker(READY)))
    assert view.cause == "killed by the kernel for memory"


def test_the_newest_thousand_and_all_counted() -> None:
    """Old entries are dropped, and the stacks of all but the newest hundred; counters never are."""
    ledger = Ledger(FakeOom())  # type: ignore[arg-type]
    for _ in range(1200):
        ledger.record(an_exit(killed(SEGV), worker=a_worker(READY), dump="x" * 100_000))
    kept = ledger.newest_first(5000)
    assert [view.id for view in kept] == list(range(1200, 200, -1))
    assert ledger.counts == {("worker", "crashed"): 1200}
    stacks = [view.stack for view in kept]
    assert all(stacks[:100])
    assert not any(stacks[100:])
    assert sum(len(stack or "") for stack in stacks) < 2**20


def test_another_program_goes_on() -> None:
    """Entries, numbers and counters continue after they were exported as JSON and imported."""
    before = Ledger(FakeOom())  # type: ignore[arg-type]
    before.record(an_exit(worker=a_worker(DRAINING, Cause.RELOAD)))
    before.record(an_exit(killed(SEGV), kind="fork server", slot=None, dump="stack"))
    after = Ledger(FakeOom())  # type: ignore[arg-type]
    after.restore(msgspec.json.decode(msgspec.json.encode(before.snapshot()), type=LedgerState))
    assert after.newest_first(9) == before.newest_first(9)
    view = after.record(an_exit(worker=a_worker(DRAINING, Cause.RELOAD)))
    assert view.id == 3
    assert after.counts == {("worker", "rolled"): 2, ("fork server", "crashed"): 1}


def test_names_of_signals() -> None:
    """Signals by name, real-time ones by their distance from the first,
    whose number depends on the C library.
    """
    assert [signal_name(n) for n in (9, 11, signal.SIGRTMIN + 5, 32)] == ["KILL", "SEGV", "RTMIN+5", "32"]
