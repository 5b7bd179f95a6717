"""Files that change because of the reloads that they cause.

Workers report what they write themselves; what a program writes that the app has started is not reported. If
it is written while the app is being loaded, and differs each time, reloads would never end. Such a file is
recognised by what it does: it changes again during each reload that it has caused.

An editor that saves by itself may do the same for a while. So the next reloads are delayed until the file is
left alone, and no edit is lost. A file that still changes during each reload is left out of account then, but
only during reloads: after their end a change of it is no effect of theirs. It counts again as usual as soon
as a reload has passed without changing it.

A program may also write a little later, each time after the reload that it causes. It looks like a person who
edits fast, so such reloads are never left out: they only wait longer and longer, until the file is left alone
for a few seconds after one of them, or another file causes one.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

# How often a file changes again before its reloads are delayed, and the seconds for which it must be left
# alone then, from time to time.
TOLERATED, DELAYS = 10, (2.0, 4.0, 8.0)
# Seconds after a reload that still count as part of it: what was written at its end is noticed later.
_AFTER = 1.0
# A change within so many seconds after a reload may be an effect of it: people look at what has changed. And
# the seconds for which such a file must be left alone before it reloads, from time to time.
_SOON, PAUSES = 3.0, (2.0, 4.0, 8.0, 16.0, 30.0)


class RepeatedChanges:
    """Decides when a changed file reloads. Reads no clock: times are seconds on any that does not go back."""

    def __init__(self) -> None:
        # The files that have caused the last reload, and those that have changed during it.
        self._caused: AbstractSet[str] = frozenset()
        self._during: set[str] = set()
        # How often each file has changed again during a reload that it had caused.
        self._times: dict[str, int] = {}
        # How often each file has changed soon after a reload that it had caused, without another one between.
        self._times_after: dict[str, int] = {}
        # Files whose reload is delayed, and until when.
        self._delayed: dict[str, float] = {}
        self._ended_at = -_AFTER
        self._ended = False

    def reload_ended(self, now: float) -> None:
        """A reload has ended, and no other has taken its place."""
        self._ended_at = now
        self._ended = True

    def changed(self, files: Iterable[str], reloading: bool, now: float) -> bool:
        """Files have changed; whether they are to reload now."""
        during = reloading or now < self._ended_at + _AFTER
        counting = {path for path in files if self._counts(path, during, now)}
        if counting:
            self._cause(counting | self._delayed.keys())
        return bool(counting)

    def _counts(self, path: str, during: bool, now: float) -> bool:
        if during:
            self._during.add(path)
            if path in self._caused:
                self._times[path] = self._times.get(path, 0) + 1
        if self._times.get(path, 0) < TOLERATED:
            if during:
                return True
            self._times.pop(path, None)
            return not self._waits(path, now)
        if not during and path not in self._delayed:
            return True
        if not self.is_left_out(path):
            self._delayed[path] = now + self.delay(path)
        return False

    def _waits(self, path: str, now: float) -> bool:
        """Whether a file that has changed after a reload is to be left alone first, because it often does."""
        if path not in self._delayed:
            if now >= self._ended_at + _SOON:
                self._times_after.pop(path, None)
            elif path in self._caused:
                self._times_after[path] = self._times_after.get(path, 0) + 1
        pause = self.pause(path)
        if pause:
            self._delayed[path] = now + pause
        return bool(pause)

    def is_left_out(self, path: str) -> bool:
        """Whether changes of the file during reloads have no effect."""
        return self._times.get(path, 0) >= TOLERATED + len(DELAYS)

    def delay(self, path: str) -> float:
        """The seconds for which a file must be left alone before it reloads; 0.0 for most files."""
        times = self._times.get(path, 0) - TOLERATED
        return DELAYS[min(times, len(DELAYS) - 1)] if times >= 0 else 0.0

    def pause(self, path: str) -> float:
        """As `delay`, for a file that changes after reloads."""
        times = self._times_after.get(path, 0) - TOLERATED
        return PAUSES[min(times, len(PAUSES) - 1)] if times >= 0 else 0.0

    @property
    def due(self) -> float | None:
        """When the next delayed reload may come."""
        return min(self._delayed.values(), default=None)

    def take_due(self, now: float) -> set[str]:
        """All delayed files, which are to reload now, if the delay of one is over."""
        if self.due is None or self.due > now:
            return set()
        found = set(self._delayed)
        self._cause(found)
        return found

    def _cause(self, files: AbstractSet[str]) -> None:
        if self._ended:
            # What has not changed during the last reload is written by no one who knows of reloads.
            self._times = {path: times for path, times in self._times.items() if path in self._during}
        self._times_after = {path: times for path, times in self._times_after.items() if path in files}
        self._caused = frozenset(files)
        self._during.clear()
        self._delayed.clear()
        self._ended = False
