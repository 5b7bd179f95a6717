"""How many workers the load requires, within the bounds that the configuration gives.

The measure ("busy") is how many workers the time spent in the app would occupy completely: 2.8 of 4 workers
are 70 %. Its median over a few seconds decides, so that a single busy second has no effect.

- Up at once: to as many workers as bring the share of busy time down to `autoscale_utilisation`. When all
  are busy, or requests wait, it is unknown how many are needed: then it goes up step by step, at most
  doubling, and each step must be ready and measured before the next.
- Down slowly: when the load, bursts of a few seconds included, would have fitted into fewer for all of
  `autoscale_cooldown`, with a tenth to spare so that the number does not flap; at most a quarter of the
  workers at a time.
- More workers do not help when the processor, a lock or a database is the bottleneck. So a step up is a
  trial: if workers are still too busy afterwards and answer no more requests than the fewer ones did, it is
  undone, and not tried again for a while, longer each time.
- Workers that would not fit into the memory that is left are not added.
"""

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from ostler.fleet.model import FleetPolicy, Load
from ostler.fleet.policies import surge

# Measurements that are combined, and the least number that a decision needs.
_WINDOW = 5
_ENOUGH = 3
# Seconds after which a measurement is too old to be used.
_STALE = 15.0
# How much lower than the target the load must be, as share of it, before a worker is one too many.
_SPARE = 0.1
# The share of busy time from which on the workers, not the clients, decide how many are answered.
_SATURATED = 0.9
# The part of the throughput that a step could have brought at best which it must have brought.
_LEAST_GAIN = 0.25
# Fewer requests than this on one side of a comparison are noise: a hundred are known to some 10 %.
_COUNTABLE = 100
# A wait that fell by a smaller share than this counts as unchanged.
_WAIT_GAIN = 0.2
# Cool-downs until a step that did not help is tried again: doubles up to this.
_LONGEST_HOLD = 16
# Memory that stays free for other programs: bytes, on top of what replacements may take for a while.
_RESERVE = 64 << 20
_EPSILON = 1e-9


class Sample(Struct):
    """One measurement of all ready workers.

    at: seconds; workers: how many; busy: how many of them, by their time; wait: seconds; rate: answers a
    second.
    """

    at: float
    workers: int
    busy: float
    wait: float
    rate: float


class Trial(Struct):
    """A step up which has not shown yet whether it helps: what there was before, and the new number."""

    before: int
    workers: int
    wait: float
    rate: float


class Trend(Struct):
    """What is remembered between measurements.

    samples: the newest ones, oldest first; low_since, low_peak: since when fewer workers would do, and how
    many at most; trial: see `Trial`; fruitless: trials in a row that did not help; held_until: no step up
    before; reported: the limit that was reported last, so that it is reported once.
    """

    samples: list[Sample] = field(default_factory=list)
    low_since: float | None = None
    low_peak: int = 0
    trial: Trial | None = None
    fruitless: int = 0
    held_until: float = 0.0
    reported: str = ""


class ScaleDecision(Struct, frozen=True):
    """How many workers there should be from now on, and why.

    The number is the present one if only the reason is new: more are needed, but a limit prevents that.
    """

    workers: int
    reason: str


def decide(
    trend: Trend,
    loads: Sequence[Load],
    memory_free: int | None,
    policy: FleetPolicy,
    wanted: int,
    now: float,
) -> ScaleDecision | None:
    """Evaluate a new measurement; returns what is to change, or None.

    Args:
        trend: changed in place.
        loads: of all ready workers, those included that are about to be replaced.
        memory_free: bytes, None if that is not known.
        policy: its bounds, `workers` and `workers_most`, and the settings `autoscale_*`.
        wanted: the present number.
        now: seconds, of a clock that only goes forward.
    """
    least, most = bounds(policy)
    if not least <= wanted <= most:
        _reset(trend)
        return ScaleDecision(min(max(wanted, least), most), f"{least} to {most} workers are allowed")
    if trend.trial is not None and trend.trial.workers != wanted:
        trend.trial = None  # the number was changed by other means
    if loads and len(loads) >= wanted:
        # While some boot the others are busier than all of them will be.
        trend.samples = [*trend.samples[1 - _WINDOW :], _sample(loads, now)]
    trend.samples = [sample for sample in trend.samples if now - sample.at < _STALE]
    if len(trend.samples) < _ENOUGH:
        trend.low_since = None
        return None
    seen = _Seen.of(trend.samples, policy)
    if seen.needed > wanted or seen.waits:
        trend.low_since = None
        return _up(trend, seen, loads, memory_free, policy, wanted, now)
    if len(trend.samples) == _WINDOW and trend.trial is not None:
        trend.trial, trend.fruitless = None, 0
    return _down(trend, seen, policy, wanted, now)


def _median(values: Iterable[float]) -> float:
    """Not the one of `statistics`, whose import takes a twentieth of the supervisor's start."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def bounds(policy: FleetPolicy) -> tuple[int, int]:
    """The smallest and the largest number of workers."""
    return policy.workers, max(policy.workers, policy.workers_most or 0)


class _Seen(Struct, frozen=True):
    """The measurements of the window, combined.

    busy, wait: their medians; busy_high, wait_high: the second highest, so that bursts of two seconds count;
    needed: how many workers the busy time requires.
    """

    seconds: int
    workers: int
    busy: float
    busy_high: float
    wait: float
    wait_high: float
    rate: float
    needed: int
    waits: bool

    @classmethod
    def of(cls, samples: Sequence[Sample], policy: FleetPolicy) -> "_Seen":
        busy, wait = _median(s.busy for s in samples), _median(s.wait for s in samples)
        return cls(
            seconds=len(samples),
            workers=samples[-1].workers,
            busy=busy,
            busy_high=sorted(s.busy for s in samples)[-2],
            wait=wait,
            wait_high=sorted(s.wait for s in samples)[-2],
            rate=sum(s.rate for s in samples) / len(samples),
            needed=_fitting(busy, policy.autoscale_utilisation),
            waits=wait > policy.autoscale_queue_wait > 0,
        )

    @property
    def saturated(self) -> bool:
        """Whether the workers have so little time to spare that they may not answer all that comes."""
        return self.busy >= _SATURATED * self.workers

    def why(self, policy: FleetPolicy) -> str:
        if self.waits:
            return f"requests waited {_milliseconds(self.wait)}"
        share, target = self.busy / self.workers, policy.autoscale_utilisation
        return f"busy {share:.0%} ({target:.0%} wanted) over {self.seconds} s".replace("%", " %")


def _sample(loads: Sequence[Load], now: float) -> Sample:
    # The mean over requests: a worker counts by how many it answers.
    rate = sum(load.rate for load in loads)
    wait = sum(load.queue_wait * load.rate for load in loads) / rate if rate else 0.0
    return Sample(now, len(loads), sum(load.busy for load in loads), wait, rate)


def _fitting(busy: float, share: float) -> int:
    return max(1, math.ceil(busy / max(share, 0.01) - _EPSILON))


def _up(
    trend: Trend,
    seen: _Seen,
    loads: Sequence[Load],
    memory_free: int | None,
    policy: FleetPolicy,
    wanted: int,
    now: float,
) -> ScaleDecision | None:
    if trend.trial is not None:
        if seen.seconds < _WINDOW:
            return None
        trial, trend.trial = trend.trial, None
        if not _helped(trial, seen, policy):
            return _undo(trend, trial, seen, policy, now)
        trend.fruitless = 0
    if now < trend.held_until:
        return None
    _, most = bounds(policy)
    number = seen.needed
    if seen.waits:
        # How many wait is not known; if the workers are busy too, they have been too few for some time.
        number = 2 * wanted if seen.needed > wanted else wanted + max(1, wanted // 4)
    number = min(number, 2 * wanted, most)
    reason = seen.why(policy)
    if number <= wanted:
        return _report_limit(trend, wanted, "most", f"{reason}, but {most} workers are the most allowed")
    room = _room(loads, memory_free, policy, wanted)
    if room is not None and number - wanted > room:
        number, reason = wanted + room, f"{reason}, but there is no memory for more"
        if room == 0:
            return _report_limit(trend, wanted, "memory", reason)
    trend.trial = Trial(wanted, number, seen.wait, seen.rate)
    trend.samples.clear()
    trend.reported = ""
    return ScaleDecision(number, reason)


def _room(loads: Sequence[Load], memory_free: int | None, policy: FleetPolicy, wanted: int) -> int | None:
    """How many workers more fit into memory if they are as large as the present ones; None if unknown."""
    known = [load.memory for load in loads if load.memory]
    if memory_free is None or not known:
        return None
    each = sum(known) / len(known)
    reserve = _RESERVE + surge(policy.max_surge, policy.max_surge_share, wanted) * each
    return max(0, int((memory_free - reserve) // each))


def _helped(trial: Trial, seen: _Seen, policy: FleetPolicy) -> bool:
    """Whether a step up was of use, although it was not enough."""
    if not seen.saturated:
        # They have time to spare, so they answer all requests: only the wait shows a difference.
        waited = trial.wait > policy.autoscale_queue_wait
        return not (waited and seen.waits) or seen.wait <= trial.wait * (1 - _WAIT_GAIN)
    if min(trial.rate, seen.rate) * _WINDOW < _COUNTABLE:
        return True  # long requests: too few to compare
    growth = trial.workers / trial.before - 1
    return seen.rate >= trial.rate * (1 + _LEAST_GAIN * growth)


def _undo(trend: Trend, trial: Trial, seen: _Seen, policy: FleetPolicy, now: float) -> ScaleDecision:
    cooldowns = min(2**trend.fruitless, _LONGEST_HOLD)
    trend.fruitless += 1
    trend.held_until = now + cooldowns * policy.autoscale_cooldown
    trend.samples.clear()
    if seen.saturated:
        found = f"{trial.workers} workers answered {seen.rate:.0f} requests/s"
        before = f"{trial.before} answered {trial.rate:.0f}"
    else:
        found = f"with {trial.workers} workers requests waited {_milliseconds(seen.wait)}"
        before = f"with {trial.before} {_milliseconds(trial.wait)}"
    least, most = bounds(policy)
    return ScaleDecision(min(max(trial.before, least), most), f"more did not help: {found}, {before}")


def _down(trend: Trend, seen: _Seen, policy: FleetPolicy, wanted: int, now: float) -> ScaleDecision | None:
    least, _ = bounds(policy)
    fewer = max(least, _fitting(seen.busy_high, policy.autoscale_utilisation * (1 - _SPARE)))
    if fewer >= wanted or seen.wait_high * 2 > policy.autoscale_queue_wait > 0:
        trend.low_since = None
        return None
    if trend.low_since is None:
        trend.low_since, trend.low_peak = now, fewer
    trend.low_peak = max(trend.low_peak, fewer)
    low_for = now - trend.low_since
    if low_for < policy.autoscale_cooldown:
        return None
    number = max(trend.low_peak, wanted - max(1, wanted // 4))
    reason = f"busy {seen.busy / seen.workers:.0%}".replace("%", " %")
    reason += f", {trend.low_peak} would have done for {max(low_for, seen.seconds):.0f} s"
    trend.low_since = None
    trend.reported = ""
    return ScaleDecision(number, reason)


def _report_limit(trend: Trend, wanted: int, limit: str, reason: str) -> ScaleDecision | None:
    """A decision that changes nothing, once for each limit."""
    if trend.reported == limit:
        return None
    trend.reported = limit
    return ScaleDecision(wanted, reason)


def _reset(trend: Trend) -> None:
    trend.samples.clear()
    trend.low_since = trend.trial = None
    trend.reported = ""


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
