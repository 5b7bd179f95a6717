"""The token bucket that bounds what others cause."""

import pytest

from ostler.token_bucket import TokenBucket


def test_taking() -> None:
    """So many at once, and then as many as come in; time that goes backwards adds nothing."""
    bucket = TokenBucket(rate=2, burst=3, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(101.0) for _ in range(3)] == [True, True, False]
    assert not bucket.take(50.0)
    assert not bucket.take(101.4)
    assert bucket.take(101.5)
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]


def test_several_at_once() -> None:
    """A refusal takes none."""
    bucket = TokenBucket(rate=1, burst=10, now=0.0)
    assert not bucket.take(0.0, 11)
    assert bucket.take(0.0, 10)
    assert not bucket.take(0.5)


def test_using() -> None:
    """What was used already may be owed, but no more than the burst; it is paid back by waiting."""
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
    """Tokens may be added beyond the burst, up to a limit, and stay there."""
    bucket = TokenBucket(rate=1, burst=2, now=0.0)
    bucket.grant(10, most=5, now=0.0)
    assert [bucket.take(100.0) for _ in range(6)] == [True] * 5 + [False]


def test_a_share_of_time() -> None:
    """A burst at first; then, to use 1 ms, 20 ms have to pass at a rate of 0.05."""
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
    """Whatever was used: it is paid back after at most twice the time that a burst takes."""
    bucket = TokenBucket(rate=0.05, burst=0.1, now=0.0)
    for _ in range(100):
        bucket.use(1.0, 0.0)
    assert bucket.wait(0.0) == pytest.approx(2.0)
