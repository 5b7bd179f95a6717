"""Workers and the slots that they hold: boots, successors, and how a worker comes to its end."""

from ostler.fleet import actions
from ostler.fleet.generations import KILL_REPEAT, Generations
from ostler.fleet.model import (
    Cause,
    FleetPolicy,
    Generation,
    GenerationState,
    ReloadPhase,
    Worker,
    WorkerState,
)
from ostler.fleet.policies import (
    backoff,
    crash_loop,
    crash_pause,
    jittered,
    kills_too_many,
    surge,
)

BOOTING, READY, DRAINING, STOPPING = WorkerState

# How long a process may take to die of a signal before it is killed.
_QUIT_GRACE = 2.0
_ABORT_GRACE = 1.0
# How long a fork server may take to fork, which it does in milliseconds.
_FORK_TIME = 10.0
# How long a busy worker's planned replacement is put off in favour of idle ones.
_IDLE_FIRST = 10.0


class Slots(Generations):
    """The part of the fleet that fills slots."""

    # -- what happens to one worker ---------------------------------------------------------------------

    def _enter(self, worker: Worker, state: WorkerState, now: float, deadline: float | None) -> None:
        worker.state = state
        worker.since = now
        worker.deadline = deadline

    def _spawn(self, slot: int, generation: Generation, now: float, urgent: bool = False) -> Worker:
        self.spawned += 1
        worker = Worker(
            worker_id=self.spawned,
            slot=slot,
            generation=generation.number,
            state=BOOTING,
            since=now,
            spawned_at=now,
            deadline=_boot_deadline(generation, now),
            zygote=generation.zygote,
        )
        self.workers[worker.worker_id] = worker
        self._do(actions.Spawn(worker.worker_id, slot, generation.number, urgent))
        return worker

    def _forked(self, worker: Worker, pid: int, now: float) -> None:
        worker.pid = pid
        generation = self.generations.get(worker.generation)
        if generation is not None:
            generation.unread_since = None
        if worker.state is BOOTING and worker.deadline is None and generation is not None:
            # Its fork server was given up for being late; the worker need not be bad.
            worker.deadline = _boot_deadline(generation, now)

    def _give_up_unforked(self, generation: int) -> None:
        """What a fork server was asked for and has not forked will not come: it is gone, or replaced."""
        for worker in list(self.workers.values()):
            if worker.generation == generation and worker.pid is None:
                del self.workers[worker.worker_id]

    def _boot_failed(self, worker: Worker, reason: str, traceback: str | None, now: float) -> None:
        if self.stopping or worker.leaving not in (None, Cause.BOOT_TIMEOUT):
            return  # nobody waits for it any more
        generation = self.generations.get(worker.generation)
        if generation is None:
            return
        if self.candidate == worker.generation and self.reload:
            self._fail_candidate(self.reload, reason, traceback, now)
            return
        generation.failures += 1
        generation.last_failure = reason
        wait = jittered(backoff(generation.failures), self._random())
        generation.retry_at = now + wait
        others_boot = any(
            w.state is BOOTING and w.generation == worker.generation for w in self.workers.values()
        )
        if not self.ever_ready and not others_boot:
            self._fail_start(reason, traceback, app_failed=True, now=now)
            return
        self._report(
            "error", "worker_boot_failed", worker, reason=reason, retry_in=round(wait, 3), traceback=traceback
        )
        if not self.ever_ready:
            # If no sibling boots either, the end of the start tells the same, once.
            self._held.append(self._out.pop())
        self._doubt(generation, generation.failures, reason, traceback, now)

    def _crashed(self, worker: Worker, reason: str, traceback: str | None, now: float) -> None:
        """A worker died while it served and nobody had asked for it."""
        reload = self.reload
        if reload is not None and self.candidate == worker.generation:
            self._fail_candidate(reload, f"the first new worker {reason}", traceback, now)
            return
        self._note_crash(worker, reason, traceback, now)
        generation = self.generations.get(worker.generation)
        if generation is None or generation.number != self.current:
            return
        crashes = len(generation.crashes)
        if reload is not None and reload.phase is ReloadPhase.ROLLING and crash_loop(crashes, self.wanted):
            told = f"its workers crashed {crashes} times, the last one {reason}"
            self._end_reload(reload, ReloadPhase.FAILED, now, told, traceback)
        self._pause_after_crashes(generation, now)

    def _killed(self, worker: Worker, expected: bool, reason: str, now: float) -> None:
        """An outsider ended a worker, or it was its app, which looks the same: so kills that go on and on are
        paced as crashes are. They are not held against a new generation, unless it can't even be tried."""
        if not expected:
            self.kills.append(now)
        too_many = kills_too_many(len(self.kills), self.wanted)
        reload = self.reload
        if reload is not None and reload.canary_worker_id == worker.worker_id:
            if reload.phase is ReloadPhase.CANARY and too_many:
                told = f"its first worker was killed again and again, the last one {reason}"
                self._fail_candidate(reload, told, None, now)
                return
            # Another one is to show what the new code is worth.
            reload.canary_worker_id = reload.canary_until = None
        # A single kill is repaired at once, also while others crash.
        generation = self.generations.get(self.current)
        if too_many and generation is not None and worker.generation == self.current and not expected:
            self._pause_after_crashes(generation, now)

    def _pause_after_crashes(self, generation: Generation, now: float) -> None:
        """Put off successors if too many workers of the current generation died while they served."""
        deaths = len(generation.crashes) + kills_too_many(len(self.kills), self.wanted)
        pause = crash_pause(deaths, self.wanted, self.ready)
        # A pause that runs is not made longer: while one worker after the other crashed it would never end.
        if pause and generation.retry_at is None:
            generation.retry_at = now + jittered(pause, self._random())

    def _drain(self, worker: Worker, now: float) -> None:
        policy = self.policy or FleetPolicy()
        self._enter(worker, DRAINING, now, deadline=now + policy.graceful_timeout + policy.drain_grace)
        grace_end = self._grace_end(worker)
        if grace_end is not None and grace_end <= now:
            self._abort(worker, now)  # it stalled, and has had its time while the successor booted
            return
        stays = not self.stopping and not self.paused
        refork = self.refork
        reforks = refork is not None and refork.worker_id == worker.worker_id and refork.audited
        zygote = stays and (reforks or self._take_for_spare(worker))
        self._do(actions.Drain(worker.worker_id, hand_over=stays, zygote=zygote))

    def _cancel(self, worker: Worker, now: float) -> None:
        """End a worker that boots. If it is ready by now it may have a request in hand: `_serves_already`."""
        self._enter(worker, STOPPING, now, deadline=now + _QUIT_GRACE)
        worker.cancelled = True
        self._do(actions.Cancel(worker.worker_id))

    def _serves_already(self, worker: Worker, now: float) -> None:
        """A worker was ready before it heard that it need not be: it finishes what it has."""
        policy = self.policy or FleetPolicy()
        worker.cancelled = False
        self._enter(worker, DRAINING, now, deadline=now + policy.graceful_timeout + policy.drain_grace)

    def _quit(self, worker: Worker, now: float) -> None:
        self._enter(worker, STOPPING, now, deadline=now + _QUIT_GRACE)
        self._do(actions.Quit(worker.worker_id))

    def _abort(self, worker: Worker, now: float) -> None:
        self._enter(worker, STOPPING, now, deadline=now + _ABORT_GRACE)
        self._do(actions.Abort(worker.worker_id))

    def _grace_end(self, worker: Worker) -> float | None:
        """When the next thing happens to a worker with an overdue request: its successor boots, or, when
        it drains and all it still does is overdue, it is aborted."""
        if worker.overdue_since is None:
            return None
        waits = (worker.state is READY and worker.leaving is None) or (
            worker.state is DRAINING and worker.only_overdue_left
        )
        return worker.overdue_since + (self.policy or FleetPolicy()).timeout_grace if waits else None

    def _fork_deadline(self, worker: Worker) -> float | None:
        """When a fork server that has not forked the worker is taken for hung.

        Also if nobody wants the worker any more: it is there until it ends, or its fork server does.
        """
        if worker.pid is not None:
            return None
        generation = self.generations.get(worker.generation)
        if generation is None or generation.state not in (GenerationState.UP, GenerationState.SPARE):
            return None
        return worker.spawned_at + _fork_time(generation)

    def _reads_nothing(self, number: int, now: float) -> bool:
        """A fork server could not be asked; True if that is so for so long that it is taken for hung."""
        generation = self.generations.get(number)
        if generation is None:
            return False
        if generation.unread_since is None:
            generation.unread_since = now
        late = now - generation.unread_since
        if late < _fork_time(generation):
            return False
        generation.unread_since = None
        reason = f"the fork server has not read for {late:.0f} seconds"
        self._generation_failed(number, reason, None, True, now)
        return True

    # -- what time brings -------------------------------------------------------------------------------

    def _expire_workers(self, now: float) -> None:
        for worker in list(self.workers.values()):
            fork_deadline = self._fork_deadline(worker)
            if fork_deadline is not None and fork_deadline <= now:
                late = fork_deadline - worker.spawned_at
                reason = f"the fork server has not forked for {late:g} seconds"
                if worker.state is BOOTING:
                    # It goes with the fork server, which says so; that it has not booted in time is no news.
                    worker.deadline = None
                self._generation_failed(worker.generation, reason, None, True, now)
            grace_end = self._grace_end(worker)
            if grace_end is not None and grace_end <= now:
                if worker.state is DRAINING:
                    self._abort(worker, now)
                else:
                    worker.leaving = Cause.DEADLINE
            if worker.age_limit is not None and worker.age_limit <= now:
                worker.age_limit = None
                worker.due = True
                if worker.state is READY and worker.leaving is None:
                    worker.leaving = Cause.AGE
                    age = round(now - worker.spawned_at, 1)
                    self._report("info", "recycle", worker, pid=worker.pid, age=age)
            if worker.deadline is not None and worker.deadline <= now:
                self._deadline_passed(worker, now)

    def _deadline_passed(self, worker: Worker, now: float) -> None:
        if worker.state is BOOTING:
            worker.leaving = worker.leaving or Cause.BOOT_TIMEOUT
            self._abort(worker, now)
            generation = self.generations.get(worker.generation)
            policy = (generation.policy if generation else None) or FleetPolicy()
            limit = f"boot_timeout ({policy.boot_timeout:g} s)"
            late = f"took longer than {limit} to load the app; the log has its stack", None
            self._boot_failed(worker, *(worker.boot_error or late), now)
            return
        if worker.state is DRAINING:
            self._report("warning", "drain_timeout", worker, pid=worker.pid)
        self._enter(worker, STOPPING, now, deadline=now + KILL_REPEAT)
        self._do(actions.Kill(worker.worker_id))

    # -- wanted against observed ------------------------------------------------------------------------

    def _wind_down(self, now: float) -> None:
        for worker in self.workers.values():
            if worker.leaving is None:
                worker.leaving = Cause.STOP
            if self.stopping == "quick" and worker.state is not STOPPING:
                self._quit(worker, now)
            elif worker.state is BOOTING:
                self._cancel(worker, now)
            elif worker.state is READY:
                self._drain(worker, now)
        if self.workers:
            return
        for number in list(self.generations):
            self._retire(number, now)
        if not self.generations and not self._finished:
            self._finished = True
            self._do(self._finish)

    def _start_canary(self, now: float) -> None:
        if self.candidate is None or self.reload is None or self.reload.canary_worker_id is not None:
            return
        generation = self.generations[self.candidate]
        if generation.state is GenerationState.UP:
            self.reload.canary_worker_id = self._spawn(1, generation, now).worker_id

    def _mark_leaving(self) -> None:
        current, wanted = self.generations.get(self.current), self.wanted
        for worker in self.workers.values():
            if worker.leaving is not None or worker.generation == self.candidate:
                continue
            if worker.slot > wanted:
                worker.leaving = Cause.PAUSE if self.paused else Cause.SCALE
            elif self.candidate is not None:
                continue
            elif worker.generation != self.current:
                worker.leaving = Cause.RELOAD if worker.generation < self.current else Cause.ROLLBACK
            elif current is not None and worker.zygote < current.zygote and worker.state is READY:
                worker.leaving = Cause.REFORK

    def _note_leaving(self, now: float) -> None:
        for worker in self.workers.values():
            if worker.leaving is not None and worker.leaving_since is None:
                worker.leaving_since = now

    def _drain_replaced(self, now: float) -> None:
        wanted = self.wanted
        # A canary is nobody's successor before its generation is the current one.
        serving = [w for w in self.workers.values() if w.state is READY and w.generation != self.candidate]
        serving.sort(key=lambda w: (w.generation == self.current, w.worker_id))
        held = {w.slot for w in serving if w.leaving is None and w.generation == self.current}
        # Of several in one slot that must go, only the last waits: else they would wait for each other.
        last = {w.slot: w for w in serving}
        for worker in self.workers.values():
            if worker.leaving is None or worker.generation == self.candidate:
                continue
            if worker.state is BOOTING:
                self._cancel(worker, now)
            if worker.state is not READY:
                continue
            if worker.slot in held or worker.slot > wanted or worker is not last[worker.slot]:
                self._drain(worker, now)

    def _fill_slots(self, now: float) -> None:
        generation = self.generations.get(self.current)
        if generation is None or generation.state is not GenerationState.UP or generation.policy is None:
            return
        if generation.retry_at is not None:
            if generation.retry_at > now:
                return
            generation.retry_at = None
        policy, wanted = generation.policy, self.wanted
        # After a failed boot, one at a time tries whether it is mended.
        parallelism = 1 if generation.failures else policy.boot_parallelism
        boots = parallelism - self.count(BOOTING)
        held = {w.slot for w in self.workers.values() if w.staying and w.generation == self.current}
        serving = {
            w.slot: w
            for w in self.workers.values()
            if w.state is READY and w.generation != self.candidate  # nobody's successor yet
        }
        for slot in range(1, wanted + 1):
            if boots <= 0:
                return
            if slot not in held and slot not in serving:
                self._spawn(slot, generation, now, urgent=True)
                held.add(slot)
                boots -= 1
        # Now those that still serve but must go; a worker with a hung request is no planned replacement.
        leaving = [w for w in serving.values() if w.leaving and w.slot not in held and w.slot <= wanted]
        extra = surge(policy.max_surge, policy.max_surge_share, wanted)
        for worker in sorted(leaving, key=lambda w: _turn(w, now)):
            if boots <= 0:
                return
            if worker.overdue_since is None and len(self.workers) + 1 - wanted > extra:
                return
            self._spawn(worker.slot, generation, now)
            boots -= 1


def _boot_deadline(generation: Generation, now: float) -> float | None:
    timeout = generation.policy.boot_timeout if generation.policy else 0.0
    return now + timeout if timeout else None


def _fork_time(generation: Generation) -> float:
    """Seconds after which a fork server that forks nothing is taken for hung."""
    limit = generation.policy.boot_timeout if generation.policy else 0.0
    return min(_FORK_TIME, limit or _FORK_TIME)


def _turn(worker: Worker, now: float) -> tuple[bool, bool, float, int]:
    """Who is replaced first: those with a hung request, idle ones, those that have waited longest."""
    since = worker.leaving_since or now
    busy = worker.load.in_flight > 0 and now - since < _IDLE_FIRST
    return worker.overdue_since is None, busy, since, worker.slot
