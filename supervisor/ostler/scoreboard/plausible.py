"""Which numbers of a cell can be true, and which of its text may be shown.

A cell is memory that its worker's app can write. So values that can't be true are rejected: counters only
grow, and no faster than a machine can serve; times lie between the worker's start and now. A false value that
passes does no harm: all numbers are bounded.

Pure functions: they return what can't be true in one sentence, or None.
"""

import math
import re
from operator import gt

from ostler.scoreboard import layout
from ostler.scoreboard.counts import Counts

# More than any worker can do in a second: a process answers some 100,000 requests, and memory moves some
# 10^10 bytes.
REQUESTS_PER_SECOND = 10_000_000
CONNECTIONS_PER_SECOND = 10_000_000
BYTES_PER_SECOND = 10**11
# Counters of one cell are read one after the other while the worker goes on. So two of them may differ by
# what it does meanwhile, at the worst while this process waits for a processor.
APART = 100_000
# More than a process can have open (proc_sys_fs(5), nr_open).
MOST_CONNECTIONS = 2**22
# Seconds that may be counted in addition to those that have passed, and that a time may be in the future.
SLACK = 1.0
_SLACK_NS = int(SLACK * 1e9)
# An app may ask for 10^9 s at most (scoreboard.accounting.LONGEST): more is layout.NEVER, or means the same.
_LONGEST_NS = 10**18

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*")  # RFC 9110, section 5.6.2


def implausible_counts(before: Counts, after: Counts, seconds: float, age: float) -> str | None:
    """Why a worker can't have counted `after`.

    Args:
        before: what it had counted when it was read last.
        seconds: since then.
        age: the worker's, in seconds.
    """
    if (
        after.bytes_sent < before.bytes_sent
        or after.opened < before.opened
        or after.closed < before.closed
        or after.handed_off < before.handed_off
        or after.received < before.received
        or any(map(gt, before.statuses, after.statuses))
        or any(map(gt, before.histogram, after.histogram))
        or any(map(gt, before.queued, after.queued))
        or any(map(gt, before.refused, after.refused))
    ):
        return "a counter has become less"
    requests, time = after.requests, max(seconds, 0.0) + SLACK
    if (more := requests - before.requests) > REQUESTS_PER_SECOND * time:
        return f"{more} requests were answered within {time:.1f} s"
    for name in ("opened", "closed", "handed_off", "received"):
        if (more := getattr(after, name) - getattr(before, name)) > CONNECTIONS_PER_SECOND * time:
            return f"{more} connections were {name.replace('_', ' ')} within {time:.1f} s"
    # An answer's bytes are counted at its end, however long it took.
    if after.bytes_sent > BYTES_PER_SECOND * (max(age, 0.0) + SLACK):
        return f"{after.bytes_sent} bytes were sent within {age:.1f} s"
    if not -APART <= after.opened + after.received - after.handed_off - after.closed <= MOST_CONNECTIONS:
        return "the connections that are open are too many, or less than none"
    if sum(after.histogram) > requests + APART or sum(after.queued) > requests + APART:
        return "more times were measured than requests were answered"
    if sum(after.refused) > requests + APART:
        return "more requests were refused than answered"
    return None


def implausible_time(name: str, at: int, born: int, now: int) -> str | None:
    """Why a worker can't have noted the time `at`. All are CLOCK_MONOTONIC in ns; 0: it noted none."""
    if at and at < born:
        return f"{name} is before the worker's start"
    if at > now + _SLACK_NS:
        return f"{name} is in the future"
    return None


def extended_until(until: int, now: int) -> float:
    """Up to when a request has time, in seconds, inf: forever. Both are CLOCK_MONOTONIC in ns."""
    return until / 1e9 if until <= now + _LONGEST_NS else math.inf


def progressed_at(word: int, started: int, now: int) -> float:
    """When a request last made progress, in seconds; 0.0: not since it began; inf: its time does not count.

    What is before its start, or in the future, is not about this request.

    Args:
        word: layout.PROGRESSED of its slot.
        started, now: CLOCK_MONOTONIC in ns.
    """
    if started < word <= now + _SLACK_NS:
        return word / 1e9
    return math.inf if word == started | layout.PAUSED else 0.0


def shown_method(text: bytes) -> str:
    """What is shown as a request's method: itself if it is a token, as methods are, else `?`."""
    return text.decode("ascii") if _TOKEN.fullmatch(text) else "?"


def shown_path(text: bytes) -> str:
    """What is shown as a request's path: bytes that are no printable ASCII are percent-encoded."""
    if text.isascii() and (path := text.decode("ascii")).isprintable() and " " not in path:
        return path
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}" for byte in text)
