"""The registry of workers and fork servers: every part of the daemon that looks for one looks here."""

from collections.abc import Iterator

import msgspec

from ostler.daemon.children.handles import AnyChild, ForkServerHandle, WorkerHandle
from ostler.daemon.children.records import CarriedForkServer, CarriedWorker


class ChildrenState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries of the registry.

    leaving: without their channels, which the old program's exec closes; that ends these fork servers.
    """

    workers: list[CarriedWorker]
    fork_servers: list[CarriedForkServer]
    leaving: list[CarriedForkServer]

    def descriptors(self) -> list[int]:
        """The descriptors that must stay open over execve(2)."""
        workers = [fd for worker in self.workers for fd in (worker.channel, worker.stacks)]
        return [fd for fd in (*workers, *(server.channel for server in self.fork_servers)) if fd >= 0]


class ChildRegistry:
    """Handles of all workers and fork servers.

    Attributes:
        workers: by worker id; from the request to spawn one until its death is processed.
        fork_servers: those of the fleet's generations, by generation.
        leaving: fork servers that the fleet does not manage any more and that have not ended, by pid.
    """

    def __init__(self) -> None:
        self.workers: dict[int, WorkerHandle] = {}
        self.fork_servers: dict[int, ForkServerHandle] = {}
        self.leaving: dict[int, ForkServerHandle] = {}
        self._worker_by_pid: dict[int, WorkerHandle] = {}

    # -- workers ----------------------------------------------------------------------------------------

    def add_worker(self, handle: WorkerHandle) -> None:
        self.workers[handle.worker_id] = handle
        if handle.pid is not None:
            self._worker_by_pid[handle.pid] = handle

    def worker_forked(self, handle: WorkerHandle) -> None:
        """Its pid is known, and the process is alive."""
        assert handle.pid is not None
        self._worker_by_pid[handle.pid] = handle

    def remove_worker(self, worker_id: int) -> WorkerHandle | None:
        """Returns the handle, None if there is none."""
        handle = self.workers.pop(worker_id, None)
        if handle is not None and handle.pid is not None and self._worker_by_pid.get(handle.pid) is handle:
            del self._worker_by_pid[handle.pid]
        return handle

    def is_known(self, handle: WorkerHandle) -> bool:
        """Whether a worker has not ended yet."""
        return self.workers.get(handle.worker_id) is handle

    def worker_with_pid(self, pid: int) -> WorkerHandle | None:
        return self._worker_by_pid.get(pid)

    def worker_with_cell(self, cell: int) -> WorkerHandle | None:
        return next((handle for handle in self.workers.values() if handle.cell == cell), None)

    # -- fork servers -----------------------------------------------------------------------------------

    def add_fork_server(self, handle: ForkServerHandle) -> None:
        """It is its generation's fork server from now on; the one before is among those that leave."""
        before = self.fork_servers.get(handle.generation)
        if before is not None:
            self.leaving[before.pid] = before
        self.fork_servers[handle.generation] = handle

    def leave(self, handle: ForkServerHandle) -> None:
        """The fleet does not manage this fork server any more."""
        self.leaving[handle.pid] = handle
        if self.is_current(handle):
            del self.fork_servers[handle.generation]

    def remove_fork_server(self, handle: ForkServerHandle) -> None:
        if self.is_current(handle):
            del self.fork_servers[handle.generation]
        if self.leaving.get(handle.pid) is handle:
            del self.leaving[handle.pid]

    def is_current(self, handle: ForkServerHandle) -> bool:
        """Whether it is its generation's fork server."""
        return self.fork_servers.get(handle.generation) is handle

    def is_leaving(self, handle: ForkServerHandle) -> bool:
        return self.leaving.get(handle.pid) is handle

    def all_fork_servers(self) -> list[ForkServerHandle]:
        """Those that leave are the last."""
        return [*self.fork_servers.values(), *self.leaving.values()]

    def fork_server_with_pid(self, pid: int) -> ForkServerHandle | None:
        found = self.leaving.get(pid)
        return found or next((server for server in self.fork_servers.values() if server.pid == pid), None)

    # -- all --------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[AnyChild]:
        yield from list(self.workers.values())
        yield from self.all_fork_servers()

    def with_pid(self, pid: int) -> AnyChild | None:
        return self.worker_with_pid(pid) or self.fork_server_with_pid(pid)

    def snapshot(self) -> ChildrenState:
        """For `restore` in the program that comes next."""
        return ChildrenState(
            [handle.carried() for handle in self.workers.values()],
            [handle.carried() for handle in self.fork_servers.values()],
            [msgspec.structs.replace(handle.carried(), channel=-1) for handle in self.leaving.values()],
        )

    def restore(self, state: ChildrenState) -> None:
        """Take over the children of the program before this one; before the first of our own."""
        for worker in state.workers:
            self.add_worker(WorkerHandle.restored(worker))
        for server in state.fork_servers:
            self.add_fork_server(ForkServerHandle.restored(server))
        for server in state.leaving:
            record = server.record
            # Its channel has ended, and with it what it could still be asked for.
            record.can_call_hooks = record.may_run_background_work = record.background_only = False
            record.pending_hooks = []
            handle = ForkServerHandle.restored(server)
            self.leaving[handle.pid] = handle
