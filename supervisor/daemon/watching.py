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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from supervisor.daemon.journal import Journal
from supervisor.fleet import events
from supervisor.ipc import messages
from supervisor.settings.table import Settings

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
# Folders looked through for templates or for `reload_extra_files`, at most.
_MOST_FOLDERS = 2000
# Files of a generation that are watched, folders that it may name, and the length of a path (PATH_MAX).
_MOST_FILES, _MOST_ROOTS = 50_000, 1000
_LONGEST = 4096
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
            self._add((), time.time())
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
        # Who reports may be anything: a name that is none, or more names than an app has files.
        files = _added(self._files.setdefault(generation, set()), message.files, _MOST_FILES)
        _added(self._folders.setdefault(generation, set()), message.folders, _MOST_ROOTS)
        self._add(files, message.since)

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

    def _add(self, files: Iterable[str], since: float) -> None:
        """Take note of files; one that was written since it was read counts as changed."""
        late = []
        survey = self._survey()
        for path in (*files, *survey.files):
            if path not in self._known:
                found = self._known[path] = signature(path)
                if found is not None and found[2] > since * 1e9:
                    late.append(path)
        self._keep_up(survey)
        if late:
            self._ask(late)

    def _survey(self) -> _Survey:
        """What counts now: files by what was told, by what lies in folders, by `reload_extra_files`."""
        files: set[str] = set().union(*self._files.values())
        folders: set[str] = set()
        for root in self._all_folders():
            for folder, found in _walk(root):
                folders.add(folder)
                files.update(filter(is_template, found))
        for entry in self._extra:
            path = os.path.abspath(entry)  # noqa: PTH100
            if glob.has_magic(path) and not os.path.lexists(path):
                files.update(glob.glob(path, recursive=True))  # noqa: PTH207
                folders.update(_folders_of(path))
            elif os.path.isdir(path):  # noqa: PTH112
                for folder, found in _walk(path):
                    folders.add(folder)
                    files.update(found)
            else:
                files.add(path)
        return _Survey(files, folders)

    def look(self, confirmed: bool = False) -> None:
        """Look at all files, and ask for a reload if one has changed."""
        if not self._on:
            return
        survey = self._survey()
        now = {path: signature(path) for path in survey.files}
        changed = [path for path in now.keys() | self._known.keys() if now.get(path) != self._known.get(path)]
        if changed and not confirmed and not any(now.get(path) for path in changed):
            if self._confirming is None or self._confirming.when() < asyncio.get_running_loop().time():
                self._confirming = asyncio.get_running_loop().call_later(_GONE, self.look, True)
            return
        self._known = now
        self._keep_up(survey)
        if changed:
            self._ask(changed)

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
                Path(entry).exists() or (glob.has_magic(entry) and glob.glob(entry, recursive=True))  # noqa: PTH207
            ):
                self._warned.add(entry)
                problem = f"reload_extra_files: {entry!r} is not there; it counts when it comes"
                self._journal.record("warning", "configuration", {"problem": problem})


def _added(known: set[str], paths: list[str], most: int) -> list[str]:
    """Add the paths that can be some, as long as no more than `most` are known; returns what was added."""
    good = [path for path in paths if path.startswith("/") and "\0" not in path and len(path) <= _LONGEST]
    added = good[: max(0, most - len(known))]
    known.update(added)
    return added


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """A folder and those in it, each with its files; absolute paths. What tools leave is not among them."""
    left = _MOST_FOLDERS
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name[0] != "." and name not in _NO_SOURCES]
        yield folder, [f"{folder}/{name}" for name in files if name[0] != "." and not name.endswith(_LEFT)]
        left -= 1
        if not left:
            return


def _folders_of(pattern: str) -> set[str]:
    """Existing folders in which files of a pattern may be, or folders that lead there."""
    fixed = _fixed_part(pattern)
    if "**" in pattern:
        return {folder for folder, _ in _walk(fixed)}
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
