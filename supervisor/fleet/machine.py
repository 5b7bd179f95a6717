"""The fleet's state machine.

`handle` takes one event, updates what is known, and lets `_reconcile` compare that with what is wanted:
slots 1 to `wanted`, each held by one ready worker of the current generation. The difference comes back as
actions. The same few rules do starting, scaling, recycling, reloading and repairing:

- A slot without a worker gets one at once, unless boots keep failing (then after a backoff, one at a time).
- A ready worker that must go (`leaving`) is only drained when its successor in the slot is ready, or when its
  slot is not wanted any more: make before break.
- Successors of planned replacements exist within `max_surge`; boots happen within `boot_parallelism`.
- A reload is a candidate generation with one canary in slot 1. When it is ready the candidate becomes the
  current generation, which makes every older worker stale. Until then nothing of the old one is touched.

Time comes in with every call (CLOCK_MONOTONIC, seconds); `next_deadline` says when to call again with
`DeadlinePassed` if nothing else happens.
"""

from collections.abc import Callable
from typing import Any, Literal

from supervisor.fleet import actions, events
from supervisor.fleet.model import (
    Cause,
    FleetPolicy,
    Generation,
    GenerationState,
    Reload,
    ReloadPhase,
    Worker,
    WorkerState,
)
from supervisor.fleet.policies import MAX_WORKERS, backoff

BOOTING, READY, DRAINING, STOPPING = WorkerState

# How long a process may take to die of a signal before it is killed.
_QUIT_GRACE = 2.0
_ABORT_GRACE = 1.0
_KILL_REPEAT = 5.0
_FORK_SERVER_GRACE = 1.0
# Boot failures in a row after which a roll is given up as failed (the fleet goes on trying).
_ROLL_FAILURES = 3


class Fleet:
    """All that is known of the fleet, and the only one who decides.

    Attributes:
        workers: live processes by launch.
        generations: those with a fork server, or waiting for one, by number.
        current: the generation that slots are filled with.
        candidate: the generation a reload is trying, or None.
        reload: the newest reload.
        override: the number of workers set by hand, or None for the configuration's own.
    """

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.generations: dict[int, Generation] = {}
        self.current = 0
        self.candidate: int | None = None
        self.reload: Reload | None = None
        self.override: int | None = None
        self.paused = False
        self.stopping: Literal["graceful", "quick"] | None = None
        self.ever_ready = False
        self.spawned = 0
        self.deaths = 0
        self._newest_generation = 0
        self._finish = actions.Finish()
        self._finished = False
        self._out: list[actions.Action] = []
        self._held: list[actions.Action] = []
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            events.StartAsked: self._on_start,
            events.ForkServerConfigured: self._on_configured,
            events.AppLoaded: self._on_app_loaded,
            events.GenerationFailed: self._on_generation_failed,
            events.ForkServerExited: self._on_fork_server_exited,
            events.WorkerForked: self._on_forked,
            events.SpawnFailed: self._on_spawn_failed,
            events.WorkerReady: self._on_ready,
            events.WorkerBootFailed: self._on_boot_failed,
            events.WorkerExited: self._on_exited,
            events.RecycleDue: self._on_recycle_due,
            events.RequestOverdue: self._on_overdue,
            events.OnlyOverdueLeft: self._on_only_overdue_left,
            events.DeadlinePassed: lambda _event, _now: None,
            events.ResizeAsked: self._on_resize,
            events.ReloadAsked: self._on_reload,
            events.RecycleAsked: self._on_recycle_asked,
            events.PauseAsked: self._on_pause,
            events.StopAsked: self._on_stop,
        }

    # -- the two calls of the shell ---------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> list[actions.Action]:
        """Take note of an event; returns what is to be done, in order."""
        self._handlers[type(event)](event, now)
        self._reconcile(now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float | None:
        """When to hand in `DeadlinePassed` at the latest, or None."""
        times = [worker.deadline for worker in self.workers.values()]
        times += [generation.deadline for generation in self.generations.values()]
        current = self.generations.get(self.current)
        # Elsewhere a retry waits for something else first: a fork server's end, or its loading.
        if current and current.state in (GenerationState.DOWN, GenerationState.UP) and not self.stopping:
            times.append(current.retry_at)
        times += [self._abort_time(worker) for worker in self.workers.values()]
        return min((time for time in times if time is not None), default=None)

    # -- what can be asked ------------------------------------------------------------------------------

    @property
    def policy(self) -> FleetPolicy | None:
        generation = self.generations.get(self.current)
        return generation.policy if generation else None

    @property
    def wanted(self) -> int:
        """How many workers there should be."""
        if self.paused or self.stopping or self.policy is None:
            return 0
        return self.policy.workers if self.override is None else self.override

    @property
    def ready(self) -> int:
        """How many of the wanted slots are served; a slot whose successor is ready too counts once."""
        return len({w.slot for w in self.workers.values() if w.state is READY and w.slot <= self.wanted})

    def count(self, state: WorkerState) -> int:
        return sum(worker.state is state for worker in self.workers.values())

    def serving(self, slot: int) -> Worker | None:
        """The worker that serves in a slot; of two, the newer."""
        found = [w for w in self.workers.values() if w.slot == slot and w.state is READY]
        return max(found, key=lambda worker: worker.launch, default=None)

    # -- facts ------------------------------------------------------------------------------------------

    def _on_start(self, _: events.StartAsked, now: float) -> None:
        self.current = self._new_generation(now)

    def _on_configured(self, event: events.ForkServerConfigured, now: float) -> None:
        generation = self.generations.get(event.generation)
        if generation is None or generation.state is not GenerationState.CONFIGURING:
            return
        generation.policy = event.policy
        generation.state = GenerationState.LOADING
        generation.deadline = now + event.policy.boot_timeout if event.policy.boot_timeout else None
        self._do(actions.LoadApp(event.generation))

    def _on_app_loaded(self, event: events.AppLoaded, now: float) -> None:
        generation = self.generations.get(event.generation)
        if generation is None or generation.state is not GenerationState.LOADING:
            return
        generation.state = GenerationState.UP
        generation.deadline = None
        if self.candidate == event.generation and self.reload is not None:
            self.reload.phase = ReloadPhase.CANARY

    def _on_generation_failed(self, event: events.GenerationFailed, now: float) -> None:
        self._generation_failed(event.generation, event.reason, event.traceback, event.app_failed, now)

    def _on_fork_server_exited(self, event: events.ForkServerExited, now: float) -> None:
        generation = self.generations.get(event.generation)
        if generation is None:
            return
        # What was asked of it and never forked will not come.
        for worker in list(self.workers.values()):
            if worker.generation == event.generation and worker.pid is None:
                del self.workers[worker.launch]
        if generation.state is GenerationState.RETIRING:
            del self.generations[event.generation]
            return
        if generation.state is GenerationState.DOWN:
            return
        known = generation.state is GenerationState.FAILED
        generation.state = GenerationState.DOWN
        if not known:
            reason = f"the fork server ended with {event.status}"
            self._generation_failed(event.generation, reason, None, True, now)

    def _on_forked(self, event: events.WorkerForked, now: float) -> None:
        if worker := self.workers.get(event.launch):
            worker.pid = event.pid

    def _on_spawn_failed(self, event: events.SpawnFailed, now: float) -> None:
        if worker := self.workers.pop(event.launch, None):
            self._boot_failed(worker, f"can't fork: {event.reason}", None, now)

    def _on_ready(self, event: events.WorkerReady, now: float) -> None:
        worker = self.workers.get(event.launch)
        if worker is None or worker.state is not BOOTING:
            return
        self._report(
            "info", "worker_ready", worker, boot_seconds=round(now - worker.spawned_at, 3), pid=worker.pid
        )
        self._enter(worker, READY, now, deadline=None)
        if generation := self.generations.get(worker.generation):
            generation.failures = 0
            generation.retry_at = None
        if not self.ever_ready:
            self.ever_ready = True
            self._out += self._held
            self._do(actions.Serving())
        if self.reload and self.reload.running and self.reload.canary_launch == worker.launch:
            self._promote(self.reload, now)

    def _on_boot_failed(self, event: events.WorkerBootFailed, now: float) -> None:
        if worker := self.workers.get(event.launch):
            worker.boot_error = (event.reason, event.traceback)

    def _on_exited(self, event: events.WorkerExited, now: float) -> None:
        worker = self.workers.pop(event.launch, None)
        if worker is None:
            return
        if worker.state is BOOTING:
            reason, traceback = worker.boot_error or (f"ended with {event.status} while booting", None)
            self._boot_failed(worker, reason, traceback, now)
            return
        expected = worker.leaving is not None and worker.state is not READY
        if not expected:
            self.deaths += 1
        self._report(
            "info" if expected else "warning",
            "worker_exited" if expected else "worker_died",
            worker,
            pid=worker.pid,
            cause=worker.leaving.value if worker.leaving else "unexpected",
            status=str(event.status),
            age=round(now - worker.spawned_at, 1),
        )

    def _on_recycle_due(self, event: events.RecycleDue, now: float) -> None:
        worker = self.workers.get(event.launch)
        if worker is not None and worker.state is READY and worker.leaving is None:
            worker.leaving = Cause.RECYCLE
            self._report("info", "recycle", worker, pid=worker.pid, requests=event.requests)

    def _on_overdue(self, event: events.RequestOverdue, now: float) -> None:
        worker = self.workers.get(event.launch)
        if worker is None:
            return
        if worker.overdue_since is None:
            worker.overdue_since = now
        if worker.leaving is None:
            worker.leaving = Cause.DEADLINE
        self._do(
            actions.DumpStack(worker.launch, event.thread, event.method, event.path, round(event.age, 3))
        )

    def _on_only_overdue_left(self, event: events.OnlyOverdueLeft, now: float) -> None:
        worker = self.workers.get(event.launch)
        # While it still accepts, the next request may be a good one.
        if worker is not None and worker.state is DRAINING:
            worker.only_overdue_left = True

    # -- wishes -----------------------------------------------------------------------------------------

    def _on_resize(self, event: events.ResizeAsked, now: float) -> None:
        before = self.wanted
        target = event.workers if event.workers is not None else before + (event.delta or 0)
        if self.stopping or self.policy is None:
            return
        self.paused = False
        self.override = min(max(1, target), MAX_WORKERS)
        self._do(
            actions.Report("info", "scale", {"workers": self.override, "before": before, "by": event.by})
        )

    def _on_reload(self, event: events.ReloadAsked, now: float) -> None:
        if self.stopping:
            return
        if self.reload and self.reload.running:
            self._end_reload(self.reload, ReloadPhase.SUPERSEDED, now, "a newer reload took its place")
        if self.candidate is not None:
            self._abandon(self.candidate, now)
        self.candidate = self._new_generation(now)
        self.reload = Reload(self.candidate, ReloadPhase.LOADING, event.by, now, self.wanted)
        self._do(actions.Report("info", "reload", {"generation": self.candidate, "by": event.by}))

    def _on_recycle_asked(self, event: events.RecycleAsked, now: float) -> None:
        worker = self.serving(event.slot)
        if worker is not None and worker.leaving is None:
            worker.leaving = Cause.ASKED
            self._report("info", "recycle", worker, pid=worker.pid, by=event.by)

    def _on_pause(self, event: events.PauseAsked, now: float) -> None:
        if not self.stopping:
            self.paused = True
            self._do(actions.Report("info", "pause", {"by": event.by}))

    def _on_stop(self, event: events.StopAsked, now: float) -> None:
        how = "quick" if self.stopping else event.how
        if self.stopping == how:
            return
        self._do(actions.Report("info", "stop", {"how": how, "by": event.by}))
        self._stop(how, now)

    # -- generations ------------------------------------------------------------------------------------

    def _new_generation(self, now: float) -> int:
        self._newest_generation += 1
        number = self._newest_generation
        # The time-out of the one before; the configuration that would say better is what is being read.
        policy = self.policy or FleetPolicy()
        self.generations[number] = Generation(
            number,
            GenerationState.CONFIGURING,
            deadline=now + policy.boot_timeout if policy.boot_timeout else None,
        )
        self._do(actions.StartForkServer(number))
        return number

    def _generation_failed(
        self, number: int, reason: str, traceback: str | None, app_failed: bool, now: float
    ) -> None:
        generation = self.generations.get(number)
        if generation is None or generation.state in (GenerationState.RETIRING, GenerationState.FAILED):
            return
        generation.deadline = None
        if self.stopping:
            return  # nobody needs it any more; it is retired with the last worker
        if number == self.candidate and self.reload:
            self._fail_candidate(self.reload, reason, traceback, now)
        elif not self.ever_ready:
            self._fail_start(reason, traceback, app_failed, now)
        else:
            # It loaded once; workers serve on, and it is tried again.
            generation.failures += 1
            wait = 0.0 if generation.failures == 1 else backoff(generation.failures - 1)
            generation.retry_at = now + wait
            generation.last_failure = reason
            if generation.state is not GenerationState.DOWN:
                generation.state = GenerationState.FAILED
                self._do(actions.KillForkServer(number))
            self._do(
                actions.Report(
                    "error",
                    "fork_server_failed",
                    {"generation": number, "reason": reason, "retry_in": wait, "traceback": traceback},
                )
            )

    def _fail_start(self, reason: str, traceback: str | None, app_failed: bool, now: float) -> None:
        """Nothing ever ran: there is nothing to preserve, and whoever started the daemon is looking."""
        self._finish = actions.Finish(True, app_failed, reason, traceback)
        self._stop("quick", now)

    def _stop(self, how: Literal["graceful", "quick"], now: float) -> None:
        first, self.stopping = self.stopping is None, how
        if not first:
            return
        self._do(actions.Stopping())
        if self.reload and self.reload.running:
            self._end_reload(self.reload, ReloadPhase.FAILED, now, "the daemon stops")
        if self.candidate is not None:
            self._abandon(self.candidate, now)
            self.candidate = None

    def _promote(self, reload: Reload, now: float) -> None:
        """The canary is ready: its generation is the one that slots are filled with from now on."""
        old, self.current = self.current, reload.generation
        self.candidate = None
        reload.phase = ReloadPhase.ROLLING
        before = self.generations[old].policy if old in self.generations else None
        after = self.policy
        if self.override is not None and before and after and before.workers != after.workers:
            self._do(
                actions.Report(
                    "info", "scale_override_ended", {"workers": after.workers, "before": self.override}
                )
            )
            self.override = None
        self.paused = False
        reload.of = self.wanted
        self._retire(old, now)

    def _fail_candidate(self, reload: Reload, reason: str, traceback: str | None, now: float) -> None:
        number = reload.generation
        self.candidate = None
        self._abandon(number, now)
        self._end_reload(reload, ReloadPhase.FAILED, now, reason, traceback)

    def _abandon(self, number: int, now: float) -> None:
        for worker in self.workers.values():
            if worker.generation == number and worker.leaving is None:
                worker.leaving = Cause.RELOAD
        self._retire(number, now)

    def _retire(self, number: int, now: float) -> None:
        generation = self.generations.get(number)
        if generation is None or generation.state is GenerationState.RETIRING:
            return
        if generation.state is GenerationState.DOWN:
            del self.generations[number]
            return
        generation.state = GenerationState.RETIRING
        generation.deadline = now + _FORK_SERVER_GRACE
        generation.retry_at = None
        self._do(actions.StopForkServer(number))

    def _end_reload(
        self, reload: Reload, phase: ReloadPhase, now: float, reason: str, traceback: str | None = None
    ) -> None:
        reload.phase = phase
        reload.ended = now
        reload.reason = reason or None
        reload.traceback = traceback
        fields: dict[str, Any] = {
            "generation": reload.generation,
            "seconds": round(now - reload.started, 3),
            "workers": reload.replaced,
        }
        if phase is not ReloadPhase.DONE:
            fields |= {"reason": reason, "traceback": traceback}
        level: Literal["info", "error"] = "error" if phase is ReloadPhase.FAILED else "info"
        self._do(actions.Report(level, f"reload_{phase.value}", fields))
        self._do(actions.ReloadEnded(reload.generation))

    # -- workers ----------------------------------------------------------------------------------------

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
        wait = backoff(generation.failures)
        generation.retry_at = now + wait
        others_boot = any(
            w.state is BOOTING and w.generation == worker.generation for w in self.workers.values()
        )
        if not self.ever_ready and not others_boot:
            self._fail_start(reason, traceback, app_failed=True, now=now)
            return
        self._report("error", "worker_boot_failed", worker, reason=reason, retry_in=wait, traceback=traceback)
        if not self.ever_ready:
            # If no sibling boots either, the end of the start tells the same, once.
            self._held.append(self._out.pop())
        if (
            self.reload
            and self.reload.phase is ReloadPhase.ROLLING
            and generation.failures >= _ROLL_FAILURES
            and worker.generation == self.current
        ):
            self._end_reload(self.reload, ReloadPhase.FAILED, now, reason, traceback)

    def _enter(self, worker: Worker, state: WorkerState, now: float, deadline: float | None) -> None:
        worker.state = state
        worker.since = now
        worker.deadline = deadline

    def _spawn(self, slot: int, generation: Generation, now: float, urgent: bool = False) -> Worker:
        self.spawned += 1
        timeout = generation.policy.boot_timeout if generation.policy else 0
        worker = Worker(
            launch=self.spawned,
            slot=slot,
            generation=generation.number,
            state=BOOTING,
            since=now,
            spawned_at=now,
            deadline=now + timeout if timeout else None,
        )
        self.workers[worker.launch] = worker
        self._do(actions.Spawn(worker.launch, slot, generation.number, urgent))
        return worker

    def _drain(self, worker: Worker, now: float) -> None:
        policy = self.policy or FleetPolicy()
        self._enter(worker, DRAINING, now, deadline=now + policy.graceful_timeout)
        stays = not self.stopping and not self.paused
        self._do(actions.Drain(worker.launch, hand_over=stays))

    def _quit(self, worker: Worker, now: float) -> None:
        self._enter(worker, STOPPING, now, deadline=now + _QUIT_GRACE)
        self._do(actions.Quit(worker.launch))

    def _abort_time(self, worker: Worker) -> float | None:
        """When a draining worker is aborted because all it still does is overdue."""
        if worker.state is not DRAINING or not worker.only_overdue_left or worker.overdue_since is None:
            return None
        return worker.overdue_since + (self.policy or FleetPolicy()).timeout_grace

    # -- wanted against observed --------------------------------------------------------------------------

    def _reconcile(self, now: float) -> None:
        self._expire(now)
        if self.stopping:
            self._wind_down(now)
            return
        self._keep_fork_server(now)
        self._start_canary(now)
        self._mark_leaving()
        self._note_leaving(now)
        self._drain_replaced(now)
        self._fill_slots(now)
        self._follow_roll(now)

    def _expire(self, now: float) -> None:
        for worker in self.workers.values():
            abort_time = self._abort_time(worker)
            if abort_time is not None and abort_time <= now:
                self._enter(worker, STOPPING, now, deadline=now + _ABORT_GRACE)
                self._do(actions.Abort(worker.launch))
            if worker.deadline is None or worker.deadline > now:
                continue
            if worker.state is BOOTING:
                worker.leaving = worker.leaving or Cause.BOOT_TIMEOUT
                self._enter(worker, STOPPING, now, deadline=now + _ABORT_GRACE)
                self._do(actions.Abort(worker.launch))
                reason, traceback = worker.boot_error or (
                    "took longer than boot_timeout to load the app",
                    None,
                )
                self._boot_failed(worker, reason, traceback, now)
            else:
                if worker.state is DRAINING:
                    self._report("warning", "drain_timeout", worker, pid=worker.pid)
                self._enter(worker, STOPPING, now, deadline=now + _KILL_REPEAT)
                self._do(actions.Kill(worker.launch))
        for generation in list(self.generations.values()):
            if generation.deadline is None or generation.deadline > now:
                continue
            if generation.state is GenerationState.RETIRING:
                generation.deadline = now + _KILL_REPEAT
                self._do(actions.KillForkServer(generation.number))
            else:
                reason = "loading took longer than boot_timeout"
                self._generation_failed(generation.number, reason, None, True, now)

    def _wind_down(self, now: float) -> None:
        for worker in self.workers.values():
            if worker.leaving is None:
                worker.leaving = Cause.STOP
            quick = self.stopping == "quick" or worker.state is BOOTING
            if quick and worker.state is not STOPPING:
                self._quit(worker, now)
            elif worker.state is READY:
                self._drain(worker, now)
        if self.workers:
            return
        for number in list(self.generations):
            self._retire(number, now)
        if not self.generations and not self._finished:
            self._finished = True
            self._do(self._finish)

    def _keep_fork_server(self, now: float) -> None:
        generation = self.generations.get(self.current)
        if (
            generation is not None
            and generation.state is GenerationState.DOWN
            and (generation.retry_at is None or generation.retry_at <= now)
        ):
            generation.state = GenerationState.CONFIGURING
            generation.retry_at = None
            policy = generation.policy or FleetPolicy()
            generation.deadline = now + policy.boot_timeout if policy.boot_timeout else None
            self._do(actions.StartForkServer(generation.number))

    def _start_canary(self, now: float) -> None:
        if self.candidate is None or self.reload is None or self.reload.canary_launch is not None:
            return
        generation = self.generations[self.candidate]
        if generation.state is GenerationState.UP:
            self.reload.canary_launch = self._spawn(1, generation, now).launch

    def _note_leaving(self, now: float) -> None:
        for worker in self.workers.values():
            if worker.leaving is not None and worker.leaving_since is None:
                worker.leaving_since = now

    def _mark_leaving(self) -> None:
        for worker in self.workers.values():
            if worker.leaving is not None or worker.generation == self.candidate:
                continue
            if worker.slot > self.wanted:
                worker.leaving = Cause.PAUSE if self.paused else Cause.SCALE
            elif worker.generation != self.current and self.candidate is None:
                worker.leaving = Cause.RELOAD

    def _fill_slots(self, now: float) -> None:
        generation = self.generations.get(self.current)
        if generation is None or generation.state is not GenerationState.UP or generation.policy is None:
            return
        if generation.retry_at is not None:
            if generation.retry_at > now:
                return
            generation.retry_at = None
        # After a failed boot, one at a time tries whether it is mended.
        parallelism = 1 if generation.failures else generation.policy.boot_parallelism
        boots = parallelism - self.count(BOOTING)
        held = {w.slot for w in self.workers.values() if w.staying and w.generation == self.current}
        serving = {w.slot: w for w in self.workers.values() if w.state is READY}
        for slot in range(1, self.wanted + 1):
            if boots <= 0:
                return
            if slot not in held and slot not in serving:
                self._spawn(slot, generation, now, urgent=True)
                held.add(slot)
                boots -= 1
        # Now those that still serve but must go; a worker with a hung request is no planned replacement.
        leaving = [w for w in serving.values() if w.leaving and w.slot not in held and w.slot <= self.wanted]
        for worker in sorted(leaving, key=lambda w: (w.overdue_since is None, w.leaving_since, w.slot)):
            if boots <= 0:
                return
            extra = len(self.workers) + 1 - self.wanted
            if worker.overdue_since is None and extra > generation.policy.max_surge:
                return
            self._spawn(worker.slot, generation, now)
            boots -= 1

    def _drain_replaced(self, now: float) -> None:
        held = {
            w.slot
            for w in self.workers.values()
            if w.state is READY and w.leaving is None and w.generation == self.current
        }
        for worker in self.workers.values():
            if worker.leaving is None:
                continue
            if worker.state is BOOTING:
                self._quit(worker, now)
            elif worker.state is READY and (worker.slot in held or worker.slot > self.wanted):
                self._drain(worker, now)

    def _follow_roll(self, now: float) -> None:
        reload = self.reload
        if reload is None or reload.phase is not ReloadPhase.ROLLING:
            return
        fresh = [w for w in self.workers.values() if w.generation == reload.generation and w.state is READY]
        reload.of = self.wanted
        reload.replaced = min(len({w.slot for w in fresh}), reload.of)
        stale = any(w.generation < reload.generation for w in self.workers.values())
        if reload.replaced >= reload.of and not stale:
            self._end_reload(reload, ReloadPhase.DONE, now, "")

    # -- small things -----------------------------------------------------------------------------------

    def _do(self, action: actions.Action) -> None:
        self._out.append(action)

    def _report(
        self, level: Literal["debug", "info", "warning", "error"], name: str, worker: Worker, **fields: Any
    ) -> None:
        self._do(actions.Report(level, name, {"slot": worker.slot, "generation": worker.generation} | fields))
