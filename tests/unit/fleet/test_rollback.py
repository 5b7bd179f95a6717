"""The conditions that a reload must meet, before the swap and after it; and upgrades in place.
One rule per test.
"""

from typing import Any

import pytest

from ostler.fleet import events, health
from ostler.fleet.model import ExitStatus, GenerationState, ReloadPhase
from tests.kit.play import (
    CHECK_UPGRADE,
    UPGRADE,
    Play,
    cancel,
    drain,
    dump_stack,
    load_app,
    reload_ended,
    rolled_back,
    running,
    spawn,
    start_fork_server,
    stop_fork_server,
)
from tests.kit.policies import fleet_policy

PROBATION: dict[str, Any] = {
    "workers": 2,
    "boot_parallelism": 2,
    "max_surge": 2,
    "probation": 10.0,
    "rollback_crashes": 2,
}


def canary(**policy: Any) -> Play:
    """A fleet of two whose reload waits until its canary has lived for canary_time."""
    play = running(**{"workers": 2, "canary_time": 5.0} | policy)
    play.reload().loaded().then(start_fork_server(2), load_app(2), spawn(1, 2))
    return play.ready(1)


def reloaded(**policy: Any) -> Play:
    """A fleet of two, both of a new generation that is on probation."""
    play = running(**PROBATION | policy).reload().loaded()
    play.ready(1, 2).exits(1).exits(2)
    assert play.fleet.state.reload is not None
    assert play.fleet.state.reload.phase is ReloadPhase.DONE
    play.unseen.clear()
    return play


def phase(play: Play) -> ReloadPhase:
    assert play.fleet.state.reload is not None
    return play.fleet.state.reload.phase


# -- the canary -----------------------------------------------------------------------------------------


def test_canary_must_live() -> None:
    """The old generation is not affected before the first new worker has lived for canary_time."""
    play = canary()
    play.nothing_until(5.0).then(stop_fork_server(1), drain(1, 1))
    assert phase(play) is ReloadPhase.ROLLING


def test_canary_that_crashes_fails_the_reload() -> None:
    """If it dies in that time the reload fails, and the death is the reason."""
    play = canary()
    play.after(4.0).crashes(1).then(stop_fork_server(2), reload_ended(2))
    play.reported("reload_failed", reason="the first new worker ended with signal 11")
    assert play.slots(1) == [1, 2]
    play.fork_server_exits(2).after(60.0).then()
    assert health.state(play.fleet.state) == "ready"


def test_canary_with_a_hung_request_fails_the_reload() -> None:
    """A canary with an overdue request fails the reload, although it is alive."""
    play = canary(timeout_grace=0.0)
    worker_id = play._serving_newest(1)
    play.on(events.RequestOverdue(worker_id, 0, "GET", "/slow", 30.0)).then(
        dump_stack(1), stop_fork_server(2), reload_ended(2), drain(1, 2)
    )
    play.reported("reload_failed", reason="the first new worker did not answer in time")


def test_canary_with_a_hung_request_that_is_due_fails_the_reload() -> None:
    """Also if it is leaving to be recycled."""
    play = canary()
    worker_id = play._serving_newest(1)
    play.on(events.RecycleDue(worker_id, 1)).on(events.RequestOverdue(worker_id, 0, "GET", "/slow", 30.0))
    play.reported("reload_failed", reason="the first new worker did not answer in time")


def test_recycling_slot_1_while_a_canary_lives() -> None:
    """The worker of the current generation is replaced, whether or not the reload succeeds."""
    play = canary(max_surge=2)
    old = play._serving(1)
    play.recycle(1).then(spawn(1, 1))
    play.ready(1)
    assert play.workers[old].ordered == "drain"


def test_canary_that_stalls_fails_the_reload() -> None:
    """The same for a canary whose loop is stalled."""
    play = canary()
    play.stalls(1).then(stop_fork_server(2), reload_ended(2), drain(1, 2))
    play.reported("reload_failed", reason="the first new worker serves no more")


def test_canary_killed_by_an_outsider_is_tried_again() -> None:
    """That does not count against the new code: another canary is spawned, and its time starts again."""
    play = canary()
    play.after(4.0).exits(1, signal=9, outsider=True).then(spawn(1, 2))
    play.ready(1).nothing_until(5.0).then(stop_fork_server(1), drain(1, 1))


def test_canary_that_is_killed_again_and_again_fails_the_reload() -> None:
    """New code that kills its own worker fails its reload; it is not tried without limit."""
    play = canary()
    for _ in range(30):
        play.exits(1, signal=9, outsider=True).then(spawn(1, 2)).ready(1)
    play.exits(1, signal=9, outsider=True).then(stop_fork_server(2), reload_ended(2))
    reason = "its first worker was killed again and again, the last one ended with signal 9"
    play.reported("reload_failed", reason=reason)


def test_canary_that_is_due_for_recycling_counts() -> None:
    """A small max_requests is no failure: the canary is promoted, and replaced like any other later."""
    play = canary(boot_parallelism=1)
    worker_id = play._serving_newest(1)
    play.on(events.RecycleDue(worker_id, 10)).nothing_until(5.0)
    assert phase(play) is ReloadPhase.ROLLING
    play.settled()
    assert play.slots(2) == [1, 2]
    assert worker_id not in play.workers


def test_old_worker_that_boots_after_the_canary() -> None:
    """It serves the slot, also if the canary must leave when it is promoted, and the roll continues."""
    play = canary(workers=1).recycle(1).pause().on(events.ResizeAsked("test"))
    play.settled()
    assert phase(play) is ReloadPhase.DONE
    assert play.slots(2) == [1]


def test_canaries_that_failed_do_not_keep_a_place_for_each_other() -> None:
    """While no other worker serves in slot 1 only the last of them stays: two would fill max_surge."""
    play = canary(max_surge=1)
    play.reap(play._serving(1), ExitStatus(signal=11))
    play.boot_fails(1).reload().loaded().ready(1).fork_server_exits(3).settled()
    assert phase(play) is ReloadPhase.FAILED
    assert play.slots(1) == [1, 2]


# -- probation ------------------------------------------------------------------------------------------


def test_old_fork_server_is_the_spare_on_probation() -> None:
    """It is kept until the probation is over, counted from the end of the roll, and then ended."""
    play = running(**PROBATION).reload().loaded()
    play.ready(1).then(start_fork_server(2), load_app(2), spawn(1, 2), drain(1, 1), spawn(2, 2))
    assert play.fleet.state.generations[1].state is GenerationState.SPARE
    play.exits(1).after(9.0).ready(2).exits(2).then(drain(2, 1), reload_ended(2))
    play.nothing_until(10.0).then(stop_fork_server(1))


def test_without_probation_the_old_fork_server_ends_at_once() -> None:
    """With probation = 0 there is no roll-back, and no memory is used for it."""
    play = running(**PROBATION | {"probation": 0.0}).reload().loaded()
    play.ready(1).then(
        start_fork_server(2), load_app(2), spawn(1, 2), stop_fork_server(1), drain(1, 1), spawn(2, 2)
    )


def test_crashes_on_probation_roll_back() -> None:
    """The old generation fills the slots again; new workers serve until their successors are ready."""
    play = reloaded().after(3.0)
    play.crashes(1).then(spawn(1, 2))
    play.ready(1).crashes(2).then(stop_fork_server(2), rolled_back(2), spawn(2, 1), spawn(1, 1))
    assert phase(play) is ReloadPhase.ROLLED_BACK
    play.reported("reload_rolled_back", generation=2, back_to=1)
    play.reported("reload_rolled_back", reason="its workers crashed 2 times, last: ended with signal 11")
    play.ready(2).then()
    play.ready(1).then(drain(1, 2))
    play.settled()
    assert play.slots(1) == [1, 2]
    assert list(play.fleet.state.generations) == [1]


def test_without_preload_an_old_worker_is_the_spare() -> None:
    """Only workers have the old code then: the first one that leaves becomes the spare fork server."""
    play = running(**PROBATION | {"preload": False}).reload().loaded().ready(1)
    play.zygote_ready(1).reported("standby", slot=1, generation=1)
    play.ready(2).exits(2)
    assert phase(play) is ReloadPhase.DONE
    assert play.fleet.state.generations[1].state is GenerationState.SPARE
    play.crashes(1).ready(1).crashes(2)
    assert phase(play) is ReloadPhase.ROLLED_BACK
    play.settled()
    assert play.slots(1) == [1, 2]
    assert not any(worker.leaving for worker in play.fleet.state.workers.values())


def test_rollback_waits_for_the_old_code() -> None:
    """While that worker drains nothing is forked:
    other fork servers would load the code that is on the disk now.
    """
    play = running(**PROBATION | {"preload": False}).reload().loaded().ready(1)
    play.crashes(1).ready(1).unseen.clear()
    play.crashes(1).then(stop_fork_server(2), reload_ended(2), cancel(2, 2))
    play.fork_server_exits(2)
    play.nothing_until(2.0).then(spawn(1, 1))


def test_old_worker_that_can_not_be_the_spare() -> None:
    """If it ends instead (e.g. because threads can't be forked) that is reported once; no other is tried."""
    play = running(**PROBATION | {"preload": False}).reload().loaded().ready(1)
    play.exits(1).reported("standby_failed", slot=1, generation=1)
    play.ready(2)
    assert play.workers[2].ordered == "drain"


def test_rollback_during_the_roll_ends_the_reload() -> None:
    """The running reload ends as rolled back; old workers that still serve stay."""
    play = running(**PROBATION | {"workers": 3, "max_surge": 1}).reload().loaded()
    play.ready(1).exits(1).unseen.clear()
    play.crashes(1).then(spawn(1, 2))
    play.ready(1).unseen.clear()
    play.crashes(1)
    assert reload_ended(2) in [type(cue)(cue.what, None, cue.generation) for cue in play.unseen]
    assert phase(play) is ReloadPhase.ROLLED_BACK
    assert not [cue for cue in play.unseen if cue.what == "Drain"]
    play.settled()
    assert play.slots(1) == [1, 2, 3]


def test_one_crash_is_not_enough() -> None:
    """rollback_crashes is the number of crashes; below it the probation passes."""
    play = reloaded().crashes(1).settled()
    assert phase(play) is ReloadPhase.DONE
    assert play.slots(2) == [1, 2]
    assert list(play.fleet.state.generations) == [2]


def test_usual_crashes_do_not_roll_back() -> None:
    """An app that crashed twice in ten seconds before is not rolled back for two crashes; for three it is."""
    play = running(**PROBATION | {"boot_parallelism": 4})
    play.crashes(1, 2).ready(1, 2).reload().loaded().ready(1, 2).exits(1).exits(2)
    play.crashes(1, 2).ready(1, 2)
    assert phase(play) is ReloadPhase.DONE
    play.crashes(1)
    assert phase(play) is ReloadPhase.ROLLED_BACK


def test_crashes_far_apart_do_not_roll_back() -> None:
    """A roll may take much longer than the probation:
    crashes are counted over the same time as those before it.
    """
    play = running(**PROBATION | {"probation": 5.0, "max_surge": 1}).reload().loaded()
    play.ready(1).crashes(1).after(6.0).ready(1).crashes(1)
    assert phase(play) is ReloadPhase.ROLLING
    play.ready(1).crashes(1)
    assert phase(play) is ReloadPhase.ROLLED_BACK


def test_long_probation_is_compared_with_as_long_a_time() -> None:
    """Only the last minute before is known; for five minutes five times as many crashes are assumed."""
    play = running(**PROBATION | {"probation": 300.0, "boot_parallelism": 4})
    play.crashes(1).ready(1).reload().loaded().ready(1, 2).exits(1).exits(2)
    for _ in range(5):
        play.after(40.0).crashes(1).ready(1)
    assert phase(play) is ReloadPhase.DONE
    play.crashes(1)
    assert phase(play) is ReloadPhase.ROLLED_BACK


def test_kills_by_an_outsider_do_not_roll_back() -> None:
    """A kill -9 from outside, or by the kernel for memory, does not count against the new code."""
    play = reloaded()
    for _ in range(32):
        play.exits(1, signal=9, outsider=True).ready(1)
    assert phase(play) is ReloadPhase.DONE


def test_crashes_after_the_probation_do_not_roll_back() -> None:
    """A roll-back is not possible any more; workers are replaced as usual."""
    play = reloaded().after(10.0).fork_server_exits(1).crashes(1, 2).settled()
    assert phase(play) is ReloadPhase.DONE
    assert play.slots(2) == [1, 2]


def test_errors_on_probation_roll_back() -> None:
    """If configured: the rate of 5xx answers exceeds the rate before by the margin, with enough answers."""
    play = running(**PROBATION | {"rollback_error_rate": 0.05})
    play.measured(requests=500, errors=10)
    play.reload().loaded().ready(1, 2).exits(1).exits(2)
    play.measured(requests=24, errors=24)
    assert phase(play) is ReloadPhase.DONE, "48 answers are too few"
    play.measured(requests=500, errors=34)
    assert phase(play) is ReloadPhase.DONE, "6.8 % are no 5 % more than 2 %"
    play.measured(requests=1000, errors=80)
    assert phase(play) is ReloadPhase.ROLLED_BACK
    play.reported("reload_rolled_back", reason="8.0 % of its answers are errors, 2.0 % were before")


def test_code_that_is_not_kept() -> None:
    """If no old worker could be kept, new ones load the app's files from the disk,
    and the reason mentions that.
    """
    reloaded(preload=False).exits(1, signal=11).exits(2, signal=11).reported(
        "reload_rolled_back",
        reason="its workers crashed 2 times, last: ended with signal 11; new workers load the app from its "
        "files as they are now, because no old worker could be kept to fork them from",
    )


def test_errors_do_not_roll_back_by_default() -> None:
    """By default the error rate does not matter: a new version may answer 503 on purpose."""
    play = reloaded().measured(requests=1000, errors=1000)
    assert phase(play) is ReloadPhase.DONE


def test_second_reload_on_probation() -> None:
    """At most one spare is kept: the fork server of the generation before the newest."""
    play = reloaded().reload().loaded().ready(1)
    standing_by = [n for n, g in play.fleet.state.generations.items() if g.state is GenerationState.SPARE]
    assert standing_by == [2]
    play.settled()
    assert play.slots(3) == [1, 2]


def test_spare_that_dies() -> None:
    """A spare that dies is not replaced; without it there is no roll-back."""
    play = reloaded().fork_server_exits(1).then()
    play.crashes(1).ready(1).crashes(2).settled()
    assert phase(play) is ReloadPhase.DONE
    assert play.slots(2) == [1, 2]


def test_no_way_back_to_closed_listeners() -> None:
    """A generation whose addresses are not bound any more can't serve, so it is not kept."""
    play = running(**PROBATION).reload()
    play.configure(2, closes_listeners=True)
    play.app_loaded().ready(1)
    assert play.fleet.state.generations[1].state is GenerationState.RETIRING


def test_rollback_brings_the_old_number_back() -> None:
    """The old configuration applies again, including its number of workers."""
    play = running(**PROBATION).reload()
    play.configure(2, fleet_policy(**PROBATION | {"workers": 4}))
    play.app_loaded()
    while play.step():
        pass
    assert play.fleet.state.wanted == 4
    play.crashes(1).ready(1).crashes(1)
    assert phase(play) is ReloadPhase.ROLLED_BACK
    assert play.fleet.state.wanted == 2
    play.settled()
    assert play.slots() == [1, 2]


# -- upgrades in place ----------------------------------------------------------------------------------


def test_upgrade() -> None:
    """The new program is checked, executed with all the state, then everything is loaded again."""
    play = running(workers=2)
    play.upgrade_asked().then(CHECK_UPGRADE)
    play.upgrade_checked().then(UPGRADE)
    play.taken_over().then(start_fork_server(2))
    play.reported("upgraded", version="2").reported("reload", by="upgrade")
    play.settled()
    assert play.slots(2) == [1, 2]


@pytest.mark.parametrize("when", ["checking", "replacing"])
def test_upgrade_that_can_not_be(when: str) -> None:
    """A program that would not start, or can't be executed, changes nothing; another attempt is possible."""
    play = running(workers=2).upgrade_asked()
    if when == "replacing":
        play.upgrade_checked().taken_over("permission denied")
    else:
        play.upgrade_checked("permission denied")
    play.reported("upgrade_failed", problem="permission denied")
    assert play.slots(1) == [1, 2]
    play.unseen.clear()
    play.upgrade_asked().then(CHECK_UPGRADE)


def test_upgrades_do_not_overlap() -> None:
    """An upgrade during another one or a reload is refused, and the refusal is reported."""
    play = running().upgrade_asked().then(CHECK_UPGRADE)
    play.upgrade_asked().then()
    play.reported("upgrade_failed", problem="another upgrade is running")
    play.upgrade_checked("no").reload().unseen.clear()
    play.upgrade_asked().then()
    play.reported("upgrade_failed", problem="a reload is running")


def test_stop_ends_an_upgrade_that_is_checked() -> None:
    """The end of the upgrade is reported, and a late answer starts nothing."""
    play = running().upgrade_asked().stop()
    play.reported("upgrade_failed", problem="the daemon stops")
    play.unseen.clear()
    play.upgrade_checked().then()


# -- what fails to start on probation -------------------------------------------------------------------


def test_roll_whose_fork_server_can_not_be_loaded_again() -> None:
    """It would wait for ever: after the third failure in a row it is rolled back, which is reported."""
    play = running(**PROBATION | {"max_surge": 1}).reload().loaded().ready(1).fork_server_exits(2)
    for _ in range(2):
        assert phase(play) is ReloadPhase.ROLLING
        play.after(5.0).generation_failed(2, "boom").fork_server_exits(2)
    assert phase(play) is ReloadPhase.ROLLED_BACK
    play.reported("reload_rolled_back", reason="boom")
    play.settled()
    assert play.slots(1) == [1, 2]
    assert list(play.fleet.state.generations) == [1]


def test_roll_whose_fork_server_can_not_be_loaded_again_without_a_way_back() -> None:
    """Then the reload has failed; the fleet continues to try."""
    play = running(workers=2).reload().loaded().ready(1).fork_server_exits(2)
    for _ in range(2):
        play.after(5.0).generation_failed(2, "boom").fork_server_exits(2)
    assert phase(play) is ReloadPhase.FAILED
    play.settled()
    assert play.slots(2) == [1, 2]


def test_fork_servers_that_die_later_do_not_roll_back() -> None:
    """The death of a fork server that could fork does not count against the code that it has loaded."""
    play = reloaded(probation=60.0)
    for _ in range(5):
        play.fork_server_exits(2).after(8.0).loaded(2)
    assert phase(play) is ReloadPhase.DONE


def test_boots_that_fail_on_probation_roll_back() -> None:
    """Also when all workers were replaced: successors that can't boot count like crashes."""
    play = reloaded().exits(1, signal=9, outsider=True)
    for wait in (1.0, 2.0, 4.0):
        assert phase(play) is ReloadPhase.DONE
        play.boot_fails(1, "boom").after(wait)
    assert phase(play) is ReloadPhase.ROLLED_BACK
    play.settled()
    assert play.slots(1) == [1, 2]


def test_fork_server_deaths_long_apart() -> None:
    """A fork server that served for minutes and is killed is replaced at once, also the tenth time."""
    play = running(workers=1)
    for _ in range(10):
        play.after(61.0).fork_server_exits(1).then(start_fork_server(1)).loaded(1).unseen.clear()


# -- what a roll back brings back -----------------------------------------------------------------------


def after_roll_back(play: Play) -> Play:
    """The existing workers of the newest generation crash."""
    play.settle_processes()
    while play.fleet.state.probation is not None:
        play.crashes(1).settle_processes()
    assert phase(play) is ReloadPhase.ROLLED_BACK
    return play.settled()


def test_old_workers_that_still_serve_stay() -> None:
    """Workers that had to leave only for the reload stay: a roll-back boots no more than it must."""
    play = running(**PROBATION | {"workers": 3, "max_surge": 1}).reload().loaded()
    old = {play._serving(2), play._serving(3)}
    play.ready(1).exits(1).unseen.clear()
    play.crashes(1).ready(1).crashes(1).settled()
    assert phase(play) is ReloadPhase.ROLLED_BACK
    assert play.slots(1) == [1, 2, 3]
    assert old <= play.workers.keys()


def test_old_workers_that_must_go_anyway_go_after_a_roll_back() -> None:
    """A worker that had reached max_requests before or during the reload is still replaced."""
    play = running(**PROBATION | {"workers": 3, "max_surge": 1}).reload().loaded()
    due, stays = play._serving(2), play._serving(3)
    play.ready(1).exits(1).recycle_due(2).unseen.clear()
    play.crashes(1).ready(1).crashes(1).settled()
    assert play.slots(1) == [1, 2, 3]
    assert due not in play.workers
    assert stays in play.workers


def test_rollback_brings_the_number_set_by_hand_back() -> None:
    """A new number in the configuration ended it; it is restored with the old configuration."""
    play = running(**PROBATION).scale(3).settled().reload()
    play.configured(**PROBATION | {"workers": 1})
    assert after_roll_back(play).fleet.state.override == 3
    assert play.slots(1) == [1, 2, 3]


def test_number_set_by_hand_on_probation_survives_a_roll_back() -> None:
    """The number that was set last counts."""
    play = running(**PROBATION).reload().configured(**PROBATION | {"workers": 1}).settle_processes()
    play.scale(4)
    assert after_roll_back(play).slots(1) == [1, 2, 3, 4]


def test_rollback_brings_the_number_the_load_asked_for_back() -> None:
    """After a fixed number in between, autoscaling does not begin with the minimum again."""
    play = running(**PROBATION | {"workers_most": 6})
    play.fleet.state.autoscaled = 5
    play.settled().reload().configured(**PROBATION | {"workers": 3})
    assert after_roll_back(play).fleet.state.wanted == 5


# -- reloads and pauses ---------------------------------------------------------------------------------


def test_a_pause_during_a_reload_holds() -> None:
    """It was requested last. The new generation takes over, without workers."""
    play = running(workers=2).reload().loaded().pause().settled()
    assert phase(play) is ReloadPhase.DONE
    assert health.state(play.fleet.state) == "paused"
    assert play.slots() == []
    play.scale(2).settled()
    assert play.slots(2) == [1, 2]


def test_an_upgrade_does_not_end_a_pause() -> None:
    """No workers are wanted after it."""
    play = running(workers=2).pause().settled().upgrade_asked().settled()
    play.reported("upgraded")
    assert health.state(play.fleet.state) == "paused"
    assert play.slots() == []


# -- a roll-back that is asked for --------------------------------------------------------------------------


def test_asked_for_on_probation() -> None:
    """It follows the rules of a roll-back that the fleet decides on."""
    play = reloaded().rollback().then(stop_fork_server(2), rolled_back(2), spawn(1, 1), spawn(2, 1))
    play.reported("reload_rolled_back", reason="asked by test", back_to=1)
    play.ready(1, 2).settled()
    assert play.slots(1) == [1, 2]
    assert phase(play) is ReloadPhase.ROLLED_BACK


@pytest.mark.parametrize("probation", [0.0, 10.0])
def test_a_kept_generation(probation: float) -> None:
    """With keep_generations it can be asked for until the next reload; crashes don't cause it any more."""
    play = reloaded(probation=probation, keep_generations=1).after(3600.0).then()
    play.crashes(1).settled().crashes(1).settled().crashes(1).settled()
    assert play.fleet.state.current == 2
    play.rollback().settled()
    assert play.slots(1) == [1, 2]


def test_one_generation_is_kept() -> None:
    """The next reload ends the fork server that was kept, and keeps the one before itself."""
    play = reloaded(keep_generations=1).after(3600.0).reload().loaded().settled()
    assert set(play.fork_servers) == {2, 3}
    play.rollback().settled()
    assert play.slots(2) == [1, 2]


def test_a_kept_generation_that_is_not_wanted_any_more() -> None:
    """A reload to settings without keep_generations ends it."""
    play = reloaded(keep_generations=1).after(3600.0)
    play.policy = fleet_policy(**PROBATION)
    play.reload().loaded().settled().after(3600.0).settled()
    assert set(play.fork_servers) == {3}


def test_nothing_to_roll_back_to() -> None:
    """Without a kept generation nothing changes, and the log says why."""
    play = running(workers=2).rollback().then().reported("rollback_refused")
    play = reloaded().after(11.0).settled().rollback().then().reported("rollback_refused")
    assert play.fleet.state.current == 2


def test_asked_for_during_the_next_reload() -> None:
    """The reload that is running is given up."""
    play = reloaded(keep_generations=1)
    play.policy = fleet_policy(**PROBATION | {"canary_time": 5.0})
    play.reload().loaded().rollback().settled()
    play.reported("reload_failed", generation=3)
    assert play.slots(1) == [1, 2]


# -- a reload that is given up ------------------------------------------------------------------------------


def test_abort_before_the_swap() -> None:
    """While it loads, or its canary is on trial, the old generation is not affected."""
    play = canary().abort_reload().then(stop_fork_server(2), reload_ended(2), drain(1, 2))
    play.reported("reload_failed", reason="aborted by test")
    play.settled()
    assert play.slots(1) == [1, 2]
    play = running(workers=2).reload().abort_reload().settled()
    assert play.slots(1) == [1, 2]


def test_abort_after_the_swap() -> None:
    """While workers are replaced it is rolled back."""
    play = running(**PROBATION | {"max_surge": 1}).reload().loaded().ready(1).abort_reload().settled()
    assert phase(play) is ReloadPhase.ROLLED_BACK
    assert play.slots(1) == [1, 2]


def test_abort_that_comes_too_late() -> None:
    """Without a running reload, or if the old generation is not kept, it is refused."""
    running(workers=2).abort_reload().then().reported("abort_refused")
    play = running(workers=2, max_surge=1).reload().loaded().ready(1).abort_reload()
    play.reported("abort_refused").settled()
    assert play.slots(2) == [1, 2]
