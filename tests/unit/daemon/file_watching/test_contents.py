"""Whether a file has changed, and what is read for that."""

import os
import time
from pathlib import Path

import pytest

from ostler.daemon.file_watching import contents
from ostler.daemon.file_watching.contents import NONE, Reader

OLD = time.time() - 3600


def test_read_only_if_times_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is read again when its times have changed, or when it may have been written just before."""
    file = tmp_path / "file"
    file.write_text("one")
    monkeypatch.setattr(contents, "_COARSE", -10_000_000_000)  # nothing was written just before
    reader = Reader()
    seen = reader.see(str(file))
    assert reader.see(str(file), seen) is seen
    file.touch()
    touched = reader.see(str(file), seen)
    assert touched is not seen
    assert not seen.differs(touched)
    monkeypatch.setattr(contents, "_COARSE", 3600_000_000_000)
    seen = reader.see(str(file))
    assert seen.fresh
    assert reader.see(str(file), seen) is not seen


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "proc", "sys", "socket"])
def test_what_is_not_read(tmp_path: Path, kind: str) -> None:
    """Only regular files are read: nothing blocks, and nothing has an effect. Times count for the others."""
    place = tmp_path / "place"
    match kind:
        case "fifo":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case "socket":
            os.mknod(place, 0o140600)
        case _:
            target = {"device": "/dev/zero", "proc": "/proc/self/status", "sys": "/sys/kernel/notes"}[kind]
            place.symlink_to(target)
    seen = Reader().see(str(place))
    assert seen is not NONE
    assert seen.digest is None


def test_swapped_for_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that leads to a device by the time at which it is opened is not read."""
    place = tmp_path / "place"
    place.write_text("one")
    opened = os.open

    def open_late(path: str, flags: int) -> int:
        if path == str(place):
            place.unlink()
            place.symlink_to("/dev/zero")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", open_late)
    assert Reader().see(str(place)).digest is None


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limited number of bytes is read, of one file and in all."""
    for number in range(5):
        (tmp_path / str(number)).write_text("x" * 10)
    (tmp_path / "large").write_text("x" * 11)
    monkeypatch.setattr(contents, "LARGEST", 10)
    monkeypatch.setattr(contents, "MOST_BYTES", 35)
    reader = Reader()
    assert reader.see(str(tmp_path / "large")).digest is None
    read = [reader.see(str(tmp_path / str(number))).digest is not None for number in range(5)]
    assert read == [True, True, True, False, False]


def test_no_path() -> None:
    """What can't be a path is no file."""
    assert Reader().see("/a\0b") is NONE
    assert Reader().see("/" + "x" * 5000) is NONE
