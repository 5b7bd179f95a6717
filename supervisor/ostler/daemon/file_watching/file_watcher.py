"""Watches the app's files while it is being written (`reload`).

Fork servers and workers report which files they have loaded. The kernel reports in which folders something
has happened, which only triggers a check: a file has changed if its inode, size or time of change differs
from the last check. So no change is missed while watches are being replaced, editors may write a file in any
way, and changes of files that are not loaded have no effect.

Folders are watched, each by itself, rather than files: there are fewer of them, and a file that an editor
replaces stays in its folder.
"""

import asyncio
import glob
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ostler.daemon.file_watching.files import (
    Signature,
    Survey,
    existing,
    fixed_part,
    inode,
    is_template,
    put_there,
    signature,
    survey,
)
from ostler.daemon.reporting.journal import Journal
from ostler.fleet import events
from ostler.ipc import messages
from ostler.settings.table import Settings

if TYPE_CHECKING:
    from watchfiles import Change

# Milliseconds without a change after which those before it are looked at, and the most to wait for that.
_STEP, _DEBOUNCE = 20, 400
# Seconds between two looks where the kernel does not report changes.
_POLL = 0.5
# Seconds until a file that was removed counts as changed: it may be about to be written again.
_GONE = 0.1
# Seconds until the kernel's watch is set up for sure; changes before that are found by a look.
_SETTLED = 0.05
# Files and folders that the processes of a generation may report.
_MOST_FILES, _MOST_ROOTS = 20_000, 250
# The share of the time that looks may take, and how many seconds of pauses they may leave out before there is
# one.
_SHARE, _CREDIT = 0.1, 0.2


class FileWatcher:
    """Requests a reload when a file changes; does nothing unless the settings ask for it.

    Args:
        submit: takes the fleet's events.
        journal: for warnings.
    """

    def __init__(self, submit: Callable[[events.Event], object], journal: Journal) -> None:
        self._submit = submit
        self._journal = journal
        self._on = False
        self._engine = "auto"
        # Looks from time to time, because of the settings or because the kernel refuses to report changes.
        self._polls = False
        self._extra: tuple[str, ...] = ()
        self._warned: set[str] = set()
        self._files: dict[int, set[str]] = {}
        self._folders: dict[int, set[str]] = {}
        # All files that count, as of the last look.
        self._known: dict[str, Signature] = {}
        # Generations of which it was logged that their app can't be loaded.
        self._broken: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._confirming: asyncio.TimerHandle | None = None
        # Files that were reported and not looked at yet, with the time at which they were read.
        self._reported: dict[str, float] = {}
        self._gathering: asyncio.TimerHandle | None = None
        # When looks will have taken no more than their share of the time.
        self._paid = 0.0
        self._late: asyncio.TimerHandle | None = None
        self._again = asyncio.Event()
        # The folders that are watched, with the inode of each: one that is replaced is another.
        self._places: dict[str, int] = {}
        # Where templates and extra files may appear.
        self._roots: tuple[str, ...] = ()
        self._extra_roots: tuple[str, ...] = ()
        self._exact: set[str] = set()

    def configure(self, settings: Settings) -> None:
        """Apply a generation's settings."""
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

    def received(self, generation: int, message: messages.Watch | messages.AppBroken) -> None:
        """Process what a process of a generation has reported."""
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
            self._reported[path] = min(message.since, self._reported.get(path, message.since))
        if self._gathering is None:
            self._take_reported()

    def _take_reported(self) -> None:
        self._gathering = None
        if (wait := self._wait(time.monotonic())) > 0:
            self._gathering = asyncio.get_running_loop().call_later(wait, self._take_reported)
            return
        reported, self._reported = self._reported, {}
        self._add(reported)

    def _warn(self, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            self._journal.record("warning", "configuration", {"problem": problem})

    def forget_before(self, current: int) -> None:
        """Workers of this generation serve: what only those before it had loaded does not count any more."""
        for reported in (self._files, self._folders):
            for generation in [number for number in reported if number < current]:
                del reported[generation]
        self._broken = {number for number in self._broken if number >= current}
        if self._on:
            files = self._survey().files
            self._known = {path: seen for path, seen in self._known.items() if path in files}

    # -- looking ----------------------------------------------------------------------------------------

    def _add(self, files: Mapping[str, float]) -> None:
        """Add files, and when each was read; one that was written since then counts as changed."""
        began = time.monotonic()
        # What was found rather than reported is as old as the oldest of those.
        oldest = min(files.values(), default=time.time())
        late = []
        now = self._survey()
        for path in (*files, *now.files):
            if path not in self._known:
                self._known[path] = signature(path)
                if put_there(path) > files.get(path, oldest):
                    late.append(path)
        self._watch_folders(now)
        self._pay(began)
        if late:
            self._ask(late)

    def _survey(self) -> Survey:
        known: set[str] = set().union(*self._files.values())
        return survey(known, self._all_folders(), self._extra)

    def look(self, confirmed: bool = False) -> None:
        """Look at all files, and ask for a reload if one has changed."""
        if not self._on:
            return
        began = time.monotonic()
        if (wait := self._wait(began)) > 0:
            if self._late is None:
                self._late = asyncio.get_running_loop().call_later(wait, self._look_late, confirmed)
            return
        found = self._survey()
        now = {path: signature(path) for path in found.files}
        changed = [path for path in now.keys() | self._known.keys() if now.get(path) != self._known.get(path)]
        if changed and not confirmed and not any(now.get(path) for path in changed):
            if self._confirming is None or self._confirming.when() < asyncio.get_running_loop().time():
                self._confirming = asyncio.get_running_loop().call_later(_GONE, self.look, True)
            self._pay(began)
            return
        self._known = now
        self._watch_folders(found)
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

    # -- the kernel's reports ---------------------------------------------------------------------------

    async def _run(self) -> None:
        # Only if it is used: it brings a library of its own, and threads.
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
                # A folder was removed since the last look.
                await asyncio.sleep(_SETTLED)
            except Exception as error:  # noqa: BLE001 - of the library's own kind for what the kernel refuses
                self._polls = True
                problem = f"reload: the kernel can't report changes, looks every {_POLL:g} s instead: {error}"
                self._journal.record("warning", "configuration", {"problem": problem})

    def _watch_folders(self, found: Survey) -> None:
        """Watch other folders if other files count than before, or if folders have been replaced."""
        if self._polls:
            return
        roots, extra = self._all_folders(), set(map(fixed_part, self._extra))
        self._roots, self._extra_roots = (tuple(f"{path}/" for path in some) for some in (roots, extra))
        folders = {os.path.dirname(path) for path in self._known} | roots | extra | found.folders  # noqa: PTH120
        # A folder that is not there yet is reported by its own name when it appears.
        self._exact = folders | self._known.keys()
        # The folders above them show whether one is replaced.
        folders |= {os.path.dirname(path) for path in folders}  # noqa: PTH120
        places = {path: inode(path) for path in set(map(existing, folders))}
        if places != self._places:
            self._places = places
            self._again.set()

    def matters(self, _change: "Change", path: str) -> bool:
        """Whether to look because of what happened to a path; called in this thread."""
        if path in self._exact or path.startswith(self._extra_roots):
            return True
        # The app's own folders may contain its log, too. What has no extension may be a folder.
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
                problem = f"reload_extra_files: {entry!r} is not there; it counts when it appears"
                self._journal.record("warning", "configuration", {"problem": problem})


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
