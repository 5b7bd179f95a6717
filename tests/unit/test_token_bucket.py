"""The token bucket that limits what others can cause."""

import pytest

from ostler.token_bucket import TokenBucket


def test_taking() -> None:
    """A burst at once, and then as many as are refilled; a clock that goes backwards adds nothing."""
    bucket = TokenBucket(rate=2, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(101.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(50.0)
    assert not bucket.take(101.4)
    assert bucket.take(101.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_several_at_once() -> None:
    """A refused request takes no token."""
    bucket = TokenBucket(rate=1, burst=10, now=0.0)
    assert not bucket.take(0.0, 11)
    assert bucket.take(0.0, 10)
    assert not bucket.take(0.5)


def test_using() -> None:
    """Tokens that were already used may be owed, but no more than the burst; waiting pays them back."""
    bucket = TokenBucket(rate=0.5, burst=2, now=0.0)
    bucket.use(3, 0.0)
    assert bucket.wait(0.0) == 2.0
    assert bucket.wait(1.0) == 1.0
    assert bucket.wait(9.0) == 0.0
    bucket.use(100, 9.0)
    assert bucket.wait(9.0) == 4.0
    assert not bucket.is_full(16.9)
    assert bucket.is_full(17.0)


def test_granting() -> None:
    """Tokens may be added beyond the burst, up to a limit, and stay."""
    bucket = TokenBucket(rate=1, burst=2, now=0.0)
    bucket.grant(10, most=5, now=0.0)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_share_of_time() -> None:
    """A burst at first; then at a rate of 0.05 the use of 1 ms needs 20 ms of waiting."""
    bucket = TokenBucket(rate=0.05, burst=0.1, now=0.0)
    assert bucket.wait(0.0) == 0.0
    bucket.use(0.1, 0.0)
    assert bucket.wait(0.0) == 0.0
    bucket.use(0.001, 0.0)
    assert bucket.wait(0.0) == pytest.approx(0.02)
    assert bucket.wait(0.02) == pytest.approx(0.0)
    assert not bucket.is_full(1.0)
    assert bucket.is_full(10.0)


def test_debts_are_bounded() -> None:
    """Any debt is paid back after at most twice the time of a burst."""
    bucket = TokenBucket(rate=0.05, burst=0.1, now=0.0)
    for _ in range(100):
        bucket.use(1.0, 0.0)
    assert bucket.wait(0.0) == pytest.approx(2.0)
