"""Limits for the peers of the control plane. Pure: clocks are passed in.

A peer is all connections of one uid at one listener. The daemon's own user and root are trusted: a part of
each limit is reserved for them. Connections are bounded in number, and their cost is bounded in seconds of
the event loop per second.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

MOST_CONNECTIONS = 128
LEAST_CONNECTIONS = 8


class ConnectionLimits(NamedTuple):
    """Limits of one listener.

    total: all connections; per_peer: those of one untrusted peer; reserved: the part of the total that
    untrusted peers together can't use.
    """

    total: int
    per_peer: int
    reserved: int

    @classmethod
    def for_descriptors(cls, limit: int) -> "ConnectionLimits":
        """An eighth of the descriptors (RLIMIT_NOFILE) at most: forks, workers and logs need the others."""
        total = max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, limit // 8))
        return cls(total, total // 2, total // 4)

    @property
    def untrusted(self) -> int:
        return self.total - self.reserved


class Seat(Protocol):
    """The properties of a connection that `make_room` uses."""

    @property
    def uid(self) -> int | None:
        """Of the peer; None: unknown."""
        ...

    @property
    def trusted(self) -> bool: ...

    @property
    def busy(self) -> bool:
        """A request is being answered. Such a connection is never closed to make room."""
        ...

    @property
    def proven(self) -> bool:
        """A request on it was authenticated."""
        ...

    @property
    def since(self) -> float:
        """When it became idle; seconds."""
        ...


AnySeat = TypeVar("AnySeat", bound=Seat)


def make_room(
    uid: int | None, trusted: bool, seats: Collection[AnySeat], limits: ConnectionLimits
) -> tuple[bool, AnySeat | None]:
    """Whether a new connection is admitted, and which one is closed to make room for it.

    Connections without authentication are closed first, then the one that is idle for longest.
    """
    candidates: list[AnySeat]
    if trusted:
        if len(seats) < limits.total:
            return True, None
        candidates = list(seats)
    else:
        own = [seat for seat in seats if not seat.trusted and seat.uid == uid]
        untrusted = [seat for seat in seats if not seat.trusted]
        # Connections of unknown users may belong to different users.
        if uid is not None and len(own) >= limits.per_peer:
            candidates = own
        elif len(untrusted) >= limits.untrusted or len(seats) >= limits.total:
            counts = Counter(seat.uid for seat in untrusted)
            most = max(counts.values(), default=0)
            candidates = [seat for seat in untrusted if counts[seat.uid] == most]
        else:
            return True, None
    idle = [seat for seat in candidates if not seat.busy]
    if not idle:
        return False, None
    return True, min(idle, key=lambda seat: (seat.proven, seat.since))


class Quota:
    """Limits the number of something: untrusted peers have `per_key` each at most, and leave `reserved` free.

    Args:
        what: a plural for messages, e.g. `streams`.
    """

    def __init__(self, what: str, total: int, per_key: int, reserved: int) -> None:
        self._what = what
        self._total = total
        self._per_key = per_key
        self._reserved = reserved
        self._counts: Counter[tuple[Hashable, bool]] = Counter()

    def refusal(self, key: Hashable, trusted: bool) -> str | None:
        """The reason not to admit one more for `key`, as a sentence; None if it is admitted."""
        if self._counts.total() >= self._total:
            return f"{self._total} {self._what} are open already"
        if trusted:
            return None
        if self._counts[key, False] >= self._per_key:
            return f"{self._per_key} of your {self._what} are open already"
        untrusted = sum(count for (_, known), count in self._counts.items() if not known)
        if untrusted >= self._total - self._reserved:
            return (
                f"{untrusted} {self._what} are open already; "
                "the rest is reserved for the daemon's user and root"
            )
        return None

    @contextmanager
    def one(self, key: Hashable, trusted: bool) -> Iterator[None]:
        """Count one for `key` while the context lasts."""
        self._counts[key, trusted] += 1
        try:
            yield
        finally:
            self._counts[key, trusted] -= 1
            if self._counts[key, trusted] <= 0:
                del self._counts[key, trusted]
