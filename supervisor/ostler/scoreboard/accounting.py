"""The accounting of a worker. With `request_slot` it is the only code of a worker that writes the scoreboard.

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

from ostler.osapi import original
from ostler.scoreboard import layout
from ostler.scoreboard.layout import STARTED, STATUS_CLASSES
from ostler.scoreboard.request_slot import RequestSlot

# How often (ns) the highest slots are given up if they are free, and how many of them are kept at least.
_SHRINK_NS = 10_000_000_000
_KEPT = 16


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
        slot.is_free = False
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
        known = {*self.slots, *self._made, *self._made_hidden}
        for slot in known:
            slot.unmap_memory()
        for slot in known:
            slot.unmap()
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
            self._made.append(RequestSlot(self._released, number, *self._parts(number), loop.counts))
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
        slot = RequestSlot(
            self._released, -1, memory[: layout.TEXT].cast("Q"), memory[layout.TEXT :], loop.counts
        )
        slot.ident = id(slot) if self.own_idents else loop.ident
        self._made_hidden.append(slot)
        return slot

    def _released(self, slot: RequestSlot) -> None:
        (self._free if slot.number > 0 else self._free_hidden).append(slot)

    def _shrink(self) -> None:
        """Give up the highest slots that are free, and their memory. The supervisor reads all others."""
        kept = max((slot.number for slot in self._made[: self._pooled] if not slot.is_free), default=0)
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
            slot.forget()
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


def _first_word(number: int) -> int:
    return (layout.PAGE + number * layout.SLOT_SIZE) // layout.WORD
