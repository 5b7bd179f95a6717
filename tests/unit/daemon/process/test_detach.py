"""Whether to detach, and whether the log is lost by it. Detaching itself is a system test."""

import os

import pytest

from ostler.daemon.process.detach import log_gets_lost, reason_to_stay
from ostler.settings.table import Settings


@pytest.mark.parametrize(
    ("environ", "pid", "reason"),
    [
        ({}, 4321, None),
        ({"NOTIFY_SOCKET": "/run/notify"}, 4321, "NOTIFY_SOCKET"),
        ({"LISTEN_PID": "4321"}, 4321, "LISTEN_PID"),
        ({"LISTEN_PID": "4320"}, 4321, None),
        ({}, 1, "container"),
    ],
)
def test_reason_to_stay(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], pid: int, reason: str | None
) -> None:
    """A process that a service manager supervises does not detach from it."""
    for name in ("NOTIFY_SOCKET", "LISTEN_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getpid", lambda: pid)
    reason_given = reason_to_stay()
    assert (reason_given is None) if reason is None else (reason_given is not None and reason in reason_given)


def test_what_is_lost() -> None:
    """Only a log that goes to standard error alone, which is not kept."""
    assert log_gets_lost(Settings())
    for kept in (
        Settings(errorlog="a.log"),
        Settings(enable_stdio_inheritance=True),
        Settings(syslog=True),
        Settings(logconfig_dict={"version": 1}),
    ):
        assert not log_gets_lost(kept)
