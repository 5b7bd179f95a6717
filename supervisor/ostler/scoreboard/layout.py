"""Where each number stands in the scoreboard.

The scoreboard is one memfd for each worker process (not a file: a full disk must not look like a hang), its
cell. A cell is a header page, then the request slots: one for each request that the worker can show at once.
All numbers are unsigned 64-bit words in native order. Only `accounting` writes them, and `Cell.mark` in the
supervisor. No two threads write a word at the same time: HEARTBEAT is written by the thread that polls,
SLOTS_IN_USE under a lock, a slot's words by the thread that serves in it. Exceptions: a slot's EXTENDED words
and UPGRADED may be written by any thread on behalf of its request; the OVERDUE words are written by the
supervisor, and OVERDUE is reset by the worker when the slot gets another use. PROGRESSED is not reset between
requests: a time before STARTED, or another request's PAUSED, means nothing.

A cell's size is fixed when it is made, for the most slots that the worker may need. The file is sparse: a
page takes memory from when it is first written, or read through a map; reading it by pread(2) allocates
nothing. So that is how the supervisor reads, and only the slots that SLOTS_IN_USE says are in use.

A reader needs no lock: a word is read whole, and a request's text is valid if the word STARTED is the same
before and after it was read, because the text is only written while STARTED is 0.
"""

from collections.abc import Sequence

WORD = 8
PAGE = 4096
SLOT_SIZE = 3072

# The header's words.
HEARTBEAT = 0  # CLOCK_MONOTONIC ns of the serving loop's last pass
SLOTS_IN_USE = 1

# A slot's words.
BYTES_SENT = 0
OPENED = 1  # connections accepted
CLOSED = 2
STARTED = 3  # CLOCK_MONOTONIC ns when the request in the app began; 0: none is
IDENT = 4  # what a stack dump calls the thread or greenlet: for threads pthread_self
METHOD_LENGTH = 5
PATH_LENGTH = 6
HANDED_OFF = 7  # connections that were handed off to a sibling
RECEIVED = 18  # connections that siblings handed off to this worker
STATUS_CLASSES = 8  # ten words: answers by the status's first digit
OVERDUE = 19  # what STARTED was in the request that the supervisor found overdue
EXTENDED_FOR = 20  # what STARTED was in the request that asked for more time
EXTENDED_UNTIL = 21  # CLOCK_MONOTONIC ns up to which it may take
PROGRESSED = 22  # CLOCK_MONOTONIC ns when the request in the app last made progress; or see PAUSED
OVERDUE_SINCE = 23  # when the request of OVERDUE was found overdue; NEVER: no progress gives it more time
HISTOGRAM = 24  # of times in the app
BUCKETS = 104
QUEUED = HISTOGRAM + BUCKETS  # of times before that, from LEAST_QUEUED on; those below are not counted
REFUSED = QUEUED + BUCKETS  # a word for each of RULES
RULES = (
    *("request_line", "method", "version", "line_ends", "fields", "missing_host", "host", "content_length"),
    *("transfer_encoding", "chunked", "expect", "header_map", "secure_scheme_headers", "limit_request_line"),
    *("limit_request_fields", "limit_request_field_size", "limit_request_body", "header_timeout"),
    *("body_timeout", "worker_connections", "queue_timeout", "proxy_protocol", "storage", "other"),
)
"""By which requests are refused. http1.errors says what they are."""
COUNTED = REFUSED + len(RULES)  # all numbers that are counted are below
UPGRADED = COUNTED  # what STARTED was in the request that has taken its connection

# A slot's text, behind its words: method, then path.
TEXT = 2112
TEXT_SIZE = SLOT_SIZE - TEXT
METHOD_SIZE = 24
PATH_SIZE = TEXT_SIZE - METHOD_SIZE

# As EXTENDED_UNTIL: the request has no deadline.
NEVER = 2**64 - 1
# As PROGRESSED: STARTED of a request with this bit: its time does not count now, as it waits for its client.
PAUSED = 1 << 63

# A shorter wait (ns) counts as none: the kernel's clock is no more exact.
LEAST_QUEUED = 1_000_000


def bucket_of(nanoseconds: int) -> int:
    """The histogram's bucket for a duration: log-linear, four to each doubling, from 1.024 µs to 137 s."""
    units = nanoseconds >> 10
    if units < 4:
        return max(0, units)
    length = units.bit_length()
    if length > 27:
        return BUCKETS - 1
    return (length - 2 << 2) + (units >> length - 3 & 3)


def bucket_limit(bucket: int) -> float:
    """The upper limit of a bucket, in seconds."""
    if bucket < 4:
        return (bucket + 1) * 1.024e-6
    exponent, part = divmod(bucket, 4)
    return float((5 + part) * 2 ** (exponent - 1)) * 1.024e-6


def bucket_middle(bucket: int) -> float:
    """What a bucket's durations are on average, in seconds: right to an eighth."""
    low = bucket_limit(bucket - 1) if bucket else 0.0
    return (low + bucket_limit(bucket)) / 2


def percentile(counts: Sequence[int], fraction: float, zeros: int = 0) -> float | None:
    """The duration (seconds) that `fraction` of the counted requests stayed within; None without requests.

    The answer is the upper limit of a bucket: at most a quarter too high.

    Args:
        counts: a histogram.
        fraction: from 0 to 1.
        zeros: requests that took no time at all, which no bucket counts.
    """
    total = sum(counts) + zeros
    if total == 0:
        return None
    seen = zeros
    if zeros and seen >= fraction * total:
        return 0.0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= fraction * total:
            return bucket_limit(bucket)
    return bucket_limit(BUCKETS - 1)
