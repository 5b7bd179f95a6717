"""Workers: performs the fleet's actions on them, and turns what they send into events."""

import signal
from collections.abc import Callable

from ostler.daemon.children.handles import ForkServerHandle, WorkerHandle
from ostler.daemon.children.inbox import Inbox
from ostler.daemon.children.ports import Ports
from ostler.daemon.children.protocol import check_worker
from ostler.daemon.children.reaper import Reaper
from ostler.daemon.children.records import ChildPhase
from ostler.daemon.children.stack_dumps import StackDumps
from ostler.daemon.configurations import Configurations
from ostler.fleet import actions, events
from ostler.ipc import messages
from ostler.ipc.channel import BadMessage
from ostler.osapi.needed import with_remedy
from ostler.osapi.process import is_anothers_child
from ostler.osapi.process_groups import own_group
from ostler.scoreboard.reader import Scoreboard
from ostler.settings import capacity


class WorkerManager:
    """Spawns, signals and gives up workers. Called only by the event loop's thread.

    Args:
        ports, configurations, scoreboard, inbox, stacks, reaper: what it works with.
        on_files: called with a generation and what a worker has reported about the app's files.
    """

    def __init__(
        self,
        ports: Ports,
        configurations: Configurations,
        scoreboard: Scoreboard,
        inbox: Inbox,
        stacks: StackDumps,
        reaper: Reaper,
        on_files: Callable[[int, messages.Watch | messages.AppBroken], None],
    ) -> None:
        self._ports = ports
        self._children = ports.children
        self._configurations = configurations
        self._scoreboard = scoreboard
        self._inbox = inbox
        self._stacks = stacks
        self._reaper = reaper
        self._on_files = on_files

    def watch(self, handle: WorkerHandle) -> None:
        """Read what it sends and writes, and learn of its death."""
        self._inbox.watch(handle)
        self._stacks.watch(handle)
        self._reaper.watch(handle)

    def forget(self, worker_id: int) -> None:
        """Give up a worker that is dead or was never forked."""
        handle = self._children.remove_worker(worker_id)
        if handle is None:
            return
        self._inbox.unwatch(handle)
        self._stacks.unwatch(handle)
        self._reaper.unwatch(handle)
        handle.close()
        self._ports.attempt(
            "freeing a cell of the scoreboard", lambda: self._scoreboard.free_cell(handle.cell)
        )

    def forget_unforked(self, generation: int) -> None:
        """Forget the workers that a generation's fork server was asked for and has not forked: it has ended.

        The fleet is not notified; it forgets them when it handles the fork server's end.
        """
        for worker_id, handle in list(self._children.workers.items()):
            if handle.pid is None and handle.generation == generation:
                self.forget(worker_id)

    def broadcast(self, message: messages.ToWorker) -> None:
        for handle in self._children.workers.values():
            if handle.channel.fileno() >= 0:
                handle.send(message)

    # -- forking ----------------------------------------------------------------------------------------

    def spawn(self, action: actions.Spawn) -> None:
        """Ask the generation's fork server for a worker."""
        loaded = self._configurations.get(action.generation)
        if loaded is None:
            self._spawn_failed(action, "its generation has no configuration")
            return
        try:
            cell = self._scoreboard.allocate_cell(capacity.request_slots(loaded.settings, loaded.one_loop))
        except OSError as error:
            self._spawn_failed(action, with_remedy(error))
            return
        try:
            handle = WorkerHandle.new(action.worker_id, action.slot, action.generation, cell, loaded)
        except OSError as error:
            self._scoreboard.free_cell(cell)
            self._spawn_failed(action, with_remedy(error))
            return
        self._children.add_worker(handle)
        self.watch(handle)
        fork_server = self._children.fork_servers.get(action.generation)
        problem = self._ask_to_fork(fork_server, handle, action.urgent) if fork_server is not None else None
        handle.close_child_ends()
        if problem is not None:
            self.forget(action.worker_id)
            reason = f"the fork server can't be asked: {problem.strerror}"
            self._spawn_failed(action, reason, isinstance(problem, BlockingIOError))

    def _spawn_failed(self, action: actions.Spawn, reason: str, unread: bool = False) -> None:
        self._ports.submit(events.SpawnFailed(action.worker_id, reason, unread))

    def _ask_to_fork(
        self, fork_server: ForkServerHandle, handle: WorkerHandle, urgent: bool
    ) -> OSError | None:
        """Returns why the request could not be sent; None also if it has ended, which its death reports."""
        descriptors = [*handle.descriptors_for_child(), self._scoreboard.fileno(handle.cell)]
        request = messages.Spawn(handle.worker_id, handle.slot, urgent)
        try:
            fork_server.channel.send(request, descriptors)
        except (BrokenPipeError, ConnectionResetError):
            return None
        except OSError as error:
            return error if fork_server.channel.fileno() >= 0 else None
        return None

    def _requested(self, fork_server: ForkServerHandle, worker_id: int) -> WorkerHandle | None:
        """The worker that a fork server was asked for; None if it is not wanted any more.

        Raises:
            BadMessage: it was never asked for that one, or has answered already.
        """
        handle = self._children.workers.get(worker_id)
        if handle is None:
            if 0 < worker_id <= self._ports.state().spawned:
                return None
            raise BadMessage(f"the outcome of worker {worker_id}, which was never asked for")
        if handle.generation != fork_server.generation or handle.pid is not None:
            raise BadMessage(f"the outcome of worker {worker_id}, which it was not asked to fork")
        return handle

    def forked(self, fork_server: ForkServerHandle, message: messages.Forked) -> None:
        """A fork server has reported a worker's process. Raises BadMessage if that can't be."""
        handle = self._requested(fork_server, message.worker_id)
        if handle is None or message.worker_id not in self._ports.state().workers:
            return  # it is not wanted any more, and ends because its channel was closed
        if self._children.with_pid(message.pid) is not None or self._reaper.expects(message.pid):
            raise BadMessage(f"that process {message.pid} is a worker, but it is another process of Ostler's")
        if is_anothers_child(message.pid):
            raise BadMessage(f"that process {message.pid} is a worker, which is no child of the supervisor's")
        handle.record.phase = ChildPhase.BOOTING
        alive = handle.forked(message.pid)
        handle.record.groups = [*fork_server.record.groups]
        if (group := own_group(message.pid)) is not None:
            handle.record.groups.append(group)
        self._ports.submit(events.WorkerForked(message.worker_id, message.pid))
        if alive:
            self._children.worker_forked(handle)
            self._reaper.watch(handle)
            handle.send(messages.Boot())
        else:
            self._reaper.ended_before_known(handle)

    def fork_failed(self, fork_server: ForkServerHandle, message: messages.ForkFailed) -> None:
        """A fork server has reported that it could not fork. Raises BadMessage if it was not asked to."""
        if self._requested(fork_server, message.worker_id) is not None:
            self.forget(message.worker_id)
            self._ports.submit(events.SpawnFailed(message.worker_id, message.reason))

    # -- messages -----------------------------------------------------------------------------------------

    def received(self, handle: WorkerHandle, message: messages.FromWorker) -> None:
        """Process a worker's message. Raises BadMessage if it may not send that now."""
        record = handle.record
        check_worker(record, message, self._configurations.get(handle.generation))
        if isinstance(message, messages.Ready):
            self.report_remark(handle.generation, message.remark)
            self._ports.submit(events.WorkerReady(handle.worker_id))
            self._send_modules(handle.generation, message.modules)
        elif isinstance(message, messages.BootFailed):
            self._ports.submit(events.WorkerBootFailed(handle.worker_id, message.reason, message.traceback))
        elif isinstance(message, messages.ZygoteAudited):
            problems, warnings = tuple(message.problems), tuple(message.warnings)
            self._ports.submit(events.ZygoteAudited(handle.worker_id, problems, warnings))
        elif isinstance(message, messages.ZygoteReady):
            # A process that is dead can't be a fork server.
            if record.is_ours:
                record.wants_log_lines = message.loggers
                self._ports.submit(events.ZygoteReady(handle.worker_id))
        elif isinstance(message, messages.Signalled):
            record.signalled = message.signum
        elif isinstance(message, messages.Watch | messages.AppBroken):
            self._on_files(handle.generation, message)
        elif isinstance(message, messages.RecycleDue) and not record.recycle_reported:
            record.recycle_reported = True
            self._ports.submit(events.RecycleDue(handle.worker_id, message.requests))

    def _send_modules(self, generation: int, modules: list[str]) -> None:
        """Send the fork server, once, the standard modules that the first worker has imported."""
        fork_server = self._children.fork_servers.get(generation)
        if fork_server is not None and not fork_server.record.modules_sent and modules:
            fork_server.record.modules_sent = True
            fork_server.send(messages.ImportModules(modules))

    def report_remark(self, generation: int, remark: str) -> None:
        """Log, once for a generation, what one of its processes has found out about the app."""
        fork_server = self._children.fork_servers.get(generation)
        if remark and fork_server is not None and not fork_server.record.remarked:
            fork_server.record.remarked = True
            self._ports.journal.record("info", "factory_called", {"note": remark})

    # -- ends -----------------------------------------------------------------------------------------------

    def drain(self, action: actions.Drain) -> None:
        handle = self._children.workers[action.worker_id]
        handle.record.zygote_asked |= action.zygote
        message = messages.Drain(action.hand_over, action.zygote, action.seconds, action.empty_queue)
        if not handle.send(message):
            # It has not read its channel for long, or has closed it: SIGTERM means the same.
            self._signal(handle, signal.SIGTERM)

    def cancel(self, action: actions.Cancel) -> None:
        self._signal(self._children.workers[action.worker_id], signal.SIGTERM)

    def quit(self, action: actions.Quit) -> None:
        handle = self._children.workers[action.worker_id]
        if self._ports.state().stopping:
            self._reaper.report_lost(handle)
        self._signal(handle, signal.SIGQUIT)

    def abort(self, action: actions.Abort) -> None:
        self._end(action.worker_id, signal.SIGABRT)

    def kill(self, action: actions.Kill) -> None:
        self._end(action.worker_id, signal.SIGKILL)

    def _end(self, worker_id: int, signum: int) -> None:
        handle = self._children.workers[worker_id]
        self._reaper.report_lost(handle)
        self._signal(handle, signum)

    def _signal(self, handle: WorkerHandle, signum: int) -> None:
        if handle.pid is not None and signum == signal.SIGKILL:
            self._reaper.kill(handle)
        elif handle.pid is not None:
            handle.send_signal(signum)
        elif handle.channel.fileno() >= 0:
            # Not forked yet: without its channel it ends before it runs a line of the app.
            self._inbox.unwatch(handle)
            handle.close_channel()

    # -- zygotes --------------------------------------------------------------------------------------------

    def audit_zygote(self, action: actions.AuditZygote) -> None:
        handle = self._children.workers[action.worker_id]
        handle.record.audits_pending += 1
        handle.send(messages.AuditZygote(action.force))

    def release_zygote(self, worker_id: int) -> tuple[WorkerHandle, ForkServerHandle]:
        """A worker has become a fork server: its channel carries a fork server's messages from now on.

        Returns both handles; the worker's must not be used but for what is known of it.
        """
        handle = self._children.workers[worker_id]
        self._children.remove_worker(worker_id)
        self._inbox.unwatch(handle)
        self._stacks.unwatch(handle)
        self._reaper.unwatch(handle)
        self._scoreboard.free_cell(handle.cell)
        return handle, ForkServerHandle.of_zygote(handle)
