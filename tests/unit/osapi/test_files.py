"""Paths in settings that are not regular files."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ostler.osapi import files
from ostler.osapi.files import check_file, read_file


@pytest.mark.parametrize("look", [read_file, check_file])
def test_what_is_no_file(tmp_path: Path, look: Callable[[str], object]) -> None:
    """It is refused at once, and the error names the kind of file."""
    fifo, place = str(tmp_path / "fifo"), str(tmp_path / "socket")
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(place)
        for path, problem in (
            (fifo, "FIFO"),
            (str(tmp_path), "Is a directory"),
            (place, "No such device"),
            ("/dev/zero", "device"),
            (str(tmp_path / "missing"), "No such file"),
            ("a\0b", "NUL"),
        ):
            with pytest.raises(OSError, match=problem):
                look(path)


def test_no_device_is_opened(opened: list[str]) -> None:
    """Opening some of them has effects: /dev/watchdog restarts the machine a minute later."""
    with pytest.raises(OSError, match="device"):
        read_file("/dev/zero")
    assert opened == []


def test_reading(tmp_path: Path) -> None:
    """All of it, up to a limit; /dev/null reads like an empty file."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert read_file(path) == b"x" * 3_000_000
    with pytest.raises(OSError, match="more than 100 bytes"):
        read_file(path, 100)
    assert read_file("/dev/null") == b""
    check_file("/dev/null")
    check_file(path)


def test_most_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit and an unknown limit are not treated as a small number: RLIM_INFINITY is -1."""
    monkeypatch.setattr(files.resource, "getrlimit", lambda _which: (1024, 4096))
    assert files.most_open_files() == 1024
    monkeypatch.setattr(files.resource, "getrlimit", lambda _which: (-1, -1))
    assert files.most_open_files() > 1_000_000

    def refused(_which: int) -> tuple[int, int]:
        raise PermissionError(1, "refused")

    monkeypatch.setattr(files.resource, "getrlimit", refused)
    assert files.most_open_files() > 1_000_000
