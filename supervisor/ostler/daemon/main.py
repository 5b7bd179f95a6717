"""The composition root: puts the parts of the daemon together, and connects them."""

# ruff: noqa: PLW0108 - lambdas name attributes that are set later

import asyncio
import os
import signal
import time
from contextlib import closing
from functools import partial
from typing import Any

import psutil

from ostler import __version__, terminal
from ostler.control.control_state import ControlState
from ostler.daemon import upgrade_state
from ostler.daemon.carried_parts import CarriedParts
from ostler.daemon.chores import Chores
from ostler.daemon.control_plane import ControlPlane
from ostler.daemon.file_watching.file_watcher import FileWatcher
from ostler.daemon.first_and_last import FirstAndLast
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.listening.systemd import systemd_listeners
from ostler.daemon.log_forwarder import LogForwarder
from ostler.daemon.own_settings import OwnSettings
from ostler.daemon.process.detach import LauncherLink
from ostler.daemon.process.notify import SystemdNotifier
from ostler.daemon.process.service_manager import ServiceManagerReports
from ostler.daemon.process.signals import on_signal
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.sensors.deadlines import DeadlineSensor
from ostler.daemon.sensors.idle_cpus import IdleCpuSensor
from ostler.daemon.sensors.implausible import ImplausibleWorkers
from ostler.daemon.sensors.load import LoadSensor
from ostler.daemon.shell import Callbacks, Shell
from ostler.daemon.start_request import RunRequest
from ostler.daemon.successor import HANDLED
from ostler.daemon.upgrade_state import Carried
from ostler.daemon.upgrader import Upgrader
from ostler.daemon.views.observer import Observer
from ostler.errors import ExitCode
from ostler.fleet import actions, events
from ostler.ipc import messages
from ostler.logs.limiter import LimitedLog
from ostler.logs.logfile import LogFile
from ostler.logs.setup import get_logger, set_handler
from ostler.osapi.needed import refused
from ostler.osapi.process import become_subreaper, has_terminal, set_title
from ostler.scoreboard.cell_reader import Reading
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.kinds.numbers import WORKERS
from ostler.settings.load import Loaded

# The event that each signal stands for. The other signals that are handled are no events of the fleet: CHLD,
# USR1, and WINCH from a terminal.
SIGNAL_EVENTS: dict[signal.Signals, events.Event] = {
    signal.SIGTTIN: events.ResizeAsked("signal TTIN", delta=1),
    signal.SIGTTOU: events.ResizeAsked("signal TTOU", delta=-1),
    signal.SIGHUP: events.ReloadAsked("signal HUP"),
    signal.SIGUSR2: events.UpgradeAsked("signal USR2"),
    signal.SIGTERM: events.StopAsked("signal TERM", "graceful"),
    signal.SIGINT: events.StopAsked("signal INT", "quick"),
    signal.SIGQUIT: events.StopAsked("signal QUIT", "quick"),
}


# Seconds from a stop until listeners without waiting connections are shut, and until the next attempt.
_HANDSHAKES, _SHUT_AGAIN = 0.1, 0.02


class Daemon:
    """One run of the supervisor. Called only by the event loop's thread.

    Args:
        request: how the daemon was asked to start.
        carried: what the program before this one left, after an upgrade in place.
    """

    def __init__(self, request: RunRequest, carried: Carried | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = request
        self._carried = carried
        self._journal = Journal(get_logger())
        self._limited = LimitedLog(get_logger(), time.monotonic)
        self._ledger = Ledger()
        self._notifier = SystemdNotifier()
        self._service_manager = ServiceManagerReports(self._notifier)
        self._finished: asyncio.Future[actions.Finish] = self._loop.create_future()
        self._listeners = Listeners(systemd_listeners() if carried is None else [])
        self._scoreboard = _scoreboard(carried)
        self._shell = shell = Shell(
            request,
            self._listeners,
            self._scoreboard,
            self._journal,
            self._ledger,
            Callbacks(
                on_configured=self._on_configured,
                on_listening=lambda generation: self._first_and_last.loading(generation),
                on_files=self._on_files,
                on_log_taken=self._on_log_taken,
                when_lines_taken=lambda callback: self._forwarder.when_taken(callback),
                before_last_line=lambda: self._first_and_last.stopped(),
                serving=self._on_serving,
                stopping=self._on_stopping,
                reload_ended=self._on_reload_ended,
                rolled_back=self._on_rolled_back,
                finish=self._on_finish,
                check_upgrade=lambda: self._upgrader.check(),
                upgrade=self._upgrade_soon,
                on_event=self._on_event,
            ),
        )
        self._forwarder = LogForwarder(shell.ports, self._listeners)
        self._own_settings = OwnSettings(request, self._journal, self._forwarder)
        set_handler(self._forwarder.take)
        self._watcher = FileWatcher(shell.submit, self._journal, self._is_reloading)
        self._deadlines = DeadlineSensor(
            shell.ports, shell.configurations, self._scoreboard, shell.overdue.report_blocked
        )
        self._implausible = ImplausibleWorkers(shell.ports, self._scoreboard)
        self._load = LoadSensor(lambda: shell.state, shell.children, self._scoreboard)
        self._idle_cpus = IdleCpuSensor(lambda: shell.state, shell.submit)
        self._observer = Observer(
            shell.ports,
            shell.configurations,
            self._scoreboard,
            self._listeners,
            self._ledger,
            lambda: shell.name,
            self._deadlines.deadline_of,
        )
        self._first_and_last = FirstAndLast(shell, self._observer, self._journal)
        self._control = ControlPlane(
            self._observer,
            self._journal,
            request.any_control_port,
            carried.control if carried else ControlState(),
            shell.environments.may_move,
        )
        self._control_started = asyncio.Event()
        self._carried_parts = CarriedParts(
            shell,
            self._listeners,
            self._scoreboard,
            self._journal,
            self._ledger,
            self._observer,
            self._control,
            self._own_settings,
            request.command,
        )
        self._upgrader = Upgrader(
            shell, self._notifier, request.folder, self._carried_parts.take, self._before_exec
        )
        self._chores = self._make_chores()
        # What all cells of the scoreboard contain, and in which round of the chores they were read.
        self._readings: tuple[int, dict[int, Reading]] = 0, {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def must_detach(self) -> bool:
        """The configuration wants a daemon, and this process is to be its launcher."""
        return self._own_settings.must_detach

    async def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        loop, launcher = self._loop, self._request.launcher
        loop.set_exception_handler(self._log_loop_error)
        become_subreaper()
        set_title("ostler: supervisor")
        for signum, event in SIGNAL_EVENTS.items():
            on_signal(loop, signum, partial(self._shell.submit, event))
        on_signal(loop, signal.SIGWINCH, self._pause_unless_resized)
        on_signal(loop, signal.SIGCHLD, self._shell.reaper.reap, once=True)
        on_signal(loop, signal.SIGUSR1, self._reopen_logs)
        if launcher is not None:
            loop.add_reader(launcher.fileno(), self._stop_with_launcher, launcher)
        if self._carried is None:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._shell.submit(events.StartAsked())
        else:
            self._take_over(self._carried)
        with closing(self._forwarder):
            try:
                finish = await self._finished
            finally:
                await self._close()
            if self.must_detach:
                return ExitCode.OK
            if not finish.failed:
                self._first_and_last.stopped()
                return ExitCode.OK
        # Not print: perhaps nothing reads standard error, and the end must neither wait for that nor fail.
        stderr = LogFile("-", 2)
        if finish.traceback:
            stderr.write(terminal.lines(finish.traceback))
        stderr.write(f"ostler: error: {terminal.one_line(str(finish.reason))}")
        if finish.invalid:
            return ExitCode.USAGE
        return ExitCode.BOOT if finish.app_failed else ExitCode.FAILED

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._shell.close()
        self._watcher.stop()
        self._idle_cpus.stop()
        await self._control.close()
        self._listeners.close_all()
        self._forwarder.write_all()
        self._own_settings.close()

    # -- settings that concern the supervisor itself ----------------------------------------------------

    def _on_configured(self, loaded: Loaded) -> None:
        """A generation's settings are known; the first one's also decide on the daemon itself."""
        if not self._own_settings.begun:
            self._own_settings.begin(loaded)
            # Before the app is loaded, so that a slow start can be watched.
            self._start_task(self._start_control(loaded))
        self._watcher.configure(loaded.settings)

    def _is_reloading(self) -> bool:
        reload = self._shell.state.reload
        return reload is not None and reload.running

    def _on_reload_ended(self, generation: int) -> None:
        self._watcher.reload_ended()
        self._observer.reloads.on_ended(generation)
        self._follow_settings()

    def _on_rolled_back(self) -> None:
        """A reload was rolled back after its end: the settings of the generation before apply again."""
        self._follow_settings()

    def _follow_settings(self) -> None:
        """Apply the current generation's settings to the supervisor."""
        self._watcher.forget_before(self._shell.state.current)
        loaded = self._shell.configurations.current
        if loaded is None or not self._shell.state.ever_ready:
            return  # the first configuration is still being read, or the daemon does not serve yet
        self._own_settings.follow(loaded.settings)
        # A generation that was tried in between may have configured it.
        self._watcher.configure(loaded.settings)
        self._deadlines.start()

    async def _start_control(self, loaded: Loaded) -> None:
        try:
            await self._control.start(loaded.settings, self._shell.name)
        finally:
            self._control_started.set()

    # -- what the fleet reports -------------------------------------------------------------------------

    def _on_serving(self) -> None:
        self._begin_supervising()
        self._start_task(self._report_serving())

    async def _report_serving(self) -> None:
        """Report that the daemon serves, once it can be controlled as well."""
        await self._control_started.wait()
        if self._shell.state.stopping:
            return
        loaded = self._shell.configurations.in_effect
        assert loaded is not None, "a worker is ready, so its generation has a configuration"
        settings, launcher = loaded.settings, self._request.launcher
        workers = settings.workers
        fields = {
            "listeners": " ".join(self._observer.status().listeners),
            "workers": WORKERS.shown(workers) if isinstance(workers, tuple) else workers,
            "worker_class": settings.worker_class,
            "threads": settings.threads,
            "version": __version__,
            "pid": os.getpid(),
        }
        self._journal.record("info", "serving", fields)
        self._notify_ready()
        if launcher is not None:
            self._loop.remove_reader(launcher.fileno())
            self._own_settings.leave_launcher(launcher, settings)
        if self._request.demo:
            self._print_demo_links()

    def _begin_supervising(self) -> None:
        """Start to watch deadlines and to run the chores."""
        set_title(f"ostler: supervisor [{terminal.one_line(self._shell.name)}]")
        self._deadlines.start()
        self._start_task(self._chores.run())

    def _notify_ready(self) -> None:
        self._service_manager.ready(self._shell.state)

    def _on_stopping(self) -> None:
        self._upgrader.end_check()
        self._service_manager.stopping(self._shell.state)
        if self._shell.state.stopping == "graceful":
            self._listeners.refuse_new()
            # Handshakes that have begun get time to be completed, and connections to be accepted.
            self._loop.call_later(_HANDSHAKES, self._shut_listeners)

    def _shut_listeners(self) -> None:
        if not self._listeners.shut_empty():
            self._loop.call_later(_SHUT_AGAIN, self._shut_listeners)

    def _on_event(self) -> None:
        self._observer.reloads.follow()
        self._idle_cpus.follow()
        self._service_manager.follow(self._shell.state)

    def _on_files(self, generation: int, message: messages.Watch | messages.AppBroken) -> None:
        self._watcher.received(generation, message)

    def _on_log_taken(self, number: int) -> None:
        self._forwarder.taken(number)

    def _on_finish(self, finish: actions.Finish) -> None:
        if not self._finished.done():
            self._finished.set_result(finish)

    # -- signals that are no events of the fleet ---------------------------------------------------------

    def _reopen_logs(self) -> None:
        self._own_settings.reopen_logs(self._shell.configurations.current)
        self._shell.fork_servers.broadcast(messages.ReopenLogs())
        self._shell.workers.broadcast(messages.ReopenLogs())
        self._journal.record("info", "logs_reopened", {"by": "signal USR1"})

    def _pause_unless_resized(self) -> None:
        """WINCH drains all workers, but a terminal sends it too when its window has another size."""
        if has_terminal():
            get_logger().debug("winch_ignored", problem="a terminal controls this process and may resize")
        else:
            self._shell.submit(events.PauseAsked("signal WINCH"))

    def _stop_with_launcher(self, launcher: LauncherLink) -> None:
        self._loop.remove_reader(launcher.fileno())
        self._shell.submit(events.StopAsked("end of the launcher", "quick"))

    # -- upgrades in place ------------------------------------------------------------------------------

    def _upgrade_soon(self) -> None:
        # Not while the event that led to it is handled: its other actions are performed before.
        self._start_task(self._upgrade())

    async def _upgrade(self) -> None:
        # Lines that loggers have not confirmed would be in the supervisor's own log as well.
        taken = asyncio.Event()
        self._forwarder.when_taken(taken.set)
        await taken.wait()
        await self._upgrader.run()

    def _before_exec(self) -> None:
        self._forwarder.write_all()
        self._own_settings.flush_log()

    def _take_over(self, carried: Carried) -> None:
        """Continue where the program before this one stopped, then replace all workers as a reload does."""
        shell = self._shell
        try:
            loaded = self._carried_parts.restore(carried)
            self._deadlines.resume()
            self._start_task(self._start_control(loaded))
            self._begin_supervising()
            self._notify_ready()
        except Exception as error:
            raise upgrade_state.TakeOverFailed from error
        upgrade_state.taken_over()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        shell.reaper.reap()
        shell.submit(events.UpgradeDone(__version__))

    def _print_demo_links(self) -> None:
        app = self._observer.status().listeners[0]
        lines = [
            "",
            f"  The demo app    {app}",
            f"  The dashboard   {self._control.login_link()}   (logs you in, once)",
            f"  Try             ctl workers   ctl scale +2   ctl reload   kill -TTIN {os.getpid()}   Ctrl-C",
            "",
        ]
        print("\n".join(lines), flush=True)

    # -- chores -----------------------------------------------------------------------------------------

    def _make_chores(self) -> Chores:
        chores = Chores(self._shell.attempt)
        chores.add("reaping", self._shell.reaper.reap)  # a SIGCHLD may have been lost
        chores.add("flushing the log", lambda: self._own_settings.flush_log())
        chores.add("events that no logger has taken", self._forwarder.write_overdue)
        chores.add("reporting suppressed lines", self._limited.report)
        chores.add("reading the kernel's OOM counter", self._ledger.read_oom_kills)
        chores.add("the history", self._sample)
        chores.add("measuring the load", self._measure)
        chores.add("metrics for statsd", self._forwarder.measure)
        chores.add("the control server", self._control.ensure)
        chores.add("dropped listeners", lambda: self._listeners.shut_ended(self._loop.time()))
        return chores

    def _read_all(self) -> dict[int, Reading]:
        """All cells of the scoreboard, read once in a round of the chores."""
        if self._readings[0] != self._chores.rounds:
            self._readings = self._chores.rounds, self._scoreboard.read_all()
        return self._readings[1]

    def _sample(self) -> None:
        try:
            self._observer.take_sample(self._read_all())
        except (OSError, psutil.Error) as error:
            # Out of descriptors, say; the next second may be better.
            get_logger().debug("sample_missed", problem=str(error))

    def _measure(self) -> None:
        try:
            self._shell.submit(self._load.take(self._read_all()))
        except (OSError, psutil.Error) as error:
            get_logger().debug("sample_missed", problem=str(error))

    def _log_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What fails once may fail with each event that a client causes.
        error = context.get("exception")
        self._limited.write(
            "error",
            "internal_error",
            type(error).__name__,
            problem=context.get("message"),
            exc_info=error or False,
        )

    def _start_task(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            get_logger().error("internal_error", exc_info=error)


def _scoreboard(carried: Carried | None) -> Scoreboard:
    """Raises OstlerError."""
    try:
        return Scoreboard(carried.scoreboard if carried else None)
    except OSError as error:
        raise refused("the scoreboard's memory (memfd_create(2), ftruncate(2), mmap(2))", error) from None
