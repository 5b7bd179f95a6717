"""The supervisor's part in the configuration file's hooks: it sends fork servers those that are due.

Some hooks depend on what only the supervisor knows: a worker has ended, the wanted number of workers has
changed, the daemon ends or executes another program. If the generation has any hooks, the supervisor sends
`HookDue` to a fork server, which calls the hook and answers with `HookBegun` and `HookDone`. Only the end of
a fork server and an upgrade wait for hooks, for a limited time: a fork server that is to end gets time to
call the hooks that it was sent (the fleet's `fork_server_grace`).

What `on_starting` and `when_ready` have started (a thread that serves metrics, a scheduler) runs in their
fork server. At a reload the new one calls these hooks as well, and the old one's work ends with its
generation. But if they raise there (the port of the metrics is taken, say) or start nothing, the earlier work
must outlive the reload: then that fork server is not ended but sent `retire`: it closes everything else, and
ends only if nothing runs in it. Later it is the one that calls `on_exit`.

`child_exit` is called at most once for each worker: by the fork server of the worker's generation or, if that
has ended, by another. If a fork server dies before it has begun to call a `child_exit`, the next one is sent
it.
"""

import asyncio
import signal
from collections.abc import Callable

import msgspec

from ostler.daemon.children.handles import AnyChild, ForkServerHandle, WorkerHandle
from ostler.daemon.children.ports import Ports
from ostler.daemon.configurations import Configurations
from ostler.daemon.settings_to_policy import HOOKS_GRACE
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages

PRE_EXEC_TIME = 5.0
"""Seconds that an upgrade waits for `pre_exec`; its fork server gives it less."""
# `child_exit` calls that are kept for a fork server to come, beyond which the oldest are dropped; and pending
# hooks of one fork server.
_MOST_WAITING = 1000
# The hooks that may start something that outlives their generation.
_STARTING_HOOKS = frozenset(("on_starting", "when_ready"))


class HooksState(msgspec.Struct):
    """The state of the hooks, except for what each fork server was sent. An upgrade carries all of it.

    names: of the hooks of each generation; waiting: `child_exit` calls that no fork server was sent yet;
    exit_wanted: a configuration has an `on_exit`; exit_sent, exit_done: whether it was sent, and called.
    """

    names: dict[int, list[str]] = {}
    waiting: list[messages.HookDue] = []
    exit_wanted: bool = False
    exit_sent: bool = False
    exit_done: bool = False


class HookDispatcher:
    """Sends fork servers the hooks that are due. Called only by the event loop's thread.

    Args:
        ports: see there.
        configurations: settings by generation.
        hang_up: closes a fork server's channel, which ends it.
        kill: sends SIGKILL to a child.
    """

    def __init__(
        self,
        ports: Ports,
        configurations: Configurations,
        hang_up: Callable[[ForkServerHandle], None],
        kill: Callable[[AnyChild], None],
    ) -> None:
        self._ports = ports
        self._configurations = configurations
        self._hang_up = hang_up
        self._kill = kill
        self._own = HooksState()
        self._pre_exec: asyncio.Future[None] | None = None

    def snapshot(self) -> HooksState:
        return self._own

    def restore(self, state: HooksState) -> None:
        """Continue where the program before this one stopped."""
        self._own = state

    # -- fork servers start and end ----------------------------------------------------------------------

    def configured(self, handle: ForkServerHandle, hooks: list[str]) -> None:
        """A fork server has reported which hooks its configuration file has."""
        known = {n: names for n, names in self._own.names.items() if n in self._configurations}
        self._own.names = known | {handle.generation: hooks}
        handle.record.hooks = hooks

    def loaded(self, handle: ForkServerHandle, cause: str) -> None:
        """A fork server can fork workers and call hooks. cause: why it was started."""
        record = handle.record
        record.can_call_hooks = True
        self._own.exit_wanted |= "on_exit" in record.hooks
        wanted = self._ports.state().wanted
        if cause != "refork":
            record.may_run_background_work = not _STARTING_HOOKS.isdisjoint(record.hooks)
            # It knows the configured number. Another one that is wanted is reported when it is current.
            record.reported_workers = self._configured_workers(handle.generation)
        elif record.hooks:
            # It knows the number at the fork of the worker that it was.
            self._send(handle, messages.HookDue("nworkers_changed", old=wanted, new=wanted))
            record.reported_workers = wanted
        self._send_waiting()

    def _configured_workers(self, generation: int) -> int:
        loaded = self._configurations.get(generation)
        workers = loaded.settings.workers if loaded is not None else self._ports.state().wanted
        return workers[0] if isinstance(workers, tuple) else workers

    def is_needed(self, handle: ForkServerHandle) -> bool:
        """Whether a fork server whose generation ends is to stay, for what its hooks have started.

        If not, those that stayed before are ended, too.
        """
        current = self._ports.state().current
        newer = self._ports.children.fork_servers.get(current)
        if handle.generation >= current:
            return False  # it was a candidate
        if newer is None or not newer.record.replaces_background_work:
            return handle.record.may_run_background_work
        for earlier in list(self._ports.children.leaving.values()):
            if earlier.record.background_only:
                earlier.record.background_only = False
                self.stop(earlier)
        return False

    def zygote_promoted(
        self, old: ForkServerHandle | None, zygote: ForkServerHandle, worker: WorkerHandle
    ) -> None:
        """A worker is a fork server now. As a worker it has ended."""
        zygote.record.hooks = self._own.names.get(zygote.generation, [])
        if old is not None:
            self.leave(old)
        self.loaded(zygote, "refork")
        self.worker_ended(worker, ExitStatus(code=0))

    def fork_server_ended(self, handle: ForkServerHandle) -> None:
        """A fork server is dead. The hook that it was running is not called again. Another
        fork server calls the pending `child_exit` hooks; the other pending hooks are dropped."""
        record = handle.record
        if record.pending_hooks:
            if record.hook_running:
                del record.pending_hooks[0]
            self._wait_for_another([due for due in record.pending_hooks if due.name == "child_exit"])
            record.pending_hooks.clear()
            self._send_waiting()
        self._finish_pre_exec()
        self._own.exit_done |= self._own.exit_sent and record.calls_on_exit
        self._hang_up_idle()

    def leave(self, handle: ForkServerHandle) -> None:
        """Let a fork server end, or only run its background work: the fleet does not manage it any more."""
        if handle.record.may_run_background_work:
            handle.record.background_only = True
            self._send(handle, messages.HookDue("retire"))
        else:
            self.stop(handle)
        self._ports.loop.call_later(HOOKS_GRACE, self._kill_if_hung, handle)

    def _kill_if_hung(self, handle: ForkServerHandle) -> None:
        # One that runs background work only may be at `on_exit` by now.
        record = handle.record
        hung = not record.background_only or any(due.name == "retire" for due in record.pending_hooks)
        if hung and self._ports.children.is_leaving(handle):
            self._kill(handle)

    def stop(self, handle: ForkServerHandle) -> None:
        """Let a fork server end, once it has called the hooks that are pending."""
        handle.record.stops_when_idle = True
        self._hang_up_idle()

    def finished(self) -> None:
        """The daemon is about to end, and with it the fork servers that the fleet does not wait for."""
        for handle in self._ports.children.leaving.values():
            handle.send_signal(signal.SIGKILL)  # one that hangs in C code would not see its channel end
        if self._own.exit_wanted and not self._own.exit_sent:
            problem = "there was no fork server that could call it"
            self._ports.journal.record("warning", "hook_missed", {"hook": "on_exit", "problem": problem})

    # -- hooks that are due -------------------------------------------------------------------------------

    def worker_ended(self, worker: WorkerHandle, status: ExitStatus) -> None:
        """`child_exit` is due."""
        if worker.pid is None or not self._own.names.get(worker.generation):
            return
        code = -status.signal if status.signal is not None else status.code
        due = messages.HookDue("child_exit", worker.worker_id, worker.slot, worker.pid, code)
        own = self._ports.children.fork_servers.get(worker.generation)
        if own is None or not own.record.can_call_hooks or not self._send(own, due):
            self._wait_for_another([due])
            self._send_waiting()

    def check_workers_number(self) -> None:
        """If the wanted number of workers has changed, `nworkers_changed` is due."""
        state = self._ports.state()
        handle = self._ports.children.fork_servers.get(state.current)
        if handle is None or state.stopping:
            return
        record, wanted = handle.record, state.wanted
        if record.can_call_hooks and record.hooks and record.reported_workers != wanted:
            due = messages.HookDue("nworkers_changed", old=record.reported_workers, new=wanted)
            record.reported_workers = wanted
            self._send(handle, due)

    async def pre_exec(self) -> None:
        """`pre_exec` is due; returns when it was called, or after PRE_EXEC_TIME."""
        handle = self._ports.children.fork_servers.get(self._ports.state().current)
        if handle is None or not handle.record.can_call_hooks or "pre_exec" not in handle.record.hooks:
            return
        self._pre_exec = asyncio.get_running_loop().create_future()
        if self._send(handle, messages.HookDue("pre_exec")):
            await asyncio.wait([self._pre_exec], timeout=PRE_EXEC_TIME)
        self._pre_exec = None

    def done(self, handle: ForkServerHandle, name: str) -> None:
        """A fork server has called the first of its pending hooks."""
        handle.record.hook_running = False
        del handle.record.pending_hooks[:1]
        if name == "pre_exec":
            self._finish_pre_exec()
        self._own.exit_done |= name == "on_exit"
        self._send_waiting()
        self._hang_up_idle()

    def _finish_pre_exec(self) -> None:
        if self._pre_exec is not None and not self._pre_exec.done():
            self._pre_exec.set_result(None)

    # -- sending -----------------------------------------------------------------------------------------

    def _send(self, handle: ForkServerHandle, due: messages.HookDue) -> bool:
        if len(handle.record.pending_hooks) >= _MOST_WAITING:
            return False  # it reads, but does not call what is due
        try:
            handle.channel.send(due)
        except OSError:
            return False  # it has ended or does not read: the fleet will notice, and another one is asked
        handle.record.pending_hooks.append(due)
        return True

    def _wait_for_another(self, due: list[messages.HookDue]) -> None:
        self._own.waiting = [*self._own.waiting, *due][-_MOST_WAITING:]

    def _send_waiting(self) -> None:
        """Send the waiting `child_exit` calls, if possible to the current generation's fork server."""
        children, current = self._ports.children, self._ports.state().current
        able = [h for h in children.fork_servers.values() if h.record.can_call_hooks and h.record.hooks]
        able.sort(key=lambda handle: handle.generation != current)
        while self._own.waiting and able:
            if self._send(able[0], self._own.waiting[0]):
                del self._own.waiting[0]
            else:
                del able[0]

    def _hang_up_idle(self) -> None:
        """Close the channels of those that are to end and have no pending hook. `on_exit` is the last."""
        state, children, own = self._ports.state(), self._ports.children, self._own
        servers = children.all_fork_servers()
        background = [handle for handle in servers if handle.record.background_only]
        caller = self._caller_of_on_exit(servers)
        if caller is not None:
            # If the current generation's fork server ended, the fleet would be finished.
            kept = [caller, *background, children.fork_servers.get(state.current)]
            going = [h for h in servers if h.record.stops_when_idle and h not in kept]
        elif state.stopping and background:
            going = background  # first, because the fleet does not wait for them
        else:
            going = [handle for handle in servers if handle.record.stops_when_idle]
        for handle in going:
            if not handle.record.pending_hooks:
                self._hang_up(handle)
        busy = state.workers or any(handle.record.pending_hooks for handle in servers)
        if caller is not None and not own.exit_sent and not busy:
            own.exit_sent = caller.record.calls_on_exit = True
            if not self._send(caller, messages.HookDue("on_exit")):
                own.exit_done = True
                self._hang_up_idle()

    def _caller_of_on_exit(self, servers: list[ForkServerHandle]) -> ForkServerHandle | None:
        """The fork server that is to call `on_exit`, or is calling it, before any of them ends."""
        state = self._ports.state()
        if self._own.exit_done or not state.stopping:
            return None
        able = [h for h in servers if h.record.can_call_hooks and "on_exit" in h.record.hooks]

        def preference(handle: ForkServerHandle) -> tuple[bool, bool, bool]:
            record = handle.record
            return record.calls_on_exit, record.background_only, handle.generation == state.current

        return max(able, key=preference, default=None)
