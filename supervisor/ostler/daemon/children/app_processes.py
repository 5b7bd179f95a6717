"""Processes that user code has started belong to their generation, and end with it.

Each fork server and each worker leads a process group of its own (`osapi.process_groups`), so the kernel
records where a process comes from, also when the one that started it has died and the supervisor, a child
subreaper, has become its parent. The groups of a fork server are those of its descendants as well: workers
use what their fork server has started, a `multiprocessing.Manager` for one.

A group is ended when no fork server and no worker is left that descends from its leader. What a worker has
started ends with the worker if that was killed, since it could not end them itself; otherwise with its
generation, because it may be a job that was meant to last. To end a group means: SIGTERM to its members, and
SIGKILL to those that are left after `graceful_timeout`. A process that has left the group (setsid(2), as a
daemon does) is left alone: the app has detached it on purpose.

When the daemon stops, it ends all that descends from it and has no session of its own. In the foreground of a
terminal that is all that is done, for there are no such groups: a debugger in the app reads the terminal.
"""

import os
import signal
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import msgspec

from ostler.daemon.children.handles import AnyChild, ForkServerHandle, WorkerHandle
from ostler.daemon.children.ports import Ports
from ostler.fleet.model import ExitStatus
from ostler.osapi import process_groups
from ostler.osapi.process_groups import SESSION

# Seconds between two looks at a group that is to end: the first, and the longest.
_FIRST_LOOK, _LONGEST_LOOK = 0.02, 0.5
# Seconds that it gets if the daemon stops quickly.
_QUICK = 1.0
# Seconds after SIGKILL at which a group is given up: its members run with other rights, say.
_GIVE_UP = 5.0
# Until a policy is known.
_UNKNOWN_GRACE = 30.0


class AppProcessesState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries: groups without a leader, and their generations."""

    left: dict[int, int] = {}


@dataclass(slots=True)
class _Ending:
    """A group that is to end. deadline: the loop's time; asked: pids that got SIGTERM; pause: in seconds."""

    deadline: float
    asked: list[int]
    pause: float = _FIRST_LOOK
    killed: bool = False


class AppProcesses:
    """Ends what user code has started. Called only by the event loop's thread.

    Args:
        ports: see there.
    """

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        # Groups whose leaders have ended, by number; with the generation that each ends with.
        self._left: dict[int, int] = {}
        self._ending: dict[int, _Ending] = {}
        self._then: Callable[[], None] | None = None

    def snapshot(self) -> AppProcessesState:
        ending = dict.fromkeys(self._ending, -1)  # of no generation that there is: asked again at once
        return AppProcessesState(ending | self._left)

    def restore(self, state: AppProcessesState) -> None:
        """Continue where the program before this one stopped, when the registry is restored."""
        self._left = dict(state.left)
        self._end_orphaned()

    # -- fork servers and workers end --------------------------------------------------------------------

    def on_child_ended(self, child: AnyChild, status: ExitStatus) -> None:
        """A fork server or worker is dead; to be called before the fleet is notified."""
        groups = child.record.groups
        own = groups[-1] if groups else None
        used = self._used(child)
        for group in groups:
            if group in used or group in self._left or not process_groups.has_members(group):
                continue
            if group == own and isinstance(child, WorkerHandle) and status.signal is None:
                self._left[group] = child.generation
            else:
                self._end(group)
        self._end_orphaned(child)

    def is_used(self, server: ForkServerHandle, besides: AnyChild | None = None) -> bool:
        """Whether others than `besides` may use what this fork server has started."""
        groups = server.record.groups
        others = (child for child in self._ports.children if child is not server and child is not besides)
        if not groups or not any(groups[-1] in child.record.groups for child in others):
            return False
        return process_groups.has_children(server.pid)

    def _used(self, besides: AnyChild | None = None) -> set[int]:
        children = self._ports.children
        return {group for child in children if child is not besides for group in child.record.groups}

    def _end_orphaned(self, besides: AnyChild | None = None) -> None:
        """End the groups whose generation has no process any more."""
        if not self._left:
            return
        generations = {child.generation for child in self._ports.children if child is not besides}
        for group, generation in list(self._left.items()):
            if generation not in generations:
                del self._left[group]
                self._end(group)

    # -- the end of the daemon ---------------------------------------------------------------------------

    def end_all(self, quick: bool, then: Callable[[], None]) -> None:
        """End all that there are, and call `then` when they have ended. There are no workers any more."""
        groups = {*self._left, *self._used()}
        self._left.clear()
        self._then = then
        for group in (*groups, SESSION):
            self._end(group)
        if quick:
            self.hurry()
        self._finish_if_done()

    def hurry(self) -> None:
        """If the daemon waits for them: for a second at most, from now on."""
        if self._then is not None:
            latest = self._ports.loop.time() + _QUICK
            for ending in self._ending.values():
                ending.deadline = min(ending.deadline, latest)

    def _finish_if_done(self) -> None:
        if self._then is not None and not self._ending:
            then, self._then = self._then, None
            then()

    # -- ending a group ----------------------------------------------------------------------------------

    def _end(self, group: int) -> None:
        if group in self._ending:
            return
        before = {pid for ending in self._ending.values() for pid in ending.asked}
        asked = self._signal(group, signal.SIGTERM, before)
        if not asked:
            return
        self._report("info", "app_processes_asked_to_end", asked)
        policy = self._ports.state().policy
        grace = policy.graceful_timeout if policy is not None else _UNKNOWN_GRACE
        ending = self._ending[group] = _Ending(self._ports.loop.time() + grace, asked)
        self._look_later(group, ending)

    def _look_later(self, group: int, ending: _Ending) -> None:
        until = max(0.0, ending.deadline - self._ports.loop.time()) if not ending.killed else ending.pause
        self._ports.loop.call_later(min(ending.pause, until), self._look, group, ending)
        ending.pause = min(2 * ending.pause, _LONGEST_LOOK)

    def _look(self, group: int, ending: _Ending) -> None:
        now = self._ports.loop.time()
        gone = not self._members(group)
        if not gone and now >= ending.deadline:
            killed = self._signal(group, signal.SIGKILL)
            if not ending.killed:
                ending.killed, ending.pause = True, _FIRST_LOOK
                self._report("warning", "app_processes_killed", killed)
        if gone or now >= ending.deadline + _GIVE_UP:
            del self._ending[group]
            self._finish_if_done()
        else:
            self._look_later(group, ending)

    def _known(self) -> set[int]:
        return {child.pid for child in self._ports.children if child.pid is not None}

    def _members(self, group: int) -> set[int]:
        if not process_groups.has_members(group):
            return set()
        return set(process_groups.members(group, os.getpid())) - self._known()

    def _signal(self, group: int, signum: int, besides: Collection[int] = ()) -> list[int]:
        if not process_groups.has_members(group):
            return []
        return process_groups.signal_members(group, os.getpid(), signum, {*self._known(), *besides})

    def _report(self, level: str, event: str, pids: Iterable[int]) -> None:
        self._ports.journal.record(level, event, {"pids": " ".join(map(str, sorted(pids)))})
