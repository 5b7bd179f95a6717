"""A worker's life: from the fork to its exit.

It begins in the fork server's child with everything inherited: listeners, the channel to the supervisor,
its cell of the scoreboard, perhaps the loaded app. It waits until the supervisor knows it, loads the app,
says `Ready`, serves, and leaves when it is told to, when a signal says so, or when its supervisor is gone.

If it was asked to, it does not leave when it has been drained: with nothing left in it but the app and what
that has loaded and cached it becomes the fork server of its generation (a *zygote*), so that its successors
share all this. A worker that serves is never forked from: it has threads, connections and requests in hand.
"""

import faulthandler
import fcntl
import gc
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, cast

from ostler.errors import SettingError
from ostler.hooks.calling import HookFailed
from ostler.hooks.generation import Hooks
from ostler.hooks.objects import Worker
from ostler.hooks.worker import WorkerHooks
from ostler.ipc import messages
from ostler.ipc.channel import Channel, line, lines, shorten
from ostler.logs.outlets import Outlets
from ostler.osapi import original
from ostler.osapi.needed import LIMITS
from ostler.osapi.priority import step_back_for_good, step_forward
from ostler.osapi.process import DUMP_SIGNAL, INTERRUPT_SIGNAL, enlarge_signal_stack, set_title
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.memory import map_cell
from ostler.settings.classes import request_slots
from ostler.settings.table import Settings
from ostler.text import trace_of
from ostler.workers.audit import Audit, audit_drained, audit_serving
from ostler.workers.base import BaseWorker, Context
from ostler.workers.engine import Engine
from ostler.workers.handoff import HandOff
from ostler.workers.loader import AppLoadError, load, standard_modules
from ostler.workers.priming import SHORT, prime
from ostler.workers.warmup import WarmupError, warm_up
from ostler.wsgi.exchange import App, QuitWorker, note_fork, note_worker

if TYPE_CHECKING:
    from ssl import SSLContext

    from ostler.workers.development import Development

# What ends a worker; blocked from its fork until its handlers are there.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

# What a worker has handlers for, and what user code may have blocked in the process that forks.
_HANDLED = (
    *(*ENDING, signal.SIGABRT, signal.SIGUSR1, signal.SIGIO, signal.SIGCHLD, DUMP_SIGNAL, INTERRUPT_SIGNAL),
    *(signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)

# How long after its graceful time-out a worker without supervisor may still be there.
_ORPHAN_GRACE = 1.0
# linux/fcntl.h
_F_SETOWN_EX, _F_OWNER_TID = 15, 0

# How long the engine's threads may take to end when all is answered.
_THREADS_END = 1.0

# Done by the first worker, holds in all that are forked from it.
_fork_noted = False


@dataclass(slots=True)
class Generation:
    """What all workers of a generation have in common.

    worker_class: what serves in them; app: None if each worker loads it itself; handoff: both ends.
    """

    number: int
    name: str
    settings: Settings
    log_format: str
    worker_class: type[BaseWorker]
    app: App | None
    tls: "SSLContext | None"
    handoff: tuple[socket.socket, socket.socket]
    listeners: list[socket.socket]
    hooks: Hooks


@dataclass(slots=True)
class Inheritance:
    """What a worker gets from its fork server.

    urgent: clients wait for it; channel_fd: its end of the channel; stacks_fd: takes faulthandler's dumps;
    cell_fd: its scoreboard cell; hook_worker: what hooks know it as.
    """

    generation: Generation
    worker_id: int
    urgent: bool
    slot: int
    channel_fd: int
    stacks_fd: int
    cell_fd: int
    hook_worker: Worker


@dataclass(slots=True)
class Zygote:
    """What a worker leaves that is a fork server from now on; channel_fd: to the supervisor, as before."""

    generation: Generation
    channel_fd: int


class WorkerProcess:
    """Runs in the child; `run` returns its exit code."""

    def __init__(self, inheritance: Inheritance, lowered: int) -> None:
        self._pid = os.getpid()
        self._got = inheritance
        self._generation = generation = inheritance.generation
        self._lowered = lowered
        self._settings = generation.settings
        self._title(f"worker {inheritance.slot} gen {generation.number} booting")
        self._channel: Channel[messages.ToWorker] = Channel.from_fd(inheritance.channel_fd, messages.ToWorker)
        fields = {"slot": inheritance.slot, "pid": self._pid, "generation": generation.number}
        self._outlets = Outlets(self._settings, generation.log_format, fields)
        self._log = self._outlets.log
        self._memory = map_cell(inheritance.cell_fd)
        original.close(inheritance.cell_fd)
        self._hooks = WorkerHooks(generation.hooks, inheritance.hook_worker, self._log)
        self._engine: BaseWorker | None = None
        self._leave_early = False
        self._started = False
        self._orphaned = False
        self._quitting = False
        self._standard_modules: list[str] = []
        self._accounting: Accounting | None = None
        self._zygote_wanted = False
        self._must_leave = False
        self._forced = False
        self._development: Development | None = None

    def run(self) -> int:
        """Raises QuitWorker if a signal says so, wherever it is."""
        if self._got.urgent:
            step_forward(self._lowered)
        self._install_signals()
        self._channel.set_blocking(True)
        if not self._wait_for_boot():
            return 0
        on_hang_up(self._channel.fileno(), self._lose_supervisor, self._attend)
        app = self._load()
        self._quit_if_told()
        if app is None:
            return 3
        return self._serve(app)

    def end(self) -> None:
        """Call what the configuration file wants called in a worker that ends."""
        with suppress(QuitWorker):
            self._hooks.ended()

    def become_zygote(self) -> Zygote | None:
        """Leave all behind that was this worker's own, after `run`; None if it was not asked for or can't be.

        Raises QuitWorker as `run` does.
        """
        engine = self._engine
        otherwise = self._must_leave or self._orphaned or self._quitting
        if engine is None or not self._zygote_wanted or otherwise:
            return None
        if self._development is not None:
            self._development.stop()
        deadline = time.monotonic() + _THREADS_END
        for thread in _engine_threads():
            thread.join(max(0.0, deadline - time.monotonic()))
        # Requests that did not end in time; with them it ends, as without being a zygote.
        if late := [thread.name for thread in _engine_threads()]:
            self._log.warning("template_refused", problems=f"requests are running in {', '.join(late)}")
            return None
        if self._is_busy():
            self._log.warning("template_refused", problems="requests are running in greenlets")
            return None
        engine.close()
        self._hooks.ended()  # as a worker it ends, and what it lets go of now need not be found
        found = audit_drained(self._own_descriptors())
        if found.problems and not self._forced:
            self._log.warning("template_refused", problems="; ".join(found.problems))
            return None
        ignore_group_signals()
        if self._must_leave:
            return None  # SIGTERM came while we looked; from now on it is the supervisor that says so
        # What the app has set up for itself in this process; its children may do so anew.
        signal.set_wakeup_fd(-1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        faulthandler.disable()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        # One that was sent to the worker may be on its way, and would end a process that has no handler.
        signal.pthread_sigmask(signal.SIG_BLOCK, (DUMP_SIGNAL,))
        faulthandler.unregister(DUMP_SIGNAL)
        disregard(DUMP_SIGNAL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (DUMP_SIGNAL,))
        disregard(INTERRUPT_SIGNAL)
        self._let_go_of_cell()
        original.close(self._got.stacks_fd)
        self._outlets.close()
        self._channel.set_blocking(True)
        return Zygote(self._generation, self._channel.detach())

    def _let_go_of_cell(self) -> None:
        """Unmap the scoreboard's cell, which else each zygote would hand on to all that come after it.

        Something of the engine may be kept for ever: by a library's hub, by the app, by a module of C.
        """
        assert self._accounting is not None
        self._engine = None  # for signal handlers, which look there
        self._accounting.close()

    # -- booting -----------------------------------------------------------------------------------------

    def _wait_for_boot(self) -> bool:
        """Wait until the supervisor has taken note of this process; no user code runs before."""
        while (received := self._channel.receive()) is not None:
            if not isinstance(received[0], messages.ReopenLogs):
                return isinstance(received[0], messages.Boot)
            self._reopen_logs()  # they may have been moved since the fork
        return False

    def _load(self) -> App | None:
        random.seed()  # children of one parent must not draw the same numbers
        generation = self._generation
        settings = self._settings
        before = set(sys.modules)
        self._development = development = self._develops() if settings.reload else None
        try:
            self._hooks.forked()
            app = generation.app
            if app is None:
                app = self._hooks.app.callable  # a hook has loaded it, in the fork server or just now
            if app is None:
                generation.worker_class.prepare(settings)
                self._quit_if_told()  # with a half-patched library the app could not be loaded
            if settings.spew:
                self._spew()
            if app is None:
                app = (
                    development.load(settings, generation.worker_class, generation.number)
                    if development is not None
                    else load(settings, generation.worker_class.interface)
                )
            broken = development is not None and development.explains(app)
            app = cast("App", self._hooks.loaded(app))
            if generation.worker_class.interface == "wsgi" and not broken:
                listener = generation.listeners[0].getsockname() if generation.listeners else None
                warm_up(app, settings, self._log, generation.tls, listener)
        except (AppLoadError, WarmupError, HookFailed) as error:
            self._tell_failure(error)
            return None
        except SettingError as error:
            self._tell(messages.BootFailed(line(str(error)), None))
            return None
        if development is not None:
            try:
                development.keep_telling()
            except RuntimeError as error:
                self._tell(messages.BootFailed(f"can't make a thread: {error}; {LIMITS}", None))
                return None
        generation.app = app
        self._standard_modules = standard_modules(before)
        # The app's code and data live as long as the worker: the collector need not look at them again.
        gc.freeze()
        return app

    def _tell_failure(self, error: AppLoadError | WarmupError | HookFailed) -> None:
        self._quit_if_told()
        self._tell(messages.BootFailed(line(error.reason), shorten(error.trace) if error.trace else None))

    def _develops(self) -> "Development":
        # Only now, as below: who does not ask for it need not have it in memory.
        from ostler.workers.development import Development

        return Development(self._tell)

    def _spew(self) -> None:
        from ostler.workers.spew import spew

        spew(self._log, self._settings)

    def _serve(self, app: App) -> int:
        settings = self._settings
        quota = settings.max_requests
        if quota and settings.max_requests_jitter:
            quota += random.randint(0, settings.max_requests_jitter)  # noqa: S311 - spreads load, guards nothing
        generation = self._generation
        slots = request_slots(settings, generation.worker_class.one_loop)
        self._accounting = Accounting(self._memory, slots)
        context = Context(
            app,
            generation.listeners,
            settings,
            self._accounting,
            self._log,
            self._outlets.open_access(),
            quota,
            lambda requests: self._tell(messages.RecycleDue(requests)),
            HandOff(*generation.handoff),
            generation.tls,
            self._hooks.exchange(),
            self._got.stacks_fd,
        )
        try:
            self._engine = engine = generation.worker_class.create(context)
        except OSError as error:
            # No descriptors, or a call that is refused.
            self._tell(messages.BootFailed(f"can't begin to serve: {error.strerror}", trace_of(error)))
            return 3
        self._hooks.serving(self._accounting, context.on_quota, engine.extend_deadline)
        signal.signal(INTERRUPT_SIGNAL, engine.interrupt)
        _note_forks()
        if issubclass(generation.worker_class, Engine):
            prime(settings, self._log, SHORT)
        self._channel.set_blocking(False)
        engine.add_reader(self._channel.fileno(), self._on_channel)
        try:
            engine.start()
        except (AppLoadError, WarmupError) as error:
            self._tell_failure(error)
            return 3
        if self._leave_early or engine.draining:
            return 0
        try:
            engine.start_threads()
        except RuntimeError as error:
            self._tell(messages.BootFailed(f"can't make {settings.threads} threads: {error}; {LIMITS}", None))
            return 3
        self._started = True
        self._title(f"worker {self._got.slot} gen {self._generation.number}")
        if not self._got.urgent:
            step_forward(self._lowered)
        self._tell(messages.Ready(self._standard_modules[: messages.MOST_NAMES]))
        engine.run()
        return 0

    # -- what comes from outside -------------------------------------------------------------------------

    def _on_channel(self) -> None:
        """Messages of the supervisor, read by the serving loop."""
        assert self._engine is not None
        while True:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            if received is None:
                self._engine.remove_reader(self._channel.fileno())
                self._lose_supervisor()
                return
            message = received[0]
            if isinstance(message, messages.Drain):
                self._zygote_wanted = message.zygote  # the last word counts
                self._drain(message.hand_over)
            elif isinstance(message, messages.AuditZygote):
                self._audit(message.force)
            elif isinstance(message, messages.ReopenLogs):
                self._reopen_logs()

    def _install_signals(self) -> None:
        if self._hooks.wants_abort:
            # Before faulthandler, which goes on to it when it has written the stacks.
            signal.signal(signal.SIGABRT, self._on_abort)
        try:
            faulthandler.enable(self._got.stacks_fd)
            faulthandler.register(DUMP_SIGNAL, self._got.stacks_fd, all_threads=True)
        except OSError as error:
            # Refused (sigaltstack(2), say). Without a handler the signal would end the process.
            disregard(DUMP_SIGNAL)
            self._log.warning("no_stack_dumps", reason=error.strerror)
        enlarge_signal_stack()
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._quit)
        signal.signal(signal.SIGQUIT, self._quit)
        signal.signal(signal.SIGUSR1, lambda _s, _f: self._reopen_logs())
        # A terminal that goes away or changes its size is the supervisor's business.
        for signum in (signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
            disregard(signum)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _drain(self, hand_over: bool = False) -> None:
        if self._engine is None:
            self._leave_early = True
        elif not self._engine.draining:
            self._title(f"worker {self._got.slot} gen {self._generation.number} draining")
            self._engine.drain(hand_over)

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        self._must_leave = True  # whatever the supervisor has in mind with us
        if not self._started:
            self._quit(signum, frame)  # nobody is served yet, and loading may take its time
            return
        self._tell_signal(signum)
        self._drain()

    def _audit(self, force: bool) -> None:
        """Tell whether this worker could become a zygote; it goes on serving."""
        assert self._engine is not None
        self._forced = force
        try:
            found = audit_serving(self._own_descriptors() | self._engine.descriptors(), self._is_busy())
        except OSError as error:
            found = Audit([f"it can't be looked at: {error}"])
        if force:
            found = found.forced()
        problems, warnings = (lines(texts, messages.MOST_LINES) for texts in (found.problems, found.warnings))
        self._tell(messages.ZygoteAudited(problems, warnings))

    def _is_busy(self) -> bool:
        """Whether a request is in the app."""
        assert self._accounting is not None
        return self._accounting.busy

    def _own_descriptors(self) -> set[int]:
        generation = self._generation
        sockets = (*generation.handoff, *generation.listeners)
        return {
            self._channel.fileno(),
            *(sock.fileno() for sock in sockets),
            *self._outlets.descriptors(),
        }

    def _lose_supervisor(self) -> None:
        """Nobody would replace or end this worker any more: finish and leave."""
        if not self._orphaned:
            self._orphaned = True
            # A thread in C, which also ends a process whose own threads all hang.
            faulthandler.dump_traceback_later(
                self._settings.graceful_timeout + _ORPHAN_GRACE, file=self._got.stacks_fd, exit=True
            )
            if self._engine is not None:
                self._engine.abandon()
            self._drain()

    def _attend(self) -> None:
        if self._engine is not None:
            self._engine.attend()

    def _quit(self, signum: int, _frame: FrameType | None) -> None:
        # Once: the supervisor and a terminal may both say it, and what unwinds must not be hit again. Should
        # the exception be lost, in a destructor or an `except` that takes all, the loop ends by itself, or is
        # not begun.
        if not self._quitting:
            self._quitting = self._leave_early = True
            self._tell_signal(signum)
            if self._engine is not None:
                self._engine.stop()
            if signum != signal.SIGTERM and os.getpid() == self._pid:
                self._hooks.interrupted()
            raise QuitWorker

    def _quit_if_told(self) -> None:
        """Before the loop: raise once more what user code may have caught."""
        if self._quitting:
            raise QuitWorker

    def _on_abort(self, _signum: int, _frame: FrameType | None) -> None:
        """SIGABRT, of which faulthandler has written the stacks: call the hook, then end of that signal."""
        try:
            if os.getpid() == self._pid:
                self._quitting = True
                self._hooks.aborted()
                self._hooks.ended()
        finally:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGABRT)

    def _reopen_logs(self) -> None:
        self._outlets.reopen()

    def _tell(self, message: messages.FromWorker) -> None:
        try:
            self._channel.send(message)
        except OSError as error:
            # Gone, or so far behind that it reads nothing: neither is a reason to stop serving.
            self._log.warning("supervisor_unreachable", reason=error.strerror)

    def _tell_signal(self, signum: int) -> None:
        """It leaves with exit code 0, as if by itself."""
        # Children that the app forks have our handlers, too.
        if os.getpid() == self._pid:
            with suppress(OSError):  # the supervisor is gone or does not read; not worth a line
                self._channel.send(messages.Signalled(signum))

    def _title(self, what: str) -> None:
        set_title(f"ostler: {what} [{self._generation.name}]")


def _engine_threads() -> list[threading.Thread]:
    """Threads of ours that live, but for the main thread."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ostler-")]


def _note_forks() -> None:
    """Tell processes that the app forks from workers."""
    global _fork_noted
    note_worker()
    if not _fork_noted:
        _fork_noted = True
        os.register_at_fork(after_in_child=note_fork)


def ignore_group_signals() -> None:
    """Do nothing at signals that reach the whole process group: the supervisor decides what they mean."""
    for signum in (
        *(signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP),
        *(signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2),
    ):
        disregard(signum)


def disregard(signum: int) -> None:
    """Do nothing at a signal. Unlike SIG_IGN it is not inherited by programs that the app may start."""
    signal.signal(signum, lambda _signum, _frame: None)


def on_hang_up(
    fd: int, callback: Callable[[], object], on_message: Callable[[], object] | None = None
) -> None:
    """Call back when the other end of socket `fd` is gone: in the main thread, also while it runs user code.

    May call back more than once. Uses SIGIO (fcntl(2), F_SETOWN_EX), which comes with each message as well:
    `on_message` hears of that.
    """

    def look(*_: object) -> None:
        poll = original.poll()
        poll.register(fd, 0)  # POLLHUP is reported unasked
        if poll.poll(0):
            callback()
        if on_message is not None:
            on_message()

    signal.signal(signal.SIGIO, look)
    # The main thread and no other: only it runs handlers, and only what hits it ends a call that it waits in.
    fcntl.fcntl(fd, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_TID, os.getpid()))
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    look()  # it may have gone before


def leave(code: int) -> NoReturn:
    """End a worker, with the app's atexit functions."""
    # The interpreter takes its handlers away at the end, and then these would kill it: a wrong exit status.
    # And stacks must not be dumped while it takes threads and frames away.
    for signum in (signal.SIGIO, *ENDING, INTERRUPT_SIGNAL, DUMP_SIGNAL):
        signal.signal(signum, signal.SIG_IGN)
    if (logging := sys.modules.get("logging")) is not None:
        # A monkey-patched lock can't be used any more when the last handlers go.
        logging._lock = original.RLock()  # type: ignore[attr-defined]
    # What is left to do is tearing down an interpreter, some 20 ms of work that nobody waits for.
    step_back_for_good()
    sys.exit(code)


def run(inheritance: Inheritance, lowered: int) -> Zygote:
    """Be the worker; does not return, but in one that is a fork server from now on.

    lowered: for `step_forward`.
    """
    code = 0
    worker = None
    try:
        worker = WorkerProcess(inheritance, lowered)
        code = worker.run()
        if code == 0 and (zygote := worker.become_zygote()) is not None:
            return zygote
    except QuitWorker:
        pass
    except BaseException:
        # A defect of ours.
        if worker is not None:
            worker.end()
        raise
    if worker is not None:
        worker.end()
    leave(code)
