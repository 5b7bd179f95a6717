"""The supervisor's ends of its children: processes, channels, stack dumps."""

import functools
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Literal

import msgspec

import ostler
from ostler.control.views import ExitCause
from ostler.daemon.children import closing
from ostler.daemon.children.budget import Allowance
from ostler.daemon.children.protocol import Phase
from ostler.ipc import channel, messages
from ostler.ipc.channel import Channel
from ostler.osapi import imports
from ostler.osapi.priority import step_back, step_forward
from ostler.osapi.process import INTERRUPT_SIGNAL, is_to_be_reaped, send_signal, signal_main_thread
from ostler.settings import classes
from ostler.settings.load import Loaded

# Stack dumps of a worker that are kept until they are logged.
_DUMP_LIMIT = 64 * 1024
# How a dump of faulthandler, or of greenlets, begins.
_DUMP_STARTS = ("Fatal Python error", "Current thread", "Thread 0x", "Current greenlet", "Greenlet", "Task")
# What is read of them at once, and how often in a row: more than a pipe holds (pipe(7), pipe-max-size).
_DUMP_PART, _DUMP_PARTS = 64 * 1024, 17

# -P keeps the current folder off the module path: a package `ostler` that lies in the app's folder must
# not be taken for ours. Ours is put in front just for the import; all its modules are loaded by then. Root's
# imports are watched before the first that could come from elsewhere.
_FORK_SERVER = """\
import sys
root, fd, lowered = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv[:] = sys.argv[4:]
sys.path.insert(0, root)
from ostler.osapi.imports import guard
sys.path.remove(root)
guard()
sys.path.insert(0, root)
from ostler.forkserver.main import main
sys.path.remove(root)
main(fd, lowered)
"""


class CarriedForkServer(msgspec.Struct, frozen=True):
    """What a handle is made from again after an upgrade in place. channel: its descriptor."""

    generation: int
    pid: int
    spawned_at: float
    listener_keys: list[str]
    warmed: bool
    sent: set[int]
    channel: int
    hooks: list[str] = []
    calls: bool = False
    workers_told: int | None = None
    due: list[messages.HookDue] = []
    lasting: bool = False
    takes_lines: bool = False
    left_for: ExitCause | None = None


class CarriedWorker(msgspec.Struct, frozen=True):
    """The same for a worker. channel, stacks: descriptors."""

    worker_id: int
    slot: int
    generation: int
    cell: int
    threads: int
    one_loop: bool
    pid: int | None
    spawned_at: float
    sent: set[int]
    channel: int
    stacks: int
    signalled: int | None = None


class Child:
    """A process of ours, held by a pidfd; without one by its pid, which is not free before we have reaped it.

    Attributes:
        pid, pidfd: None and -1 until they are known.
        is_ours: the process with this pid is our child, as far as we know.
        spawned_at: CLOCK_MONOTONIC, seconds.
        sent: the signals that it was sent.
        phase: what it may say; allowance: how much.
        problem: what it did that a child may not, which is why it was killed, or an empty text.
    """

    def __init__(self, spawned_at: float, phase: Phase = Phase.UNKNOWN) -> None:
        self.pid: int | None = None
        self.pidfd = -1
        self.is_ours = True
        self.spawned_at = spawned_at
        self.sent: set[int] = set()
        self.phase = phase
        self.allowance = Allowance(time.monotonic())
        self.problem = ""

    def forked(self, pid: int) -> bool:
        """Take note of the process; False if it is gone already, or was never a child of ours.

        A fork server says what it is, and in there an app runs that may have fewer rights than we: it must
        not make us signal whom it likes.
        """
        self.pid = pid
        if is_to_be_reaped(pid) is None:
            self.is_ours = False
            return False
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError:
            return True  # out of descriptors: its pid has to do
        return True

    def send_signal(self, signum: int) -> bool:
        """Signal the process, if there is one; False if it has other rights by now, so that we may not."""
        self.sent.add(signum)
        if self.pidfd >= 0:
            try:
                send_signal(self.pidfd, signum)
            except OSError:
                pass  # the call is refused: its pid has to do
            else:
                return True
        if self.pid is not None and self.is_ours:
            try:
                os.kill(self.pid, signum)
            except OSError:
                self.sent.discard(signum)
                return False
        return True

    def reaped(self) -> None:
        """It is dead, and its number may be another process's."""
        self.is_ours = False

    def let_go(self) -> None:
        """Close the pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class ForkServerHandle(Child):
    """A running fork server.

    Attributes:
        warmed: it has been told what modules its workers need.
        takes_lines: it wants the supervisor's log lines, for loggers of its own.
        cause: why it was started.
        decided: what it said before it ran anything that the app's user can write; later words of that kind
            count for nothing.
        hooks: names of those that its configuration file has; calls: it can be told what is due; due: what it
            was told and has not done yet; workers_told: the number of workers that it knows.
        begun: it is at the first of these.
        ending: it is to end once nothing is due; exits: it calls `on_exit`.
        lasting: hooks may have begun something in it that must outlive its generation; retired: that is all
            that it is still there for, and left_for is what its generation ended of.
    """

    pid: int

    def __init__(
        self, generation: int, pid: int, chan: Channel[messages.FromForkServer], spawned_at: float
    ) -> None:
        super().__init__(spawned_at, Phase.CONFIGURING)
        self.forked(pid)
        self.generation = generation
        self.channel = chan
        self.listener_keys: list[str] = []
        self.warmed = False
        self.takes_lines = False
        self.cause: Literal["start", "reload", "upgrade", "restart"] = "restart"
        self.decided: messages.Decided | None = None
        self.hooks: list[str] = []
        self.calls = False
        self.workers_told: int | None = None
        self.due: deque[messages.HookDue] = deque()
        self.begun = False
        self.ending = self.exits = self.lasting = self.retired = False
        self.left_for: ExitCause | None = None

    def carried(self) -> CarriedForkServer:
        return CarriedForkServer(
            self.generation,
            self.pid,
            self.spawned_at,
            self.listener_keys,
            self.warmed,
            self.sent,
            self.channel.fileno(),
            self.hooks,
            self.calls,
            self.workers_told,
            list(self.due),
            self.lasting,
            self.takes_lines,
            self.left_for,
        )

    @classmethod
    def taken_over(cls, carried: CarriedForkServer) -> "ForkServerHandle":
        chan = Channel[messages.FromForkServer].carried(carried.channel, messages.FromForkServer)
        handle = cls(carried.generation, carried.pid, chan, carried.spawned_at)
        handle.listener_keys = carried.listener_keys
        handle.warmed = carried.warmed
        handle.hooks, handle.calls = carried.hooks, carried.calls
        handle.workers_told = carried.workers_told
        handle.lasting = carried.lasting
        handle.takes_lines = carried.takes_lines
        handle.left_for = carried.left_for
        handle.due.extend(carried.due)
        handle.sent = carried.sent
        return handle

    @classmethod
    def of_zygote(cls, worker: "WorkerHandle") -> "ForkServerHandle":
        """What was a worker and is a fork server now; the worker's handle is not to be used any more."""
        assert worker.pid is not None
        handle = cls(
            worker.generation,
            worker.pid,
            Channel.from_fd(worker.channel.detach(), messages.FromForkServer),
            worker.spawned_at,
        )
        # It has all that the app's workers import.
        handle.warmed = True
        handle.phase = Phase.FORKING
        os.close(worker.stacks_fd)
        worker.let_go()
        return handle

    @classmethod
    def start(cls, generation: int) -> "ForkServerHandle":
        """Exec a fresh interpreter that waits for `Configure`.

        Raises:
            OSError: no process could be made.
        """
        ours, theirs = channel.pair()
        with theirs:
            root = str(Path(ostler.__file__).parent.parent)
            # The number stays the same in the child; dup2 onto itself only clears close-on-exec.
            fd = theirs.fileno()
            # What the child inherits holds from its first instruction on: starting Python is work, too.
            lowered = step_back()
            try:
                argv = [sys.executable, "-P", "-c", _FORK_SERVER, root, str(fd), str(lowered), *sys.argv]
                environ = imports.environment()
                pid = os.posix_spawn(
                    sys.executable,
                    argv,
                    environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd)],
                    setsigmask=(),
                )
            finally:
                step_forward(lowered)
        ours.setblocking(False)
        return cls(generation, pid, Channel(ours, messages.FromForkServer), time.monotonic())

    def close(self) -> None:
        closing.close(self.channel)
        self.let_go()


class WorkerHandle(Child):
    """A worker process, from the wish to spawn it to its reaping.

    Attributes:
        signalled: the signal that it says it leaves for.
        takes_lines: as a fork server, which it may become.
        audits: how often it was asked whether it could; template_asked: it was asked to.
        recycles: it has said that it is due to be recycled.
        dumps: what faulthandler wrote and nobody has logged yet; last_dump: what was taken last.
    """

    def __init__(
        self,
        worker_id: int,
        slot: int,
        generation: int,
        cell: int,
        threads: int,
        one_loop: bool,
        chan: Channel[messages.FromWorker],
        stacks_fd: int,
    ) -> None:
        super().__init__(time.monotonic())
        self.worker_id = worker_id
        self.slot = slot
        self.generation = generation
        self.cell = cell
        self.threads = threads
        self.one_loop = one_loop
        self.channel = chan
        self.stacks_fd = stacks_fd
        self.signalled: int | None = None
        self.dumps = bytearray()
        self.last_dump = ""
        self.takes_lines = False
        self.audits = 0
        self.zygote_asked = False
        self.recycles = False
        self._child_ends: list[int] = []

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
            chan = Channel[messages.FromWorker].from_fd(ours.detach(), messages.FromWorker)
            threads = classes.threads(loaded.settings, loaded.one_loop)
            handle = cls(worker_id, slot, generation, cell, threads, loaded.one_loop, chan, stacks_fd)
            handle._child_ends = [theirs.detach(), their_stacks_fd]
        return handle

    def descriptors_for_child(self) -> list[int]:
        return self._child_ends

    def close_child_ends(self) -> None:
        """After they were sent: end of file must come when the worker ends, not when we do."""
        while self._child_ends:
            os.close(self._child_ends.pop())

    def carried(self) -> CarriedWorker:
        return CarriedWorker(
            self.worker_id,
            self.slot,
            self.generation,
            self.cell,
            self.threads,
            self.one_loop,
            self.pid,
            self.spawned_at,
            self.sent,
            self.channel.fileno(),
            self.stacks_fd,
            self.signalled,
        )

    @classmethod
    def taken_over(cls, carried: CarriedWorker) -> "WorkerHandle":
        chan = Channel[messages.FromWorker].carried(carried.channel, messages.FromWorker)
        place = carried.worker_id, carried.slot, carried.generation, carried.cell
        handle = cls(*place, carried.threads, carried.one_loop, chan, carried.stacks)
        handle.spawned_at = carried.spawned_at
        handle.sent = carried.sent
        handle.signalled = carried.signalled
        if carried.pid is not None:
            handle.forked(carried.pid)
        return handle

    def interrupt(self) -> None:
        """Let it end its overdue requests."""
        if self.pid is not None and self.is_ours:
            signal_main_thread(self.pid, INTERRUPT_SIGNAL)

    def read_dumps(self, parts: int = 1) -> bool:
        """Read some of what has been written; False if there is no more."""
        for _ in range(parts):
            try:
                data = os.read(self.stacks_fd, _DUMP_PART)
            except OSError:
                return False
            if not data:
                return False
            self.dumps += data
            del self.dumps[: max(0, len(self.dumps) - _DUMP_LIMIT)]
        return True

    def drop_dumps(self) -> None:
        """Forget what has been written so far."""
        self.read_dumps(_DUMP_PARTS)
        self.dumps.clear()
        self.last_dump = ""

    def whole_dumps(self) -> int:
        """Bytes that have been written so far; 0 if there are none, or their last line has no end."""
        self.read_dumps(_DUMP_PARTS)
        return len(self.dumps) if self.dumps.endswith(b"\n") else 0

    def take_dumps(self) -> str:
        """All that has been written, and is to be read now whatever else is written meanwhile."""
        self.read_dumps(_DUMP_PARTS)
        text = self.dumps.decode("utf-8", "replace")
        self.dumps.clear()
        if text and self.last_dump and not text.startswith(_DUMP_STARTS):
            # The first part of this dump was read before.
            text = (self.last_dump + text)[-_DUMP_LIMIT:]
        self.last_dump = text or self.last_dump
        return text

    def close(self) -> None:
        self.close_child_ends()
        closing.close(self.channel)
        os.close(self.stacks_fd)
        self.let_go()


def stack_of(dump: str, ident: int) -> str:
    """One thread's part of a faulthandler dump; the whole dump if it is not in there."""
    wanted = f"0x{ident:016x}"
    # The newest dump stands last.
    return next(("\n".join(block) for block in reversed(_blocks(dump)) if wanted in block[0]), dump)


@functools.lru_cache(maxsize=1)  # hundreds of requests may be looked for in one dump
def _blocks(dump: str) -> list[list[str]]:
    """By thread, its lines."""
    blocks: list[list[str]] = []
    for line in dump.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            blocks.append([line])
        elif blocks and line.strip():
            blocks[-1].append(line)
    return blocks
