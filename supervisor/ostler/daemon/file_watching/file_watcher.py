"""Watches the app's files while it is being written (`reload`).

Fork servers and workers report which files they have loaded, and which they write. The kernel reports in
which folders something has happened, which only triggers a check of all files (`check`): a file has changed
if its content differs from the last check. So no change is missed while watches are being replaced, editors
may write a file in any way, and changes of files that are not loaded have no effect.

What the app writes itself does not reload it. Its processes report that before they write, so their messages
are read between a check and what follows from it.

Folders are watched, each by itself, rather than files: there are fewer of them, and a file that an editor
replaces stays in its folder.
"""

import asyncio
import glob
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from ostler.daemon.file_watching.check import CheckRequest, Outcome, check
from ostler.daemon.file_watching.contents import Seen
from ostler.daemon.file_watching.repeated_changes import RepeatedChanges
from ostler.daemon.reporting.journal import Journal
from ostler.fleet import events
from ostler.ipc import messages
from ostler.settings.table import Settings
from ostler.settings.watched import is_template
from ostler.text import name_and_text

if TYPE_CHECKING:
    from watchfiles import Change

# Milliseconds without a change after which those before it are looked at, and the most to wait for that.
_STEP, _DEBOUNCE = 20, 400
# Seconds between two checks where the kernel does not report changes.
_POLL = 0.5
# A file that was removed or emptied may be about to be written: how many seconds to wait before it is looked
# at again, and how often.
_GONE, _GONE_TIMES = 0.1, 3
# Seconds until the kernel's watch is set up for sure; changes before that are found by a check.
_SETTLED = 0.05
# Files and folders that the processes of a generation may report.
_MOST_FILES, _MOST_ROOTS, _MOST_WRITTEN = 20_000, 250, 2_000
# Lines about files that the app writes, at most.
_MOST_WARNINGS = 100
# The share of the time that checks may take, and how many seconds of pauses they may leave out before there
# is one.
_SHARE, _CREDIT = 0.1, 0.2
# Passes of the event loop after which what was sent before a check has been read.
_PASSES = 3

Result = TypeVar("Result")


class FileWatcher:
    """Requests a reload when a file changes; does nothing unless the settings ask for it.

    Args:
        submit: takes the fleet's events.
        journal: for warnings.
        reloading: whether a reload is running.
    """

    def __init__(
        self, submit: Callable[[events.Event], object], journal: Journal, reloading: Callable[[], bool]
    ) -> None:
        self._submit = submit
        self._journal = journal
        self._reloading = reloading
        self._on = False
        self._engine = "auto"
        # Checks from time to time, because of the settings or because the kernel refuses to report changes.
        self._polls = False
        self._extra: tuple[str, ...] = ()
        self._warned: set[str] = set()
        self._files: dict[int, set[str]] = {}
        self._folders: dict[int, set[str]] = {}
        self._written: dict[int, set[str]] = {}
        # All files that count, as of the last check, and those that counted earlier.
        self._known: dict[str, Seen] = {}
        self._dropped: dict[str, Seen] = {}
        # Generations of which it was logged that their app can't be loaded.
        self._broken: set[int] = set()
        self._repeated = RepeatedChanges()
        self._tasks: list[asyncio.Task[None]] = []
        # A check is due, and how many have been done.
        self._due = asyncio.Event()
        self._checks = 0
        # Files that were reported and not checked yet, with the time at which they were read: see
        # `CheckRequest`.
        self._reported: dict[str, float] = {}
        # When checks will have taken no more than their share of the time.
        self._paid = 0.0
        # Other folders are to be watched.
        self._again = asyncio.Event()
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
            self.look()
        if settings.reload_engine != self._engine:
            self._engine = settings.reload_engine
            self._polls = self._engine == "poll"
            self._again.set()
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(part) for part in (self._check_forever(), self._listen())]

    def stop(self) -> None:
        self._on = False
        self._again.set()
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

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
        written = self._written.setdefault(generation, set())
        if len(written) + len(message.written) <= _MOST_WRITTEN:
            written.update(message.written)
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
        if message.files or message.folders:
            self.look()

    def forget_before(self, current: int) -> None:
        """Workers of this generation serve: what only those before it had loaded does not count any more."""
        for reported in (self._files, self._folders, self._written):
            for generation in [number for number in reported if number < current]:
                del reported[generation]
        self._broken = {number for number in self._broken if number >= current}
        self.look()

    def reload_ended(self) -> None:
        """A reload has ended."""
        if not self._reloading():
            self._repeated.reload_ended(time.monotonic())

    def look(self) -> None:
        """Check all files soon."""
        self._due.set()

    # -- checking ---------------------------------------------------------------------------------------

    async def _check_forever(self) -> None:
        while True:
            due = self._repeated.due
            await _wait(self._due, None if due is None else due - time.monotonic())
            if self._due.is_set():
                if (wait := self._paid - _CREDIT - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                self._due.clear()
                try:
                    await self._check()
                except Exception as error:  # noqa: BLE001 - the next check may succeed
                    self._warn(f"reload: files can't be checked: {name_and_text(error)}")
            self._ask(self._repeated.take_due(time.monotonic()))
            self._checks += 1

    async def _check(self) -> None:
        """Check all files, and ask for a reload if one has changed."""
        reported, self._reported = self._reported, {}
        # What was found rather than reported is as old as the oldest of those.
        request = self._request(reported, min(filter(None, reported.values()), default=time.time()))
        found = await self._performed(request)
        for _ in range(_GONE_TIMES):
            if not found.emptied:
                break
            await asyncio.sleep(_GONE)
            found = await self._performed(request)
        # A process reports what it writes before it does.
        for _ in range(_PASSES):
            await asyncio.sleep(0)
        self._known = found.known
        self._dropped |= found.dropped
        for path in found.known.keys() & self._dropped.keys():
            del self._dropped[path]
        if len(self._dropped) > _MOST_FILES:
            self._dropped.clear()
        self._watch_folders(found)
        changed = self._without_written(found)
        if self._repeated.changed(changed, self._reloading(), time.monotonic()):
            self._ask(changed)
        for path in changed:
            self._warn_of_repeated(path)

    def _request(self, reported: dict[str, float], since: float) -> CheckRequest:
        return CheckRequest(
            known=self._known,
            dropped=self._dropped,
            reported=reported,
            since=since,
            loaded=set().union(*self._files.values()),
            folders=set().union(*self._folders.values()),
            extra=self._extra,
            searched=(*self._roots, *self._extra_roots),
        )

    async def _performed(self, request: CheckRequest) -> Outcome:
        began = time.monotonic()
        try:
            return await _in_thread(lambda: check(request))
        finally:
            now = time.monotonic()
            self._paid = max(self._paid, now) + (now - began) / _SHARE

    def _without_written(self, found: Outcome) -> list[str]:
        """What has changed, without what the app writes itself."""
        written: set[str] = set().union(*self._written.values())
        changed = []
        for path in found.changed:
            if path in written or not written.isdisjoint(found.real[path]):
                self._warn(f"reload: the app itself writes {path!r}, so it does not reload when that changes")
            else:
                changed.append(path)
        return changed

    def _ask(self, changed: Iterable[str]) -> None:
        if not changed or not self._on:
            return
        try:
            here = f"{os.getcwd()}/"  # noqa: PTH109
        except OSError:
            here = ""  # the working folder was removed
        first, *others = sorted(path.removeprefix(here) for path in changed)
        what = f"files {first} and {len(others)} more" if others else f"file {first}"
        self._submit(events.ReloadAsked(f"{what} changed"))

    # -- warnings ---------------------------------------------------------------------------------------

    def _warn(self, problem: str) -> None:
        if problem not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(problem)
            self._journal.record("warning", "configuration", {"problem": problem})

    def _warn_of_repeated(self, path: str) -> None:
        problem = f"reload: {path!r} changes again during each reload that it causes"
        if self._repeated.is_left_out(path):
            self._warn(f"{problem}; such changes are left out from now on")
        elif delay := self._repeated.delay(path):
            self._warn(f"{problem}; the next one waits until it has not changed for {delay:g} s")
        elif self._repeated.pause(path):
            self._warn(
                f"reload: {path!r} changes again soon after each reload that it causes; the next ones wait "
                "longer and longer. If a program writes it, let that write to a file that the app does not "
                "load, or the same content again"
            )

    def _warn_of_missing(self) -> None:
        for entry in self._extra:
            if not (
                # Path's own raises for a name that is too long.
                os.path.exists(entry) or (glob.has_magic(entry) and glob.glob(entry, recursive=True))  # noqa: PTH110, PTH207
            ):
                self._warn(f"reload_extra_files: {entry!r} is not there; it counts when it appears")

    # -- the kernel's reports ---------------------------------------------------------------------------

    async def _listen(self) -> None:
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
                # A folder was removed since the last check.
                await asyncio.sleep(_SETTLED)
            except Exception as error:  # noqa: BLE001 - of the library's own kind for what the kernel refuses
                self._polls = True
                problem = f"reload: the kernel can't report changes, looks every {_POLL:g} s instead: {error}"
                self._journal.record("warning", "configuration", {"problem": problem})

    def _watch_folders(self, found: Outcome) -> None:
        """Watch other folders if other files count than before, or if folders have been replaced."""
        self._roots, self._extra_roots, self._exact = found.roots, found.extra_roots, found.exact
        if not self._polls and found.places != self._places:
            self._places = found.places
            self._again.set()

    def matters(self, _change: "Change", path: str) -> bool:
        """Whether to look because of what happened to a path; called in this thread."""
        if path in self._exact or path.startswith(self._extra_roots):
            return True
        # The app's own folders may contain its log, too. What has no extension may be a folder.
        return path.startswith(self._roots) and (is_template(path) or "." not in os.path.basename(path))  # noqa: PTH119


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


async def _in_thread(function: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own. The thread does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if done.done():
            return  # cancelled
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as caught:  # noqa: BLE001 - raised in the event loop's thread
            error = caught
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="ostler-file-check", daemon=True).start()
    return await done
