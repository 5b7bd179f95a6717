"""When to try again what has failed."""

from ostler.daemon.backoff import LONGEST, Backoff


def test_pauses() -> None:
    """Twice as long after each failure in a row, up to a limit; no pause after a success."""
    backoff = Backoff()
    assert backoff.wait(0.0) == 0.0
    pauses = []
    for _ in range(9):
        backoff.failed(100.0)
        pauses.append(backoff.wait(100.0))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST, LONGEST, LONGEST]
    assert backoff.wait(100.0 + LONGEST - 1.5) == 1.5
    for _ in range(5000):
        backoff.failed(100.0)
    assert backoff.wait(100.0) == LONGEST
    backoff.succeeded()
    assert backoff.wait(100.0) == 0.0
    backoff.failed(200.0)
    assert backoff.wait(200.0) == 1.0
