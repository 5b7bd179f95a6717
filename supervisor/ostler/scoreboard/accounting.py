"""The accounting of a worker: the only code on the worker's side that writes the scoreboard.

A request is begun, may be given more time, and is ended with its status and the bytes that were sent. One
that is answered in parts, or reads its body while it comes, makes progress and waits for its client:

    slot = accounting.begin("GET", b"/path?query", monotonic_ns())
    slot.pause()
    slot.progressed(monotonic_ns())
    ...
    slot.end(200, len(body), monotonic_ns())

Deadlines, metrics and what `ctl` shows come from that. There are two kinds of request slots:

- A thread that serves makes its own with `thread_slot` and uses it for all of its requests, one at a time.
- An event loop, or greenlets, get a free slot for each request with `begin` or `take`. More slots are taken
  into use as they are needed, and `heartbeat` gives up the highest ones when they are free. They show
  requests; all of them count in slot 0, which belongs to the thread that runs the loop.

The cell has room for all requests that the worker may ever serve at once. Its file can't grow, but it is
sparse: a page takes memory from when it is first written, or read through the map. So nothing here reads a
slot that is not in use, and neither does the supervisor.

A write costs some 50 ns and no lock. All times are CLOCK_MONOTONIC in nanoseconds (time.monotonic_ns).
"""

import mmap
from contextlib import suppress
from struct import Struct
from time import monotonic_ns
from typing import Any

from ostler.osapi import original
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

# Which word counts a duration below 4 ms, by its length in 1.024 µs; others take `bucket_of`.
_QUICK = [HISTOGRAM + bucket_of(units << 10) for units in range(4096)]
_QUICK_NS = len(_QUICK) << 10
# Which word counts an answer, by its status. Apps may give anything as a status; 9 is the class of the rest.
_STATUS_WORD = {status: STATUS_CLASSES + status // 100 for status in range(1000)}
_OTHER_STATUS = STATUS_CLASSES + 9
_RULE_WORD = {rule: REFUSED + number for number, rule in enumerate(RULES)}
# How often (ns) the highest slots are given up if they are free, and how many of them are kept at least.
_SHRINK_NS = 10_000_000_000
_KEPT = 16

_write_method = Struct(f"{METHOD_SIZE}s").pack_into
_write_target = Struct(f"{PATH_SIZE}s").pack_into


class RequestSlot:
    """Shows one request at a time, and counts answers and connections.

    Its methods are called by one thread: the one that made it with `thread_slot`, or for slots of `begin` and
    `take` the one that runs the loop. `extend`, `extend_until` and `upgraded` may be called by any thread;
    reading may be done anywhere, signal handlers included.

    Attributes:
        number: where it is in the cell; -1: the cell is full, so that it counts but does not show requests.
        method, target: of the request that is shown, or was last; to be set by `begin` only.
        owner: for the caller, e.g. the task or greenlet that serves the request; None after `release`.
    """

    __slots__ = (
        *("_accounting", "_counts", "_is_free", "_text", "_words"),
        *("method", "number", "owner", "target"),
    )

    def __init__(
        self,
        accounting: "Accounting | None",
        number: int,
        words: memoryview,
        text: memoryview,
        counts: memoryview,
    ) -> None:
        self._accounting = accounting
        self._words = words
        self._text = text
        self._counts = counts
        self.method = ""
        self.target = b""
        self._is_free = False
        self.number = number
        self.owner: Any = None

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
        counts = self._counts
        try:
            counts[_STATUS_WORD[status]] += 1
        except (KeyError, TypeError):
            counts[_OTHER_STATUS] += 1
        if took is not None:
            counts[_QUICK[took >> 10] if took < _QUICK_NS else HISTOGRAM + bucket_of(took)] += 1
        if bytes_sent:
            counts[BYTES_SENT] += bytes_sent

    def end(self, status: int, bytes_sent: int, now: int) -> None:
        """The request was answered, or will not be: leave the app, count the answer and release the slot."""
        started = self._words[STARTED]
        self._words[STARTED] = 0
        self.count(status, bytes_sent, now - started if started else None)
        if self._accounting is not None:
            self.release()

    def release(self) -> None:
        """Make a slot of `begin` or `take` available for other requests, if it is not yet; `end` does that.

        A thread's slot stays what it is.
        """
        if self._accounting is not None and not self._is_free:
            self._words[STARTED] = 0
            self._is_free = True
            self.owner = None
            self._accounting._released(self)

    def refused(self, status: int, bytes_sent: int, rule: str | None = None) -> None:
        """Count an answer to what never got to the app.

        rule: by which it was refused, one of layout.RULES; None: it was not refused, or it is not known.
        """
        if rule is not None:
            self._counts[_RULE_WORD.get(rule, _RULE_WORD["other"])] += 1
        self.count(status, bytes_sent, None)

    def waited(self, nanoseconds: int) -> None:
        """Count how long a request waited before it got to the app, if that is at least LEAST_QUEUED."""
        self._counts[layout.QUEUED + bucket_of(nanoseconds)] += 1

    def add_bytes(self, number: int) -> None:
        """Count bytes of a body that were sent after the request was counted."""
        self._counts[BYTES_SENT] += number

    # -- connections ---------------------------------------------------------------------------------------

    def connection_opened(self) -> None:
        self._counts[OPENED] += 1

    def connection_closed(self) -> None:
        self._counts[CLOSED] += 1

    def connection_handed_off(self) -> None:
        """A connection was handed off to a sibling worker."""
        self._counts[layout.HANDED_OFF] += 1

    def connection_received(self) -> None:
        """A sibling worker handed off a connection to this one."""
        self._counts[layout.RECEIVED] += 1

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
        """From now on the time of the request in the app does not count: it waits for its client.

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

    def _forget(self) -> None:
        """Show nothing, not even what was shown last."""
        words = self._words
        words[METHOD_LENGTH] = words[PATH_LENGTH] = 0
        words[OVERDUE] = words[EXTENDED_FOR] = words[UPGRADED] = 0
        self.method, self.target = "", b""

    def _unmap(self) -> None:
        self._words.release()
        self._text.release()
        self._counts.release()


class Accounting:
    """All request slots of a worker.

    Args:
        cell: the worker's cell of the scoreboard, mapped.
        slots: how many it has: for threads one for each and one for the thread that watches over them, for a
            loop one for each request at once and one (slot 0) for the loop itself.

    Attributes:
        slots: those that were made with `thread_slot`, and those that `begin` or `take` has taken into use.
            To be read by anyone at any time, signal handlers included; copy it before iterating in another
            thread.
        own_idents: a slot of `take` or `begin` has an ident of its own, `id(slot)`, not that of the loop's
            thread; to be set before the first of them.
    """

    def __init__(self, cell: mmap.mmap, slots: int) -> None:
        self.slots: list[RequestSlot] = []
        self.own_idents = False
        self._memory = cell
        self._view = memoryview(cell)
        self._all = self._view.cast("Q")
        self._most = slots
        self._lock = original.Lock()
        self._loop: RequestSlot | None = None
        # Slots for `begin` and `take`: those that are free, the one to use next last; and how many were made.
        self._free: list[RequestSlot] = []
        # All that were made, by number from 1 on; and how many of these are taken into use.
        self._made: list[RequestSlot] = []
        self._pooled = 0
        # The same of slots that are not in the cell, for which it has no room.
        self._free_hidden: list[RequestSlot] = []
        self._made_hidden: list[RequestSlot] = []
        self._shrunk = 0

    def heartbeat(self, now: int) -> None:
        """The worker's loop passes; to be called once a second at least, by the thread that runs the loop.

        With `one_loop` (see `BaseWorker`) twice a second: a loop without a heartbeat hangs.
        """
        self._all[layout.HEARTBEAT] = now
        if self._pooled > _KEPT and now - self._shrunk > _SHRINK_NS:
            self._shrunk = now
            self._shrink()

    def thread_slot(self, number: int) -> RequestSlot:
        """A thread's own slot; to be called once for a number, by the thread that uses it.

        Args:
            number: from 0 on, below `slots`.
        """
        words, text = self._parts(number)
        slot = RequestSlot(None, number, words, text, words)
        slot.ident = original.get_ident()
        with self._lock:
            self.slots.append(slot)
            self._all[layout.SLOTS_IN_USE] = max(self._all[layout.SLOTS_IN_USE], number + 1)
        if number == 0:
            self._loop = slot
        return slot

    def begin(self, method: str, target: bytes, now: int) -> RequestSlot:
        """Show a request in any free slot; as `RequestSlot.begin`.

        `thread_slot(0)` must have been made by the thread that calls it. If more requests are in the app than
        the cell has slots for, they are counted, but not shown, and have no deadline.
        """
        slot = self.take()
        slot.begin(method, target, now)
        return slot

    def take(self) -> RequestSlot:
        """A free slot as for `begin`, without a request yet."""
        slot = self._free.pop() if self._free else self._another()
        slot._is_free = False
        return slot

    @property
    def busy(self) -> bool:
        """Whether a request is in the app."""
        words = self._all
        return any(words[_first_word(number) + STARTED] for number in range(words[layout.SLOTS_IN_USE]))

    @property
    def answered(self) -> int:
        """How many answers the worker has counted."""
        words = self._all
        total = 0
        for number in range(words[layout.SLOTS_IN_USE]):
            first = _first_word(number) + STATUS_CLASSES
            total += sum(words[first : first + 10])
        return total

    def close(self) -> None:
        """Unmap the memory, although references to parts of it remain: writing to these raises ValueError.

        A worker that goes on as a fork server calls it: libraries may keep what has served in it for ever.
        """
        for slot in {*self.slots, *self._made, *self._made_hidden}:
            slot._unmap()
        for slots in (self.slots, self._free, self._made, self._free_hidden, self._made_hidden):
            slots.clear()
        self._all.release()
        self._view.release()
        self._memory.close()

    # -- slots for `begin` and `take` ----------------------------------------------------------------------

    def _another(self) -> RequestSlot:
        """One more slot, shown if the cell has room for it."""
        if (loop := self._loop) is None:
            raise RuntimeError("there is no thread_slot(0) yet")
        number = self._pooled + 1
        if number >= self._most:
            return self._hidden(loop)
        if number > len(self._made):
            self._made.append(RequestSlot(self, number, *self._parts(number), loop._counts))
        slot = self._made[number - 1]
        slot.ident = id(slot) if self.own_idents else loop.ident
        self._pooled = number
        self.slots.append(slot)
        self._all[layout.SLOTS_IN_USE] = number + 1
        return slot

    def _hidden(self, loop: RequestSlot) -> RequestSlot:
        """A slot in private memory."""
        if self._free_hidden:
            return self._free_hidden.pop()
        memory = memoryview(bytearray(layout.SLOT_SIZE))
        slot = RequestSlot(self, -1, memory[: layout.TEXT].cast("Q"), memory[layout.TEXT :], loop._counts)
        slot.ident = id(slot) if self.own_idents else loop.ident
        self._made_hidden.append(slot)
        return slot

    def _released(self, slot: RequestSlot) -> None:
        (self._free if slot.number > 0 else self._free_hidden).append(slot)

    def _shrink(self) -> None:
        """Give up the highest slots that are free, and their memory. The supervisor reads all others."""
        kept = max((slot.number for slot in self._made[: self._pooled] if not slot._is_free), default=0)
        kept = max(kept, _KEPT)
        # The lowest are used first, so that the highest become free.
        self._free = sorted(
            (slot for slot in self._free if slot.number <= kept), key=lambda slot: -slot.number
        )
        if kept >= self._pooled:
            return
        before, self._pooled = self._pooled, kept
        self._all[layout.SLOTS_IN_USE] = kept + 1
        del self.slots[kept + 1 :]
        for slot in self._made[kept:before]:  # no others: a write would take memory for their pages again
            slot._forget()
        first = -(-(layout.PAGE + (kept + 1) * layout.SLOT_SIZE) // mmap.PAGESIZE) * mmap.PAGESIZE
        if first < len(self._memory):
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE, first, len(self._memory) - first)

    def _parts(self, number: int) -> tuple[memoryview, memoryview]:
        """The words and the text of a slot."""
        if not 0 <= number < self._most:
            raise IndexError(f"there are {self._most} request slots, and none with the number {number}")
        start = layout.PAGE + number * layout.SLOT_SIZE
        end = start + layout.SLOT_SIZE
        return self._view[start : start + layout.TEXT].cast("Q"), self._view[start + layout.TEXT : end]


def check_extension(seconds: float) -> None:
    """Refuse what an app can't ask for as time for a request.

    Raises:
        ValueError: it is no time, or more than LONGEST.
    """
    if not 0 < seconds <= LONGEST:
        raise ValueError(f"the deadline can't be extended by {seconds!r} seconds")


def _first_word(number: int) -> int:
    return (layout.PAGE + number * layout.SLOT_SIZE) // layout.WORD
