"""Helpers for tests of files."""

import os

import pytest


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that are opened from now on, other than with O_PATH, which has no effect on a device."""
    original = os.open
    found: list[str] = []

    def note(path: str, flags: int, *args: int, **more: int) -> int:
        if not flags & os.O_PATH:
            found.append(path)
        return original(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", note)
    return found
