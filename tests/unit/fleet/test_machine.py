"""The fleet's state machine, one rule per test. Slots count from 1, times are seconds of a virtual clock."""

from typing import get_args

import pytest

from ostler.fleet import actions, events, health
from ostler.fleet.machine import HANDLERS
from ostler.fleet.model import Cause, ExitStatus, ReloadPhase, WorkerState
from ostler.fleet.policies import backoff, surge
from tests.kit.play import (
    FINISH,
    SERVING,
    STOPPING,
    Cue,
    Play,
    abort,
    cancel,
    drain,
    dump_stack,
    end,
    kill,
    kill_fork_server,
    load_app,
    reload_ended,
    running,
    spawn,
    start_fork_server,
    stop_fork_server,
)
from tests.kit.policies import fleet_policy

# -- start ----------------------------------------------------------------------------------------------


def test_start() -> None:
    """From the start to all workers ready: configuration, app, workers;
    Serving is reported once, with the first.
    """
    play = Play(workers=2)
    play.start().then(start_fork_server(1))
    play.configured().then(load_app(1))
    play.app_loaded().then(spawn(1, 1), spawn(2, 1))
    play.ready(2).then(SERVING)
    play.ready(1).then()
    assert play.slots() == [1, 2]
    assert play.fleet.next_deadline() is None


def test_configuration_of_the_start_fails() -> None:
    """An invalid configuration ends the daemon, and is not reported as a failure of the app."""
    play = Play().start()
    play.generation_failed(reason="bind: bad").then(start_fork_server(1), STOPPING, stop_fork_server(1))
    play.fork_server_exits(signal=15).then(FINISH)
    assert play.finished == [actions.Finish(True, False, "bind: bad", None)]


def test_a_wrong_value_at_the_start() -> None:
    """A value that is wrong in itself stays distinguishable to the end: it has an exit code of its own."""
    play = Play().start().generation_failed(reason="workers: bad", invalid=True).fork_server_exits(signal=15)
    assert play.finished == [actions.Finish(True, False, "workers: bad", None, invalid=True)]


def test_preloaded_app_of_the_start_fails() -> None:
    """With preload_app the fork server itself reports that the app can't be loaded."""
    play = Play().start().configured()
    play.generation_failed(reason="ImportError: x", traceback="Traceback", app_failed=True)
    play.fork_server_exits()
    assert play.finished == [actions.Finish(True, True, "ImportError: x", "Traceback")]


def test_fork_server_of_the_start_dies() -> None:
    """A fork server that dies before anything ran ends the daemon, with its exit status in the log."""
    play = Play().start().configured().fork_server_exits(signal=11)
    assert play.finished == [actions.Finish(True, True, "the fork server ended with signal 11", None)]


def test_first_boot_fails() -> None:
    """When no worker of the first generation booted the daemon ends, with the app's traceback."""
    play = Play(workers=1).start().loaded()
    play.boot_fails(1, "ImportError: flask", "Traceback ...").then(
        start_fork_server(1), load_app(1), spawn(1), STOPPING, stop_fork_server(1)
    )
    play.fork_server_exits().then(FINISH)
    assert play.finished == [actions.Finish(True, True, "ImportError: flask", "Traceback ...")]


def test_which_boots_are_urgent() -> None:
    """A worker for an empty slot is urgent; the successor of one that still serves is not."""
    fleet = Play(workers=1).start().loaded().fleet
    fleet.handle(events.WorkerReady(1), 1.0)
    recycled = fleet.handle(events.RecycleAsked("test", 1), 2.0)
    assert [action.urgent for action in recycled if isinstance(action, actions.Spawn)] == [False]
    fleet.handle(events.WorkerReady(2), 3.0)
    died = fleet.handle(events.WorkerExited(2, ExitStatus(signal=9)), 4.0)
    assert [action.urgent for action in died if isinstance(action, actions.Spawn)] == [True]


def test_all_first_boots_fail() -> None:
    """The start fails only with the last of the booting workers, and that is reported once."""
    play = Play(workers=2).start().loaded()
    play.boot_fails(1, "first")
    play.never_reported("worker_boot_failed")
    assert not play.fleet.state.stopping
    play.boot_fails(2, "second")
    play.fork_server_exits()
    assert play.finished == [actions.Finish(True, True, "second", None)]


def test_first_boots_are_tried_again() -> None:
    """With boot_retries the start fails only after so many more attempts; each failure is reported."""
    play = Play(workers=2, boot_retries=2).start().loaded()
    play.boot_fails(1, "one").boot_fails(2, "one").reported("worker_boot_failed", reason="one")
    play.after(10.0).boot_fails(1, "two").reported("worker_boot_failed", reason="two")
    assert not play.fleet.state.stopping
    play.after(10.0).boot_fails(1, "three").fork_server_exits()
    assert play.finished == [actions.Finish(True, True, "three", None)]


def test_the_first_preloading_is_tried_again() -> None:
    """The same where the fork server loads the app; a configuration that is wrong is not tried again."""
    play = Play(workers=1, boot_retries=1).start().configured()
    play.generation_failed(reason="no database", app_failed=True).reported("fork_server_failed")
    play.fork_server_exits().after(10.0).loaded().ready(1)
    assert play.slots() == [1]
    play = Play(boot_retries=1).start()
    play.generation_failed(reason="bind: bad").then(start_fork_server(1), STOPPING, stop_fork_server(1))


def test_a_first_boot_fails_and_another_does_not() -> None:
    """The postponed failure is reported as soon as another worker is ready: the daemon continues."""
    play = Play(workers=2).start().loaded()
    play.boot_fails(1, "first").ready(2).reported("worker_boot_failed", slot=1, reason="first", retry_in=0.5)
    assert not play.fleet.state.stopping


def test_first_boot_takes_too_long() -> None:
    """A first boot that reaches boot_timeout ends the daemon without a second attempt."""
    play = Play(workers=1, boot_timeout=10.0).start().loaded().forked(1)
    play.then(start_fork_server(1), load_app(1), spawn(1))
    play.nothing_until(10.0).then(abort(1), STOPPING)
    play.exits(1, signal=6).then(stop_fork_server(1))
    play.fork_server_exits().then(FINISH)
    reason = "took longer than boot_timeout (10 s) to load the app; the log has its stack"
    assert play.finished == [actions.Finish(True, True, reason, None)]


def test_first_loading_takes_too_long() -> None:
    """Reading the configuration has a time limit too."""
    play = Play().start()
    play.then(start_fork_server(1)).nothing_until(60.0).then(STOPPING, stop_fork_server(1))
    play.nothing_until(1.0).then(kill_fork_server(1))
    play.fork_server_exits()
    assert play.finished == [actions.Finish(True, True, "loading took longer than boot_timeout", None)]


def test_partial_start_is_degraded() -> None:
    """If some of the first workers booted, the daemon continues and tries the others after the backoff."""
    play = Play(workers=2).start().loaded().ready(1)
    play.boot_fails(2, "no database")
    play.then(start_fork_server(1), load_app(1), spawn(1), spawn(2), SERVING)
    assert health.state(play.fleet.state) == "degraded"
    assert health.sentence(play.fleet.state) == (
        "Degraded: 1 of 2 workers ready; booting failed once, last: no database."
    )
    play.nothing_until(0.5).then(spawn(2)).ready(2).then()
    assert health.state(play.fleet.state) == "ready"


def test_reload_during_a_failing_start_is_answered() -> None:
    """The end of a reload that was requested while the start fails is reported."""
    play = (
        Play(workers=1)
        .start()
        .loaded()
        .reload()
        .loaded(2)
        .then(start_fork_server(1), load_app(1), spawn(1, 1), start_fork_server(2), load_app(2), spawn(1, 2))
    )
    play.reap(1, ExitStatus(code=3))
    play.then(STOPPING, reload_ended(2), stop_fork_server(2), end(1, 2))
    play.reported("reload_failed", generation=2, reason="the daemon stops").settled()
    assert play.finished[0].failed


# -- scale ----------------------------------------------------------------------------------------------


def test_scale_up() -> None:
    """More workers boot at once, as many at a time as boot_parallelism allows."""
    play = running(workers=1, boot_parallelism=2)
    play.scale_by(3).then(spawn(2), spawn(3)).reported("scale", workers=4, before=1, by="test")
    play.ready(2).then(spawn(4))
    play.ready(3, 4).then()
    assert play.slots() == [1, 2, 3, 4]


def test_boots_while_cpus_are_idle() -> None:
    """One more for each idle CPU, as measured last; that ends with these boots."""
    play = running(workers=1, boot_parallelism=2, boot_when_idle=True)
    play.scale(9).then(spawn(2), spawn(3))
    play.on(events.CpusIdle(0.9)).then()
    play.on(events.CpusIdle(2.5)).then(spawn(4), spawn(5))
    play.on(events.CpusIdle(0.0)).then()
    play.ready(2).then(spawn(6))
    play.on(events.CpusIdle(0.0)).ready(3).then(spawn(7))
    play.ready(4, 5, 6, 7).then(spawn(8), spawn(9))
    play.ready(8, 9).then()
    play.scale(14).then(spawn(10), spawn(11))


def test_idle_cpus_are_not_asked_for() -> None:
    """With a number of the user's own, or after a failed boot, it stays at that."""
    play = running(workers=1, boot_parallelism=2).scale(5).then(spawn(2), spawn(3))
    play.on(events.CpusIdle(2.0)).then()
    play = running(workers=1, boot_parallelism=2, boot_when_idle=True).scale(5).then(spawn(2), spawn(3))
    play.exits(2, code=1).then()
    play.on(events.CpusIdle(2.0)).then()


def test_scale_down() -> None:
    """The highest slots are drained at once, without successors."""
    play = running(workers=4)
    play.scale(2).then(drain(3), drain(4))
    play.exits(3).exits(4).then()
    assert play.slots() == [1, 2]


def test_scale_back_to_the_configuration() -> None:
    """The number set by hand is dropped: the configuration's number counts again."""
    play = running(workers=1).scale(2).then(spawn(2)).ready(2)
    play.on(events.ResizeAsked("test")).then(drain(2)).reported("scale", workers=1, before=2, by="test")
    assert play.fleet.state.override is None


def test_scale_down_while_booting() -> None:
    """A worker that boots in a slot that is no longer wanted is ended, not drained."""
    play = running(workers=1).scale(2).then(spawn(2))
    play.forked(2).scale(1).then(cancel(2)).exits(2).then()
    assert play.slots() == [1]


def test_scale_down_of_one_that_serves_already() -> None:
    """If it was ready before the signal came it may have a request: it drains like any other."""
    play = running(workers=1, graceful_timeout=20.0).scale(2).forked(2).scale(1).then(spawn(2), cancel(2))
    play.after(1.0).ready(2).then()
    assert play.fleet.state.count(WorkerState.DRAINING) == 1
    play.nothing_until(20.0).then(kill(2)).exits(2).then()


def test_quick_stop_of_one_that_serves_already() -> None:
    """Then it is ended as quickly as the others."""
    play = running(workers=1).scale(2).forked(2).scale(1).then(spawn(2), cancel(2))
    play.stop_quickly().then(STOPPING, end(1)).ready(2).then(end(2))


def test_scale_down_before_the_fork() -> None:
    """If the fork of a worker that is no longer wanted fails, that is not a failed boot."""
    play = running(workers=1).scale(2).scale(1).then(spawn(2), cancel(2))
    play.fail_to_fork(max(play.workers))
    play.then().never_reported("worker_boot_failed")
    assert health.state(play.fleet.state) == "ready"


def test_scale_down_with_a_lost_signal() -> None:
    """A worker that was to end before it was forked is killed after the fork."""
    play = running(workers=1).scale(2).scale(1).then(spawn(2), cancel(2)).forked(2)
    play.nothing_until(2.0).then(kill(2)).exits(2).then()


def test_never_below_one() -> None:
    """TTOU, and a number from the API, never go below one worker; the report says where it stopped."""
    play = running(workers=1)
    assert play.scale_by(-1).fleet.state.wanted == 1
    play.reported("scale", workers=1, note="stopped at 1, the least")
    assert play.scale(0).fleet.state.wanted == 1
    play.then()
    assert play.scale_by(10_000).reported("scale", note="stopped at 512, the most").fleet.state.wanted == 512


def test_scale_up_again_while_draining() -> None:
    """A slot whose worker drains can have a new one at once."""
    play = running(workers=2).scale(1).then(drain(2))
    play.scale(2).then(spawn(2)).ready(2).exits(2).then()
    assert play.slots() == [1, 2]


def test_freed_boots_are_used_at_once() -> None:
    """When a boot is given up, the next one begins in the same step."""
    play = running(workers=2, boot_parallelism=1).scale(3).then(spawn(3))
    play.exits(1, signal=9).then()
    play.scale(2).then(cancel(3), spawn(1))


def test_scale_before_the_configuration_is_ignored() -> None:
    """The number that would be changed is not known yet."""
    play = Play(workers=2).start().scale(5).loaded()
    assert play.fleet.state.wanted == 2


# -- repair ---------------------------------------------------------------------------------------------


def test_killed_worker_is_replaced_at_once() -> None:
    """A death is followed immediately by a spawn."""
    play = running(workers=2)
    play.exits(1, signal=9).then(spawn(1)).reported(
        "worker_died", slot=1, status="signal 9", cause="unexpected", pid=10_001
    )
    play.ready(1).then()
    assert play.fleet.state.deaths == 1


def test_backoff_doubles_up_to_30_seconds() -> None:
    """Boots that fail in a row are retried later each time: 0.5, 1, 2, 4, 8, 16, 30, 30 seconds."""
    play = running(workers=1).exits(1, signal=9).then(spawn(1))
    for wait in (0.5, 1, 2, 4, 8, 16, 30, 30):
        play.boot_fails(1).reported("worker_boot_failed", retry_in=wait).nothing_until(wait).then(spawn(1))
    play.ready(1).exits(1, signal=9).then(spawn(1))
    play.boot_fails(1).reported("worker_boot_failed", retry_in=0.5)


def test_one_at_a_time_after_a_failure() -> None:
    """After a failed boot one worker is tried; when it boots, the others follow together."""
    play = running(workers=3, boot_parallelism=3)
    play.exits(1, signal=9).exits(2, signal=9).exits(3, signal=9).then(spawn(1), spawn(2), spawn(3))
    play.boot_fails(1).boot_fails(2).boot_fails(3).then()
    play.nothing_until(2.0).then(spawn(1))
    play.forked(1).nothing_until(30.0).then()
    play.ready(1).then(spawn(2), spawn(3))


def test_fork_failure_backs_off() -> None:
    """A fork that fails counts as a failed boot."""
    play = running(workers=2).exits(1, signal=9).then(spawn(1))
    play.fail_to_fork(max(play.workers), "Resource temporarily unavailable")
    play.reported("worker_boot_failed", reason="can't fork: Resource temporarily unavailable")
    play.nothing_until(0.5).then(spawn(1))


def test_death_while_booting_says_how() -> None:
    """For a worker that dies while booting, the exit status is reported."""
    play = running(workers=1).exits(1, signal=9).forked(1)
    play.exits(1, signal=11).reported("worker_boot_failed", reason="ended with signal 11 while booting")


def test_boot_timeout() -> None:
    """A worker that hangs while booting is aborted, counts as failed and is tried again after the backoff."""
    play = running(workers=2, boot_timeout=5.0).exits(2, signal=9).forked(2).then(spawn(2))
    play.nothing_until(5.0).then(abort(2)).reported("worker_boot_failed", retry_in=0.5)
    play.exits(2, signal=6).reported("worker_exited", cause="boot timeout").nothing_until(0.5).then(spawn(2))


def test_boot_timeout_of_a_worker_that_ignores_signals() -> None:
    """If SIGABRT does not end it, it is killed, again and again; its successor does not wait."""
    play = running(workers=1, boot_timeout=5.0).exits(1, signal=9).forked(1).then(spawn(1))
    play.nothing_until(5.0).then(abort(1)).nothing_until(0.5).then(spawn(1))
    play.nothing_until(0.5).then(kill(1))
    play.ready(1).nothing_until(5.0).then(kill(1))
    play.exits(1, signal=9).then()


def test_booted_worker_ends_the_backoff() -> None:
    """A worker that boots proves that booting works: a waiting retry starts at once."""
    play = running(workers=2, boot_parallelism=2).exits(1, signal=9).exits(2, signal=9)
    play.then(spawn(1), spawn(2)).boot_fails(1).then()
    play.ready(2).then(spawn(1))


# -- recycling ------------------------------------------------------------------------------------------


def test_recycle_boots_the_successor_first() -> None:
    """max_requests: the worker serves until its successor is ready, then it drains."""
    play = running(workers=2)
    play.recycle_due(1).then(spawn(1)).reported("recycle", slot=1, requests=1000)
    play.forked(1).then()
    assert play.slots() == [1, 2]
    play.ready(1).then(drain(1)).exits(1).then()
    play.reported("worker_exited", cause="recycle")
    assert play.fleet.state.deaths == 0


def test_recycle_asked_by_slot() -> None:
    """A request for a slot replaces the worker that serves there;
    a second request meanwhile changes nothing.
    """
    play = running(workers=2).recycle(2).then(spawn(2)).recycle(2).then()
    play.ready(2).then(drain(2)).exits(2).then()
    play.recycle(7).then()


def test_recycle_whose_successor_fails_keeps_the_old() -> None:
    """The old worker serves as long as no successor boots."""
    play = running(workers=1).recycle(1).then(spawn(1))
    play.boot_fails(1).nothing_until(0.5).then(spawn(1))
    play.boot_fails(1).nothing_until(1.0).then(spawn(1))
    assert play.slots() == [1]
    assert health.state(play.fleet.state) == "degraded"
    play.ready(1).then(drain(1))


def test_max_surge_bounds_replacements() -> None:
    """Four are due, one extra process is allowed: the next successor waits for the old one's exit."""
    play = running(workers=4, max_surge=1, boot_parallelism=4)
    play.recycle_due(1).recycle_due(2).recycle_due(3).recycle_due(4).then(spawn(1))
    for slot in (1, 2, 3):
        play.ready(slot).then(drain(slot))
        play.exits(slot).then(spawn(slot + 1))
    play.ready(4).then(drain(4)).exits(4).then()


def test_max_surge_of_two() -> None:
    """A larger budget replaces more at a time."""
    play = running(workers=4, max_surge=2, boot_parallelism=4)
    play.recycle_due(1).recycle_due(2).recycle_due(3).then(spawn(1), spawn(2))


def test_boot_parallelism_bounds_replacements() -> None:
    """The surge would allow two, but only one may boot at a time."""
    play = running(workers=4, max_surge=2, boot_parallelism=1)
    play.recycle_due(1).recycle_due(2).then(spawn(1))
    play.ready(1).then(drain(1), spawn(2))


def test_leaving_worker_that_dies_early() -> None:
    """If the old one dies early its successor is already booting; no second one is spawned."""
    play = running(workers=1).recycle_due(1).then(spawn(1))
    play.reap(1, ExitStatus(signal=9))
    play.then().ready(1).then()


def test_drain_timeout_kills() -> None:
    """A worker that does not end within graceful_timeout is killed, then killed again."""
    play = running(workers=1, graceful_timeout=7.0).recycle_due(1).ready(1).then(spawn(1), drain(1))
    play.nothing_until(7.0).then(kill(1)).reported("drain_timeout", slot=1)
    play.nothing_until(5.0).then(kill(1))
    play.exits(1, signal=9).then()


# -- deadlines of requests ------------------------------------------------------------------------------


def drained(out: list[actions.Action]) -> list[actions.Drain]:
    return [action for action in out if isinstance(action, actions.Drain)]


def test_the_budget_and_the_kill_come_from_one_number() -> None:
    """graceful_timeout is sent with the drain message; drain_grace seconds after that comes the kill."""
    play = running(workers=2, graceful_timeout=20.0, drain_grace=1.5)
    (action,) = drained(play.hand_in(events.ResizeAsked("test", workers=1)))
    assert action.seconds == 20.0
    play.then(drain(2)).nothing_until(21.5).then(kill(2))


def test_a_lower_graceful_timeout_does_not_shorten_a_drain() -> None:
    """A draining worker keeps the budget that it got; the next one gets the new budget."""
    play = running(workers=3, graceful_timeout=100.0).scale(2).then(drain(3))
    play.reload().loaded(workers=2, graceful_timeout=5.0, boot_parallelism=2, max_surge=3)
    (first,) = [n for n, worker in play.workers.items() if worker.generation == 2]
    play.fork(first)
    play.workers[first].state = "serving"
    (action,) = drained(play.hand_in(events.WorkerReady(first)))
    assert action.seconds == 5.0
    play.fork_server_exits(1)
    play.unseen.clear()
    play.nothing_until(5.0).then(kill(1, 1))
    play.exits(1).ready(2).exits(2)
    play.unseen.clear()
    play.nothing_until(95.0).then(kill(3, 1))


def test_a_cancelled_worker_that_serves_has_its_own_generation_s_budget() -> None:
    """It gets no drain message, so it uses its own setting, whatever the current generation's is."""
    play = running(workers=1, graceful_timeout=5.0).reload().loaded(graceful_timeout=50.0).forked(1)
    play.reload().fork_server_exits(2).generation_failed(3).fork_server_exits(3)
    play.unseen.clear()
    play.ready(1).nothing_until(50.0).then(kill(1, 2))


def test_overdue_request() -> None:
    """The stack is dumped, a successor boots, the worker drains, and is aborted after the grace."""
    play = running(workers=2, timeout_grace=2.0).overdue(1)
    play.then(dump_stack(1), spawn(1)).ready(1).then(drain(1))
    play.only_overdue_left(1).nothing_until(2.0).then(abort(1))
    play.exits(1, signal=6).then().reported("worker_exited", cause="deadline", status="signal 6")


def test_overdue_request_beside_good_ones() -> None:
    """While other requests are in flight the worker only drains;
    it is aborted when only the overdue one is left.
    """
    play = running(workers=1, timeout_grace=2.0).overdue(1).ready(1).then(dump_stack(1), spawn(1), drain(1))
    play.nothing_until(10.0).then()
    play.only_overdue_left(1).then(abort(1))


def test_only_overdue_left_counts_only_while_draining() -> None:
    """While the worker still accepts, "only overdue left" may change at any moment, so it does not count."""
    play = running(workers=1, timeout_grace=2.0).overdue(1).only_overdue_left(1).after(5.0)
    play.ready(1).then(dump_stack(1), spawn(1), drain(1)).nothing_until(5.0).then()


def test_overdue_request_that_ends_in_time() -> None:
    """A request that ends by itself lets the worker end as in any other drain."""
    play = running(workers=1).overdue(1).ready(1).exits(1).reported("worker_exited", status="exit code 0")
    assert play.slots() == [1]


def test_hung_worker_is_beyond_the_surge() -> None:
    """A worker with a hung request is no planned replacement: its successor does not wait for the budget."""
    play = running(workers=3, max_surge=1, boot_parallelism=3).recycle_due(1).then(spawn(1))
    play.overdue(3).then(dump_stack(3), spawn(3))


def test_each_overdue_request_is_dumped() -> None:
    """In a worker with threads every overdue request gets its stack in the log; there is one successor."""
    play = (
        running(workers=1)
        .overdue(1, thread=0)
        .overdue(1, thread=1)
        .then(dump_stack(1), spawn(1), dump_stack(1))
    )
    assert play.fleet.state.workers[1].leaving is Cause.DEADLINE


# -- reload ---------------------------------------------------------------------------------------------


def test_reload() -> None:
    """Canary first; when it is ready the others follow one by one,
    each old one draining after the new one is ready.
    """
    play = running(workers=3, max_surge=1, boot_parallelism=2).reload().then(start_fork_server(2))
    play.configured().then(load_app(2))
    play.app_loaded().then(spawn(1, 2))
    play.ready(1).then(stop_fork_server(1), drain(1, 1))
    play.fork_server_exits(1).exits(1).then(spawn(2, 2))
    play.ready(2).then(drain(2, 1)).exits(2).then(spawn(3, 2))
    play.ready(3).then(drain(3, 1)).exits(3).then(reload_ended(2))
    play.reported("reload_done", generation=2, workers=3)
    assert play.slots(generation=2) == [1, 2, 3]


def test_reload_with_a_broken_configuration() -> None:
    """The old generation is not affected, and the reason is kept."""
    play = running(workers=2).reload().then(start_fork_server(2))
    play.generation_failed(reason="workers: bad").then(stop_fork_server(2), reload_ended(2))
    play.fork_server_exits(2).then().reported("reload_failed", generation=2, reason="workers: bad")
    assert play.slots(generation=1) == [1, 2]
    assert play.fleet.state.current == 1
    assert health.state(play.fleet.state) == "ready"


def test_reload_with_a_broken_preloaded_app() -> None:
    """With preload_app the traceback comes from the fork server."""
    play = running(workers=2).reload().configured().then(start_fork_server(2), load_app(2))
    play.generation_failed(2, "ImportError: x", "Traceback", app_failed=True)
    play.then(stop_fork_server(2), reload_ended(2)).reported("reload_failed", traceback="Traceback")
    assert play.slots(generation=1) == [1, 2]


def test_reload_whose_fork_server_dies() -> None:
    """A segfault in the new app only fails the reload."""
    play = running(workers=2).reload().configured().then(start_fork_server(2), load_app(2))
    play.fork_server_exits(2, signal=11).then(reload_ended(2))
    play.reported("reload_failed", reason="the fork server ended with signal 11")
    assert play.slots(generation=1) == [1, 2]
    assert list(play.fleet.state.generations) == [1]


def test_reload_whose_canary_fails() -> None:
    """A canary that can't boot fails the reload with its traceback; no old worker is affected."""
    play = running(workers=2).reload().loaded().then(start_fork_server(2), load_app(2), spawn(1, 2))
    play.boot_fails(1, "NameError: x", "Traceback ...").then(stop_fork_server(2), reload_ended(2))
    play.reported("reload_failed", reason="NameError: x", traceback="Traceback ...")
    play.settled()
    assert play.slots(generation=1) == [1, 2]
    assert play.fleet.state.reload is not None
    assert play.fleet.state.reload.phase is ReloadPhase.FAILED


def test_reload_whose_canary_hangs() -> None:
    """boot_timeout ends a reload whose canary never becomes ready."""
    play = running(workers=1, boot_timeout=5.0).reload().loaded().forked(1)
    play.then(start_fork_server(2), load_app(2), spawn(1, 2))
    play.nothing_until(5.0).then(abort(1, 2), stop_fork_server(2), reload_ended(2))
    reason = "took longer than boot_timeout (5 s) to load the app; the log has its stack"
    play.reported("reload_failed", reason=reason).settled()
    assert play.slots(generation=1) == [1]


def test_reload_after_a_failed_one() -> None:
    """After a failure the next reload works."""
    play = running(workers=2).reload().generation_failed().settled().reload().settled()
    assert play.slots(generation=3) == [1, 2]
    assert play.slots() == [1, 2]


def test_second_reload_supersedes() -> None:
    """The newest request counts: the running reload is given up before its canary was ready."""
    play = running(workers=2).reload().loaded().forked(1)
    play.then(start_fork_server(2), load_app(2), spawn(1, 2))
    play.reload().then(reload_ended(2), stop_fork_server(2), start_fork_server(3), cancel(1, 2))
    play.reported("reload_superseded", generation=2).settled()
    assert play.slots(generation=3) == [1, 2]
    assert play.fleet.state.reload is not None
    assert play.fleet.state.reload.phase is ReloadPhase.DONE


def test_second_reload_during_the_roll() -> None:
    """A roll continues until the next canary is ready: a bad third generation does not affect the second."""
    play = running(workers=3).reload().loaded().ready(1).reload()
    play.reported("reload_superseded", generation=2)
    play.generation_failed(3).settled()
    assert play.slots() == play.slots(generation=2) == [1, 2, 3]


def test_superseded_canary_that_gets_ready_late() -> None:
    """A late WorkerReady does not promote a canary that was given up."""
    play = running(workers=1).reload().loaded().forked(1).reload()
    canary = next(worker_id for worker_id, worker in play.workers.items() if worker.generation == 2)
    play.boot(canary)
    assert play.fleet.state.current == 1
    assert play.fleet.state.workers[canary].state is WorkerState.DRAINING


def test_roll_that_fails_after_its_canary() -> None:
    """Three failed boots in a row end the reload as failed;
    old workers that are not yet replaced still serve.
    """
    play = running(workers=3).reload().loaded().ready(1).fork_server_exits(1).exits(1)
    for wait in (0.5, 1.0, 2.0):
        play.boot_fails(2, "no memory").after(wait)
    play.reported("reload_failed", generation=2, reason="no memory")
    assert play.slots(generation=1) == [2, 3]
    assert play.slots(generation=2) == [1]
    play.settled()
    assert play.slots(generation=2) == [1, 2, 3]


def test_old_boot_is_given_up_by_the_roll() -> None:
    """A worker of the old generation that still boots is ended, because it has old code."""
    play = running(workers=2).reload().loaded().exits(2, signal=9).forked(2)
    play.then(start_fork_server(2), load_app(2), spawn(1, 2), spawn(2, 1))
    play.ready(1).then(stop_fork_server(1), drain(1, 1), cancel(2, 1), spawn(2, 2))


def test_unforked_workers_of_a_retired_fork_server() -> None:
    """Spawns that a retired fork server never forked do not keep the roll from ending."""
    play = running(workers=2).reload().loaded().exits(2, signal=9).ready(1)
    assert len(play.workers) == 4
    play.fork_server_exits(1)
    assert sorted(play.fleet.state.workers) == sorted(play.workers)
    play.settled().reported("reload_done", generation=2)


def test_reload_takes_the_new_number_of_workers() -> None:
    """A changed number in the configuration takes effect with the new generation."""
    play = running(workers=2).reload().loaded(workers=4).settled()
    assert play.slots(generation=2) == [1, 2, 3, 4]
    play.reload().loaded(workers=1).settled()
    assert play.slots(generation=3) == play.slots() == [1]


def test_override_survives_a_reload() -> None:
    """A number set by hand stays if the configuration has the same number as before."""
    play = running(workers=2).scale(4).reload().loaded(workers=2).settled()
    assert play.slots() == [1, 2, 3, 4]
    play.never_reported("scale_override_ended")


def test_override_ends_when_the_configuration_changes() -> None:
    """A number that was changed in the configuration applies."""
    play = running(workers=2).scale(5).reload().loaded(workers=3).settled()
    assert play.slots() == [1, 2, 3]
    play.reported("scale_override_ended", workers=3, before=5)


def test_override_survives_a_failed_reload() -> None:
    """A failed reload changes nothing, whatever its configuration contained."""
    play = running(workers=2).scale(4).reload().configured(workers=1)
    play.generation_failed(2).settled()
    assert play.slots() == [1, 2, 3, 4]


# -- fork server ----------------------------------------------------------------------------------------


def test_fork_server_death() -> None:
    """Workers are not affected, another fork server starts at once, and it continues to spawn."""
    play = running(workers=2).fork_server_exits(1).then(start_fork_server(1))
    play.reported("fork_server_failed", generation=1, reason="the fork server ended with signal 9")
    play.exits(2, signal=9).then()
    play.loaded(1).then(load_app(1), spawn(2)).ready(2).then()
    assert play.slots() == [1, 2]


def test_fork_server_dies_with_spawns_in_its_queue() -> None:
    """Workers that were not forked yet are requested from the next fork server."""
    play = running(workers=1).scale(3).forked(2).then(spawn(2), spawn(3))
    play.fork_server_exits(1).then(start_fork_server(1))
    play.loaded(1).then(load_app(1), spawn(3))


def test_fork_server_that_dies_again_and_again() -> None:
    """After the first restart each further one waits longer, until a worker has booted."""
    play = running(workers=1).fork_server_exits(1).then(start_fork_server(1))
    for wait in (0.5, 1, 2, 4, 8, 16, 30, 30):
        play.configured(1).fork_server_exits(1).then(load_app(1))
        play.nothing_until(wait).then(start_fork_server(1))
    play.loaded(1).exits(1, signal=9).forked(1).after(31.0).ready(1).then(load_app(1), spawn(1))
    play.fork_server_exits(1).then(start_fork_server(1))


def test_configuration_breaks_under_a_running_fleet() -> None:
    """A restarted fork server that can't load is tried again, with pauses and without ending the fleet."""
    play = running(workers=1).fork_server_exits(1).then(start_fork_server(1))
    play.generation_failed(1).then(kill_fork_server(1)).nothing_until(20.0).then()
    play.fork_server_exits(1).then(start_fork_server(1))
    play.generation_failed(1).generation_failed(1).then(kill_fork_server(1))
    play.fork_server_exits(1).nothing_until(1.0).then(start_fork_server(1))
    assert play.slots() == [1]


def test_fork_server_that_hangs_after_a_restart() -> None:
    """Loading has a time limit: it is killed and the next one starts."""
    play = running(workers=1, boot_timeout=10.0).fork_server_exits(1).then(start_fork_server(1))
    play.nothing_until(10.0).then(kill_fork_server(1))
    play.fork_server_exits(1).nothing_until(0.5).then(start_fork_server(1))


def test_fork_server_dies_during_a_drain_of_all() -> None:
    """While the daemon stops no other fork server is started."""
    play = running(workers=2).stop().then(STOPPING, drain(1), drain(2))
    play.fork_server_exits(1).nothing_until(5.0).then()
    play.exits(1).exits(2).then(FINISH)


def test_retired_fork_server_that_does_not_end() -> None:
    """A fork server that does not end is killed."""
    play = running(workers=1).reload().loaded().ready(1)
    play.then(start_fork_server(2), load_app(2), spawn(1, 2), stop_fork_server(1), drain(1, 1))
    play.nothing_until(1.0).then(kill_fork_server(1)).nothing_until(5.0).then(kill_fork_server(1))
    play.fork_server_exits(1).then()


# -- pause ----------------------------------------------------------------------------------------------


def test_pause_and_resume_by_a_resize() -> None:
    """WINCH drains all workers and the daemon stays; a resize starts workers again."""
    play = running(workers=2).pause().then(drain(1), drain(2))
    play.exits(1).exits(2).nothing_until(100.0).then()
    play.scale(2).then(spawn(1), spawn(2)).ready(1, 2)
    assert play.slots() == [1, 2]


def test_pause_and_resume_by_a_reload() -> None:
    """HUP ends a pause as soon as the new generation is promoted, not before."""
    play = running(workers=2).pause().settled().reload().loaded()
    assert health.state(play.fleet.state) == "paused"
    play.ready(1)
    assert health.state(play.fleet.state) == "reloading"
    play.settled()
    assert play.slots(generation=2) == [1, 2]


def test_failed_reload_leaves_the_pause() -> None:
    """A reload that failed does not end a pause."""
    play = running(workers=2).pause().settled().reload().generation_failed().settled()
    assert play.slots() == []
    assert health.state(play.fleet.state) == "paused"


def test_pause_ends_boots() -> None:
    """A worker that still boots is ended, which is not a failure."""
    play = running(workers=1).scale(2).forked(2).then(spawn(2))
    play.pause().then(drain(1), cancel(2)).exits(2).exits(1).then()
    play.never_reported("worker_boot_failed")


# -- stop -----------------------------------------------------------------------------------------------


def test_graceful_stop() -> None:
    """All are drained; the fork server ends after them; Finish is last, once."""
    play = running(workers=2).stop().then(STOPPING, drain(1), drain(2))
    play.exits(1).then().exits(2).then(stop_fork_server(1))
    play.fork_server_exits(1).then(FINISH)
    assert play.finished == [actions.Finish()]
    play.stop().on(events.DeadlinePassed()).reload().scale(3).then()


def test_stop_after_a_delay() -> None:
    """With shutdown_delay the workers serve on, reported as not ready, and are repaired; then they drain."""
    play = running(workers=2, shutdown_delay=10.0).stop().then(STOPPING)
    play.reported("stop", how="graceful", delay=10.0)
    assert health.state(play.fleet.state) == "draining"
    play.exits(1, signal=9).then(spawn(1)).ready(1).then()
    play.nothing_until(10.0).then(STOPPING, drain(2), drain(1)).exits(1).exits(2)
    play.fork_server_exits(1).then(stop_fork_server(1), FINISH)


def test_second_stop_ends_the_delay() -> None:
    """A second request begins the graceful stop at once, a third the quick one."""
    play = running(workers=2, shutdown_delay=10.0).stop().stop().then(STOPPING, STOPPING, drain(1), drain(2))
    play.stop().then(end(1), end(2))


def test_quick_stop_has_no_delay() -> None:
    """INT and QUIT end the daemon at once, also during the delay."""
    running(workers=1, shutdown_delay=10.0).stop_quickly().then(STOPPING, end(1))
    running(workers=1, shutdown_delay=10.0).stop().stop_quickly().then(STOPPING, STOPPING, end(1))


def test_no_delay_without_a_ready_worker() -> None:
    """No balancer sends anything to a fleet that never was ready."""
    play = Play(workers=1, shutdown_delay=10.0).start().loaded().stop()
    play.then(start_fork_server(1), load_app(1), spawn(1), STOPPING, cancel(1))


def test_the_delay_counts_from_the_drain() -> None:
    """What was drained by hand for longer than shutdown_delay stops at once."""
    play = running(workers=1, shutdown_delay=10.0).drain().after(4.0)
    play.stop().then(STOPPING).nothing_until(6.0).then(STOPPING, drain(1))
    running(workers=1, shutdown_delay=10.0).drain().after(11.0).stop().then(STOPPING, drain(1))


def test_nothing_takes_a_stop_back() -> None:
    """A resume during the delay changes nothing, and neither does an upgrade."""
    play = running(workers=1, shutdown_delay=10.0).stop().resume().then(STOPPING)
    assert health.state(play.fleet.state) == "draining"
    play.on(events.UpgradeAsked("test")).reported("upgrade_failed")
    play.nothing_until(10.0).then(STOPPING, drain(1))


def test_drain_and_resume() -> None:
    """A drain changes nothing but the reported state, as long as it lasts."""
    play = running(workers=2).drain().then().drain().reload().loaded().ready(1).settled()
    assert play.slots(generation=2) == [1, 2]
    assert health.state(play.fleet.state) == "draining"
    play.resume().then()
    assert health.state(play.fleet.state) == "ready"


def test_resume_ends_a_pause() -> None:
    """The wanted number of workers is the one from before."""
    play = running(workers=1).scale(2).settled().pause().settled()
    assert play.slots() == []
    play.resume().then(spawn(1), spawn(2)).ready(1, 2)
    assert health.state(play.fleet.state) == "ready"


def test_second_stop_is_quick() -> None:
    """After a second request a graceful stop does not wait for requests."""
    play = running(workers=2).stop().exits(1).then(STOPPING, drain(1), drain(2))
    play.stop().then(end(2)).nothing_until(2.0).then(kill(2))
    play.stop().then()


def test_quick_stop() -> None:
    """INT ends all at once, and kills processes that do not end."""
    play = running(workers=2).stop_quickly().then(STOPPING, end(1), end(2))
    play.exits(1).nothing_until(2.0).then(kill(2))
    play.exits(2).fork_server_exits(1).then(stop_fork_server(1), FINISH)


def test_stop_with_a_drain_that_takes_too_long() -> None:
    """graceful_timeout limits a stop."""
    play = running(workers=1, graceful_timeout=3.0).stop().then(STOPPING, drain(1))
    play.nothing_until(3.0).then(kill(1))


def test_stop_while_booting() -> None:
    """A worker that boots is ended at once."""
    play = Play(workers=2).start().loaded().forked(1).ready(2).stop()
    play.then(start_fork_server(1), load_app(1), spawn(1), spawn(2), SERVING, STOPPING, cancel(1), drain(2))
    play.settled()
    assert play.finished == [actions.Finish()]


def test_stop_before_the_configuration() -> None:
    """A stop during the start is not a failure."""
    play = Play().start().stop().settled()
    assert play.finished == [actions.Finish()]


def test_stop_during_a_reload() -> None:
    """The reload ends as failed and its fork server and canary end with the rest."""
    play = running(workers=1).reload().loaded().forked(1)
    play.then(start_fork_server(2), load_app(2), spawn(1, 2))
    play.stop().then(STOPPING, reload_ended(2), stop_fork_server(2), drain(1, 1), cancel(1, 2))
    play.reported("reload_failed", reason="the daemon stops").settled()
    assert play.finished == [actions.Finish()]


# Reloads that are requested before there is a configuration.


def test_two_reloads_before_the_first_configuration() -> None:
    """Each has its own end; the first generation serves, and the newest takes over."""
    play = Play(workers=1).start().reload().reload()
    play.then(
        start_fork_server(1), start_fork_server(2), reload_ended(2), stop_fork_server(2), start_fork_server(3)
    )
    play.loaded(1).ready(1).then(load_app(1), spawn(1, 1), SERVING)
    play.settled()
    assert play.slots(3) == [1]


def test_a_reload_that_overtakes_the_first_configuration() -> None:
    """The daemon serves when the canary's generation is the current one,
    because the first has no settings yet.
    """
    play = Play(workers=1, canary_time=5.0).start().reload().loaded(2).ready(1)
    play.then(start_fork_server(1), start_fork_server(2), load_app(2), spawn(1, 2))
    play.nothing_until(5.0).then(stop_fork_server(1), SERVING, reload_ended(2))
    assert play.fleet.state.policy is not None


@pytest.mark.parametrize("ready", [False, True], ids=["configuring", "canary"])
@pytest.mark.parametrize("wish", ["stop", "stop_quickly", "pause", "upgrade_asked", "refork"])
def test_wishes_between_a_reload_and_the_first_configuration(wish: str, ready: bool) -> None:
    """None of these requests needs a configuration; after all of them the daemon can be stopped."""
    play = Play(workers=1, canary_time=5.0).start().reload()
    if ready:
        play.loaded(2).ready(1)
    getattr(play, wish)()
    play.fleet.next_deadline()
    health.sentence(play.fleet.state)
    play.stop().settled()
    assert len(play.finished) == 1


def test_stop_during_the_backoff() -> None:
    """A waiting retry is neither made nor keeps the timer busy."""
    play = running(workers=2).exits(1, signal=9).boot_fails(1).stop()
    play.then(spawn(1), STOPPING, drain(2)).nothing_until(29.0).then()
    play.exits(2).settled()
    assert play.finished == [actions.Finish()]


def test_wishes_after_a_stop_are_ignored() -> None:
    """A fleet that stops ignores other requests."""
    play = running(workers=2).stop().then(STOPPING, drain(1), drain(2))
    play.scale(5).reload().pause().recycle(1).then()
    assert play.fleet.state.candidate is None


# -- late, double and unknown ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        events.WorkerForked(99, 1),
        events.SpawnFailed(99, "late"),
        events.WorkerReady(99),
        events.WorkerBootFailed(99, "late", None),
        events.WorkerExited(99, ExitStatus(code=0)),
        events.RecycleDue(99, 1),
        events.RequestOverdue(99, 0, "GET", "/", 1.0),
        events.OnlyOverdueLeft(99),
        events.ForkServerConfigured(99, fleet_policy(workers=9)),
        events.AppLoaded(99),
        events.GenerationFailed(99, "late"),
        events.ForkServerExited(99, ExitStatus(code=0)),
        events.WorkerReady(1),
        events.AppLoaded(1),
        events.ForkServerConfigured(1, fleet_policy(workers=9)),
        events.OnlyOverdueLeft(1),
        events.RecycleAsked("test", 99),
        events.DeadlinePassed(),
    ],
    ids=str,
)
def test_late_and_unknown_events_are_ignored(event: events.Event) -> None:
    """Events of unknown processes, and repeated ones, change nothing."""
    play = running(workers=2)
    reports = list(play.reports)
    play.on(event).then()
    assert play.reports == reports
    assert play.fleet.state.wanted == 2
    assert health.state(play.fleet.state) == "ready"


def test_each_event_has_a_handler() -> None:
    """Each event has a handler, and there are no others."""
    assert set(HANDLERS) == set(get_args(events.Event))


def test_recycle_is_due_once() -> None:
    """A worker that asks twice gets one successor."""
    running(workers=2).recycle_due(1).recycle_due(1).then(spawn(1))


def test_second_death_of_a_fork_server_is_ignored() -> None:
    """A death counts once: the wait before the next attempt is not doubled if it is reported again."""
    play = running(workers=1).fork_server_exits(1).configured(1).fork_server_exits(1)
    play.on(events.ForkServerExited(1, ExitStatus(signal=9)))
    play.then(start_fork_server(1), load_app(1)).nothing_until(0.5).then(start_fork_server(1))


def test_recycling_is_for_workers_that_serve() -> None:
    """A booting worker can't be due for recycling: the event is ignored."""
    play = running(workers=1).scale(2).forked(2).then(spawn(2))
    play.on(events.RecycleDue(max(play.workers), 5)).then().ready(2).then()
    assert play.slots() == [1, 2]


def test_stop_at_the_moment_of_a_boot_timeout() -> None:
    """A stop that comes before the timer fires is a stop, not a failed start."""
    play = Play(workers=1, boot_timeout=5.0).start().loaded().forked(1)
    play.now += 5.0
    play.stop().settled()
    assert play.finished == [actions.Finish()]


# -- health ---------------------------------------------------------------------------------------------


def _health(play: Play) -> tuple[str, str]:
    return health.state(play.fleet.state), health.sentence(play.fleet.state)


def test_health_while_starting() -> None:
    """During the start the sentence names what it waits for."""
    play = Play(workers=3).start()
    assert _health(play) == ("starting", "Starting: reading the configuration.")
    play.loaded()
    assert _health(play) == ("starting", "Starting: 0 of 3 workers ready.")
    play.ready(1)
    assert _health(play) == ("ready", "Serving: 1 of 3 workers ready, 2 booting.")


def test_health_when_ready() -> None:
    """Ready, for several workers and for one."""
    assert _health(running(workers=3)) == ("ready", "Healthy: all 3 workers are ready.")
    assert _health(running(workers=1)) == ("ready", "Healthy: the only worker is ready.")


def test_health_while_recycling() -> None:
    """Old and new worker serve in one slot for a moment and count as one of the wanted workers."""
    play = running(workers=2).recycle(1).forked(1)
    assert _health(play) == ("ready", "Healthy: all 2 workers are ready.")


def test_health_with_an_overdue_request() -> None:
    """A hung request is mentioned while its worker is being replaced."""
    play = running(workers=2).overdue(1)
    assert _health(play) == (
        "ready",
        "Serving: 2 of 2 workers ready; 1 worker with an overdue request being replaced.",
    )


def test_health_with_a_worker_that_stands_still() -> None:
    """A worker whose loop has stopped, e.g. by SIGSTOP, is not reported as one with an overdue request."""
    assert _health(running(workers=2).stalls(1)) == (
        "ready",
        "Serving: 2 of 2 workers ready; 1 worker with a stalled event loop being replaced.",
    )


def test_health_without_any_worker() -> None:
    """A fleet that has lost all its workers at once is not ready, although their successors boot."""
    play = running(workers=2, boot_parallelism=2).exits(1, signal=9).exits(2, signal=9)
    assert _health(play) == ("degraded", "Degraded: 0 of 2 workers ready; none serves, 2 booting.")
    assert _health(play.ready(1)) == ("ready", "Serving: 1 of 2 workers ready, 1 booting.")


def test_health_while_reloading() -> None:
    """Each step of a reload has its own sentence; the ready workers never exceed the wanted number."""
    play = running(workers=3).reload()
    ready = "3 of 3 workers ready."
    assert _health(play) == ("reloading", f"Reloading to generation 2: loading the app; {ready}")
    play.loaded()
    assert _health(play) == (
        "reloading",
        f"Reloading to generation 2: waiting for the first new worker; {ready}",
    )
    play.ready(1)
    assert _health(play) == ("reloading", f"Reloading to generation 2: 1 of 3 workers replaced; {ready}")


def test_health_of_a_roll_that_fails() -> None:
    """There are enough workers, some of them old, but the reload is not done: degraded."""
    play = running(workers=2).reload().loaded().ready(1).fork_server_exits(1).exits(1)
    play.boot_fails(2, "boom")
    assert _health(play) == (
        "degraded",
        "Degraded: 2 of 2 workers ready; booting failed once, last: boom.",
    )


def test_health_without_a_fork_server() -> None:
    """Its loss is shown until another one can spawn, even if no worker has booted since."""
    play = running(workers=2).fork_server_exits(1)
    why = "the fork server is being replaced (failed once, last: the fork server ended with signal 9)"
    assert _health(play) == ("degraded", f"Degraded: 2 of 2 workers ready; {why}.")
    play.loaded(1)
    assert _health(play) == ("ready", "Healthy: all 2 workers are ready.")


def test_health_of_a_fork_server_that_is_back() -> None:
    """The reason of its death is not shown for a worker that boots later."""
    play = running(workers=2).fork_server_exits(1).loaded(1).scale(3)
    assert _health(play) == ("ready", "Serving: 2 of 3 workers ready, 1 booting.")


def test_health_after_a_reload_that_failed() -> None:
    """All workers serve, but not the code that was asked for: the reason stays until the next reload."""
    play = running(workers=2).reload().generation_failed(reason="no module named shop").settled()
    assert _health(play) == (
        "ready",
        "Healthy: all 2 workers are ready, but the last reload failed: no module named shop.",
    )
    play.reload().settled()
    assert _health(play) == ("ready", "Healthy: all 2 workers are ready.")


def test_health_with_a_loop_that_stands_still() -> None:
    """Workers with a stalled loop and workers with an overdue request are counted separately."""
    play = running(workers=2, timeout_soft=True).overdue(1)
    ready = "Serving: 2 of 2 workers ready;"
    assert _health(play)[1] == f"{ready} 1 worker with an overdue request."
    play.stalls(2)
    assert _health(play)[1] == (
        f"{ready} 1 worker with a stalled event loop being replaced, 1 worker with an overdue request."
    )


def test_health_while_paused() -> None:
    """A pause is shown as long as it lasts, also before anything was ready."""
    play = running(workers=2).pause().exits(1)
    assert _health(play) == ("paused", "Paused: all workers were asked to leave, 1 worker left.")
    assert health.state(Play(workers=1).start().loaded().pause().fleet.state) == "paused"


def test_health_while_stopping() -> None:
    """A stop has precedence over everything else."""
    play = running(workers=2).pause().stop()
    assert _health(play) == ("stopping", "Stopping: 2 workers left.")


# -- policies -------------------------------------------------------------------------------------------


def test_backoff() -> None:
    """Half a second, doubling, at most 30 seconds, however often it failed."""
    assert [backoff(n) for n in (1, 2, 3, 6, 7, 1000)] == [0.5, 1.0, 2.0, 16.0, 30.0, 30.0]


def test_surge() -> None:
    """A quarter of the fleet, rounded up, or a number; at least one."""
    assert [surge(1, 0.25, n) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert [surge(3, 0.0, 8), surge(1, 0.0, 0), surge(1, 0.1, 10)] == [3, 1, 1]


# -- a fork server that hangs ---------------------------------------------------------------------------


def test_a_start_whose_fork_server_hangs_fails() -> None:
    """The start fails with a reason, instead of waiting for ever."""
    play = Play(workers=2).start().loaded().after(15.0)
    assert play.fork_servers[1].ordered == "kill"
    play.fork_server_exits(1)
    assert play.finished == [
        actions.Finish(True, True, "the fork server has not forked for 10 seconds", None)
    ]


def test_a_stop_does_not_wait_for_a_fork_that_never_comes() -> None:
    """A fork server that hangs with a pending spawn is killed;
    without the worker's process the fleet can end.
    """
    play = running(workers=1).scale(2).stop()
    play.exits(1).unseen.clear()
    play.nothing_until(2.0).then(kill(2))
    play.after(10.0)
    assert play.fork_servers[1].ordered == "kill"
    play.unseen.clear()
    play.fork_server_exits(1).then(FINISH)


def test_a_hung_spare_does_not_delay_the_roll() -> None:
    """Its pending spawns from before the swap end with it; a roll-back is then not possible."""
    play = running(workers=1, probation=60.0, boot_parallelism=2).reload().loaded().scale(2)
    assert [w.generation for w in play.workers.values() if w.slot == 2] == [1]
    play.ready(1).exits(1).ready(2).after(12.0)
    assert play.fork_servers[1].ordered == "kill"
    play.fork_server_exits(1).settled()
    assert play.fleet.state.reload is not None
    assert play.fleet.state.reload.phase is ReloadPhase.DONE


def test_a_withdrawn_spawn_that_is_not_forked_shows_a_hung_fork_server() -> None:
    """Also if the worker is not wanted any more: until its end it takes a place in the budget."""
    play = running(workers=2).scale(3).scale(2).recycle(1)
    play.unseen.clear()
    play.after(10.5)
    assert kill_fork_server(1) in [Cue(cue.what, None, cue.generation) for cue in play.unseen]
    play.fork_server_exits(1).settled()
    assert play.slots() == [1, 2]
    assert len(play.spawned_ever) == 4, "the recycled one has a successor"


def test_a_late_fork_has_its_boot_timeout() -> None:
    """A worker that was forked just before its fork server was given up as hung must also boot in time."""
    play = running(workers=2, boot_timeout=30.0).scale(3).after(10.0)
    play.forked(3).fork_server_exits(1).loaded(1).unseen.clear()
    play.nothing_until(30.0).then(abort(3))
    play.exits(3, signal=6).settled()
    assert play.slots() == [1, 2, 3]


def test_ttou_does_not_end_a_pause() -> None:
    """TTOU does not end a pause."""
    play = running(workers=2).pause().settled().scale_by(-1).then()
    assert health.state(play.fleet.state) == "paused"


def test_a_fork_server_that_reads_nothing() -> None:
    """A spawn that can't be sent is tried again, later each time;
    after ten seconds the fork server is replaced.
    """
    play = running(workers=1).exits(1, signal=9).then(spawn(1))
    began = play.now
    waits = []
    while play.fork_servers[1].ordered is None:
        if asked := [worker_id for worker_id, worker in play.workers.items() if worker.state == "asked"]:
            play.fail_to_fork(asked[0], unread=True)
            continue
        deadline = play.fleet.next_deadline()
        assert deadline is not None
        waits.append(deadline - play.now)
        play.pass_time(deadline - play.now)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert play.now - began == 15.5
    play.reported("fork_server_failed", reason="the fork server has not read for 16 seconds")
    play.settled()
    assert play.slots() == [1]


def test_a_fork_server_that_reads_again() -> None:
    """Earlier times when its channel was full do not count."""
    play = running(workers=1).exits(1, signal=9)
    play.fail_to_fork(max(play.workers), unread=True)
    play.after(0.5).forked(1).ready(1).after(60.0).exits(1, signal=9)
    play.fail_to_fork(max(play.workers), unread=True)
    assert play.fork_servers[1].ordered is None
    play.settled()
    assert play.slots() == [1]
