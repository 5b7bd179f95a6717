"""The life cycle of a worker process, from the fork to its exit.

A worker begins as a child of the fork server and inherits all it needs: listeners, the channel to the
supervisor, its cell of the scoreboard, perhaps the loaded app. It waits until the supervisor has registered
it, loads the app, sends `Ready`, serves, and ends when the supervisor or a signal asks for it, or when the
supervisor is gone.

If the supervisor asks for it, a drained worker does not end but becomes the fork server of its generation (a
*zygote*): only the app remains, with all that it has loaded and cached, and workers forked from it share
that. A worker that serves is never forked from: it has threads, connections and running requests.
"""

import faulthandler
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from ostler.hooks.worker import WorkerHooks
from ostler.ipc import messages
from ostler.ipc.channel import Channel, line
from ostler.logs import gunicorn_format
from ostler.logs.sinks import LogSinks
from ostler.osapi import original
from ostler.osapi.needed import LIMITS
from ostler.osapi.priority import lower_priority_for_good, restore_priority
from ostler.osapi.process import DUMP_SIGNAL, INTERRUPT_SIGNAL, enlarge_signal_stack, set_title
from ostler.osapi.process_groups import end_own_group
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.memory import map_cell
from ostler.settings.capacity import request_slots
from ostler.text import trace_of
from ostler.workers import app_forks, signals
from ostler.workers.app_boot import AppBoot
from ostler.workers.app_signals import AppSignalHandler
from ostler.workers.base import BaseWorker, Context
from ostler.workers.handoff import HandOff
from ostler.workers.inheritance import Inheritance, Zygote
from ostler.workers.load_errors import AppLoadError
from ostler.workers.priming import WORKER_REQUESTS, prime
from ostler.workers.promotion import Promotion
from ostler.workers.thread_engine import Engine
from ostler.workers.warmup import WarmupError
from ostler.wsgi.exchange import App
from ostler.wsgi.interruption import QuitWorker

# Seconds after its graceful time-out at which a worker without supervisor is ended.
_ORPHAN_GRACE = 1.0


class WorkerProcess:
    """The worker in the forked process.

    Methods are called in its main thread, but for `_on_channel` and what that calls: the thread that polls
    does, which in a worker with threads may be another one.

    Attributes:
        orphaned: the supervisor has ended, or closed the channel.
    """

    def __init__(self, inheritance: Inheritance) -> None:
        self._pid = os.getpid()
        self._inherited = inheritance
        self._generation = generation = inheritance.generation
        self._settings = generation.settings
        self._title(f"worker {inheritance.slot} gen {generation.number} booting")
        self._channel: Channel[messages.ToWorker] = Channel.from_fd(inheritance.channel_fd, messages.ToWorker)
        fields = {"slot": inheritance.slot, "pid": self._pid, "generation": generation.number}
        self._sinks = LogSinks(self._settings, generation.log_format, fields)
        self._log = self._sinks.log
        self._memory = map_cell(inheritance.cell_fd)
        original.close(inheritance.cell_fd)
        self._hooks = WorkerHooks(generation.hooks, inheritance.hook_worker, self._log)
        self._engine: BaseWorker | None = None
        self._leave_early = False
        self._started = False
        self.orphaned = False
        self._quitting = False
        self._accounting: Accounting | None = None
        self._promotion = Promotion()
        self._must_leave = False
        self._reported: set[str] = set()
        self._app_term = AppSignalHandler(self._log)
        self._app_boot = AppBoot(generation, self._hooks, self._log, self._send, self._quit_if_asked)

    def run(self) -> int:
        """Serve until the end; returns the exit code.

        Raises:
            QuitWorker: at any point, because of a signal.
        """
        if self._inherited.urgent:
            restore_priority()
        self._install_signals()
        app_forks.register()
        app_forks.keep_private(self._private_descriptors)
        app_forks.call_in_children(self._in_forked_process)
        self._channel.set_blocking(True)
        if not self._wait_for_boot():
            return 0
        signals.on_hang_up(self._channel.fileno(), self._lose_supervisor, self._on_message_signal)
        self._report_as_gunicorn("worker_booting")
        app = self._app_boot.run()
        self._quit_if_asked()
        if app is None:
            return 3
        return self._serve(app)

    def end(self) -> None:
        """Call the configuration file's hook for the end of a worker."""
        with suppress(QuitWorker):
            self._report_as_gunicorn("worker_exiting")
            self._hooks.ended()

    def become_zygote(self) -> Zygote | None:
        """After `run`: close all that belongs to a worker; None if it is not to be or can't be a zygote.

        Raises:
            QuitWorker: as in `run`.
        """
        engine = self._engine
        must_end = self._must_leave or self.orphaned or self._quitting
        if engine is None or not self._promotion.wanted or must_end:
            return None
        self._app_boot.stop_reporting()
        # Requests that did not end in time end with this process.
        if (problem := self._promotion.running_requests(self._is_busy())) is None:
            engine.close()
            self._report_as_gunicorn("worker_exiting")
            self._hooks.ended()  # before the audit, which need not find what the hook closes
            problem = self._promotion.drained_problem(self._own_descriptors())
            if problem is not None:
                self._send(messages.ZygoteAudited([line(problem)], []))
        if problem is not None:
            self._log.warning("template_refused", problems=problem)
            return None
        signals.ignore_group_signals()
        if self._must_leave:
            return None  # SIGTERM came during the audit; from now on only the supervisor ends this process
        signals.reset_for_zygote()
        self._unmap_cell()
        original.close(self._inherited.stacks_fd)
        self._sinks.close()
        self._channel.set_blocking(True)
        return Zygote(self._generation, self._channel.detach())

    def _unmap_cell(self) -> None:
        """Unmap the scoreboard's cell, which otherwise all processes forked from this one would inherit.

        Parts of the engine may be referred to for ever: by a library's hub, by the app, by a C module.
        """
        assert self._accounting is not None
        self._engine = None  # for signal handlers, which use it
        self._accounting.close()

    # -- booting -----------------------------------------------------------------------------------------

    def _wait_for_boot(self) -> bool:
        """Wait until the supervisor has registered this process; no user code runs before.

        False if this process is to end.
        """
        while (received := self._channel.receive()) is not None:
            if not isinstance(received[0], messages.ReopenLogs):
                return isinstance(received[0], messages.Boot)
            self._reopen_logs()  # the logs may have been moved since the fork
        return False

    def _serve(self, app: App) -> int:
        settings = self._settings
        generation = self._generation
        slots = request_slots(settings, generation.worker_class.one_loop)
        self._accounting = Accounting(self._memory, slots)
        context = Context(
            app,
            generation.listeners,
            settings,
            self._accounting,
            self._log,
            self._sinks.open_access(),
            self._hooks.quota(),
            self._hooks.quota_reached,
            HandOff(*generation.handoff),
            generation.tls,
            self._hooks.exchange(),
            self._inherited.stacks_fd,
        )
        try:
            self._engine = engine = generation.worker_class.create(context)
        except OSError as error:
            # No descriptors left, or the kernel refused a call.
            self._send(messages.BootFailed(f"can't start serving: {error.strerror}", trace_of(error)))
            return 3
        self._hooks.serving(
            self._accounting,
            lambda requests: self._send(messages.RecycleDue(requests)),
            engine.extend_deadline,
        )
        signal.signal(INTERRUPT_SIGNAL, engine.interrupt)
        if issubclass(generation.worker_class, Engine):
            prime(settings, self._log, WORKER_REQUESTS)
        self._channel.set_blocking(False)
        engine.add_reader(self._channel.fileno(), self._on_channel)
        try:
            engine.start()
        except (AppLoadError, WarmupError) as error:
            self._app_boot.report_failure(error)
            return 3
        if self._app_term.take(self._on_term):
            signal.signal(signal.SIGTERM, self._on_term)
        if self._leave_early or engine.draining:
            return 0
        try:
            engine.start_threads()
        except RuntimeError as error:
            self._send(messages.BootFailed(f"can't make {settings.threads} threads: {error}; {LIMITS}", None))
            return 3
        self._started = True
        self._title(f"worker {self._inherited.slot} gen {self._generation.number}")
        if not self._inherited.urgent:
            restore_priority()
        boot = self._app_boot
        self._send(messages.Ready(boot.standard_modules[: messages.MOST_NAMES], boot.remark))
        engine.run()
        return 0

    # -- messages and signals -----------------------------------------------------------------------------

    def _on_channel(self) -> None:
        """Handle messages of the supervisor; called by the engine."""
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
                self._promotion.wanted = message.zygote  # of several messages the last one counts
                if message.empty_queue and self._generation.own_listeners:
                    self._engine.empty_queue(self._generation.own_listeners)
                self._drain(message.hand_over, message.seconds)
                if not message.zygote:
                    self._app_term.call_soon(signal.SIGTERM)
            elif isinstance(message, messages.AuditZygote):
                self._audit(message.force)
            elif isinstance(message, messages.ReopenLogs):
                self._reopen_logs()

    def _install_signals(self) -> None:
        if self._hooks.wants_abort:
            # Before faulthandler, which calls it after writing the stacks.
            signal.signal(signal.SIGABRT, self._on_abort)
        try:
            faulthandler.enable(self._inherited.stacks_fd)
            faulthandler.register(DUMP_SIGNAL, self._inherited.stacks_fd, all_threads=True)
        except OSError as error:
            # Refused, e.g. sigaltstack(2). Without a handler the signal would end the process.
            signals.ignore(DUMP_SIGNAL)
            self._log.warning("no_stack_dumps", reason=error.strerror)
        enlarge_signal_stack()
        self._app_term.take(self._on_term)  # the preloaded app's
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._quit)
        signal.signal(signal.SIGQUIT, self._quit)
        signal.signal(signal.SIGUSR1, lambda _s, _f: self._reopen_logs())
        for signum in signals.FOR_SUPERVISOR:
            signals.ignore(signum)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.HANDLED)

    def _drain(self, hand_over: bool = False, seconds: float | None = None) -> None:
        if self._engine is None:
            self._leave_early = True
        elif seconds is not None or not self._engine.draining:
            # Also if a signal came first: the supervisor's budget counts.
            self._title(f"worker {self._inherited.slot} gen {self._generation.number} draining")
            self._engine.drain(hand_over, seconds)

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        if self._app_term.is_due:
            self._app_term.call(signum, frame)  # the supervisor has asked for the end: see `_on_channel`
            return
        self._must_leave = True  # it can't become a zygote any more
        if not self._started:
            self._quit(signum, frame)  # no client is served yet, and loading may take long
            return
        self._report_signal(signum)
        self._drain()
        self._app_term.call(signum, frame)

    def _audit(self, force: bool) -> None:
        """Report whether this worker could become a zygote; it goes on serving."""
        assert self._engine is not None
        descriptors = self._own_descriptors() | self._engine.descriptors()
        exit_hook = self._hooks.wants_exit
        self._send(self._promotion.audit(descriptors, self._is_busy(), force, exit_hook))

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
            *self._sinks.descriptors(),
        }

    def _in_forked_process(self) -> None:
        """Called in a process that the app has forked."""
        if self._engine is not None:
            self._engine.forked_by_app()

    def _private_descriptors(self) -> set[int]:
        """What processes that the app forks are not to have: they could speak for this worker, or hold the
        connections of its clients."""
        generation = self._generation
        found = {self._channel.fileno(), self._inherited.stacks_fd}
        found.update(sock.fileno() for sock in (*generation.handoff, *generation.listeners))
        if self._engine is not None:
            found.update(self._engine.private_descriptors())
        return found

    def _lose_supervisor(self) -> None:
        """Drain and end: the supervisor is gone, which alone can replace or end this worker."""
        if not self.orphaned:
            self.orphaned = True
            # faulthandler's C thread ends the process even if all Python threads hang.
            faulthandler.dump_traceback_later(
                self._settings.graceful_timeout + _ORPHAN_GRACE, file=self._inherited.stacks_fd, exit=True
            )
            if self._engine is not None:
                self._engine.abandon()
            self._drain()

    def _on_message_signal(self) -> None:
        if self._engine is not None:
            self._engine.on_message()

    def _quit(self, signum: int, _frame: FrameType | None) -> None:
        # Raised once: the supervisor and a terminal may both send the signal, and the unwinding must not be
        # interrupted. If the exception is lost, in a destructor or a bare `except`, the loop ends by itself,
        # or does not begin.
        if not self._quitting:
            self._quitting = self._leave_early = True
            self._report_signal(signum)
            if self._engine is not None:
                self._engine.stop()
            if signum != signal.SIGTERM and os.getpid() == self._pid:
                self._hooks.interrupted()
            raise QuitWorker

    def _quit_if_asked(self) -> None:
        """Before the loop: raise QuitWorker again, which user code may have caught."""
        if self._quitting:
            raise QuitWorker

    def _on_abort(self, _signum: int, _frame: FrameType | None) -> None:
        """SIGABRT, for which faulthandler has written the stacks: call the hook, then end by that signal."""
        try:
            if os.getpid() == self._pid:
                self._quitting = True
                self._hooks.aborted()
                self._hooks.ended()
        finally:
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGABRT)

    def _reopen_logs(self) -> None:
        self._sinks.reopen()

    def _send(self, message: messages.FromWorker) -> None:
        try:
            self._channel.send(message)
        except OSError as error:
            # The supervisor is gone or does not read: neither is a reason to stop serving.
            self._log.warning("supervisor_unreachable", reason=error.strerror)

    def _report_as_gunicorn(self, event: str) -> None:
        """Log, once, what only gunicorn logs in a worker, if the log is to look like gunicorn's."""
        if self._generation.log_format == gunicorn_format.FORMAT and event not in self._reported:
            self._reported.add(event)
            self._log.info(event)

    def _report_signal(self, signum: int) -> None:
        """Report the signal to the supervisor: the exit code will be 0, which does not show it."""
        # A process that C code has forked, without Python's at-fork functions, still has our handlers.
        if os.getpid() == self._pid:
            with suppress(OSError):  # the supervisor is gone or does not read; no reason for a log line
                self._channel.send(messages.Signalled(signum))

    def _title(self, what: str) -> None:
        set_title(f"ostler: {what} [{self._generation.name}]")


def leave(code: int, orphaned: bool = False) -> NoReturn:
    """End a worker, with the app's atexit functions.

    orphaned: there is no supervisor that would end what the app has started.
    """
    # The interpreter removes its handlers at the end; then these signals would kill it, with a wrong exit
    # status. And stacks must not be dumped while threads and frames are torn down.
    for signum in (signal.SIGIO, *signals.ENDING, INTERRUPT_SIGNAL, DUMP_SIGNAL):
        signal.signal(signum, signal.SIG_IGN)
    if orphaned:
        end_own_group()
    if (logging := sys.modules.get("logging")) is not None:
        # A monkey-patched lock can't be used any more when logging closes its last handlers.
        logging._lock = original.RLock()  # type: ignore[attr-defined]
    # The teardown of the interpreter takes some 20 ms, and no client waits for it.
    lower_priority_for_good()
    sys.exit(code)


def run(inheritance: Inheritance) -> Zygote:
    """Run the worker; returns only in a process that has become a fork server."""
    code = 0
    worker = None
    try:
        worker = WorkerProcess(inheritance)
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
    leave(code, worker is not None and worker.orphaned)
