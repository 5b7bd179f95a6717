"""The supervisor's handles of its children.

A handle consists of the descriptors (channel, pidfd, stack dumps) and one record. What an upgrade in place
carries is the record and the numbers of the descriptors.
"""

import os
import socket
import threading
import time
from typing import Any

import msgspec

from ostler.daemon.children.message_budget import MessageBudget
from ostler.daemon.children.records import (
    CarriedForkServer,
    CarriedWorker,
    ChildPhase,
    ChildRecord,
    ForkServerRecord,
    WorkerRecord,
)
from ostler.daemon.process.fork_server_process import ForkServerProcess
from ostler.ipc import channel, messages
from ostler.ipc.channel import Channel
from ostler.osapi import received
from ostler.osapi.process import (
    INTERRUPT_SIGNAL,
    is_to_be_reaped,
    send_signal,
    signal_main_thread,
)
from ostler.osapi.process_groups import own_group
from ostler.settings import capacity
from ostler.settings.load import Loaded

# Bytes of a worker's stack dumps that are kept until they are logged.
_DUMP_LIMIT = 64 * 1024
# How a dump of faulthandler, or of greenlets, begins.
_DUMP_STARTS = ("Fatal Python error", "Current thread", "Thread 0x", "Current greenlet", "Greenlet", "Task")
# What is read of them at once, and how often in a row: more than a pipe holds (pipe(7), pipe-max-size).
_DUMP_PART, _DUMP_PARTS = 64 * 1024, 17
# Messages that are received of a channel before it is closed; more than fit into a socket's buffer.
_MOST_UNREAD = 2000


class Child:
    """A child process, held by a pidfd; without one by its pid, which is not free before it was reaped.

    Attributes:
        record: what is known of it.
        channel: its channel, for messages in both directions.
        pidfd: -1 until the process is known.
        budget: how much it may still send.
    """

    channel: Channel[Any]

    def __init__(self, record: ChildRecord) -> None:
        self.record = record
        self.pidfd = -1
        self.budget = MessageBudget(time.monotonic())

    @property
    def generation(self) -> int:
        return self.record.generation

    @property
    def pid(self) -> int | None:
        """None until the process is known."""
        return self.record.pid

    def forked(self, pid: int) -> bool:
        """Record the process; False if it has ended already, or was never a child of the supervisor.

        A fork server reports its workers' pids, and runs an app that may have fewer rights than the
        supervisor: it must not make the supervisor signal another process.
        """
        self.record.pid = pid
        if is_to_be_reaped(pid) is None:
            self.record.is_ours = False
            return False
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # out of descriptors: its pid is used instead
        return True

    def send_signal(self, signum: int) -> bool:
        """Signal the process, if there is one; False if it has other rights by now and can't be signalled."""
        record = self.record
        record.sent_signals.add(signum)
        if self.pidfd >= 0:
            try:
                send_signal(self.pidfd, signum)
            except OSError:
                pass  # the call is refused: its pid is used instead
            else:
                return True
        if record.pid is not None and record.is_ours:
            try:
                os.kill(record.pid, signum)
            except OSError:
                record.sent_signals.discard(signum)
                return False
        return True

    def reaped(self) -> None:
        """The process was reaped: its pid may be another process's from now on."""
        self.record.is_ours = False

    def send(self, message: msgspec.Struct, descriptors: list[int] | None = None) -> bool:
        """Send a message; False if the child has ended or does not read: its death or a deadline reports
        that."""
        try:
            self.channel.send(message, descriptors)
        except OSError:
            return False
        return True

    def close_channel(self) -> None:
        """The child sees the end at once; the descriptor is closed soon, by a thread.

        There may be descriptors in the channel that were not received. The kernel closes these with the
        channel, which can take as long as their sender likes (see `osapi.received.discard`). So a thread
        closes the channel; it receives them before, which makes them harmless.
        """
        if self.channel.fileno() < 0:
            return
        fd = self.channel.hang_up()
        try:
            threading.Thread(target=_empty, args=(fd,), name="ostler-close-channel", daemon=True).start()
        except RuntimeError:
            os.close(fd)  # no thread could be started

    def close_pidfd(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _empty(fd: int) -> None:
    """Receive what is in a channel, without blocking, and close it."""
    with socket.socket(fileno=fd) as sock:
        try:
            for _ in range(_MOST_UNREAD):
                _, ancillary, _, _ = sock.recvmsg(
                    1, received.SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
                for left in received.descriptors(ancillary):
                    received.discard(left)
        except OSError:
            return  # nothing is left, or no descriptor is free


class ForkServerHandle(Child):
    """A running fork server."""

    record: ForkServerRecord

    def __init__(self, record: ForkServerRecord, chan: Channel[messages.FromForkServer]) -> None:
        super().__init__(record)
        assert record.pid is not None
        self._pid = record.pid
        self.channel = chan
        if record.is_ours:
            self.forked(record.pid)

    @property
    def pid(self) -> int:
        return self._pid

    def carried(self) -> CarriedForkServer:
        """For `restored`."""
        return CarriedForkServer(self.record, self.channel.fileno())

    @classmethod
    def restored(cls, carried: CarriedForkServer) -> "ForkServerHandle":
        """The handle that the program before this one had."""
        return cls(
            carried.record,
            Channel[messages.FromForkServer].carried(carried.channel, messages.FromForkServer),
        )

    @classmethod
    def of_zygote(cls, worker: "WorkerHandle") -> "ForkServerHandle":
        """The handle of a worker that is a fork server now; the worker's handle must not be used again."""
        before = worker.record
        record = ForkServerRecord(
            generation=before.generation,
            spawned_at=before.spawned_at,
            pid=before.pid,
            phase=ChildPhase.FORKING,
            modules_sent=True,  # it has all that the app's workers import
            remarked=True,
            wants_log_lines=before.wants_log_lines,
            groups=before.groups,
        )
        handle = cls(record, Channel.from_fd(worker.channel.detach(), messages.FromForkServer))
        os.close(worker.stacks_fd)
        worker.close_pidfd()
        return handle

    @classmethod
    def of_process(cls, generation: int, process: ForkServerProcess) -> "ForkServerHandle":
        """The handle of a process that waits for `Configure`; the channel is the handle's from now on."""
        sock = process.use()
        sock.setblocking(False)
        record = ForkServerRecord(generation=generation, spawned_at=process.started_at, pid=process.pid)
        if (group := own_group(process.pid)) is not None:
            record.groups = [group]
        return cls(record, Channel(sock, messages.FromForkServer))

    def close(self) -> None:
        self.close_channel()
        self.close_pidfd()


class WorkerHandle(Child):
    """A worker process, from the request to spawn it until it is reaped."""

    record: WorkerRecord

    def __init__(self, record: WorkerRecord, chan: Channel[messages.FromWorker], stacks_fd: int) -> None:
        super().__init__(record)
        self.channel = chan
        self.stacks_fd = stacks_fd
        self._child_ends: list[int] = []

    @property
    def worker_id(self) -> int:
        return self.record.worker_id

    @property
    def slot(self) -> int:
        return self.record.slot

    @property
    def cell(self) -> int:
        """Its cell of the scoreboard."""
        return self.record.cell

    @property
    def threads(self) -> int:
        return self.record.threads

    @property
    def one_loop(self) -> bool:
        return self.record.one_loop

    @classmethod
    def new(cls, worker_id: int, slot: int, generation: int, cell: int, loaded: Loaded) -> "WorkerHandle":
        """For a worker that is to be spawned.

        Raises:
            OSError: no descriptors are left.
        """
        ours, theirs = channel.pair()
        ours.setblocking(False)
        with ours, theirs:
            stacks_fd, their_stacks_fd = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(stacks_fd, False)
            record = WorkerRecord(
                generation=generation,
                spawned_at=time.monotonic(),
                worker_id=worker_id,
                slot=slot,
                cell=cell,
                threads=capacity.threads(loaded.settings, loaded.one_loop),
                one_loop=loaded.one_loop,
            )
            chan = Channel[messages.FromWorker].from_fd(ours.detach(), messages.FromWorker)
            handle = cls(record, chan, stacks_fd)
            handle._child_ends = [theirs.detach(), their_stacks_fd]
        return handle

    def descriptors_for_child(self) -> list[int]:
        return self._child_ends

    def close_child_ends(self) -> None:
        """After they were sent: end of file must come when the worker ends, not when the supervisor does."""
        while self._child_ends:
            os.close(self._child_ends.pop())

    def carried(self) -> CarriedWorker:
        """For `restored`."""
        return CarriedWorker(self.record, self.channel.fileno(), self.stacks_fd)

    @classmethod
    def restored(cls, carried: CarriedWorker) -> "WorkerHandle":
        """The handle that the program before this one had."""
        chan = Channel[messages.FromWorker].carried(carried.channel, messages.FromWorker)
        handle = cls(carried.record, chan, carried.stacks)
        if carried.record.pid is not None and carried.record.is_ours:
            handle.forked(carried.record.pid)
        return handle

    def interrupt(self) -> None:
        """Make it end its overdue requests."""
        if self.record.pid is not None and self.record.is_ours:
            signal_main_thread(self.record.pid, INTERRUPT_SIGNAL)

    def read_dumps(self, parts: int = 1) -> bool:
        """Read some of the stack dumps that it has written; False if there is no more."""
        dumps = self.record.dumps
        for _ in range(parts):
            try:
                data = os.read(self.stacks_fd, _DUMP_PART)
            except OSError:
                return False
            if not data:
                return False
            dumps += data
            del dumps[: max(0, len(dumps) - _DUMP_LIMIT)]
        return True

    def drop_dumps(self) -> None:
        """Forget what it has written so far."""
        self.read_dumps(_DUMP_PARTS)
        self.record.dumps.clear()
        self.record.last_dump = ""

    def whole_dumps(self) -> int:
        """Bytes that it has written so far; 0 if there are none, or their last line has no end."""
        self.read_dumps(_DUMP_PARTS)
        return len(self.record.dumps) if self.record.dumps.endswith(b"\n") else 0

    def take_dumps(self) -> str:
        """What it has written since the last call."""
        self.read_dumps(_DUMP_PARTS)
        record = self.record
        text = record.dumps.decode("utf-8", "replace")
        record.dumps.clear()
        if text and record.last_dump and not text.startswith(_DUMP_STARTS):
            # The first part of this dump was taken before.
            text = (record.last_dump + text)[-_DUMP_LIMIT:]
        record.last_dump = text or record.last_dump
        return text

    def close(self) -> None:
        self.close_child_ends()
        self.close_channel()
        os.close(self.stacks_fd)
        self.close_pidfd()


AnyChild = WorkerHandle | ForkServerHandle
