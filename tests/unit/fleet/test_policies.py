"""Policies for workers that grow, age, crash and hang; zygotes; the number of workers that the load needs."""

from typing import Any

import pytest

from ostler.fleet import events, health
from ostler.fleet.model import ExitStatus, GenerationState, Load
from ostler.fleet.policies import crash_loop, crash_pause, jittered
from tests.kit.play import (
    Play,
    abort,
    audit_zygote,
    drain,
    dump_stack,
    interrupt,
    kill,
    running,
    spawn,
    start_fork_server,
    use_zygote,
)

LIMIT = 1000


# -- memory ---------------------------------------------------------------------------------------------


def test_memory_over_the_limit_for_three_measurements() -> None:
    """One or two measurements above it are a peak;
    after three in a row the worker is recycled, successor first.
    """
    play = running(workers=2, max_memory=LIMIT)
    play.measured(1, memory=LIMIT + 1).measured(1, memory=LIMIT + 1).then()
    play.measured(1, memory=LIMIT).measured(1, memory=LIMIT + 1).measured(1, memory=LIMIT + 1).then()
    play.measured(1, memory=LIMIT + 1).then(spawn(1))
    play.reported("recycle", memory=LIMIT + 1, limit=LIMIT)
    play.ready(1).then(drain(1))


def test_unknown_memory_is_ignored() -> None:
    """A missing measurement neither counts nor resets the count."""
    play = running(workers=1, max_memory=LIMIT)
    for memory in (None, LIMIT + 1, None, LIMIT + 1, None, None):
        play.measured(1, memory=memory)
    play.then()
    play.measured(1, memory=LIMIT + 1).then(spawn(1))


def test_without_a_limit_memory_is_ignored() -> None:
    """max_memory = 0 is no limit."""
    play = running(workers=1)
    for _ in range(5):
        play.measured(1, memory=1 << 60)
    play.then()


def test_all_over_the_limit_go_in_turns_idle_ones_first() -> None:
    """The budget is that of any replacement; idle workers are replaced before busy ones."""
    play = running(workers=4, max_memory=LIMIT, max_surge=1, boot_parallelism=4)
    for _ in range(2):
        play.measured(memory=LIMIT + 1)
    busy = {worker_id: worker.slot in (1, 2) for worker_id, worker in play.workers.items()}
    loads = {n: Load(in_flight=int(b), memory=LIMIT + 1) for n, b in busy.items()}
    play.on(events.Measured(loads)).then(spawn(3))
    play.ready(3).exits(3).then(drain(3), spawn(4))
    play.ready(4).exits(4).then(drain(4), spawn(1))


# -- age ------------------------------------------------------------------------------------------------


def test_age() -> None:
    """A worker that has served max_age plus its own jitter is recycled, successor first."""
    play = running(workers=1, max_age=100.0, max_age_jitter=20.0)
    play.nothing_until(110.0).then(spawn(1))
    play.reported("recycle", age=110.0)
    play.ready(1).then(drain(1))


def test_age_counts_from_ready() -> None:
    """The boot time is not part of it."""
    play = Play(workers=1, max_age=100.0).start().loaded().forked(1).after(50.0).ready(1)
    play.unseen.clear()
    play.nothing_until(100.0).then(spawn(1))


def test_age_of_a_leaving_worker() -> None:
    """A worker that is already leaving does not get a second cause."""
    play = running(workers=1, max_age=100.0).recycle_due(1).then(spawn(1))
    play.forked(1).after(59.0).then()
    play.ready(1).exits(1).then(drain(1))
    play.after(50.0).then()


# -- crashes --------------------------------------------------------------------------------------------


def test_first_crashes_are_repaired_at_once() -> None:
    """Three crashes within a minute are not a crash loop: each gets a successor immediately."""
    play = running(workers=2)
    for _ in range(3):
        play.crashes(1).then(spawn(1)).ready(1)
    assert health.state(play.fleet.state) == "ready"


def test_a_crash_loop_is_paced_and_reported() -> None:
    """From the fourth crash on each successor waits longer; the state is degraded, with a reason."""
    play = running(workers=2)
    waits = []
    for _ in range(10):
        play.crashes(1)
        before = play.now
        while not any(worker.state == "asked" for worker in play.workers.values()):
            deadline = play.fleet.next_deadline()
            assert deadline is not None
            play.pass_time(deadline - play.now)
        waits.append(round(play.now - before, 3))
        play.ready(1)
    assert waits == [0.0, 0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert health.state(play.fleet.state) == "degraded"
    expected = "workers crashed 10 times within a minute, the last one ended with signal 11"
    assert expected in health.sentence(play.fleet.state)
    play.after(61.0).measured()
    assert health.state(play.fleet.state) == "ready"


def test_the_crash_of_one_says_its_request() -> None:
    """The request during which it crashed is named."""
    play = running(workers=1)
    for _ in range(4):
        worker_id = play._serving(1)
        del play.workers[worker_id]
        play.on(events.WorkerExited(worker_id, ExitStatus(signal=11), request="GET /poison"))
        play.settled()
    assert "ended with signal 11 (last request: GET /poison)" in health.sentence(play.fleet.state)


def test_crashes_do_not_extend_a_pause() -> None:
    """Further crashes do not extend the pause, and successors boot."""
    play = running(workers=8, boot_parallelism=8)
    for _ in range(12):
        play.crashes(1).settle(10.0)
    play.unseen.clear()
    play.crashes(1)
    first = play.fleet.next_deadline()
    play.crashes(2)
    assert play.fleet.next_deadline() == first
    assert first is not None
    play.after(first - play.now).then(spawn(1), spawn(2))


def killed(play: Play, slot: int) -> Play:
    return play.exits(slot, signal=9, outsider=True)


def test_outsiders_do_not_make_a_crash_loop() -> None:
    """Workers that an administrator kills by hand are replaced at once."""
    play = running(workers=1)
    for _ in range(30):
        killed(play, 1).then(spawn(1)).ready(1)
    assert health.state(play.fleet.state) == "ready"


def test_all_workers_of_a_large_fleet_may_be_killed() -> None:
    """Each gets its successor at once, also when all are killed once more."""
    play = running(workers=64, boot_parallelism=64)
    for state in ("ready", "degraded"):
        for slot in range(1, 65):
            killed(play, slot).then(spawn(slot))
        play.ready(*range(1, 65))
        assert health.state(play.fleet.state) == state


def test_kills_that_do_not_end_are_paced() -> None:
    """An app that kills its own worker looks like an outsider: more than 30 a minute count as crashes."""
    play = running(workers=2)
    waits = []
    for _ in range(40):
        killed(play, 1)
        before = play.now
        while not any(worker.state == "asked" for worker in play.workers.values()):
            deadline = play.fleet.next_deadline()
            assert deadline is not None
            play.pass_time(deadline - play.now)
        waits.append(round(play.now - before, 3))
        play.ready(1)
    assert waits == [0.0] * 33 + [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert health.state(play.fleet.state) == "degraded"
    assert "workers were killed 40 times within a minute, and not by Ostler" in health.sentence(
        play.fleet.state
    )
    play.after(61.0).measured()
    assert health.state(play.fleet.state) == "ready"
    play.unseen.clear()
    killed(play, 1).then(spawn(1))


def test_kills_and_crashes_add_up() -> None:
    """Those of each kind that exceed their allowance are added."""
    play = running(workers=1)
    for _ in range(31):
        killed(play, 1).ready(1)
    for _ in range(2):
        play.crashes(1).ready(1)
    play.unseen.clear()
    play.crashes(1).then()


def test_a_kill_among_crashes() -> None:
    """Crashes lead to pauses; a kill by an administrator meanwhile is repaired at once."""
    play = running(workers=1)
    for _ in range(5):
        play.crashes(1)
        if not any(worker.state == "asked" for worker in play.workers.values()):
            play.after(1.5)
        play.ready(1)
    play.unseen.clear()
    killed(play, 1).then(spawn(1))


def test_an_upgrade_remembers_kills() -> None:
    """The pauses are the same in the program that takes over."""
    play = running(workers=1)
    for _ in range(33):
        killed(play, 1).ready(1)
    play.on(events.UpgradeAsked("test")).check_upgrade()
    play.take_over()
    assert len(play.fleet.state.kills) == 33


def test_crash_pause() -> None:
    """No pause for a few crashes, then doubling up to five seconds, or to one if no worker is left."""
    assert [crash_pause(n, 2, 2) for n in range(1, 6)] == [0, 0, 0, 0.1, 0.2]
    assert [crash_pause(1000, 8, ready) for ready in (8, 4, 0)] == [5.0, 2.0, 1.0]
    assert crash_pause(64, 64, 60) == 0
    assert crash_pause(1, 0, 0) == 0


def test_crash_loop() -> None:
    """More than three crashes, and more than a quarter of the workers."""
    assert next(n for n in range(30) if crash_loop(n, 2)) == 4
    assert next(n for n in range(30) if crash_loop(n, 64)) == 17


def test_jitter() -> None:
    """Between minus and plus a quarter."""
    assert [jittered(8.0, random) for random in (0.0, 0.5, 1.0)] == [6.0, 8.0, 10.0]


# -- requests that hang ---------------------------------------------------------------------------------

SOFT: dict[str, Any] = {"workers": 1, "timeout_soft": True, "timeout_grace": 2.0}


def test_an_overdue_request_is_first_ended_alone() -> None:
    """By an exception in its thread; if that ends it, the worker stays."""
    play = running(**SOFT).overdue(1).then(dump_stack(1), interrupt(1))
    play.after(1.0).overdue_ended(1).reported("overdue_ended", slot=1, seconds_late=1.0).after(60.0).then()
    assert play.slots() == [1]


def test_a_request_that_does_not_end_softly() -> None:
    """After timeout_grace the successor boots;
    then the old worker drains, and is aborted if only that request is left.
    """
    play = running(**SOFT).overdue(1).then(dump_stack(1), interrupt(1))
    play.nothing_until(2.0).then(spawn(1))
    play.ready(1).then(drain(1))
    play.only_overdue_left(1).then(abort(1))


def test_a_request_that_ends_while_its_worker_drains() -> None:
    """No worker is aborted for a request that has ended: the others are finished."""
    play = running(**SOFT).overdue(1).after(2.0).ready(1)
    play.overdue_ended(1)
    play.unseen.clear()
    play.after(29.0).then()


def test_a_loop_that_stands_still() -> None:
    """The worker is replaced like one with a hung request, beyond the budget, without waiting for it."""
    play = running(workers=2, max_surge=1, boot_parallelism=2).recycle_due(2).then(spawn(2))
    play.stalls(1).then(spawn(1))
    play.after(3.0).then()
    play.ready(1).then(abort(1))
    play.nothing_until(1.0).then(kill(1))


# -- zygotes ------------------------------------------------------------------------------------------


def refork(**policy: Any) -> Play:
    """A fleet of two whose worker 1 is asked to become the zygote."""
    play = running(**{"workers": 2} | policy).measured(1, requests=10).refork()
    return play.then(audit_zygote(1))


def test_refork() -> None:
    """The audited worker's successor boots, the audited one drains and becomes the fork server;
    the others are replaced.
    """
    play = refork().audited(1).then(spawn(1))
    play.ready(1).then(drain(1))
    play.zygote_ready(1).then(use_zygote(1, 1), spawn(1))
    play.reported("refork_done", by="test")
    play.settled()
    assert play.slots(1) == [1, 2]
    assert {worker.zygote for worker in play.fleet.state.workers.values()} == {1}


def test_refork_refused_by_the_audit() -> None:
    """Threads and sockets are named; the worker continues to serve."""
    play = refork().audited(1, "a thread is alive: reaper").then()
    play.reported("refork_refused", problem="a thread is alive: reaper", by="test")
    assert play.slots() == [1, 2]


def test_refork_refused_by_the_second_audit() -> None:
    """The drained worker has a problem: it is reported, `refork_after` begins no other one."""
    play = refork(refork_after=(20,)).audited(1).ready(1).then(spawn(1), drain(1))
    play.audit(1, ("a thread is alive: reaper",))
    play.reported("refork_refused", problem="a thread is alive: reaper", by="test")
    assert play.fleet.state.refork is None
    play.exits(1, code=0).measured(2, requests=30).then()


def test_refork_by_force() -> None:
    """With force, what the audit finds is a warning."""
    play = (
        running(workers=1).refork(force=True).audited(1, "a thread is alive").then(audit_zygote(1), spawn(1))
    )
    play.reported("refork_warning", problem="a thread is alive")


def test_refork_without_an_answer() -> None:
    """A worker whose audit does not end within ten seconds continues to serve."""
    play = refork().nothing_until(10.0)
    play.reported("refork_refused", by="test")
    play.audited(1).then()


def test_zygote_that_dies() -> None:
    """The fork server before it still exists; the failure is reported."""
    play = refork().audited(1).ready(1).exits(1, signal=9)
    play.reported("refork_refused", by="test")
    play.settled()
    assert play.slots() == [1, 2]


@pytest.mark.parametrize("what", ["reload", "stop"])
def test_refork_that_something_comes_in_between(what: str) -> None:
    """A reload or a stop ends the refork; that is reported, and the worker that was to be the zygote ends."""
    play = refork().audited(1).ready(1)
    getattr(play, what)()
    play.reported("refork_refused", by="test")
    play.unseen.clear()
    worker_id = next(n for n, w in play.workers.items() if w.ordered == "zygote")
    play.zygote_ready(1)
    assert play.workers[worker_id].ordered == "kill"


def test_refork_after() -> None:
    """The worker that has served most becomes the zygote after this number of requests;
    counting starts again then.
    """
    play = running(workers=2, refork_after=(100, 500))
    play.measured(1, requests=99).measured(2, requests=98).then()
    play.measured(2, requests=100).then(audit_zygote(2))
    play.settled()
    play.measured(requests=100).measured(requests=499).then()
    play.measured(1, requests=500).then(audit_zygote(1))
    play.settled()
    play.measured(requests=10_000).then()
    assert play.fleet.state.generations[1].zygote == 2


def test_refork_that_was_refused_is_not_tried_again_unasked() -> None:
    """An app with a thread has it in each worker; trying each second would only fill the log."""
    play = running(workers=2, refork_after=(100,)).measured(1, requests=100).audited(1, "a thread")
    play.unseen.clear()
    play.measured(requests=200).then()
    play.refork(slot=2).then(audit_zygote(2))


def test_fork_server_that_dies_after_a_refork() -> None:
    """The app is loaded again, without the zygote's caches; workers continue to serve."""
    play = refork().settled().fork_server_exits().then(start_fork_server(1))
    play.settled()
    assert play.slots() == [1, 2]
    assert play.fleet.state.generations[1].state is GenerationState.UP


# -- the number that the load asks for ------------------------------------------------------------------

RANGE: dict[str, Any] = {"workers": 2, "workers_most": 6, "autoscale_cooldown": 10.0, "boot_parallelism": 4}


def seconds_of(play: Play, seconds: int, **load: Any) -> Play:
    for _ in range(seconds):
        play.after(1.0).measured(**load)
        while play.step():
            pass
    return play


def test_load_decides() -> None:
    """Busy workers get more beside them, idle ones are removed after the cool-down;
    each decision has a reason.
    """
    play = running(**RANGE)
    seconds_of(play, 3, busy=0.9, rate=10.0)
    play.reported("autoscale", workers=3, before=2, reason="busy 90 % (70 % wanted) over 3 s")
    assert play.slots() == [1, 2, 3]
    seconds_of(play, 25, busy=0.1)
    play.reported("autoscale", workers=2, before=3)
    assert play.slots() == [1, 2]


def test_a_number_set_by_hand_counts() -> None:
    """It counts until it is withdrawn, whatever the load is."""
    play = running(**RANGE).scale(1).settled()
    seconds_of(play, 10, busy=1.0, rate=10.0)
    assert play.slots() == [1]
    play.on(events.ResizeAsked("test"))
    seconds_of(play, 10, busy=1.0, rate=10.0)
    assert len(play.slots()) >= 4


def test_the_number_survives_a_reload_within_the_new_range() -> None:
    """The number that the load has led to is kept; a new range applies at once."""
    play = seconds_of(running(**RANGE), 20, busy=1.0, rate=10.0)
    assert play.fleet.state.wanted == 6
    play.reload().settled()
    assert play.fleet.state.wanted == 6
    play.reload().configured(**RANGE | {"workers_most": 4}).settled()
    assert play.slots() == [1, 2, 3, 4]
    play.reload().configured(workers=2).settled()
    assert play.slots() == [1, 2]


def test_no_more_than_memory_has_room_for() -> None:
    """When more are needed and do not fit into memory, that is reported once."""
    play = running(**RANGE)
    seconds_of(play, 10, busy=1.0, rate=10.0, memory=100 << 20, memory_free=100 << 20)
    play.reported("autoscale", workers=2, before=2)
    assert len([report for report in play.reports if report.name == "autoscale"]) == 1
    assert play.slots() == [1, 2]


def test_a_worker_scaled_down_during_its_audit_drains() -> None:
    """If it is scaled down before the audit's answer it ends,
    because an unaudited worker is not forked from.
    """
    play = running(workers=2).refork(slot=2).scale(1)
    assert [worker.ordered for worker in play.workers.values() if worker.slot == 2] == ["drain"]
    play.exits(2)
    play.reported("refork_refused", by="test")


def test_a_zygote_ends_the_wait_for_a_fork_server() -> None:
    """It can fork at once, whatever state the fork server before it was in."""
    play = refork().audited(1).ready(1).fork_server_exits(1).fork_server_exits(1)
    play.unseen.clear()
    play.zygote_ready(1).then(use_zygote(1, 1), spawn(1))
