"""The watcher, with real files and the kernel's real notifications."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ostler.daemon.file_watching import check as checking
from ostler.daemon.file_watching import contents, files, repeated_changes
from ostler.daemon.file_watching import file_watcher as watching
from ostler.daemon.file_watching.file_watcher import FileWatcher
from ostler.daemon.reporting.journal import Journal
from ostler.fleet import events
from ostler.ipc import messages
from ostler.logs.setup import get_logger
from ostler.settings.table import Settings

_PATIENCE = 60.0


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def read(name: str) -> str:
    return Path(name).read_text()


def touch(name: str) -> None:
    Path(name).touch()


def chmod(name: str) -> None:
    Path(name).chmod(0o600)


def link(name: str, target: str) -> None:
    Path(name).symlink_to(target)


def remove(name: str) -> None:
    Path(name).unlink()


def path(name: str) -> str:
    return str(Path(name).absolute())


def rename(old: str, new: str) -> None:
    Path(old).rename(new)


class Rig:
    """A watcher, and the reloads that it has asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reloading = False
        self._came = asyncio.Event()
        self.journal = Journal(get_logger())
        self.watcher = FileWatcher(self._take, self.journal, lambda: self.reloading)

    def _take(self, event: events.Event) -> None:
        assert isinstance(event, events.ReloadAsked)
        self.asked.append(event.by)
        self._came.set()

    def report(self, *names: str, generation: int = 1, since: float | None = None) -> None:
        files = [path(name) for name in names]
        self.watcher.received(
            generation, messages.Watch(files, [], time.time() + 1 if since is None else since)
        )

    async def looked(self) -> list[str]:
        """Wait for a check that begins now; returns all reloads asked for so far."""
        for _ in range(2):  # the first one may have begun before
            done = self.watcher._checks
            self.watcher.look()
            async with asyncio.timeout(_PATIENCE):
                while self.watcher._checks == done:  # noqa: ASYNC110 - nothing reports it
                    await asyncio.sleep(0.001)
        return self.asked

    def problems(self) -> list[str]:
        return [
            str(event.fields["problem"]) for event in self.journal.recent if event.name == "configuration"
        ]

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
    await rig.looked()
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
    assert await rig.looked() == ["file shop.py changed"]
    rig.report("shop.py", since=time.time() - 3600)
    assert await rig.looked() == ["file shop.py changed"], "known by now"


async def test_put_there_since(rig: Rig) -> None:
    """The same for a file with an old time of modification, which was moved or unpacked to its place."""
    write("shop.py", "1")
    os.utime(path("shop.py"), (1e9, 1e9))
    configured(rig)
    rig.report("shop.py", since=time.time() - 3600)
    assert await rig.looked() == ["file shop.py changed"]


async def test_gone_before_the_first_check(rig: Rig) -> None:
    """A file that was loaded and has been removed before it was looked at has changed."""
    configured(rig)
    rig.report("shop.py", since=time.time())
    assert await rig.looked() == ["file shop.py changed"]


@pytest.mark.parametrize("meanwhile", ["gone", "empty"])
async def test_gone_for_a_moment(rig: Rig, meanwhile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is removed, or emptied, and written again is no change if its content is the same."""
    monkeypatch.setattr(watching, "_POLL", 1000)
    monkeypatch.setattr(watching, "_SETTLED", 1000)  # no check but those that are waited for
    write("shop.py", "1")
    configured(rig, engine="poll")
    rig.report("shop.py")
    await rig.looked()
    found, checks = checking.check, []

    def check(request: checking.CheckRequest) -> checking.Outcome:
        if checks:
            write("shop.py", "1")
        checks.append(outcome := found(request))
        return outcome

    monkeypatch.setattr(watching, "check", check)
    remove("shop.py")
    if meanwhile == "empty":
        write("shop.py", "")
    assert await rig.looked() == []
    assert checks[0].changed == [path("shop.py")]
    monkeypatch.setattr(watching, "check", found)
    remove("shop.py")
    assert await rig.looked() == ["file shop.py changed"]


async def test_same_content(rig: Rig) -> None:
    """A file that is touched, written again, replaced or given another mode has not changed."""
    write("shop.py", "1")
    configured(rig)
    rig.report("shop.py")
    await rig.looked()
    touch("shop.py")
    await rig.looked()
    write("shop.py", "1")
    await rig.looked()
    write("draft", "1")
    rename("draft", "shop.py")
    await rig.looked()
    chmod("shop.py")
    assert await rig.looked() == []
    write("shop.py", "2")
    assert await rig.looked() == ["file shop.py changed"]


async def test_touched_extra_file(rig: Rig) -> None:
    """To touch a file of `reload_extra_files` reloads."""
    for name in ("trigger", "conf/one.yaml", "folder/any"):
        write(name, "1")
    configured(rig, "trigger", "conf/*.yaml", "folder")
    await rig.looked()
    for number, name in enumerate(("trigger", "conf/one.yaml", "folder/any"), 1):
        touch(name)
        assert (await rig.looked())[number - 1 :] == [f"file {name} changed"]


async def test_same_size_and_time(rig: Rig) -> None:
    """An edit that keeps size and time of modification is one: the content differs."""
    write("shop.py", "1")
    os.utime("shop.py", (1e9, 1e9))
    configured(rig)
    rig.report("shop.py")
    await rig.looked()
    write("shop.py", "2")
    os.utime("shop.py", (1e9, 1e9))
    assert await rig.looked() == ["file shop.py changed"]


@pytest.mark.parametrize("what", ["large", "installed"])
async def test_compared_by_times(rig: Rig, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files, and those of installed packages, are not read: to touch one is a change."""
    monkeypatch.setattr(contents, "LARGEST", 3 if what == "large" else 1000)
    name = "shop.py" if what == "large" else "lib/site-packages/shop.py"
    write(name, "1234")
    configured(rig)
    rig.report(name)
    await rig.looked()
    chmod(name)
    assert await rig.looked() == []
    touch(name)
    assert await rig.looked() == [f"file {name} changed"]


async def test_written_by_the_app(rig: Rig) -> None:
    """What a process has reported to write does not reload; other edits do. One line names the file."""
    write("shop.py", "1")
    write("real/made.html", "1")
    link("templates", "real")
    configured(rig)
    rig.watcher.received(1, messages.Watch([path("shop.py")], [path("templates")], time.time() + 1))
    await rig.looked()
    rig.watcher.received(1, messages.Watch([], written=[path("real/made.html")]))
    for text in ("2", "3"):
        write("real/made.html", text)
        assert await rig.looked() == []
    (problem,) = rig.problems()
    assert f"the app itself writes {path('templates/made.html')!r}" in problem
    write("shop.py", "2")
    assert await rig.looked() == ["file shop.py changed"]


async def test_written_in_time(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that was sent before a file was written counts, though it is read after the check."""
    write("shop.py", "1")
    configured(rig)
    rig.report("shop.py")
    await rig.looked()
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def receive() -> None:
            ours.recv(1)
            rig.watcher.received(1, messages.Watch([], written=[path("shop.py")]))

        async def check_at_once(function: Callable[[], Any]) -> Any:
            """The event loop can't read between the write and what follows from the check."""
            if read("shop.py") == "1":
                theirs.send(b"x")
                write("shop.py", "2")
            return function()

        asyncio.get_running_loop().add_reader(ours, receive)
        monkeypatch.setattr(watching, "_in_thread", check_at_once)
        assert await rig.looked() == []
        assert len(rig.problems()) == 1
        asyncio.get_running_loop().remove_reader(ours)


async def test_no_longer_written_by_the_app(rig: Rig) -> None:
    """When only ended generations have written a file it counts again."""
    write("made.html", "1")
    configured(rig)
    for generation in (1, 2):
        rig.report("made.html", generation=generation)
    rig.watcher.received(1, messages.Watch([], written=[path("made.html")]))
    await rig.looked()
    write("made.html", "2")
    assert await rig.looked() == []
    rig.watcher.forget_before(2)
    assert await rig.looked() == []
    write("made.html", "3")
    assert await rig.looked() == ["file made.html changed"]


async def test_written_by_a_program_of_the_app(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs at each load, and is not reported, causes no endless reloads, which is logged."""
    monkeypatch.setattr(repeated_changes, "DELAYS", (0.02, 0.02, 0.02))
    write("made.py", "0")
    configured(rig)
    rig.report("made.py")
    await rig.looked()
    # Each reload writes the file; there are always changes to look at.
    for number in range(1, 40):
        before = len(rig.asked)
        write("made.py", str(number))
        await rig.looked()
        if len(rig.asked) == before and rig.watcher._repeated.is_left_out(path("made.py")):
            break
        await rig.asks(before + 1)
        rig.reloading = True
    assert len(rig.asked) <= 14
    assert "such changes are left out" in rig.problems()[-1]
    # After a reload's end it is no effect of that.
    rig.reloading = False
    monkeypatch.setattr(repeated_changes, "_AFTER", 0.0)
    write("made.py", "edited")
    assert (await rig.looked())[-1] == "file made.py changed"


async def test_written_after_each_reload(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes a file a little after each reload is named in one warning, and reloads pause."""
    monkeypatch.setattr(repeated_changes, "PAUSES", (0.02, 0.03))
    monkeypatch.setattr(repeated_changes, "_AFTER", 0.0)
    monkeypatch.setattr(repeated_changes, "_SOON", 600.0)
    write("made.py", "0")
    configured(rig)
    rig.report("made.py")
    await rig.looked()
    for number in range(1, 16):
        write("made.py", str(number))
        await rig.asks(number)
        rig.watcher.reload_ended()
    (problem,) = rig.problems()
    assert problem.startswith(f"reload: {path('made.py')!r} changes again soon after each reload")


async def test_loaded_again(rig: Rig) -> None:
    """A file that counts again after it did not for a while, and has the same content, has not changed."""
    write("late.py", "1")
    write("shop.py", "1")
    configured(rig)
    rig.report("late.py", "shop.py", generation=1)
    rig.report("shop.py", generation=2)
    await rig.looked()
    rig.watcher.forget_before(2)
    await rig.looked()
    write("late.py", "1")
    rig.report("late.py", generation=2, since=time.time() - 3600)
    assert await rig.looked() == []
    rig.watcher.forget_before(3)
    rig.report("shop.py", generation=3)
    await rig.looked()
    write("late.py", "2")
    rig.report("late.py", generation=3, since=time.time() - 3600)
    assert await rig.looked() == ["file late.py changed"]


async def test_many(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files at once are one reload, which names the first one."""
    monkeypatch.setattr(watching, "_POLL", 1000)
    for name in "abc":
        write(name, "1")
    configured(rig, engine="poll")
    rig.report("a", "b", "c")
    await rig.looked()
    for name in "abc":
        write(name, "22")
    assert await rig.looked() == ["files a and 2 more changed"]


async def test_missing_file(rig: Rig) -> None:
    """A file in a folder that does not exist yet counts when it appears."""
    configured(rig)
    rig.report("shop/deep/models.py", since=0.0)
    await rig.looked()
    write("shop/deep/models.py", "1")
    assert await rig.asks(1) == ["file shop/deep/models.py changed"]


async def test_forgotten_generations(rig: Rig) -> None:
    """Files that only ended generations had loaded do not count any more."""
    for name in ("old.py", "new.py"):
        write(name, "1")
    configured(rig)
    rig.report("old.py", "new.py", generation=1)
    rig.report("new.py", generation=2)
    await rig.looked()
    rig.watcher.forget_before(2)
    await rig.looked()
    write("old.py", "22")
    assert await rig.looked() == []
    write("new.py", "22")
    assert await rig.looked() == ["file new.py changed"]


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
    await rig.looked()
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
    await rig.looked()
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
    found, walks = checking.check, []

    def slow(request: checking.CheckRequest) -> checking.Outcome:
        walks.append(began := time.monotonic())
        outcome = found(request)
        assert len(outcome.known) <= 60 + len(set(request.loaded))
        while time.monotonic() < began + 0.02:
            pass
        return outcome

    monkeypatch.setattr(watching, "check", slow)
    began = time.time()
    for number in range(1000):
        rig.watcher.received(1, messages.Watch([path(f"file{number}")], [path("deep")], began))
        await asyncio.sleep(0.0005)
    assert len(rig.watcher._files[1]) == 1000
    if len(walks) > 2:
        assert sum(late - early for early, late in pairwise(walks)) > (len(walks) - 2) * 0.1


async def test_too_many_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files beyond a limit are not watched, which is logged once."""
    monkeypatch.setattr(watching, "_MOST_FILES", 100)
    configured(rig)
    for start in range(0, 300, 50):
        rig.report(*(f"file{start + number}" for number in range(50)))
    assert len(rig.watcher._files[1]) == 100
    problems = [event.fields["problem"] for event in rig.journal.recent if event.name == "configuration"]
    assert problems == ["reload: not all of the app's files are watched: there are too many"]
