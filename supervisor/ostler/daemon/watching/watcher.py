"""Watching the app's files while it is being written (`reload`).

Fork servers and workers tell which files they have loaded. The kernel says in which folders something
happened, and that is only a reason to look: what counts is whether a file's inode, size or time of change
is another than at the last look. So nothing is missed while what is watched changes, editors may write a
file however they like, and what nobody loads may change as often as it likes.

Folders are watched, each by itself, rather than files: there are fewer of them, and a file that an editor
replaces stays in its folder. Nothing of this is imported by who does not ask for it.
"""

import asyncio
import glob
import os
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ostler.daemon.reporting.journal import Journal
from ostler.fleet import events
from ostler.ipc import messages
from ostler.settings.table import Settings

if TYPE_CHECKING:
    from watchfiles import Change

# Milliseconds without a change after which those before it are looked at, and the most to wait for that.
_STEP, _DEBOUNCE = 20, 400
# Seconds between two looks where the kernel does not say when.
_POLL = 0.5
# A file that is gone may be about to be written anew (s).
_GONE = 0.1
# Until the watch is set up for sure (s); changes before it are found by a look of our own.
_SETTLED = 0.05
# Folders looked through for templates or for `reload_extra_files`, and what is in them, at most in one look;
# files and folders that the processes of a generation may name. An app decides on all of this, and while they
# are looked at nothing else is done.
_MOST_FOLDERS, _MOST_ENTRIES = 2000, 20_000
_MOST_FILES, _MOST_ROOTS = 20_000, 250
# The share of the time that looks may take, and how many seconds of pauses they may leave out before there is
# one.
_SHARE, _CREDIT = 0.1, 0.2
# What template languages call their files; in a folder `templates` any file is one.
_TEMPLATES = tuple(
    ".html .htm .xhtml .djhtml .jinja .jinja2 .j2 .mako .tmpl .tpl .pt .chameleon .mustache .hbs".split()
)

# Folders without sources, and what tools call files that are none.
_NO_SOURCES = ("__pycache__", "node_modules")
_LEFT = ("~", ".pyc", ".swp", ".swx", ".tmp")

Signature = tuple[int, ...] | None
"""Inode, size, and time of change in ns; None if there is no file."""


def signature(path: str) -> Signature:
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of them
    except (OSError, ValueError):
        return None  # not there, or no path
    return found.st_ino, found.st_size, found.st_mtime_ns


def is_template(path: str) -> bool:
    return path.endswith(_TEMPLATES) or "/templates/" in path


class _Survey(NamedTuple):
    """What counts: files, and the folders in which others may come; absolute paths."""

    files: set[str]
    folders: set[str]


class Watcher:
    """Asks for a reload when a file changes; does nothing until it is configured to.

    Args:
        submit: takes the fleet's events.
        journal: for what deserves a line.
    """

    def __init__(self, submit: Callable[[events.Event], object], journal: Journal) -> None:
        self._submit = submit
        self._journal = journal
        self._on = False
        self._engine = "auto"
        # Looks from time to time, because it was told to or the kernel refuses to tell.
        self._polls = False
        self._extra: tuple[str, ...] = ()
        self._warned: set[str] = set()
        self._files: dict[int, set[str]] = {}
        self._folders: dict[int, set[str]] = {}
        # All files that count, as of the last look.
        self._known: dict[str, Signature] = {}
        # Generations of which the log has told that their app can't be loaded.
        self._broken: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._confirming: asyncio.TimerHandle | None = None
        # What was named and not looked at yet, with the time of its reading.
        self._named: dict[str, float] = {}
        self._gathering: asyncio.TimerHandle | None = None
        # When looks will have taken no more than their share of the time.
        self._paid = 0.0
        self._late: asyncio.TimerHandle | None = None
        self._again = asyncio.Event()
        # The folders that are watched, with the inode of each: one that is replaced is another.
        self._places: dict[str, int] = {}
        # Where templates and extra files may come.
        self._roots: tuple[str, ...] = ()
        self._extra_roots: tuple[str, ...] = ()
        self._exact: set[str] = set()

    def configure(self, settings: Settings) -> None:
        """Be as a new generation's settings say."""
        if not settings.reload:
            self.stop()
            return
        self._on = True
        if settings.reload_extra_files != self._extra:
            self._extra = settings.reload_extra_files
            self._warn_of_missing()
            self._add({})
        if settings.reload_engine != self._engine:
            self._engine = settings.reload_engine
            self._polls = self._engine == "poll"
            self._again.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        self._on = False
        if self._confirming is not None:
            self._confirming.cancel()
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._task is not None:
            self._again.set()
            self._task.cancel()
            self._task = None

    def hear(self, generation: int, message: messages.Watch | messages.AppBroken) -> None:
        """A process of a generation has told something."""
        if not self._on:
            return
        if isinstance(message, messages.AppBroken):
            if generation not in self._broken:
                self._broken.add(generation)
                fields = {"generation": generation, "reason": message.reason, "traceback": message.traceback}
                self._journal.record("error", "app_broken", fields)
            return
        files, folders = (
            self._files.setdefault(generation, set()),
            self._folders.setdefault(generation, set()),
        )
        fresh = [path for path in message.files if path not in files]
        if len(files) + len(fresh) > _MOST_FILES or len(folders.union(message.folders)) > _MOST_ROOTS:
            self._warn("reload: not all of the app's files are watched: there are too many")
            return
        files.update(fresh)
        folders.update(message.folders)
        for path in message.files:
            self._named[path] = min(message.since, self._named.get(path, message.since))
        if self._gathering is None:
            self._take_named()

    def _take_named(self) -> None:
        self._gathering = None
        if (wait := self._wait(time.monotonic())) > 0:
            self._gathering = asyncio.get_running_loop().call_later(wait, self._take_named)
            return
        named, self._named = self._named, {}
        self._add(named)

    def _warn(self, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            self._journal.record("warning", "configuration", {"problem": problem})

    def forget_before(self, current: int) -> None:
        """Workers of this generation serve: what only those before it had loaded counts no more."""
        for told in (self._files, self._folders):
            for generation in [number for number in told if number < current]:
                del told[generation]
        self._broken = {number for number in self._broken if number >= current}
        if self._on:
            files = self._survey().files
            self._known = {path: seen for path, seen in self._known.items() if path in files}

    # -- looking ----------------------------------------------------------------------------------------

    def _add(self, files: Mapping[str, float]) -> None:
        """Take note of files and when each was read; one that was written since then counts as changed."""
        began = time.monotonic()
        # What was found rather than named is as old as the oldest of those.
        oldest = min(files.values(), default=time.time())
        late = []
        survey = self._survey()
        for path in (*files, *survey.files):
            if path not in self._known:
                found = self._known[path] = signature(path)
                if found is not None and found[2] > files.get(path, oldest) * 1e9:
                    late.append(path)
        self._keep_up(survey)
        self._pay(began)
        if late:
            self._ask(late)

    def _survey(self) -> _Survey:
        """What counts now: files by what was told, by what lies in folders, by `reload_extra_files`."""
        files: set[str] = set().union(*self._files.values())
        folders: set[str] = set()
        walk = _Walk()
        for root in self._all_folders():
            for folder, found in walk.through(root):
                folders.add(folder)
                files.update(filter(is_template, found))
        for entry in self._extra:
            path = os.path.abspath(entry)  # noqa: PTH100
            if glob.has_magic(path) and not os.path.lexists(path):
                files.update(glob.glob(path, recursive=True))  # noqa: PTH207
                folders.update(_folders_of(path))
            elif os.path.isdir(path):  # noqa: PTH112
                for folder, found in walk.through(path):
                    folders.add(folder)
                    files.update(found)
            else:
                files.add(path)
        return _Survey(files, folders)

    def look(self, confirmed: bool = False) -> None:
        """Look at all files, and ask for a reload if one has changed."""
        if not self._on:
            return
        began = time.monotonic()
        if (wait := self._wait(began)) > 0:
            if self._late is None:
                self._late = asyncio.get_running_loop().call_later(wait, self._look_late, confirmed)
            return
        survey = self._survey()
        now = {path: signature(path) for path in survey.files}
        changed = [path for path in now.keys() | self._known.keys() if now.get(path) != self._known.get(path)]
        if changed and not confirmed and not any(now.get(path) for path in changed):
            if self._confirming is None or self._confirming.when() < asyncio.get_running_loop().time():
                self._confirming = asyncio.get_running_loop().call_later(_GONE, self.look, True)
            self._pay(began)
            return
        self._known = now
        self._keep_up(survey)
        self._pay(began)
        if changed:
            self._ask(changed)

    def _look_late(self, confirmed: bool) -> None:
        self._late = None
        self.look(confirmed)

    def _wait(self, now: float) -> float:
        """Seconds until there may be a look."""
        return self._paid - _CREDIT - now

    def _pay(self, began: float) -> None:
        """A look is over."""
        now = time.monotonic()
        self._paid = max(self._paid, now) + (now - began) / _SHARE

    def _ask(self, changed: list[str]) -> None:
        try:
            here = f"{os.getcwd()}/"  # noqa: PTH109
        except OSError:
            here = ""  # the working folder was removed
        first, *others = sorted(path.removeprefix(here) for path in changed)
        what = f"files {first} and {len(others)} more" if others else f"file {first}"
        self._submit(events.ReloadAsked(f"{what} changed"))

    # -- being told -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        # Only now: it has a library of its own in the background, and threads.
        from watchfiles import awatch

        while True:
            self._again = again = asyncio.Event()
            asyncio.get_running_loop().call_later(_SETTLED, self.look)
            if self._polls or not self._places:
                await _wait(again, _POLL)
                self.look()
                continue
            try:
                async for _ in awatch(
                    *self._places,
                    watch_filter=self.matters,
                    debounce=_DEBOUNCE,
                    step=_STEP,
                    stop_event=again,
                    recursive=False,
                    ignore_permission_denied=True,
                ):
                    self.look()
            except FileNotFoundError:
                # A folder has gone since we looked.
                await asyncio.sleep(_SETTLED)
            except Exception as error:  # noqa: BLE001 - of the library's own kind for what the kernel refuses
                self._polls = True
                problem = (
                    f"reload: can't ask the kernel for changes, looks every {_POLL:g} s instead: {error}"
                )
                self._journal.record("warning", "configuration", {"problem": problem})

    def _keep_up(self, survey: _Survey) -> None:
        """Other files may count than before, in other folders, or in ones that have been replaced."""
        if self._polls:
            return
        roots, extra = self._all_folders(), set(map(_fixed_part, self._extra))
        self._roots, self._extra_roots = (tuple(f"{path}/" for path in found) for found in (roots, extra))
        folders = {os.path.dirname(path) for path in self._known} | roots | extra | survey.folders  # noqa: PTH120
        # A folder that is not there yet shows by its own name.
        self._exact = folders | self._known.keys()
        # Those above tell if one is replaced.
        folders |= {os.path.dirname(path) for path in folders}  # noqa: PTH120
        places = {path: _inode(path) for path in set(map(_existing, folders))}
        if places != self._places:
            self._places = places
            self._again.set()

    def matters(self, _change: "Change", path: str) -> bool:
        """Whether to look because of what happened to a path; called in this thread."""
        if path in self._exact or path.startswith(self._extra_roots):
            return True
        # In the app's own folders: its log may be in there, too. What has no ending may be a folder.
        return path.startswith(self._roots) and (is_template(path) or "." not in os.path.basename(path))  # noqa: PTH119

    def _all_folders(self) -> set[str]:
        return set().union(*self._folders.values())

    def _warn_of_missing(self) -> None:
        for entry in self._extra:
            if entry not in self._warned and not (
                # Path's own raises for a name that is too long.
                os.path.exists(entry) or (glob.has_magic(entry) and glob.glob(entry, recursive=True))  # noqa: PTH110, PTH207
            ):
                self._warned.add(entry)
                problem = f"reload_extra_files: {entry!r} is not there; it counts when it comes"
                self._journal.record("warning", "configuration", {"problem": problem})


class _Walk:
    """Goes through folders, through no more of them than one look may."""

    def __init__(self) -> None:
        self._folders, self._entries = _MOST_FOLDERS, _MOST_ENTRIES

    def through(self, root: str) -> Iterator[tuple[str, list[str]]]:
        """A folder and those in it, each with its files; absolute paths. What tools leave is left out."""
        waiting = [root]
        while waiting and self._folders > 0 and self._entries > 0:
            folder = waiting.pop()
            self._folders -= 1
            files = []
            try:
                with os.scandir(folder) as entries:
                    for entry in islice(entries, self._entries):
                        self._entries -= 1
                        if entry.name[0] == ".":
                            continue
                        if entry.is_dir():
                            if entry.name not in _NO_SOURCES and not entry.is_symlink():
                                waiting.append(entry.path)
                        elif not entry.name.endswith(_LEFT):
                            files.append(entry.path)
            except OSError:
                continue  # not there, or not for us to read
            yield folder, files


def _folders_of(pattern: str) -> set[str]:
    """Existing folders in which files of a pattern may be, or folders that lead there."""
    fixed = _fixed_part(pattern)
    if "**" in pattern:
        return {folder for folder, _ in _Walk().through(fixed)}
    found, pattern = {fixed}, os.path.dirname(pattern)  # noqa: PTH120
    while pattern != fixed and glob.has_magic(pattern):
        found.update(glob.glob(pattern))  # noqa: PTH207
        pattern = os.path.dirname(pattern)  # noqa: PTH120
    return found


def _fixed_part(entry: str) -> str:
    """The folder or file that an entry of `reload_extra_files` begins with, before what is a pattern."""
    path = os.path.abspath(entry)  # noqa: PTH100
    while glob.has_magic(path) and not os.path.lexists(path):
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def _existing(path: str) -> str:
    """The folder itself, or the nearest above that exists: there its coming shows."""
    while not os.path.isdir(path):  # noqa: PTH112
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def _inode(folder: str) -> int:
    found = signature(folder)
    return found[0] if found is not None else 0


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
