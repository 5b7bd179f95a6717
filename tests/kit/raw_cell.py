"""Raw words of a scoreboard cell, for tests of the supervisor's side, which must tolerate any value."""

import mmap

from ostler.scoreboard import layout


class RawCell:
    """A mapped cell. Words are numbered as in `layout`.

    Args:
        cell: its memory.
        slots: how many of its request slots are in use.

    Attributes:
        header: the header's words.
    """

    def __init__(self, cell: mmap.mmap, slots: int) -> None:
        self._view = memoryview(cell)
        self.header = self._view[: layout.PAGE].cast("Q")
        self.header[layout.SLOTS_IN_USE] = slots

    def slot(self, number: int) -> tuple[memoryview, memoryview]:
        """The words, and the text (bytes), of one request slot."""
        start = layout.PAGE + number * layout.SLOT_SIZE
        words = self._view[start : start + layout.TEXT].cast("Q")
        return words, self._view[start + layout.TEXT : start + layout.SLOT_SIZE]
