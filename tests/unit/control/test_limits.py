"""Limits of connections, of time in the event loop, and of streams."""

from dataclasses import dataclass

import pytest

from ostler.control.limits import ConnectionLimits, Quota, make_room

LIMITS = ConnectionLimits(total=8, per_peer=4, reserved=2)


@dataclass
class Seat:
    uid: int | None
    since: float = 0.0
    trusted: bool = False
    busy: bool = False
    proven: bool = False


@pytest.mark.parametrize(("descriptors", "total"), [(64, 8), (256, 32), (1024, 128), (1 << 20, 128)])
def test_limits_follow_the_descriptors(descriptors: int, total: int) -> None:
    """Connections may use an eighth of the descriptors, but there are always some.

    Untrusted users can't have all of them.
    """
    limits = ConnectionLimits.for_descriptors(descriptors)
    assert limits.total == total
    assert 0 < limits.per_peer < limits.untrusted < limits.total


def test_room_for_the_first() -> None:
    """No connection is closed as long as there is room."""
    assert make_room(7, False, [Seat(7), Seat(8)], LIMITS) == (True, None)


def test_a_peer_at_its_limit_makes_room_itself() -> None:
    """Its own longest idle connection is closed, not an older one of another peer."""
    seats = [Seat(8, 0.0), *(Seat(7, float(at)) for at in (5, 3, 4, 6))]
    assert make_room(7, False, seats, LIMITS) == (True, seats[2])


def test_strangers_together_leave_the_reserve() -> None:
    """At the common limit of untrusted users, a connection of the peer with most connections is closed."""
    seats = [Seat(6, 0.0), Seat(7, 1.0), Seat(7, 2.0), Seat(7, 3.0), Seat(8, 0.5), Seat(8, 0.6)]
    assert make_room(9, False, seats, LIMITS) == (True, seats[1])
    assert make_room(0, True, seats, LIMITS) == (True, None)


def test_the_reserve_is_for_trusted_users() -> None:
    """A full table makes room for trusted users, and other users never replace their connections."""
    seats = [*(Seat(0, 0.0, trusted=True) for _ in range(6)), Seat(7, 5.0), Seat(8, 6.0)]
    assert make_room(0, True, seats, LIMITS) == (True, seats[0])
    admitted, leaves = make_room(9, False, seats, LIMITS)
    assert admitted
    assert leaves in seats[6:]


def test_unknown_users_share_what_strangers_have() -> None:
    """If the kernel can't name users, all of them share one quota: everything but the reserve;
    the oldest is closed.
    """
    seats = [Seat(None, float(at)) for at in range(6)]
    assert make_room(None, False, seats[:5], LIMITS) == (True, None)
    assert make_room(None, False, seats, LIMITS) == (True, seats[0])


def test_connections_that_have_shown_a_token_are_closed_last() -> None:
    """A flood of idle connections ends the others before one that has shown a token."""
    seats = [Seat(7, 0.0, proven=True), *(Seat(7, float(at)) for at in (1, 2, 3))]
    assert make_room(7, False, seats, LIMITS) == (True, seats[1])


def test_connections_with_a_request_are_not_closed() -> None:
    """If all connections that could be closed have requests, the new connection is refused."""
    seats = [Seat(7, busy=True) for _ in range(4)]
    assert make_room(7, False, seats, LIMITS) == (False, None)


def test_a_quota_keeps_some_for_trusted_users() -> None:
    """One untrusted user has a limit, and all of them together leave the reserve for trusted users."""
    quota = Quota("streams", total=4, per_key=2, reserved=1)
    with quota.one("a", False), quota.one("a", False):
        assert quota.refusal("a", False) == "2 of your streams are open already"
        assert quota.refusal("b", False) is None
        with quota.one("b", False):
            assert "the rest is reserved for" in (quota.refusal("c", False) or "")
            assert quota.refusal("root", True) is None
            with quota.one("root", True):
                assert quota.refusal("root", True) == "4 streams are open already"
    assert quota.refusal("a", False) is None
