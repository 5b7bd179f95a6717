"""When to try again what has failed."""

from ostler.daemon.retry_delay import LONGEST, RetryDelay


def test_pauses() -> None:
    """Twice as long after each failure in a row, up to a limit; none after a success."""
    delay = RetryDelay()
    assert delay.wait(0.0) == 0.0
    pauses = []
    for _ in range(9):
        delay.failed(100.0)
        pauses.append(delay.wait(100.0))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST, LONGEST, LONGEST]
    assert delay.wait(100.0 + LONGEST - 1.5) == 1.5
    for _ in range(5000):
        delay.failed(100.0)
    assert delay.wait(100.0) == LONGEST
    delay.succeeded()
    assert delay.wait(100.0) == 0.0
    delay.failed(200.0)
    assert delay.wait(200.0) == 1.0
