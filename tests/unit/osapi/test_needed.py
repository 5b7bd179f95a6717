"""System calls that are tried before a start."""

import errno

import pytest

from ostler.errors import OstlerError
from ostler.osapi import needed


def test_all_are_allowed() -> None:
    needed.check_calls()


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSYS, "seccomp"), (errno.EMFILE, "ulimit")])
def test_refused(monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    """One line names the call and a remedy."""

    def refuse() -> None:
        raise OSError(number, "no")

    monkeypatch.setitem(needed._CALLS, "pipe2(2)", refuse)
    with pytest.raises(OstlerError, match=rf"pipe2\(2\).*{advice}"):
        needed.check_calls()


def test_too_few_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is too low for any start is reported at once."""
    monkeypatch.setattr(needed, "most_open_files", lambda: 12)
    with pytest.raises(OstlerError, match="may open 12 files"):
        needed.check_calls()
