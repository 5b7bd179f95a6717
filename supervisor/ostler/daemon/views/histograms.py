"""The scoreboard's histograms in fewer buckets, for metrics."""

import itertools
from collections.abc import Sequence

from ostler.control.metrics import Histogram
from ostler.scoreboard.layout import BUCKETS, LEAST_QUEUED, bucket_limit, bucket_middle, bucket_of

# Every doubling from 33 µs to 69 s: a fourth of the scoreboard's buckets is fine enough to keep for years.
DURATIONS = range(15, BUCKETS - 4, 4)
# Waits from a millisecond on: shorter ones are not counted one by one.
QUEUE_WAITS = range(bucket_of(LEAST_QUEUED), BUCKETS - 4, 4)


def coarse_histogram(counts: Sequence[int], chosen: range = DURATIONS, zeros: int = 0) -> Histogram:
    """A histogram with fewer buckets.

    Args:
        counts: by the scoreboard's buckets.
        chosen: the last of the scoreboard's buckets in each of the fewer.
        zeros: how many more there were, of no length.
    """
    edges = [0, *(last + 1 for last in chosen), BUCKETS]
    fewer = [sum(counts[low:high]) for low, high in itertools.pairwise(edges)]
    return Histogram(
        limits=[bucket_limit(last) for last in chosen],
        counts=[fewer[0] + zeros, *fewer[1:]],
        total=sum(count * bucket_middle(bucket) for bucket, count in enumerate(counts) if count),
    )
