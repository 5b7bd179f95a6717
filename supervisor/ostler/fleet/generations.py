"""Generations: fork servers that load, fail and end; reloads, and what brings them back.

A reload is a candidate generation with one worker, the canary. When that has lived long enough the candidate
becomes the current generation, which makes every older worker stale. Until then nothing of the old one is
touched. The old fork server then stands by while the new generation is on probation: what crashes or errs
there brings the old one back, by the same rules in the other direction.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from ostler.fleet import actions
from ostler.fleet.model import (
    Cause,
    FleetPolicy,
    Generation,
    GenerationState,
    Probation,
    Reload,
    ReloadPhase,
    Worker,
    WorkerState,
)
from ostler.fleet.policies import CRASH_WINDOW, backoff, errs_more, jittered
from ostler.fleet.state import State

Level = Literal["debug", "info", "warning", "error"]

# How long a roll back waits for a worker to become the old generation's fork server.
_SPARE_TIME = 2.0
# What else would tell why the same goes on after a roll back?
_LOADS_ANEW = (
    "new workers load the app from its files as they are now, for no old worker stands by to be forked from"
)
# What a fork server that could fork for this long dies of is no failure to start.
_SETTLED = 60.0
KILL_REPEAT = 5.0
# Workers or fork servers in a row that fail to start, after which a reload is given up as failed (the fleet
# goes on trying).
_GIVE_UP = 3


class Generations(State):
    """The part of the fleet that knows generations.

    Args:
        random: a number from 0 to 1, for jitter.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        super().__init__()
        self._random = random
        self._finish = actions.Finish()
        self._finished = False
        self._out: list[actions.Action] = []
        self._held: list[actions.Action] = []

    # -- beginning and failing --------------------------------------------------------------------------

    def _new_generation(self, now: float) -> int:
        self.newest_generation += 1
        number = self.newest_generation
        self.generations[number] = Generation(number, GenerationState.CONFIGURING)
        # The time-out of the one before; the configuration that would say better is what is being read.
        self._start_fork_server(self.generations[number], self.policy or FleetPolicy(), now)
        return number

    def _start_fork_server(self, generation: Generation, policy: FleetPolicy, now: float) -> None:
        generation.state = GenerationState.CONFIGURING
        generation.retry_at = None
        generation.deadline = now + policy.boot_timeout if policy.boot_timeout else None
        self._do(actions.StartForkServer(generation.number))

    def _generation_failed(
        self,
        number: int,
        reason: str,
        traceback: str | None,
        app_failed: bool,
        now: float,
        gone: bool = False,
    ) -> None:
        """gone: its fork server has ended already."""
        generation = self.generations.get(number)
        if generation is None or generation.state in (GenerationState.RETIRING, GenerationState.FAILED):
            return
        loading = generation.state in (GenerationState.CONFIGURING, GenerationState.LOADING)
        generation.deadline = None
        if gone:
            generation.state = GenerationState.DOWN
        if self.stopping or generation.state is GenerationState.SPARE:
            # Nobody needs it any more. With the last worker it is retired, unless it hangs: then none comes.
            if generation.state in (GenerationState.UP, GenerationState.SPARE):
                self._retire(number, now)
            return
        if number == self.candidate and self.reload:
            self._fail_candidate(self.reload, reason, traceback, now)
        elif not self.ever_ready:
            self._fail_start(reason, traceback, app_failed, now)
        else:
            # It loaded once; workers serve on, and it is tried again.
            if generation.up_since is not None and now - generation.up_since >= _SETTLED:
                generation.server_failures = 0
            generation.up_since = None
            generation.server_failures += 1
            wait = jittered(backoff(generation.server_failures - 1), self._random())
            generation.retry_at = now + wait
            generation.last_failure = reason
            if generation.state is not GenerationState.DOWN:
                generation.state = GenerationState.FAILED
                self._do(actions.KillForkServer(number))
            fields = {"generation": number, "reason": reason, "retry_in": round(wait, 3)}
            self._tell("error", "fork_server_failed", fields | {"traceback": traceback})
            if loading:
                # One that dies later, perhaps by somebody's hand, says nothing about the code.
                self._doubt(generation, generation.server_failures, reason, traceback, now)

    def _fork_server_gone(self, generation: Generation, reason: str, now: float) -> None:
        match generation.state:
            case GenerationState.RETIRING:
                del self.generations[generation.number]
            case GenerationState.SPARE:
                del self.generations[generation.number]
                self.probation = None
            case GenerationState.DOWN:
                pass
            case GenerationState.FAILED:
                generation.state = GenerationState.DOWN
            case _:
                self._generation_failed(generation.number, reason, None, True, now, gone=True)

    def _keep_fork_server(self, now: float) -> None:
        generation = self.generations.get(self.current)
        if (
            generation is not None
            and generation.state is GenerationState.DOWN
            and (generation.retry_at is None or generation.retry_at <= now)
        ):
            self._start_fork_server(generation, generation.policy or FleetPolicy(), now)

    def _expire_generations(self, now: float) -> None:
        for generation in list(self.generations.values()):
            if generation.deadline is None or generation.deadline > now:
                continue
            if generation.state is GenerationState.RETIRING:
                generation.deadline = now + KILL_REPEAT
                self._do(actions.KillForkServer(generation.number))
            else:
                reason = "loading took longer than boot_timeout"
                self._generation_failed(generation.number, reason, None, True, now)

    # -- ending -----------------------------------------------------------------------------------------

    def _abandon(self, number: int, cause: Cause, now: float) -> None:
        for worker in self.workers.values():
            if worker.generation == number and worker.leaving is None:
                worker.leaving = cause
        self._retire(number, now)

    def _retire(self, number: int, now: float) -> None:
        generation = self.generations.get(number)
        if generation is None or generation.state is GenerationState.RETIRING:
            return
        if self.probation is not None and self.probation.fallback == number:
            self.probation = None
        if self.refork is not None and self.refork.generation == number:
            self._end_refork("its generation was given up")
        if generation.state is GenerationState.DOWN:
            del self.generations[number]
            return
        generation.state = GenerationState.RETIRING
        generation.deadline = now + (generation.policy or FleetPolicy()).fork_server_grace
        generation.retry_at = None
        self._do(actions.StopForkServer(number))

    def _end_refork(self, problem: str) -> None:
        """Give up the refork that runs, if one does; whoever asked is told why."""
        if self.refork is None:
            return
        refork, self.refork = self.refork, None
        self._tell("warning", "refork_refused", {"problem": problem, "by": refork.asked_by})

    def _fail_start(self, reason: str, traceback: str | None, app_failed: bool, now: float) -> None:
        """Nothing ever ran: there is nothing to preserve, and whoever started the daemon is looking."""
        self._finish = actions.Finish(True, app_failed, reason, traceback)
        self._stop("quick", now)

    def _stop(self, how: Literal["graceful", "quick"], now: float) -> None:
        first, self.stopping = self.stopping is None, how
        if not first:
            return
        self._do(actions.Stopping())
        self._end_refork("the daemon stops")
        if self.upgrading is not None:
            self.upgrading = None
            self._tell("warning", "upgrade_failed", {"problem": "the daemon stops"})
        if self.reload and self.reload.running:
            self._end_reload(self.reload, ReloadPhase.FAILED, now, "the daemon stops")
        self._drop_candidate(now)

    # -- reloads ----------------------------------------------------------------------------------------

    def _begin_reload(self, by: str, now: float, resumes: bool = False) -> None:
        if self.reload and self.reload.running:
            self._end_reload(self.reload, ReloadPhase.SUPERSEDED, now, "a newer reload took its place")
        self._drop_candidate(now)
        self._end_refork("a reload took its place")
        self.candidate = self._new_generation(now)
        self.reload = Reload(self.candidate, ReloadPhase.LOADING, by, now, self.wanted, resumes=resumes)
        self._tell("info", "reload", {"generation": self.candidate, "by": by})

    def _drop_candidate(self, now: float) -> None:
        if self.candidate is not None:
            self._abandon(self.candidate, Cause.RELOAD, now)
            self.candidate = None

    def _canary_ready(self, reload: Reload, now: float) -> None:
        policy = self.generations[reload.generation].policy or FleetPolicy()
        reload.canary_until = now + policy.canary_time

    def _follow_canary(self, now: float) -> None:
        reload = self.reload
        if reload is None or reload.phase is not ReloadPhase.CANARY or reload.canary_worker_id is None:
            return
        canary = self.workers[reload.canary_worker_id]
        # It may have to go for another reason, too.
        overdue = canary.overdue_since is not None and canary.leaving is not None
        if overdue or canary.leaving in (Cause.DEADLINE, Cause.STALLED):
            hangs = "serves no more" if canary.leaving is Cause.STALLED else "did not answer in time"
            self._fail_candidate(reload, f"the first new worker {hangs}", None, now)
        elif reload.canary_until is not None and reload.canary_until <= now:
            self._promote(reload, now)

    def _promote(self, reload: Reload, now: float) -> None:
        """The canary has proved itself: its generation is the one that slots are filled with from now on."""
        before = self.generations.get(self.current)
        self.current = reload.generation
        self.candidate = None
        reload.phase = ReloadPhase.ROLLING
        override, autoscaled = self.override, self.autoscaled
        self._keep_or_end_override(before.policy if before else None)
        self.paused = self.paused and not reload.resumes
        reload.of = self.wanted
        if self.probation is not None:
            self._retire(self.probation.fallback, now)
        if before is None:
            return
        after = self.generations[self.current]
        stands_by = (
            after.policy is not None
            and after.policy.probation > 0
            and before.state is GenerationState.UP
            and not after.closes_listeners
        )
        if not stands_by:
            self._retire(before.number, now)
            return
        assert after.policy is not None
        # No more than the last minute is known.
        known = min(after.policy.probation, CRASH_WINDOW)
        recent = sum(now - at <= known for at in before.crashes) * after.policy.probation / known
        before.state = GenerationState.SPARE
        self.probation = Probation(
            before.number,
            math.ceil(recent),
            before.requests,
            before.errors,
            override=override,
            autoscaled=autoscaled,
        )

    def _fit_autoscaled(self, before: FleetPolicy | None) -> None:
        """Keep the number that the load asks for within the current bounds; without one begin with as many as
        there were."""
        after = self.policy
        if after is None or after.workers_most is None:
            self.autoscaled = None
            return
        number = self.autoscaled
        if number is None:
            number = self.override or (before.workers if before else 0)
        self.autoscaled = min(max(number, after.workers), after.workers_most)

    def _bring_number_back(self, probation: Probation, before: FleetPolicy | None) -> None:
        """The number of workers is the one before the reload, or what was said by hand since."""
        if self.autoscaled is None:
            self.autoscaled = probation.autoscaled
        self._fit_autoscaled(before)
        self.override = probation.override

    def _keep_or_end_override(self, before: FleetPolicy | None) -> None:
        self._fit_autoscaled(before)
        after = self.policy
        if after is None or self.override is None or before is None:
            return
        if (before.workers, before.workers_most) == (after.workers, after.workers_most):
            self._tell("info", "scale_kept", {"workers": self.override, "configured": after.workers})
        else:
            self._tell("info", "scale_override_ended", {"workers": after.workers, "before": self.override})
            self.override = None

    def _fail_candidate(self, reload: Reload, reason: str, traceback: str | None, now: float) -> None:
        self._drop_candidate(now)
        self._end_reload(reload, ReloadPhase.FAILED, now, reason, traceback)

    def _doubt(
        self, generation: Generation, failures: int, reason: str, traceback: str | None, now: float
    ) -> None:
        """Something of a generation failed to start, so many times in a row: the reload that brought it is
        undone or given up."""
        if failures < _GIVE_UP or generation.number != self.current:
            return
        if self.probation is not None:
            self._roll_back(reason, traceback, now)
        elif self.reload is not None and self.reload.phase is ReloadPhase.ROLLING:
            self._end_reload(self.reload, ReloadPhase.FAILED, now, reason, traceback)

    def _follow_roll(self, now: float) -> None:
        reload = self.reload
        if reload is None or reload.phase is not ReloadPhase.ROLLING:
            return
        fresh = [
            w
            for w in self.workers.values()
            if w.generation == reload.generation and w.state is WorkerState.READY
        ]
        reload.of = self.wanted
        reload.replaced = min(len({w.slot for w in fresh}), reload.of)
        stale = any(w.generation < reload.generation for w in self.workers.values())
        if reload.replaced >= reload.of and not stale:
            self._end_reload(reload, ReloadPhase.DONE, now, "")

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
        failed = phase in (ReloadPhase.FAILED, ReloadPhase.ROLLED_BACK)
        self._tell("error" if failed else "info", f"reload_{phase.value.replace(' ', '_')}", fields)
        self._do(actions.ReloadEnded(reload.generation))
        if self.probation is not None and self.probation.until is None and self.policy is not None:
            self.probation.until = now + self.policy.probation

    # -- probation --------------------------------------------------------------------------------------

    def _note_crash(self, worker: Worker, reason: str, traceback: str | None, now: float) -> None:
        """A worker died while it served, by no wish of ours or an outsider's."""
        generation = self.generations.get(worker.generation)
        if generation is None:
            return
        generation.crashes.append(now)
        self.last_crash = reason
        probation, policy = self.probation, self.policy
        if probation is None or policy is None or worker.generation != self.current:
            return
        probation.crashes = [at for at in probation.crashes if now - at <= policy.probation] + [now]
        crashes = len(probation.crashes)
        # As many as the generation before had in the same time are no fault of the new one.
        least = max(policy.rollback_crashes, probation.before + 1)
        if policy.rollback_crashes and crashes >= least:
            times = "once" if crashes == 1 else f"{crashes} times"
            self._roll_back(f"its workers crashed {times}, last: {reason}", traceback, now)

    def _watch_probation(self, now: float) -> None:
        probation, policy = self.probation, self.policy
        current = self.generations.get(self.current)
        if probation is None or policy is None or current is None:
            return
        old, new = (probation.requests, probation.errors), (current.requests, current.errors)
        if errs_more(old, new, policy.rollback_error_rate):
            percent = [100 * errors / max(answers, 1) for answers, errors in (old, new)]
            reason = f"{percent[1]:.1f} % of its answers are errors, {percent[0]:.1f} % were before"
            self._roll_back(reason, None, now)
        elif probation.until is not None and probation.until <= now:
            self._retire(probation.fallback, now)

    def _roll_back(self, reason: str, traceback: str | None, now: float) -> None:
        """Let the old generation fill the slots again; its fork server stands by."""
        assert self.probation is not None
        probation, self.probation = self.probation, None
        bad, self.current = self.current, probation.fallback
        back = self.generations[self.current]
        back.state = GenerationState.UP
        if back.spare is not None:
            # What it forks before has no app, and would load the one that is on the disk now.
            back.retry_at = now + _SPARE_TIME
        elif not back.has_app:
            reason = f"{reason}; {_LOADS_ANEW}"
        self._bring_number_back(probation, self.generations[bad].policy)
        self._keep_old_workers()
        self._abandon(bad, Cause.ROLLBACK, now)
        reload = self.reload
        if reload is None or reload.generation != bad:
            self._tell("error", "reload_rolled_back", {"generation": bad, "reason": reason})
        elif reload.running:
            self._end_reload(reload, ReloadPhase.ROLLED_BACK, now, reason, traceback)
        else:
            # Whoever asked has got an answer; the record says what became of it.
            reload.phase, reload.reason, reload.traceback = ReloadPhase.ROLLED_BACK, reason, traceback
            fields = {"generation": bad, "back_to": self.current, "reason": reason, "traceback": traceback}
            self._tell("error", "reload_rolled_back", fields)

    def _take_for_spare(self, worker: Worker) -> bool:
        """Whether a worker that leaves is to be what its generation can come back from: without `preload_app`
        only workers have the app's old code."""
        generation = self.generations.get(worker.generation)
        if (
            generation is None
            or generation.state is not GenerationState.SPARE
            or generation.has_app
            or generation.spare is not None
            or generation.spare_failed
            or worker.overdue_since is not None
        ):
            return False
        generation.spare = worker.worker_id
        return True

    def _no_spare(self, worker: Worker) -> None:
        """A worker has ended: if it was to be a fork server it is none."""
        generation = self.generations.get(worker.generation)
        if generation is not None and generation.spare == worker.worker_id:
            generation.spare = None
            generation.spare_failed = True
            problem = "the old code could not be kept for a roll back; the worker's log says why"
            self._report("warning", "standby_failed", worker, pid=worker.pid, problem=problem)
            if generation.state is GenerationState.UP:
                generation.retry_at = None

    def _keep_old_workers(self) -> None:
        """Of the generation that is current again: who still serves had to go for the reload only."""
        for worker in self.workers.values():
            stale = worker.generation == self.current and worker.leaving is Cause.RELOAD
            well = worker.overdue_since is None and not worker.due
            if stale and well and worker.state is WorkerState.READY:
                worker.leaving = worker.leaving_since = None

    def _forget_crashes(self, now: float) -> None:
        if self.kills and now - self.kills[0] > CRASH_WINDOW:
            self.kills = [at for at in self.kills if now - at <= CRASH_WINDOW]
        for generation in self.generations.values():
            if generation.crashes and now - generation.crashes[0] > CRASH_WINDOW:
                generation.crashes = [at for at in generation.crashes if now - at <= CRASH_WINDOW]

    # -- small things -----------------------------------------------------------------------------------

    def _do(self, action: actions.Action) -> None:
        self._out.append(action)

    def _tell(self, level: Level, name: str, fields: dict[str, Any]) -> None:
        self._do(actions.Report(level, name, fields))

    def _report(self, level: Level, name: str, worker: Worker, **fields: Any) -> None:
        self._tell(level, name, {"slot": worker.slot, "generation": worker.generation} | fields)
