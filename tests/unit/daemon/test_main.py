"""What the daemon does each second."""

from typing import Any

from ostler.daemon.main import Daemon


def test_a_chore_that_fails_is_reported_and_ends_nothing() -> None:
    told: list[str] = []
    daemon: Any = Daemon.__new__(Daemon)
    daemon._loop = None
    daemon._log_loop_error = lambda _loop, context: told.append(context["message"])

    def reap() -> None:
        raise ValueError("process stopped by delivery of signal 10")

    daemon._chore(reap)
    assert told == ["failed: reap"]
