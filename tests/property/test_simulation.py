"""Days of a fleet with a virtual clock: budgets, the spread of recycling, pauses after failures.

The simulator itself checks after each event that only a crash leaves a slot unserved, that boots stay within
their parallelism and that no more workers leave at once than the budget allows. These tests check
the result of a whole day.
"""

import math
from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest

from ostler.fleet import events, health
from tests.kit.policies import fleet_policy
from tests.kit.simulator import DAY, HOUR, MIB, MINUTE, Scenario, Simulator

WORKERS = 64
POLICY = fleet_policy(
    workers=WORKERS,
    max_surge=1,
    max_surge_share=0.25,
    boot_parallelism=4,
    canary_time=0.5,
    probation=10.0,
    rollback_crashes=2,
)
BUDGET = 16
"""A quarter of the workers."""


def by_hour(second: float) -> float:
    """Requests a second: few at night, most in the early afternoon."""
    return 1500.0 - 1300.0 * math.cos(2 * math.pi * (second / DAY - 0.08))


@pytest.fixture(scope="module")
def day() -> Simulator:
    """A day with all kinds of events, and some minutes until the fleet is at rest."""
    policy = msgspec.structs.replace(
        POLICY,
        max_age=50 * MINUTE,
        max_age_jitter=30 * MINUTE,
        max_memory=300 * MIB,
        refork_after=(20_000,),
    )
    scenario = Scenario(
        policy,
        rate=by_hour,
        max_requests=60_000,
        jitter=30_000,
        growth=3_500,
        crashes=0.02,
        poison=[(9 * HOUR, 9 * HOUR + 2 * MINUTE)],
        broken=[(14 * HOUR, 15 * HOUR - MINUTE)],
        reloads=HOUR,
        fork_server_deaths=1.7 * HOUR,
        measured=20.0,
    )
    return Simulator(scenario, seed=1).run(DAY + 20 * MINUTE)


@pytest.mark.thorough
def test_a_day_without_a_lost_request_or_process(day: Simulator) -> None:
    """Each request found a worker; each process that was started was reaped or is alive."""
    stats = day.stats
    assert stats.offered > 100_000_000
    assert stats.answered == stats.offered
    templates = stats.reports["refork_done"]
    assert templates > 10
    assert stats.spawned == stats.reaped + stats.never_forked + templates + len(day.workers)
    assert health.sentence(day.fleet.state) == "Healthy: all 64 workers are ready."


@pytest.mark.thorough
def test_a_day_stays_within_its_budgets(day: Simulator) -> None:
    """Extra processes, boots and leaving workers at the same time reach, and do not exceed,
    the allowed numbers.
    """
    stats = day.stats
    assert 1 < stats.most_extra <= BUDGET
    assert stats.most_booting == POLICY.boot_parallelism
    assert 1 < stats.most_leaving <= BUDGET + 1
    assert {cause for _, cause in stats.recycles} == {"recycle", "memory", "age"}


@pytest.mark.thorough
def test_reloads_of_a_day(day: Simulator) -> None:
    """One reload has broken code and fails, one meets poisonous requests and is rolled back;
    the others succeed.
    """
    reports = day.stats.reports
    assert reports["reload"] == 24
    assert reports["reload_failed"] == 1
    assert reports["reload_rolled_back"] == 1
    assert reports["reload_done"] == 22


def test_all_at_their_limit_in_the_same_second() -> None:
    """Workers without jitter that are due at the same time are replaced in turns,
    so that all slots are always served.
    """
    scenario = Scenario(POLICY, rate=lambda _: 640.0, drain=(20.0, 30.0))
    fleet = Simulator(scenario).run(MINUTE)
    first = list(fleet.workers)
    for worker_id in first:
        fleet.hand_in(events.RecycleDue(worker_id, 10_000))
    fleet.run(5 * MINUTE)
    assert fleet.stats.reports["recycle"] == WORKERS
    assert not set(first) & set(fleet.workers)
    assert fleet.stats.most_leaving == BUDGET
    assert fleet.stats.most_extra == BUDGET
    assert fleet.stats.longest_outage == pytest.approx(0, abs=70)  # only when it started


@pytest.mark.parametrize(
    ("cause", "jittery"),
    [
        ("recycle", Scenario(POLICY, max_requests=20_000, jitter=10_000)),
        ("age", Scenario(msgspec.structs.replace(POLICY, max_age=2000.0, max_age_jitter=1000.0))),
    ],
)
def test_jitter_spreads_what_began_together(cause: str, jittery: Scenario) -> None:
    """64 workers that started together are not replaced together: in no minute more than a few.

    Spread evenly over the 1000 seconds of jitter it would be 4 a minute.
    """
    fleet = Simulator(replace(jittery, rate=lambda _: 640.0), seed=2).run(3200)
    minutes = fleet.stats.per_minute(cause)
    assert WORKERS <= sum(minutes) <= WORKERS + 8
    assert sum(minutes[: 1980 // 60]) == 0
    assert max(minutes) <= 11, minutes


def test_without_jitter_there_is_a_spike() -> None:
    """Verifies the test above: the same fleet without jitter asks for all its successors in one minute."""
    scenario = Scenario(msgspec.structs.replace(POLICY, max_age=2000.0), measured=10.0)
    fleet = Simulator(scenario, seed=2).run(3200)
    assert max(fleet.stats.per_minute("age")) > 50


def broken_hour(seed: int) -> Simulator:
    """The code is broken and two workers crash; an hour later the code works again."""
    scenario = Scenario(
        POLICY, broken=[(100.0, 100.0 + HOUR)], poison=[(110.0, 111.5)], boot=(1.0, 1.0), measured=5.0
    )
    return Simulator(scenario, seed)


def test_boots_that_fail_are_tried_ever_more_rarely() -> None:
    """The pause between attempts grows up to half a minute; the survivors serve;
    the fleet recovers by itself.
    """
    fleet = broken_hour(1).run(100.0 + HOUR)
    attempts = fleet.stats.failed_boots
    gaps = [b - a for a, b in pairwise(attempts)]
    assert 3600 / 40 < len(attempts) < 3600 / 22
    assert gaps[1] < 3.0
    assert all(earlier * 1.1 < later for earlier, later in pairwise(gaps[2:6]))
    assert all(22.0 < gap < 40.0 for gap in gaps[8:])
    assert fleet.fleet.state.ready == WORKERS - 2
    assert health.state(fleet.fleet.state) == "degraded"
    assert "booting failed" in health.sentence(fleet.fleet.state)
    fleet.run(60.0)
    assert health.sentence(fleet.fleet.state) == "Healthy: all 64 workers are ready."


def test_fleets_that_fail_together_do_not_try_together() -> None:
    """Two fleets with the same failure at the same time (of one database) soon retry at different moments."""
    one, other = (broken_hour(seed).run(1200.0).stats.failed_boots for seed in (1, 2))
    apart = [min(abs(a - b) for b in other) for a in one[8:]]
    assert sum(distance > 1.0 for distance in apart) > len(apart) / 2


def test_poisonous_requests_do_not_take_the_fleet_down() -> None:
    """Eighty crashes a minute for ten minutes:
    at least half of the workers serve, and the fleet recovers afterwards.
    """
    scenario = Scenario(POLICY, poison=[(60.0, 660.0)], poison_every=0.75, boot=(2.0, 2.0), measured=1.0)
    fleet = Simulator(scenario).run(60.0)
    least = WORKERS
    for _ in range(600):
        fleet.run(1.0)
        least = min(least, fleet.fleet.state.ready)
    assert least > WORKERS // 2
    assert health.state(fleet.fleet.state) == "degraded"
    assert "workers crashed" in health.sentence(fleet.fleet.state)
    fleet.run(2 * MINUTE)
    assert health.sentence(fleet.fleet.state) == "Healthy: all 64 workers are ready."


def test_a_fork_server_that_dies_each_minute_is_replaced_each_time() -> None:
    """Workers are not affected, and workers that are due to be recycled get their successors."""
    scenario = Scenario(
        POLICY, rate=lambda _: 640.0, max_requests=3000, jitter=3000, fork_server_deaths=60.0, measured=2.0
    )
    fleet = Simulator(scenario, seed=3).run(HOUR)
    assert fleet.stats.reports["fork_server_failed"] >= 55
    assert fleet.stats.reports["recycle"] > 400
    assert fleet.stats.answered == fleet.stats.offered
    assert fleet.fleet.state.ready == WORKERS


@pytest.mark.thorough
def test_an_autoscaled_day() -> None:
    """The number of workers follows the load:
    enough at each hour, few at night, and it changes some dozens of times.
    """
    policy = msgspec.structs.replace(POLICY, workers=2, workers_most=24, autoscale_cooldown=120.0)
    scenario = Scenario(policy, rate=by_hour, request_seconds=0.005, crashes=0.05, fork_server_deaths=HOUR)
    fleet = Simulator(scenario, seed=4).run(DAY)
    stats = fleet.stats
    assert stats.answered == stats.offered
    for at, wanted in stats.sizes[100:]:
        needed = by_hour(at) * scenario.request_seconds
        assert needed <= 0.78 * wanted, f"{wanted} workers for the work of {needed} at {at}"
        assert wanted <= max(4, 2.2 * needed)
    night, noon = min(w for _, w in stats.sizes), max(w for _, w in stats.sizes)
    assert night <= 3
    assert 20 <= noon <= 24
    assert stats.reports["autoscale"] < 150
