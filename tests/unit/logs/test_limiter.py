"""Log lines that clients can cause: the first ones are written, then only their number."""

from ostler.logs.limiter import LimitedLog, LineLimiter
from tests.unit.control.fake import captured_log


def test_the_first_lines_of_a_window_are_written() -> None:
    """A limited number per window; the next window allows the same number again."""
    limiter: LineLimiter[str] = LineLimiter(first=3, seconds=60)
    assert [limiter.admit("a", now) for now in (0, 1, 2, 3, 4)] == [True, True, True, False, False]
    assert limiter.summaries(59) == []
    assert limiter.summaries(60) == [("a", 2)]
    assert limiter.summaries(60) == []
    assert limiter.admit("a", 61)


def test_kinds_do_not_share_a_window() -> None:
    """Lines caused by one peer do not use up another's window; a kind with few lines has no summary."""
    limiter: LineLimiter[str] = LineLimiter(first=1, seconds=60)
    assert limiter.admit("a", 0)
    assert not limiter.admit("a", 0)
    assert limiter.admit("b", 30)
    assert limiter.summaries(100) == [("a", 1)]


def test_the_number_of_kinds_is_bounded() -> None:
    """Many different kinds need no more memory: those beyond the limit are counted together."""
    limiter: LineLimiter[int] = LineLimiter(first=1, seconds=60, kinds=10)
    assert sum(limiter.admit(number, 0) for number in range(1000)) == 10
    assert limiter.summaries(60) == [(None, 990)]
    assert limiter.admit(1001, 61)


def test_a_summary_says_how_many_were_left_out() -> None:
    """It has the level of the suppressed lines, their event and the peer."""
    log, records = captured_log()
    now = 0.0
    limited = LimitedLog(log, lambda: now, LineLimiter(first=2, seconds=10))
    for _ in range(5):
        limited.write("info", "control_change", "unix uid 7", who="unix uid 7", outcome="403 forbidden")
    limited.report()
    assert [record["event"] for record in records] == ["control_change"] * 2
    now = 10.0
    limited.report()
    last = records[-1]
    assert (last["event"], last["level"]) == ("log_suppressed", "info")
    assert (last["of"], last["who"], last["lines"]) == ("control_change", "unix uid 7", 3)
