"""A request slot: what one request writes into the scoreboard, and the counts of the answers.

See ostler.scoreboard.accounting, which gives slots out.
"""

from collections.abc import Callable
from struct import Struct
from time import monotonic_ns
from typing import Any

from ostler import native
from ostler.scoreboard import layout
from ostler.scoreboard.layout import (
    BYTES_SENT,
    CLOSED,
    EXTENDED_FOR,
    EXTENDED_UNTIL,
    HISTOGRAM,
    IDENT,
    METHOD_LENGTH,
    METHOD_SIZE,
    NEVER,
    OPENED,
    OVERDUE,
    OVERDUE_SINCE,
    PATH_LENGTH,
    PATH_SIZE,
    PAUSED,
    PROGRESSED,
    REFUSED,
    RULES,
    STARTED,
    STATUS_CLASSES,
    UPGRADED,
    bucket_of,
)

# The most that `RequestSlot.extend` adds, in seconds: what can be added to any time and still is a time.
LONGEST = 1e9

QUICK = [HISTOGRAM + bucket_of(units << 10) for units in range(4096)]
"""Which word counts a duration below 4 ms, by its length in 1.024 µs; others take `bucket_of`."""
_QUICK_NS = len(QUICK) << 10
# Which word counts an answer, by its status. Apps may give anything as a status; 9 is the class of the rest.
_STATUS_WORD = {status: STATUS_CLASSES + status // 100 for status in range(1000)}
_OTHER_STATUS = STATUS_CLASSES + 9
_RULE_WORD = {rule: REFUSED + number for number, rule in enumerate(RULES)}
_write_method = Struct(f"{METHOD_SIZE}s").pack_into
_write_target = Struct(f"{PATH_SIZE}s").pack_into


class RequestSlot:
    """Shows one request at a time, and counts answers and connections.

    Its methods are called by one thread: the one that made it with `thread_slot`, or for slots of `begin` and
    `take` the one that runs the loop. `extend`, `extend_until`, `upgraded` and `progressed` may be called by
    any thread; reading may be done anywhere, signal handlers included.

    Args:
        released: called when it is released; None: it is a thread's own, and is never released.

    Attributes:
        number: where it is in the cell; -1: the cell is full, so that it counts but does not show requests.
        method, target: of the request that is shown, or was last; to be set by `begin` only.
        counts: the words of the cell in which it counts answers and connections.
        is_free: it was taken, and is released.
        owner: for the caller, e.g. the task or greenlet that serves the request; None after `release`.
        memory: what the C extension writes it by, see `map_memory`; None: it does not.
        unfinished: for the request runner: a request that the C extension has begun and Python is to end.
    """

    __slots__ = (
        *("_released", "_text", "_words"),
        *("counts", "is_free", "memory", "method", "number", "owner", "target", "unfinished"),
    )

    def __init__(
        self,
        released: "Callable[[RequestSlot], None] | None",
        number: int,
        words: memoryview,
        text: memoryview,
        counts: memoryview,
    ) -> None:
        self._released = released
        self._words = words
        self._text = text
        self.counts = counts
        self.method = ""
        self.target = b""
        self.is_free = False
        self.number = number
        self.owner: Any = None
        self.memory: Any = None
        self.unfinished: Any = None

    # -- requests ------------------------------------------------------------------------------------------

    def begin(self, method: str, target: bytes, now: int) -> None:
        """Show that a request is in the app.

        Args:
            method: e.g. `GET`; what is not latin-1 is shown as `?`.
            target: path and query, as in the request line. The supervisor never shows the query.
            now: from now on its time is counted.
        """
        if target != self.target or method != self.method:
            self._show(method, target)
        self._words[STARTED] = now

    @property
    def started(self) -> int:
        """When the request began that is in the app; 0: none is."""
        started: int = self._words[STARTED]
        return started

    def leave_app(self) -> None:
        """The request is not in the app any more: first of all, so that it can't be found overdue.

        May be called more than once, and again if an exception from a deadline has interrupted it.
        """
        self._words[STARTED] = 0

    def count(self, status: int, bytes_sent: int, took: int | None) -> None:
        """Count an answer.

        Args:
            status: of the answer; what is no number from 0 to 999 counts with 900 and above.
            bytes_sent: of the body.
            took: time in the app (ns); None: not known, or without meaning, so that it is not measured.
        """
        counts = self.counts
        try:
            counts[_STATUS_WORD[status]] += 1
        except (KeyError, TypeError):
            counts[_OTHER_STATUS] += 1
        if took is not None:
            counts[QUICK[took >> 10] if took < _QUICK_NS else HISTOGRAM + bucket_of(took)] += 1
        if bytes_sent:
            counts[BYTES_SENT] += bytes_sent

    def end(self, status: int, bytes_sent: int, now: int) -> None:
        """The request was answered, or will not be: leave the app, count the answer and release the slot."""
        started = self._words[STARTED]
        self._words[STARTED] = 0
        self.count(status, bytes_sent, now - started if started else None)
        if self._released is not None:
            self.release()

    def release(self) -> None:
        """Make a slot of `begin` or `take` available for other requests, if it is not yet; `end` does that.

        A thread's slot stays what it is.
        """
        if self._released is not None and not self.is_free:
            self._words[STARTED] = 0
            self.is_free = True
            self.owner = None
            self._released(self)

    def refused(self, status: int, bytes_sent: int, rule: str | None = None) -> None:
        """Count an answer to what never got to the app.

        rule: by which it was refused, one of layout.RULES; None: it was not refused, or it is not known.
        """
        if rule is not None:
            self.refused_in_app(rule)
        self.count(status, bytes_sent, None)

    def refused_in_app(self, rule: str) -> None:
        """Count by which rule a request was refused that is in the app, and is counted when that ends."""
        self.counts[_RULE_WORD.get(rule, _RULE_WORD["other"])] += 1

    def waited(self, nanoseconds: int) -> None:
        """Count how long a request waited before it got to the app, if that is at least LEAST_QUEUED."""
        self.counts[layout.QUEUED + bucket_of(nanoseconds)] += 1

    def add_bytes(self, number: int) -> None:
        """Count bytes of a body that were sent after the request was counted."""
        self.counts[BYTES_SENT] += number

    # -- connections ---------------------------------------------------------------------------------------

    def connection_opened(self) -> None:
        self.counts[OPENED] += 1

    def connection_closed(self) -> None:
        self.counts[CLOSED] += 1

    def connection_handed_off(self) -> None:
        """A connection was handed off to a sibling worker."""
        self.counts[layout.HANDED_OFF] += 1

    def connection_received(self) -> None:
        """A sibling worker handed off a connection to this one."""
        self.counts[layout.RECEIVED] += 1

    def upgraded(self) -> None:
        """The request in the app has taken its connection, e.g. for a websocket: it has no deadline."""
        if started := self._words[STARTED]:
            self._words[UPGRADED] = started
            self.extend_until(NEVER, started)

    # -- deadlines -----------------------------------------------------------------------------------------

    def progressed(self, now: int) -> None:
        """The request in the app made progress: it may take the setting `timeout` from now on.

        Progress is a part of an answer that was sent, or a part of a body that was received.
        """
        self._words[PROGRESSED] = now

    def pause(self) -> None:
        """From now on the time of the request in the app does not count: it waits for its client, or may be
        silent for any time.

        `progressed` ends that, and so does the request's end. What limits the client is the caller's affair.
        """
        self._words[PROGRESSED] = self._words[STARTED] | PAUSED

    def extend(self, seconds: float) -> None:
        """Give the request in the app at least `seconds` from now. It never shortens a deadline.

        Raises:
            ValueError: that is no time, or more than LONGEST.
            RuntimeError: no request is in the app.
        """
        check_extension(seconds)
        if not (started := self._words[STARTED]):
            raise RuntimeError("extend_deadline was called where no request is served")
        self.extend_until(monotonic_ns() + int(seconds * 1_000_000_000), started)

    def extend_until(self, until: int, started: int | None = None) -> None:
        """Give the request in the app time until then; layout.NEVER: it has no deadline.

        It never shortens a deadline.

        Args:
            started: of the request that is meant, for callers in other threads: another one may be in the
                slot by now, and gets nothing. None: the request in the slot.
        """
        words = self._words
        current = words[STARTED]
        if not current or (started is not None and started != current):
            return
        if words[EXTENDED_FOR] == current:
            until = max(until, words[EXTENDED_UNTIL])
        # In this order: the supervisor reads them the other way round.
        words[EXTENDED_UNTIL] = min(until, NEVER)
        words[EXTENDED_FOR] = current

    @property
    def overdue(self) -> int:
        """What `started` was in the request that the supervisor has found overdue; 0: in none so far."""
        overdue: int = self._words[OVERDUE]
        return overdue

    def is_overdue(self, now: int) -> bool:
        """Whether the supervisor has found the request in the app overdue, and it got no more time since."""
        words = self._words
        if not (started := words[STARTED]) or words[OVERDUE] != started:
            return False
        if (since := words[OVERDUE_SINCE]) == NEVER:
            return True
        progressed = words[PROGRESSED]
        if since < progressed < PAUSED or progressed == started | PAUSED:
            return False
        return not (words[EXTENDED_FOR] == started and words[EXTENDED_UNTIL] > now)

    @property
    def ident(self) -> int:
        """What a stack dump calls the thread, or the greenlet, that serves the request."""
        ident: int = self._words[IDENT]
        return ident

    @ident.setter
    def ident(self, ident: int) -> None:
        self._words[IDENT] = ident

    def _show(self, method: str, target: bytes) -> None:
        words, text = self._words, self._text
        # Readers take the text for valid only while STARTED stays the same.
        words[STARTED] = 0
        if method != self.method:
            self.method = method
            name = method.encode("latin-1", "replace")
            _write_method(text, 0, name)
            words[METHOD_LENGTH] = min(len(name), METHOD_SIZE)
        self.target = target
        _write_target(text, METHOD_SIZE, target)
        words[PATH_LENGTH] = min(len(target), PATH_SIZE)

    def forget(self) -> None:
        """Show nothing, not even what was shown last."""
        words = self._words
        words[METHOD_LENGTH] = words[PATH_LENGTH] = 0
        words[OVERDUE] = words[EXTENDED_FOR] = words[UPGRADED] = 0
        self.method, self.target = "", b""

    def map_memory(self) -> None:
        """Let the request runner of the C extension do what `begin`, `leave_app` and `count` do."""
        assert native.module is not None
        self.memory = native.module.SlotMemory(self._words, self._text, self.counts)

    def unmap_memory(self) -> None:
        """Undo `map_memory`. Slots share `counts`, so this comes before `unmap` of any of them."""
        if self.memory is not None:
            self.memory.unmap()
            self.memory = None

    def unmap(self) -> None:
        self._words.release()
        self._text.release()
        self.counts.release()


def check_extension(seconds: float) -> None:
    """Refuse what an app can't ask for as time for a request.

    Raises:
        ValueError: it is no time, or more than LONGEST.
    """
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"the deadline can't be extended by {seconds!r} seconds")
