"""The autoscaling policy with simulated loads: second by second, with workers that take time to boot."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from ostler.fleet.autoscale import ScaleDecision, Trend, bounds, decide
from ostler.fleet.model import FleetPolicy, Load
from tests.kit.policies import fleet_policy

POLICY = fleet_policy(
    workers=2,
    workers_most=16,
    autoscale_utilisation=0.7,
    autoscale_queue_wait=0.05,
    autoscale_cooldown=60.0,
)
MIB = 1 << 20

# (workers serving, second) -> (busy workers, queue wait in seconds, answers a second)
Service = Callable[[int, int], tuple[float, float, float]]


def needs(busy: float, each: float = 0.02) -> Service:
    """Clients that need this many workers' time;
    a request takes `each` seconds, and waits if all workers are busy.
    """

    def serve(workers: int, _second: int) -> tuple[float, float, float]:
        served = min(busy, workers)
        return served, 0.0 if busy < workers else 0.2, served / each

    return serve


def short_of_processor(rate: float) -> Service:
    """All workers are always busy, and together they answer at most `rate`."""
    return lambda workers, _second: (float(workers), 0.2, rate)


@dataclass
class Rig:
    """A fleet that does what the policy decides. `changes`: the second and the decision, oldest first."""

    policy: FleetPolicy = POLICY
    wanted: int = 2
    boot_seconds: int = 2
    memory_free: int | None = None
    memory_each: int | None = None
    second: int = 0
    trend: Trend = field(default_factory=Trend)
    changes: list[tuple[int, ScaleDecision]] = field(default_factory=list)
    _serving: list[int] = field(default_factory=list)

    def run(self, seconds: int, service: Service) -> "Rig":
        for _ in range(seconds):
            self.second += 1
            while len(self._serving) < self.wanted:
                first = self.second == 1
                self._serving.append(self.second + (0 if first else self.boot_seconds))
            del self._serving[self.wanted :]
            workers = sum(since <= self.second for since in self._serving)
            busy, wait, rate = service(workers, self.second)
            load = Load(busy=busy / workers, queue_wait=wait, rate=rate / workers, memory=self.memory_each)
            decision = decide(
                self.trend, [load] * workers, self.memory_free, self.policy, self.wanted, float(self.second)
            )
            if decision is not None:
                self.changes.append((self.second, decision))
                self.wanted = decision.workers
        return self

    @property
    def numbers(self) -> list[int]:
        return [decision.workers for _, decision in self.changes]

    @property
    def seconds(self) -> list[int]:
        return [second for second, _ in self.changes]

    @property
    def reason(self) -> str:
        return self.changes[-1][1].reason


def test_busy_workers_get_enough_more_at_once() -> None:
    """3.6 busy of 4 workers: within seconds there are as many as bring that down to 70 %, in one step."""
    rig = Rig(wanted=4).run(30, needs(3.6))
    assert rig.changes == [(3, ScaleDecision(6, "busy 90 % (70 % wanted) over 3 s"))]


def test_saturated_workers_are_doubled_step_by_step() -> None:
    """If all are busy and requests wait, the need is unknown:
    each step doubles, and the next waits until it can be judged.
    """
    rig = Rig(wanted=2).run(60, needs(9.0))
    assert rig.numbers == [4, 8, 16]
    assert rig.reason == "requests waited 200 ms"
    for earlier, later in pairwise(rig.seconds):
        assert later - earlier == rig.boot_seconds + 5


def test_a_low_target_does_not_more_than_double_either() -> None:
    """Two busy workers, of which each should be busy for a fifth: four at once, not ten."""
    rig = Rig(wanted=2, policy=msgspec.structs.replace(POLICY, autoscale_utilisation=0.2)).run(4, needs(1.9))
    assert rig.numbers == [4]


def test_old_measurements_do_not_count() -> None:
    """After a gap (a suspended machine, a pause) earlier measurements do not count."""
    trend = Trend()
    for second in (0.0, 1.0, 100.0, 101.0):
        assert decide(trend, [Load(busy=1.0)] * 2, None, POLICY, 2, second) is None
    assert decide(trend, [Load(busy=1.0)] * 2, None, POLICY, 2, 102.0) is not None


def test_waits_count_by_how_many_wait() -> None:
    """One worker with a few slow requests among busy ones does not lead to more workers."""
    trend = Trend()
    loads = [Load(busy=0.5, queue_wait=1.0, rate=1.0), *[Load(busy=0.5, rate=100.0)] * 3]
    for second in range(20):
        assert decide(trend, loads, None, POLICY, 4, float(second)) is None


def test_one_busy_second_does_not_count() -> None:
    """A second in which all were busy changes nothing by itself; nor do two of five."""
    calm, busy = needs(1.0), needs(99.0)
    rig = Rig(wanted=2).run(10, calm).run(1, busy).run(9, calm).run(2, busy).run(10, calm)
    assert rig.changes == []


def test_unused_workers_go_after_the_cool_down_a_quarter_at_a_time() -> None:
    """No worker is removed before a complete cool-down; then at most a quarter;
    and so on down to the minimum.
    """
    rig = Rig(wanted=16).run(1200, needs(0.2))
    assert rig.numbers == [12, 9, 7, 6, 5, 4, 3, 2]
    assert rig.seconds[0] == 63  # three measurements show that the load is low; from then on it must stay low
    assert all(b - a >= 60 for a, b in pairwise(rig.seconds))
    assert rig.changes[0][1].reason == "busy 1 %, 2 would have done for 60 s"


def test_a_busy_minute_restarts_the_cool_down() -> None:
    """A load that needs all workers, even for a few seconds, keeps all of them."""
    rig = Rig(wanted=4).run(50, needs(0.5)).run(4, needs(2.7)).run(59, needs(0.5))
    assert rig.changes == []
    assert rig.run(10, needs(0.5)).numbers == [3]


def test_the_peak_of_the_cool_down_decides_how_many_stay() -> None:
    """As many stay as the busiest part of the cool-down needed, plus a tenth."""
    rig = Rig(wanted=8, policy=msgspec.structs.replace(POLICY, workers=1))
    rig.run(30, needs(0.5)).run(10, needs(4.2)).run(26, needs(0.5))
    assert rig.numbers == [7]  # 4.2 / 0.63 = 6.7


def test_bursts_find_room() -> None:
    """Two seconds in five in which all are busy do not count as low load, although most seconds are idle."""

    def burst(workers: int, second: int) -> tuple[float, float, float]:
        return (float(workers) if second % 5 < 2 else 0.0), 0.0, 100.0

    assert Rig(wanted=8).run(300, burst).numbers == []


def test_no_worker_goes_while_requests_wait() -> None:
    """With a wait above half of the limit no worker is removed, however idle the workers look."""
    assert Rig(wanted=8).run(300, lambda _w, _s: (0.5, 0.03, 100.0)).numbers == []


@pytest.mark.parametrize("tenths", range(1, 130, 3))
def test_a_constant_load_is_answered_by_a_constant_number(tenths: int) -> None:
    """For any constant load the number stops changing within ten minutes."""
    busy = tenths / 10
    rig = Rig(wanted=9).run(1200, needs(busy))
    settled = rig.wanted
    calm = len(rig.changes)
    rig.run(600, needs(busy))
    assert len(rig.changes) == calm
    assert settled == 2 or busy / settled <= 0.7 or settled == 16
    assert settled == 2 or busy / (settled - 1) > 0.63


def test_noise_around_the_target_does_not_flap() -> None:
    """A load that varies by a fifth around a constant number's target causes few changes an hour."""
    chance = random.Random(7)
    rig = Rig(wanted=8).run(3600, lambda w, s: needs(5.2 * chance.uniform(0.8, 1.2))(w, s))
    assert len(rig.changes) <= 6, rig.changes


def test_waiting_requests_want_more_although_workers_look_idle() -> None:
    """If requests wait although workers are half idle (long ones before short ones) workers are added."""

    def serve(workers: int, _second: int) -> tuple[float, float, float]:
        return 4.0, 0.12 if workers < 10 else 0.01, 100.0

    rig = Rig(wanted=8).run(20, serve)
    assert rig.changes == [(3, ScaleDecision(10, "requests waited 120 ms"))]


def test_a_step_without_more_answers_is_undone() -> None:
    """If the processor is the bottleneck, a step up is undone and the next trial is delayed,
    longer each time.
    """
    rig = Rig(wanted=4).run(1200, short_of_processor(300.0))
    assert set(rig.numbers) == {4, 8}
    ups = [second for second, decision in rig.changes if decision.workers == 8]
    waits = [b - a for a, b in pairwise(ups)]
    assert waits[0] >= 60
    assert all(b >= 1.8 * a for a, b in pairwise(waits))
    taken_back = rig.changes[1][1]
    reason = "more did not help: 8 workers answered 300 requests/s, 4 answered 300"
    assert taken_back == ScaleDecision(4, reason)


def test_a_step_without_enough_gain_is_undone() -> None:
    """Twice the workers for a twentieth more answers is not worth the memory."""
    rig = Rig(wanted=4).run(12, lambda w, _s: (float(w), 0.2, 300.0 if w == 4 else 315.0))
    assert rig.numbers == [8, 4]


def test_a_step_that_does_not_shorten_waits_is_undone() -> None:
    """With half idle workers the wait must become shorter, or the step is undone."""
    rig = Rig(wanted=4).run(60, lambda _w, _s: (1.5, 0.1, 80.0))
    assert rig.numbers == [5, 4]
    assert rig.reason == "more did not help: with 5 workers requests waited 100 ms, with 4 100 ms"


def test_longer_requests_do_not_fail_a_trial() -> None:
    """Workers with spare time that answer no more than before had no more requests: the step stays."""
    rig = Rig(wanted=4).run(50, lambda w, _s: (0.8 * w if w < 9 else 6.0, 0.0, 200.0))
    assert rig.numbers == [5, 6, 7, 8, 10]


def test_few_long_requests_do_not_fail_a_trial() -> None:
    """Three answers a second are too few to compare throughput; the steps continue."""
    rig = Rig(wanted=2).run(60, lambda w, _s: (float(w), 0.0, 3.0))
    assert rig.wanted == 16
    assert sorted(rig.numbers) == rig.numbers


def test_a_step_that_helps_resets_the_pause() -> None:
    """After a step that helped, the next one that does not is delayed for one cool-down only."""
    rig = Rig(wanted=4).run(400, short_of_processor(300.0))
    assert rig.trend.fruitless >= 2
    rig.run(1000, needs(5.0))
    assert rig.trend.fruitless == 0


def test_a_step_that_helped_but_was_not_enough() -> None:
    """That counts as help: an earlier failure does not delay the next step."""
    rig = Rig(wanted=2, trend=Trend(fruitless=3)).run(12, needs(9.0))
    assert rig.numbers == [4, 8]
    assert rig.trend.fruitless == 0


def test_workers_that_memory_has_no_room_for_are_not_added() -> None:
    """As many as fit are added; if none fits, that is reported once."""
    rig = Rig(wanted=4, memory_free=400 * MIB, memory_each=100 * MIB).run(3, needs(99.0))
    # 400 - 64 in reserve - 100 for a worker being replaced leave room for 2.
    assert rig.changes == [(3, ScaleDecision(6, "requests waited 200 ms, but there is no memory for more"))]
    rig.memory_free = 200 * MIB
    rig.run(60, needs(99.0))
    assert rig.numbers == [6, 6]
    assert rig.reason == "requests waited 200 ms, but there is no memory for more"


def test_unknown_memory_does_not_limit() -> None:
    """If the free memory or a worker's memory is unknown, only the load decides."""
    assert Rig(wanted=4, memory_free=1, memory_each=None).run(5, needs(3.6)).numbers == [6]
    assert Rig(wanted=4, memory_free=None, memory_each=MIB).run(5, needs(3.6)).numbers == [6]


def test_the_upper_bound_is_reported_once() -> None:
    """The number never exceeds the maximum; that more are needed is reported once, not each second."""
    rig = Rig(wanted=16).run(60, needs(99.0))
    reason = "requests waited 200 ms, but 16 workers are the most allowed"
    assert rig.changes == [(3, ScaleDecision(16, reason))]


@pytest.mark.parametrize(("wanted", "into"), [(1, 2), (20, 16)])
def test_new_bounds_hold_at_once(wanted: int, into: int) -> None:
    """After a reload with another range, the next measurement moves the number into it."""
    decision = decide(Trend(), [], None, POLICY, wanted, 0.0)
    assert decision == ScaleDecision(into, "2 to 16 workers are allowed")


def test_nothing_is_decided_while_workers_boot() -> None:
    """The load of an incomplete fleet does not predict that of the complete one."""
    trend = Trend()
    for second in range(60):
        assert decide(trend, [Load(busy=1.0)] * 3, None, POLICY, 4, float(second)) is None


def test_a_number_set_by_hand_ends_the_trial() -> None:
    """A change by an operator is neither judged nor undone."""
    rig = Rig(wanted=4, boot_seconds=0).run(4, short_of_processor(300.0))
    assert rig.numbers == [8]
    rig.wanted = 10
    rig.run(12, short_of_processor(300.0))
    assert rig.numbers == [8, 16, 10]


def test_no_limit_for_waits() -> None:
    """With autoscale_queue_wait = 0 only the busy time counts, upwards and downwards."""
    policy = msgspec.structs.replace(POLICY, autoscale_queue_wait=0.0)
    rig = Rig(wanted=3, policy=policy).run(100, lambda _w, _s: (0.5, 9.0, 10.0))
    assert rig.numbers == [2]


def test_the_trend_is_plain_data() -> None:
    """It can be written and read again at any moment, and the decisions stay the same."""
    plain = Rig(wanted=4).run(200, short_of_processor(300.0))
    carried = Rig(wanted=4)
    for _ in range(200):
        carried.run(1, short_of_processor(300.0))
        carried.trend = msgspec.convert(msgspec.json.decode(msgspec.json.encode(carried.trend)), Trend)
    assert carried.changes == plain.changes


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seconds=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1000), st.integers(0, 20)),
        min_size=5,
        max_size=80,
    ),
    least=st.integers(1, 8),
    span=st.integers(0, 8),
    wanted=st.integers(1, 20),
    memory=st.one_of(st.none(), st.integers(0, 2000 * MIB)),
)
def test_the_bounds_always_hold(
    seconds: list[tuple[float, float, float, int]], least: int, span: int, wanted: int, memory: int | None
) -> None:
    """For any measurements: within the bounds, at most doubled, and each decision has a reason."""
    policy = msgspec.structs.replace(POLICY, workers=least, workers_most=least + span, autoscale_cooldown=5.0)
    trend = Trend()
    for second, (busy, wait, rate, ready) in enumerate(seconds):
        load = Load(busy=busy, queue_wait=wait, rate=rate, memory=50 * MIB)
        decision = decide(trend, [load] * ready, memory, policy, wanted, float(second))
        if decision is None:
            continue
        assert bounds(policy)[0] <= decision.workers <= bounds(policy)[1]
        assert decision.workers <= max(least, 2 * wanted)
        assert decision.reason
        wanted = decision.workers
