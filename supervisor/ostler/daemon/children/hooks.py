"""The supervisor's part in the configuration file's hooks: it says when one is due and calls none itself.

What only the supervisor knows (that a worker has ended, that the number of workers has changed, that the
daemon ends or takes another program) a fork server is told by `HookDue`, if its generation has any hooks, and
says `HookDone` afterwards. Nothing here waits for a hook but the ends of things, and these have a limit:
a fork server that is to end is given the time to call what it was told to (the fleet's `fork_server_grace`).

What `on_starting` and `when_ready` have begun (a thread that serves metrics, a scheduler) runs in the first
fork server, and must outlive reloads. So that one is not ended with its generation but told to retire: it
lets go of everything else, and ends only if nothing runs in it. It is then the one that calls `on_exit`.

`child_exit` is called once for each worker: by the fork server of its own generation, or if that is gone by
another. What a fork server that dies has not begun with goes to the next one.
"""

import asyncio
import signal
from collections import deque
from typing import TYPE_CHECKING

from ostler.daemon.children.handles import ForkServerHandle, WorkerHandle
from ostler.daemon.policy import HOOKS_GRACE
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages

if TYPE_CHECKING:
    from ostler.daemon.shell import Shell

PRE_EXEC_TIME = 5.0
"""Seconds that an upgrade waits for `pre_exec`; its fork server gives it less."""
# Ends of workers that are kept for a fork server to come, beyond which the oldest are forgotten; and what one
# may have due.
_MOST_WAITING = 1000
# What may begin something that lasts.
_BEGINNING = frozenset(("on_starting", "when_ready"))


class HookCaller:
    """Tells the shell's fork servers what hooks are due."""

    def __init__(self, shell: "Shell") -> None:
        self._shell = shell
        self._of: dict[int, list[str]] = {}
        self._waiting: deque[messages.HookDue] = deque(maxlen=_MOST_WAITING)
        self._exit_due = self._exit_told = self._exit_done = False
        self._pre_exec: asyncio.Future[None] | None = None

    # -- fork servers come and go ----------------------------------------------------------------------

    def configured(self, handle: ForkServerHandle, hooks: list[str]) -> None:
        self._of = {number: names for number, names in self._of.items() if number in self._shell.loaded}
        handle.hooks = self._of[handle.generation] = hooks

    def loaded(self, handle: ForkServerHandle, cause: str) -> None:
        """A fork server can fork, and call."""
        handle.calls = True
        self._exit_due |= "on_exit" in handle.hooks
        wanted = self._shell.fleet.wanted
        if cause in ("start", "upgrade"):
            handle.lasting = not _BEGINNING.isdisjoint(handle.hooks)
            loaded = self._shell.loaded[handle.generation].settings.workers
            handle.workers_told = loaded[0] if isinstance(loaded, tuple) else loaded
        elif handle.hooks:
            # It knows what is configured; another number may have been asked for since.
            self._tell(handle, messages.HookDue("nworkers_changed", old=wanted, new=wanted))
            handle.workers_told = wanted
        self._tell_waiting()

    def zygote(self, old: ForkServerHandle | None, zygote: ForkServerHandle, worker: WorkerHandle) -> None:
        """A worker is a fork server now. As a worker it has ended."""
        zygote.hooks = self._of.get(zygote.generation, [])
        if old is not None:
            self.leave(old)
        self.loaded(zygote, "refork")
        self.worker_ended(worker, ExitStatus(code=0))

    def restored(self) -> None:
        """After an upgrade in place."""
        for handle in self._shell.fork_servers.values():
            self._of[handle.generation] = handle.hooks

    def gone(self, handle: ForkServerHandle) -> None:
        """A fork server is dead. What it was at when it died is not tried again; the rest is still due."""
        if handle.due:
            if handle.begun:
                handle.due.popleft()
            self._waiting += [due for due in handle.due if due.name == "child_exit"]
            handle.due.clear()
            self._tell_waiting()
        self._done("pre_exec")
        self._exit_done |= self._exit_told and handle.exits
        self._end_those_done()

    def leave(self, handle: ForkServerHandle) -> None:
        """Let a fork server end, or retire, that the fleet does not look after any more."""
        if handle.lasting:
            handle.retired = True
            self._tell(handle, messages.HookDue("retire"))
        else:
            self.stop(handle)
        self._shell.loop.call_later(HOOKS_GRACE, self._end_if_hung, handle)

    def _end_if_hung(self, handle: ForkServerHandle) -> None:
        # One that has retired may be at `on_exit` by now.
        hung = not handle.retired or any(due.name == "retire" for due in handle.due)
        if hung and self._shell.reaper.leaving.get(handle.pid) is handle:
            self._shell.reaper.kill(handle)

    def stop(self, handle: ForkServerHandle) -> None:
        """Let a fork server end, once it has called what is due."""
        handle.ending = True
        self._end_those_done()

    def finished(self) -> None:
        """The daemon is about to end, and with it those that nobody has waited for."""
        for handle in self._shell.reaper.leaving.values():
            handle.send_signal(signal.SIGKILL)  # what hangs in C would not hear that the channel ends
        if self._exit_due and not self._exit_told:
            problem = "there was no fork server that could call it"
            self._shell.journal.record("warning", "hook_missed", {"hook": "on_exit", "problem": problem})

    # -- what is due -------------------------------------------------------------------------------------

    def worker_ended(self, worker: WorkerHandle, status: ExitStatus) -> None:
        if worker.pid is None or not self._of.get(worker.generation):
            return
        code = -status.signal if status.signal is not None else status.code
        due = messages.HookDue("child_exit", worker.worker_id, worker.slot, worker.pid, code)
        own = self._shell.fork_servers.get(worker.generation)
        if own is None or not own.calls or not self._tell(own, due):
            self._waiting.append(due)
            self._tell_waiting()

    def look(self) -> None:
        """See whether the number of workers has changed."""
        fleet = self._shell.fleet
        handle = self._shell.fork_servers.get(fleet.current)
        if handle is None or not (handle.calls and handle.hooks) or fleet.stopping:
            return
        wanted = fleet.wanted
        if handle.workers_told != wanted:
            due = messages.HookDue("nworkers_changed", old=handle.workers_told, new=wanted)
            handle.workers_told = wanted
            self._tell(handle, due)

    async def pre_exec(self) -> None:
        """Have it called, and wait for that a while."""
        handle = self._shell.fork_servers.get(self._shell.fleet.current)
        if handle is None or not handle.calls or "pre_exec" not in handle.hooks:
            return
        self._pre_exec = asyncio.get_running_loop().create_future()
        if self._tell(handle, messages.HookDue("pre_exec")):
            await asyncio.wait([self._pre_exec], timeout=PRE_EXEC_TIME)
        self._pre_exec = None

    def done(self, handle: ForkServerHandle, name: str) -> None:
        handle.begun = False
        if handle.due:
            handle.due.popleft()
        self._done(name)
        self._exit_done |= name == "on_exit"
        self._tell_waiting()
        self._end_those_done()

    def _done(self, name: str) -> None:
        if name == "pre_exec" and self._pre_exec is not None and not self._pre_exec.done():
            self._pre_exec.set_result(None)

    # -- telling -----------------------------------------------------------------------------------------

    def _tell(self, handle: ForkServerHandle, due: messages.HookDue) -> bool:
        if len(handle.due) >= _MOST_WAITING:
            return False  # it reads, but does not do what is due
        try:
            handle.channel.send(due)
        except OSError:
            return False  # gone, or it does not read: the fleet will notice, and another is told
        handle.due.append(due)
        return True

    def _tell_waiting(self) -> None:
        """Tell of ends of workers that nobody was told of, if it can be the current generation."""
        shell = self._shell
        able = [handle for handle in shell.fork_servers.values() if handle.calls and handle.hooks]
        able.sort(key=lambda handle: handle.generation != shell.fleet.current)
        while self._waiting and able:
            if self._tell(able[0], self._waiting[0]):
                self._waiting.popleft()
            else:
                able.pop(0)

    def _end_those_done(self) -> None:
        """Hang up on those that are to end and have nothing to call any more; `on_exit` comes last of all."""
        fleet = self._shell.fleet
        servers = [*self._shell.fork_servers.values(), *self._shell.reaper.leaving.values()]
        retired = [handle for handle in servers if handle.retired]
        caller = self._for_exit(servers)
        if caller is not None:
            # With the current generation's the fleet would take everything for done.
            kept = [caller, *retired, self._shell.fork_servers.get(fleet.current)]
            going = [handle for handle in servers if handle.ending and handle not in kept]
        elif fleet.stopping and retired:
            going = retired  # first, for the fleet does not wait for them
        else:
            going = [handle for handle in servers if handle.ending]
        for handle in going:
            if not handle.due:
                self._shell.hang_up(handle)
        due = self._exit_told or fleet.workers or any(handle.due for handle in servers)
        if caller is not None and not due:
            self._exit_told = caller.exits = True
            if not self._tell(caller, messages.HookDue("on_exit")):
                self._exit_done = True
                self._end_those_done()

    def _for_exit(self, servers: list[ForkServerHandle]) -> ForkServerHandle | None:
        """The fork server that is to call `on_exit`, or is at it, before any of them ends."""
        if self._exit_done or not self._shell.fleet.stopping:
            return None
        current = self._shell.fleet.current
        able = [h for h in servers if h.calls and "on_exit" in h.hooks]
        return max(able, key=lambda h: (h.exits, h.retired, h.generation == current), default=None)
