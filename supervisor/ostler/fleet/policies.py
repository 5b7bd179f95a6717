"""Decisions of the fleet, each as one pure function."""

import math

# A mistyped number must not fork so many processes that the machine becomes unusable.
MAX_WORKERS = 512

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_FIRST_CRASH_PAUSE = 0.1
_LONGEST_CRASH_PAUSE = 5.0
_LONGEST_OUTAGE = 1.0
# Crashes within CRASH_WINDOW without consequence. In larger fleets `crash_pause` tolerates one for
# each worker, `crash_loop` one for every four workers.
_TOLERATED_CRASHES = 3
CRASH_WINDOW = 60.0
"""Seconds for which a crash counts, and a kill by an outsider."""
# Kills by outsiders within CRASH_WINDOW that do not count as crashes; in larger fleets one for each worker.
_TOLERATED_KILLS = 30

# The least number of answers for which a generation's error rate is compared.
_ENOUGH_ANSWERS = 50


def backoff(failures: int) -> float:
    """Seconds to wait after the n-th failed boot in a row: doubles from half a second up to 30 seconds."""
    return _doubled(failures, _FIRST_BACKOFF, _LONGEST_BACKOFF)


def crash_pause(crashes: int, wanted: int, ready: int) -> float:
    """Seconds to wait before workers that crashed while they served get successors.

    A few crashes a minute are no reason to wait. More of them would keep the machine busy with booting. But
    the fewer workers are left, the shorter the wait: where requests crash one worker after the other, the
    successors must come as fast, or no worker is left in the end.
    """
    left = min(1.0, ready / max(wanted, 1))
    longest = _LONGEST_OUTAGE + (_LONGEST_CRASH_PAUSE - _LONGEST_OUTAGE) * left**2
    return _doubled(crashes - max(_TOLERATED_CRASHES, wanted), _FIRST_CRASH_PAUSE, longest)


def crash_loop(crashes: int, wanted: int) -> bool:
    """Whether so many crashes within CRASH_WINDOW (of more than a quarter of the workers) are a problem."""
    return crashes > max(_TOLERATED_CRASHES, wanted // 4)


def kills_too_many(kills: int, wanted: int) -> int:
    """How many of the kills by outsiders within CRASH_WINDOW are more than an administrator makes by hand.

    An app that kills its own worker looks the same.
    """
    return max(0, kills - max(_TOLERATED_KILLS, wanted))


def jittered(seconds: float, random: float) -> float:
    """A quarter more or less, so that fleets which fail together do not try again together."""
    return seconds * (0.75 + 0.5 * random)


def surge(number: int, share: float, wanted: int) -> int:
    """Processes that planned replacements may cost beyond the wanted number; always one at least."""
    return max(1, number, math.ceil(share * wanted - 1e-9))


def errs_more(old: tuple[int, int], new: tuple[int, int], margin: float) -> bool:
    """Whether a generation's share of errors exceeds the one before by more than `margin`.

    old, new: answers, and those of them that are errors.
    """
    if not margin or new[0] < _ENOUGH_ANSWERS:
        return False
    return new[1] / new[0] - (old[1] / old[0] if old[0] else 0.0) > margin


def _doubled(times: int, first: float, longest: float) -> float:
    return 0.0 if times <= 0 else float(min(longest, first * 2 ** min(times - 1, 20)))
