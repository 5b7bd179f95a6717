"""Measurements of workers, from a real scoreboard with a simulated clock."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import structlog

from ostler.daemon.sensors import load as module
from ostler.daemon.sensors.load import LoadSensor, MemoryReader
from ostler.fleet.model import Load, Worker, WorkerState
from ostler.logs.setup import set_up
from ostler.scoreboard import layout, memory
from ostler.scoreboard.reader import Scoreboard
from tests.kit.policies import fleet_policy
from tests.kit.raw_cell import RawCell
from tests.unit.daemon.fakes import fake_ports

MIB = 1 << 20


class Stage:
    """A fleet whose workers exist only in the scoreboard.

    Attributes:
        now: the clock, in seconds.
        free: how much memory is reported as left, and `asked`, how often that was asked for.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.free: int | None = 7 * MIB
        self.asked = 0
        self.scoreboard = Scoreboard(clock=lambda: int(self.now * 1e9))
        self.workers: dict[int, Worker] = {}
        self.handles: dict[int, Any] = {}
        self.writers: dict[int, RawCell] = {}
        self.fleet = SimpleNamespace(workers=self.workers, policy=fleet_policy())
        state: Any = self.fleet
        children = fake_ports(workers=self.handles).children
        self.sensor = LoadSensor(lambda: state, children, self.scoreboard, lambda: self.now, self._free)

    def _free(self) -> int | None:
        self.asked += 1
        return self.free

    def add(self, worker_id: int, threads: int = 1, state: WorkerState = WorkerState.READY) -> None:
        cell = self.scoreboard.allocate_cell(threads + 1)
        mapped = memory.map_cell(self.scoreboard.fileno(cell))
        self.writers[worker_id] = RawCell(mapped, threads + 1)
        self.workers[worker_id] = Worker(worker_id, worker_id, 1, state, self.now, self.now, pid=os.getpid())
        self.handles[worker_id] = SimpleNamespace(
            worker_id=worker_id, cell=cell, threads=threads, one_loop=False, pid=os.getpid()
        )

    def begin(self, worker_id: int, thread: int = 0) -> None:
        """A request enters the app now."""
        words, _ = self.writers[worker_id].slot(thread)
        words[layout.STARTED] = int(self.now * 1e9)

    def end(self, worker_id: int, thread: int = 0, status: int = 200) -> None:
        """The request leaves the app now."""
        words, _ = self.writers[worker_id].slot(thread)
        took = int(self.now * 1e9) - words[layout.STARTED]
        words[layout.STARTED] = 0
        words[layout.STATUS_CLASSES + status // 100] += 1
        words[layout.HISTOGRAM + layout.bucket_of(took)] += 1

    def wait(self, worker_id: int, milliseconds: int) -> None:
        """A request that has waited this long comes to the app."""
        words, _ = self.writers[worker_id].slot(0)
        words[layout.QUEUED + layout.bucket_of(milliseconds * 1_000_000)] += 1

    def serve(self, worker_id: int, seconds: float, thread: int = 0, status: int = 200) -> None:
        self.begin(worker_id, thread)
        self.now += seconds
        self.end(worker_id, thread, status)

    def take(self, worker_id: int = 1) -> Load:
        return self.sensor.take().loads[worker_id]


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.scoreboard.close()


def test_counts_and_rate(stage: Stage) -> None:
    """Answers are counted since the start; the rate is that since the last measurement."""
    stage.add(1)
    for status in (200, 200, 404, 500):
        stage.serve(1, 0.125, status=status)
    load = stage.take()
    assert (load.requests, load.errors, load.rate) == (4, 1, 8.0)
    stage.now += 1.0
    stage.serve(1, 1.0)
    load = stage.take()
    assert (load.requests, load.errors, load.rate) == (5, 1, 0.5)


def test_an_idle_worker_is_not_busy(stage: Stage) -> None:
    """Work before the last measurement is not counted again."""
    stage.add(1)
    stage.serve(1, 1.0)
    assert stage.take().busy > 0.85
    stage.now += 1.0
    assert stage.take().busy == 0.0


def test_short_requests_are_counted_by_their_histogram(stage: Stage) -> None:
    """Half of a second in the app is half busy, to within an eighth, the width of the buckets."""
    stage.add(1)
    for _ in range(50):
        stage.serve(1, 0.010)
        stage.now += 0.010
    assert stage.take().busy == pytest.approx(0.5, rel=0.125)


def test_a_long_request_makes_busy_while_it_lasts(stage: Stage) -> None:
    """It is counted second by second, and not again when it ends."""
    stage.add(1)
    stage.begin(1)
    for _ in range(10):
        stage.now += 1.0
        load = stage.take()
        assert (load.busy, load.in_flight, load.requests) == (1.0, 1, 0)
    stage.end(1)
    stage.now += 4.0
    load = stage.take()
    # Its bucket covers 8.6 to 10.7 s: within that precision nothing is left after 10 s.
    assert 0.0 <= load.busy <= 0.2
    assert load.in_flight == 0


def test_one_loop_is_busy_when_it_computes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred waiting requests do not make a worker with one loop busy; its computing does."""
    used = iter([1.0, 1.25])
    monkeypatch.setattr(module, "cpu_seconds", lambda _pid: next(used))
    stage.add(1)
    stage.handles[1].one_loop = True
    stage.begin(1)
    stage.take()
    stage.now += 1
    assert stage.take().busy == pytest.approx(0.25)


def test_threads_share_the_time(stage: Stage) -> None:
    """One busy thread of four is a quarter, also if requests begin and end in the others."""
    stage.add(1, threads=4)
    stage.begin(1, thread=2)
    stage.now += 1.0
    assert stage.take().busy == pytest.approx(0.25)
    stage.serve(1, 0.5, thread=0)
    stage.now += 0.5
    assert stage.take().busy == pytest.approx(0.375, rel=0.125)


def test_the_wait_of_the_slowest_twentieth(stage: Stage) -> None:
    """The wait that a twentieth of the last second's requests exceed: rarer and older waits do not count."""
    stage.add(1)
    for number in range(100):
        if number < 5:
            stage.wait(1, 900)
        elif number < 10:
            stage.wait(1, 80)
        stage.serve(1, 0.001)
    assert stage.take().queue_wait == pytest.approx(0.08, rel=0.25)
    stage.now += 1.0
    stage.serve(1, 0.001)
    assert stage.take().queue_wait == 0.0
    stage.wait(1, 300)
    stage.serve(1, 0.001)
    assert stage.take().queue_wait == pytest.approx(0.3, rel=0.25)


def test_a_new_worker_is_measured_from_its_first_moment(stage: Stage) -> None:
    """Its share counts from when it was ready: half a second's work in half a second is fully busy."""
    stage.add(1)
    stage.now += 50.0
    stage.add(2)
    stage.begin(2)
    stage.now += 0.5
    assert stage.take(2).busy == 1.0


def test_only_workers_that_serve_are_measured(stage: Stage) -> None:
    """Booting workers have done nothing, stopping ones are given up, dead ones have ended."""
    for worker_id, state in enumerate(WorkerState, start=1):
        stage.add(worker_id, state=state)
    stage.add(9)
    del stage.handles[9]
    loads = stage.sensor.take().loads
    assert {stage.workers[worker_id].state for worker_id in loads} == {
        WorkerState.READY,
        WorkerState.DRAINING,
    }
    assert 9 not in loads


def test_memory_is_not_read_unless_it_is_needed(stage: Stage) -> None:
    """Without a limit and without autoscaling neither the workers' nor the machine's memory is read."""
    stage.add(1)
    measured = stage.sensor.take()
    assert measured.memory_free is None
    assert measured.loads[1].memory is None
    assert stage.asked == 0


def test_autoscaling_wants_memory(stage: Stage) -> None:
    """With a range of workers, their own memory and the free memory are measured."""
    stage.add(1)
    stage.fleet.policy = fleet_policy(workers_most=4)
    measured = stage.sensor.take()
    assert measured.memory_free == 7 * MIB
    assert measured.loads[1].memory is not None
    assert measured.loads[1].memory > MIB


# -- memory ---------------------------------------------------------------------------------------------

_HOLDER = """\
import mmap, sys
shared = mmap.mmap(-1, 64 << 20)
shared.write(bytes(64 << 20))
own = b""
for line in sys.stdin:
    own = bytearray(b"x") * (int(line) << 20)
    print(flush=True)
"""


class Holder:
    """A process that allocates as much memory as it is asked to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hold(self, mebibytes: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{mebibytes}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder() -> Iterator[Holder]:
    holder = Holder()
    yield holder
    holder.close()


def test_memory_over_the_limit_is_read_each_time(holder: Holder) -> None:
    """Growing above the limit and shrinking below it is noticed at the next reading, with correct numbers."""
    now = [100.0]
    reader = MemoryReader(lambda: now[0])
    pids, limit = {1: holder.process.pid}, 130 * MIB
    holder.hold(1)
    assert (reader.read(pids, limit, False)[1] or 0) < limit
    for held in (150, 200, 1):
        now[0] += 1.0
        holder.hold(held)
        values = reader.read(pids, limit, False)[1]
        assert values is not None
        # The anonymous mapping counts as own memory, because no other process shares it.
        assert values - held * MIB == pytest.approx(72 * MIB, abs=9 * MIB)


def test_below_the_limit_own_memory_is_not_read(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident memory is never less than own memory, so below the limit the costly reading is skipped."""
    reader = MemoryReader(lambda: 1.0)
    monkeypatch.setattr("psutil.Process.memory_full_info", _forbidden)
    assert reader.read({1: holder.process.pid}, 4096 * MIB, False) == {1: None}


def _forbidden(*_: object) -> None:
    raise AssertionError("it is not needed")


def test_readings_are_rationed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one reading takes long, others wait for the next measurement, and each worker has its turn."""
    read: list[int] = []

    class Slow:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def memory_info(self) -> Any:
            return SimpleNamespace(rss=300 * MIB)

        def memory_full_info(self) -> Any:
            read.append(self.pid)
            until = time.perf_counter() + module._MEMORY_TIME * 2
            while time.perf_counter() < until:
                pass
            return SimpleNamespace(uss=250 * MIB if self.pid == 13 else 50 * MIB)

    monkeypatch.setattr("psutil.Process", Slow)
    now = [100.0]
    reader = MemoryReader(lambda: now[0])
    pids = {1: 11, 2: 12, 3: 13, 4: 14}
    answers = []
    for _ in range(6):
        now[0] += 1.0
        answers.append(reader.read(pids, 200 * MIB, True))
    assert read == [11, 12, 13, 14, 11, 12]
    assert answers[0] == {1: 50 * MIB, 2: None, 3: None, 4: None}
    assert answers[2] == {1: 50 * MIB, 2: 50 * MIB, 3: 250 * MIB, 4: None}


def test_a_stale_reading_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a reading of this measurement counts as above the limit: several in a row must agree."""
    monkeypatch.setattr(module, "_MEMORY_TIME", -1.0)  # one reading each time

    class Large:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def memory_info(self) -> Any:
            return SimpleNamespace(rss=300 * MIB)

        def memory_full_info(self) -> Any:
            return SimpleNamespace(uss=250 * MIB)

    monkeypatch.setattr("psutil.Process", Large)
    now = [100.0]
    reader = MemoryReader(lambda: now[0])
    values = []
    for _ in range(6):
        now[0] += 1.0
        answer = reader.read({1: 11, 2: 12}, 200 * MIB, False)
        values.append([worker_id for worker_id, uss in answer.items() if uss is not None])
    assert sorted(values[:2]) == [[1], [2]]
    assert values == values[:2] * 3


def test_a_process_that_is_gone_is_left_out(holder: Holder) -> None:
    """Between a death and its report nothing can be read, and nothing fails."""
    reader = MemoryReader(lambda: 1.0)
    pids = {1: holder.process.pid, 2: os.getpid()}
    assert set(reader.read(pids, 0, True)) == {1, 2}
    holder.close()
    assert set(reader.read(pids, 1, True)) == {2}


def test_memory_that_may_not_be_read(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Workers of another user are measured without it, which is logged once."""
    set_up("-", "json", "info")
    request.addfinalizer(structlog.reset_defaults)

    def refuse(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr("psutil.Process.memory_full_info", refuse)
    reader = MemoryReader(lambda: 1.0)
    for _ in range(2):
        assert reader.read({1: os.getpid()}, 1, True) == {1: None}
    assert capfd.readouterr().err.count("CAP_SYS_PTRACE") == 1
