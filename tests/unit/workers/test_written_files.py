"""Which files a process reports as written by the app."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ostler.workers import written_files
from ostler.workers.written_files import WriteReporter


class Told:
    """What was reported, by the name in the folder; what was in the file at that time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.texts: list[str | None] = []
        self.loaded = {str(folder / "settings.ini")}

    def take(self, paths: list[str]) -> None:
        (path,) = map(Path, paths)
        self.names.append(str(path.relative_to(self.folder)))
        self.texts.append(path.read_text() if path.is_file() else None)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    monkeypatch.chdir(tmp_path)
    for folder in ("templates", "data"):
        (tmp_path / folder).mkdir()
    for name in ("old.py", "kept.txt"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("templates")
    told = Told(tmp_path)
    WriteReporter(told.take, ["data", "conf/*.yaml"], told.loaded).start()
    yield told
    written_files.stop()


WAYS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "module": (lambda: Path("made.py").write_text("new"), ["made.py"]),
    "template": (lambda: Path("page.html").write_text("new"), ["page.html"]),
    "in templates": (lambda: Path("templates/any").write_text("new"), ["templates/any"]),
    "appended": (lambda: Path("data/log").open("a").close(), ["data/log"]),
    "loaded": (lambda: Path("settings.ini").write_text("new"), ["settings.ini"]),
    "descriptor": (lambda: os.close(os.open("made.py", os.O_RDWR | os.O_CREAT)), ["made.py"]),
    "bytes": (lambda: os.close(os.open(b"made.py", os.O_RDWR | os.O_CREAT)), ["made.py"]),
    "replaced": (lambda: Path("kept.txt").replace("made.py"), ["made.py"]),
    "removed": (lambda: Path("old.py").unlink(), ["old.py"]),
    "linked": (lambda: Path("made.py").symlink_to("kept.txt"), ["made.py"]),
    "by a link": (lambda: Path("link").joinpath("any").write_text("new"), ["link/any", "templates/any"]),
    "database": (
        lambda: sqlite3.connect("data/base").close(),
        ["data/base", *(f"data/base-{end}" for end in ("journal", "shm", "wal"))],
    ),
    "read": (lambda: Path("old.py").read_text(), []),
    "touched": (lambda: Path("old.py").touch(), []),
    "of no interest": (lambda: Path("upload.jpg").write_text("new"), []),
    "another process": (lambda: os.waitpid(_in_child(lambda: Path("made.py").write_text("new")), 0), []),
}


def _in_child(function: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    return pid


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write(told: Told, way: str) -> None:
    """What may be watched is reported before it is written, once, however it is written."""
    write, expected = WAYS[way]
    write()
    if way not in ("replaced", "removed", "linked"):
        write()
    assert sorted(told.names) == sorted(expected)
    assert "new" not in told.texts


def test_limit(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reports a limited number of files."""
    monkeypatch.setattr(written_files, "_MOST", 3)
    for number in range(9):
        Path(f"made{number}.py").touch()
        Path(f"made{number}.py").write_text("new")
    assert len(told.names) == 3


def test_failure_to_report(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app's own call succeeds when a report does not."""

    def fail(_paths: list[str]) -> None:
        raise BlockingIOError

    monkeypatch.setattr(told, "take", fail)
    WriteReporter(fail, [], set()).start()
    Path("made.py").write_text("new")
    assert Path("made.py").read_text() == "new"
