"""How much of the supervisor a peer of the control plane may use. Pure: clocks are passed in.

A peer is all connections of one uid at one listener. The daemon's own user and root are trusted: they have
room of their own, which strangers can't take. Connections are bounded in number, and what they cost is
bounded in seconds of the event loop for each second that passes.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

MOST_CONNECTIONS = 128
LEAST_CONNECTIONS = 8


class ConnectionLimits(NamedTuple):
    """Of one listener. total: all connections; per_peer: those of one stranger; reserved: out of the total,
    those that strangers together can't have."""

    total: int
    per_peer: int
    reserved: int

    @classmethod
    def for_descriptors(cls, limit: int) -> "ConnectionLimits":
        """An eighth of the descriptors (RLIMIT_NOFILE) at most: forks, workers and logs need the others."""
        total = max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, limit // 8))
        return cls(total, total // 2, total // 4)

    @property
    def strangers(self) -> int:
        return self.total - self.reserved


class Seat(Protocol):
    """A connection as far as it matters to who makes room."""

    @property
    def uid(self) -> int | None:
        """The peer's; None: not known."""
        ...

    @property
    def trusted(self) -> bool: ...

    @property
    def busy(self) -> bool:
        """A request is being answered. Such a connection never makes room."""
        ...

    @property
    def proven(self) -> bool:
        """It has authenticated itself once."""
        ...

    @property
    def since(self) -> float:
        """Since when it is idle; seconds."""
        ...


AnySeat = TypeVar("AnySeat", bound=Seat)


def make_room(
    uid: int | None, trusted: bool, seats: Collection[AnySeat], limits: ConnectionLimits
) -> tuple[bool, AnySeat | None]:
    """Whether a new connection may come in, and which one makes room for it.

    The one that makes room has not authenticated itself, if there is such a one, and is idle for longest.
    """
    candidates: list[AnySeat]
    if trusted:
        if len(seats) < limits.total:
            return True, None
        candidates = list(seats)
    else:
        own = [seat for seat in seats if not seat.trusted and seat.uid == uid]
        strangers = [seat for seat in seats if not seat.trusted]
        # Of those whose uid is not known some may be others' than the rest.
        if uid is not None and len(own) >= limits.per_peer:
            candidates = own
        elif len(strangers) >= limits.strangers or len(seats) >= limits.total:
            counts = Counter(seat.uid for seat in strangers)
            most = max(counts.values(), default=0)
            candidates = [seat for seat in strangers if counts[seat.uid] == most]
        else:
            return True, None
    idle = [seat for seat in candidates if not seat.busy]
    if not idle:
        return False, None
    return True, min(idle, key=lambda seat: (seat.proven, seat.since))


class Quota:
    """How many of something there may be: strangers have `per_key` each at most, and leave `reserved` free.

    Args:
        what: a plural for messages, e.g. `streams`.
    """

    def __init__(self, what: str, total: int, per_key: int, reserved: int) -> None:
        self._what = what
        self._total = total
        self._per_key = per_key
        self._reserved = reserved
        self._taken: Counter[tuple[Hashable, bool]] = Counter()

    def refusal(self, key: Hashable, trusted: bool) -> str | None:
        """Why there may be no more for `key`, in a sentence; None if there may."""
        if self._taken.total() >= self._total:
            return f"{self._total} {self._what} are open already"
        if trusted:
            return None
        if self._taken[key, False] >= self._per_key:
            return f"{self._per_key} of your {self._what} are open already"
        strangers = sum(count for (_, known), count in self._taken.items() if not known)
        if strangers >= self._total - self._reserved:
            return (
                f"{strangers} {self._what} are open already; the rest is kept for the daemon's user and root"
            )
        return None

    @contextmanager
    def one(self, key: Hashable, trusted: bool) -> Iterator[None]:
        """Count one for `key` while the context lasts."""
        self._taken[key, trusted] += 1
        try:
            yield
        finally:
            self._taken[key, trusted] -= 1
            if self._taken[key, trusted] <= 0:
                del self._taken[key, trusted]
