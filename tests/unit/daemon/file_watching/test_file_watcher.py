"""The watcher, with real files and the kernel's real notifications."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ostler.daemon.file_watching import file_watcher as watching
from ostler.daemon.file_watching import files
from ostler.daemon.file_watching.file_watcher import FileWatcher
from ostler.daemon.reporting.journal import Journal
from ostler.fleet import events
from ostler.ipc import messages
from ostler.logs.setup import get_logger
from ostler.settings.table import Settings

_PATIENCE = 10.0


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def path(name: str) -> str:
    return str(Path(name).absolute())


def rename(old: str, new: str) -> None:
    Path(old).rename(new)


class Rig:
    """A watcher, and the reloads that it has asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._came = asyncio.Event()
        self.journal = Journal(get_logger())
        self.watcher = FileWatcher(self._take, self.journal)

    def _take(self, event: events.Event) -> None:
        assert isinstance(event, events.ReloadAsked)
        self.asked.append(event.by)
        self._came.set()

    def report(self, *names: str, generation: int = 1, since: float | None = None) -> None:
        files = [path(name) for name in names]
        self.watcher.received(
            generation, messages.Watch(files, [], time.time() + 1 if since is None else since)
        )

    async def asks(self, number: int) -> list[str]:
        """Wait until it has asked this often."""
        async with asyncio.timeout(_PATIENCE):
            while len(self.asked) < number:
                self._came.clear()
                await self._came.wait()
        return self.asked


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.chdir(tmp_path)
    rig = Rig()
    yield rig
    rig.watcher.stop()
    await asyncio.sleep(0)


def configured(rig: Rig, *extra: str, engine: str = "auto") -> None:
    rig.watcher.configure(Settings(reload=True, reload_engine=engine, reload_extra_files=extra))


@pytest.mark.parametrize("engine", ["auto", "inotify", "poll"])
async def test_change(rig: Rig, engine: str) -> None:
    """A reported file that changes causes one reload, with its name relative to the working folder."""
    write("shop.py", "1")
    write("other.py", "1")
    configured(rig, engine=engine)
    rig.report("shop.py")
    write("other.py", "22")
    write("shop.py", "22")
    assert await rig.asks(1) == ["file shop.py changed"]


async def test_nothing_without_reload(rig: Rig) -> None:
    """Without `reload` it ignores reports and starts nothing."""
    write("shop.py", "1")
    rig.watcher.configure(Settings())
    rig.report("shop.py", since=0.0)
    assert rig.asked == []
    assert len(asyncio.all_tasks()) == 1


async def test_written_since(rig: Rig) -> None:
    """A file that was written after a process began to read it may be newer than the code that runs."""
    write("shop.py", "1")
    configured(rig)
    rig.report("shop.py", since=time.time() - 3600)
    assert rig.asked == ["file shop.py changed"]
    rig.report("shop.py", since=time.time() - 3600)
    assert rig.asked == ["file shop.py changed"], "known by now"


async def test_put_there_since(rig: Rig) -> None:
    """The same for a file with an old time of modification, which was moved or unpacked to its place."""
    write("shop.py", "1")
    os.utime(path("shop.py"), (1e9, 1e9))
    configured(rig)
    rig.report("shop.py", since=time.time() - 3600)
    assert rig.asked == ["file shop.py changed"]


async def test_gone_for_a_moment(rig: Rig) -> None:
    """A file that is removed and written again is one change, and none if its content is the same."""
    write("shop.py", "1")
    configured(rig)
    rig.report("shop.py")
    rename("shop.py", "kept")
    rig.watcher.look()
    assert rig.asked == []
    rename("kept", "shop.py")
    rig.watcher.look()
    assert rig.asked == []
    rename("shop.py", "gone")
    assert await rig.asks(1) == ["file shop.py changed"]


async def test_many(rig: Rig) -> None:
    """Several files at once are one reload, which names the first one."""
    for name in "abc":
        write(name, "1")
    configured(rig)
    rig.report("a", "b", "c")
    for name in "abc":
        write(name, "22")
    rig.watcher.look()
    assert rig.asked == ["files a and 2 more changed"]
    rig.watcher.look()
    assert len(rig.asked) == 1


async def test_missing_file(rig: Rig) -> None:
    """A file in a folder that does not exist yet counts when it appears."""
    configured(rig)
    rig.report("shop/deep/models.py")
    write("shop/deep/models.py", "1")
    assert await rig.asks(1) == ["file shop/deep/models.py changed"]


async def test_forgotten_generations(rig: Rig) -> None:
    """Files that only ended generations had loaded do not count any more."""
    for name in ("old.py", "new.py"):
        write(name, "1")
    configured(rig)
    rig.report("old.py", "new.py", generation=1)
    rig.report("new.py", generation=2)
    rig.watcher.forget_before(2)
    rig.watcher.look()
    write("old.py", "22")
    rig.watcher.look()
    assert rig.asked == []
    write("new.py", "22")
    rig.watcher.look()
    assert rig.asked == ["file new.py changed"]


async def test_broken_app_is_logged_once(rig: Rig) -> None:
    """However many workers can't load it, the log has one line per generation."""
    configured(rig)
    for generation in (1, 1, 2):
        rig.watcher.received(generation, messages.AppBroken("SyntaxError", "Traceback"))
    logged = [event.fields for event in rig.journal.recent if event.name == "app_broken"]
    assert [fields["generation"] for fields in logged] == [1, 2]


async def test_missing_extra_file_is_logged_once(rig: Rig) -> None:
    """One warning for each missing file, although each generation names it; none for existing files."""
    write("here.yaml", "1")
    for _ in range(2):
        configured(rig, "gone.yaml", "here.yaml", "*.yaml", "*.toml")
        configured(rig)
    problems = [str(event.fields["problem"]) for event in rig.journal.recent]
    assert [problem.split("'")[1] for problem in problems] == ["gone.yaml", "*.toml"]


async def test_stopped(rig: Rig) -> None:
    """After `stop` no reload is asked for and no thread runs."""
    write("shop.py", "1")
    configured(rig)
    rig.report("shop.py")
    await asyncio.sleep(0)
    rig.watcher.stop()
    write("shop.py", "22")
    rig.watcher.look()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others or (await asyncio.wait(others, timeout=_PATIENCE))[1] == set()
    assert rig.asked == []


async def test_what_does_not_matter(rig: Rig) -> None:
    """Changes of files that are not loaded, such as the app's log, do not cause a check of all files."""
    write("shop/__init__.py", "1")
    configured(rig, "conf/*.yaml")
    rig.watcher.received(1, messages.Watch([path("shop/__init__.py")], [path("shop")]))
    for name, matters in (
        ("shop/__init__.py", True),
        ("shop/list.html", True),
        ("shop/deep", True),
        ("shop/error.log", False),
        ("shop/templates/error.log", True),
        ("shop", True),
        ("other.html", False),
        ("conf", True),
        ("conf/x.yaml", True),
    ):
        assert rig.watcher.matters(None, path(name)) is matters, name  # type: ignore[arg-type]


def make_pages(number: int) -> None:
    for name in map(str, range(number)):
        Path("deep", name).mkdir(parents=True)
        Path("deep", name, "page.html").touch()


async def test_a_flood_of_folders(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often an app names folders, and however much they contain,
    checks take a small share of the time.
    """
    monkeypatch.setattr(files, "_MOST_ENTRIES", 50)
    make_pages(100)
    configured(rig)
    walks = []
    survey = rig.watcher._survey

    def slow() -> Any:
        walks.append(time.monotonic())
        found = survey()
        assert len(found.files) <= 60
        while time.monotonic() < walks[-1] + 0.02:
            pass
        return found

    monkeypatch.setattr(rig.watcher, "_survey", slow)
    began = time.monotonic()
    for number in range(1000):
        rig.watcher.received(1, messages.Watch([path(f"file{number}")], [path("deep")], began))
    assert len(walks) <= 5
    assert len(rig.watcher._files[1]) == 1000


async def test_too_many_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beyond a limit are not watched, which is logged once."""
    monkeypatch.setattr(watching, "_MOST_FILES", 100)
    configured(rig)
    for start in range(0, 300, 50):
        rig.report(*(f"file{start + number}" for number in range(50)))
    assert len(rig.watcher._files[1]) == 100
    problems = [event.fields["problem"] for event in rig.journal.recent if event.name == "configuration"]
    assert problems == ["reload: not all of the app's files are watched: there are too many"]
