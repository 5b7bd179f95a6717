"""The composition root: puts the daemon together and runs it."""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ostler import __version__, terminal
from ostler.control.handover import Handover
from ostler.control.server import ControlServer
from ostler.daemon import upgrade
from ostler.daemon.control_server import ControlPlane
from ostler.daemon.listening.listeners import Listeners, systemd_listeners
from ostler.daemon.process.detach import SHOWN, Launch, detach, log_gets_lost, reason_to_stay
from ostler.daemon.process.notify import SystemdNotifier
from ostler.daemon.process.pidfile import PidFile
from ostler.daemon.process.signals import on_signal, release
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.reporting.log_forwarder import Outlets
from ostler.daemon.reporting.observer import Observer
from ostler.daemon.sensors.deadlines import DeadlineSensor
from ostler.daemon.sensors.implausible import Doubts
from ostler.daemon.sensors.load import Measurer
from ostler.daemon.shell import Callbacks, Shell, Start
from ostler.daemon.upgrade import Carried
from ostler.daemon.watching.watcher import Watcher
from ostler.errors import ExitCode, OstlerError, SettingError
from ostler.fleet import actions, events, health
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages
from ostler.logs.lean import LogFile
from ostler.logs.limiter import LimitedLog
from ostler.logs.opening import make_for_sharer, share_with
from ostler.logs.setup import get_logger, set_level, set_up, tap
from ostler.osapi.account import find_account
from ostler.osapi.needed import check_calls, refused
from ostler.osapi.process import become_subreaper, has_terminal, set_title, silence
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.kinds import WORKERS
from ostler.settings.load import Loaded
from ostler.settings.rights import account_for_pidfile, others_logs, rights_for
from ostler.settings.table import Settings, rows

_FOREVER = 3600.0

# What each signal wishes. The rest (CHLD, USR1, and WINCH from a terminal) is no wish to the fleet.
SIGNAL_EVENTS: dict[signal.Signals, events.Event] = {
    signal.SIGTTIN: events.ResizeAsked("signal TTIN", delta=1),
    signal.SIGTTOU: events.ResizeAsked("signal TTOU", delta=-1),
    signal.SIGHUP: events.ReloadAsked("signal HUP"),
    signal.SIGUSR2: events.UpgradeAsked("signal USR2"),
    signal.SIGTERM: events.StopAsked("signal TERM", "graceful"),
    signal.SIGINT: events.StopAsked("signal INT", "quick"),
    signal.SIGQUIT: events.StopAsked("signal QUIT", "quick"),
}


@dataclass(frozen=True, slots=True)
class Order(Start):
    """More on how the daemon was asked to start.

    demo: greet a newcomer; any_control_port: if the one in `control_bind` is taken, any will do; launch: to
    whoever waits until it serves; stay: why it does not detach whatever the settings say.
    """

    demo: bool = False
    any_control_port: bool = False
    launch: Launch | None = None
    stay: str | None = None


class Daemon:
    """One run of the supervisor."""

    def __init__(self, order: Order, carried: Carried | None = None) -> None:
        self._order = order
        self._carried = carried
        self._launch = order.launch
        self.must_detach = False
        self._log_file = _first_log(order.command_line, order.launch is not None)
        self._journal = Journal(get_logger())
        self._limited = LimitedLog(get_logger(), time.monotonic)
        self._ledger = Ledger()
        self._notifier = SystemdNotifier()
        self._finished: asyncio.Future[actions.Finish] = asyncio.get_running_loop().create_future()
        self._shell = Shell(
            order,
            Listeners(systemd_listeners() if carried is None else []),
            _scoreboard(carried),
            self._journal,
            self._ledger,
            Callbacks(
                configured=self._on_configured,
                serving=self._on_serving,
                stopping=self._on_stopping,
                reload_ended=self._on_reload_ended,
                rolled_back=self._follow_current,
                watch=self._on_watch,
                finish=self._on_finish,
                check_upgrade=self._check_upgrade,
                upgrade=self._upgrade_soon,
                log_taken=self._on_log_taken,
                when_lines_taken=self._when_lines_taken,
            ),
        )
        self._outlets = Outlets(self._shell)
        tap(self._outlets.take)
        self._loop = asyncio.get_running_loop()
        self._watcher = Watcher(self._shell.submit, self._journal)
        self._sensor = DeadlineSensor(self._shell)
        self._doubts = Doubts(self._shell)
        self._measurer = Measurer(self._shell)
        self._observer = Observer(self._shell, self._sensor, self._ledger)
        self._control = ControlServer(self._observer, get_logger())
        before = carried.control if carried else Handover()
        self._plane = ControlPlane(self._control, self._journal, order.any_control_port, before)
        self._control_started = asyncio.Event()
        self._pidfile: PidFile | None = None
        self._checking: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._log_loop_error)
        become_subreaper()
        set_title("ostler: supervisor")
        for signum, event in SIGNAL_EVENTS.items():
            on_signal(loop, signum, partial(self._shell.submit, event))
        on_signal(loop, signal.SIGWINCH, self._pause_unless_resized)
        on_signal(loop, signal.SIGCHLD, self._shell.reaper.reap, once=True)
        on_signal(loop, signal.SIGUSR1, self._reopen_logs)
        if self._launch is not None:
            loop.add_reader(self._launch.fileno(), self._stop_unlaunched, self._launch)
        if self._carried is None:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._shell.submit(events.StartAsked())
        else:
            self._take_over(self._carried)
        with closing(self._outlets):
            try:
                finish = await self._finished
            finally:
                await self._close()
            if self.must_detach:
                return ExitCode.OK
            if not finish.failed:
                uptime = round(self._observer.status().uptime, 1)
                self._journal.record("info", "stopped", {"uptime": uptime})
                return ExitCode.OK
        # Not print: perhaps nobody reads it, and then the end must not wait for that, nor fail.
        last_words = LogFile("-", 2)
        if finish.traceback:
            last_words.write(terminal.lines(finish.traceback))
        last_words.write(f"ostler: error: {terminal.one_line(str(finish.reason))}")
        return ExitCode.BOOT if finish.app_failed else ExitCode.FAILED

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._watcher.stop()
        await self._control.close()
        self._shell.listeners.keep_only(set())
        self._outlets.give_up_waiting()
        if self._pidfile is not None:
            self._pidfile.remove()

    # -- what the fleet says ----------------------------------------------------------------------------

    def _on_configured(self, loaded: Loaded) -> None:
        """A generation's settings are known; the first one's also say how the daemon itself is to be."""
        settings = loaded.settings
        if not self._shell.loaded:
            self._begin(loaded)
        self._watcher.configure(settings)

    def _begin(self, loaded: Loaded) -> None:
        settings = loaded.settings
        if settings.daemon and self._launch is None:
            if self._order.stay is None:
                # The file says so, not the command line. Nothing was bound or written yet.
                self.must_detach = True
                raise SettingError("daemon", "this process is to be the launcher")
            problem = f"daemon: stays in the foreground, because {self._order.stay}"
            self._journal.record("warning", "configuration", {"problem": problem})
        self._settle(loaded)
        if self._launch is not None and log_gets_lost(settings):
            problem = "errorlog: the log ends here; --error-logfile FILE keeps it"
            self._journal.record("warning", "configuration", {"problem": problem})
        if settings.pidfile:
            pidfile = PidFile(settings.pidfile, account=account_for_pidfile(loaded))
            pidfile.write()
            self._pidfile = pidfile
        # Before the app is loaded: whoever waits for a slow start wants to see it.
        self._start_task(self._start_control(settings))

    def _settle(self, loaded: Loaded) -> None:
        """Where the daemon is, and where its log goes."""
        settings = loaded.settings
        if settings.chdir:
            # As in gunicorn, relative paths of logs, pid file and sockets count from there, in every process.
            try:
                with rights_for(loaded, "chdir"):
                    os.chdir(Path(self._order.folder, settings.chdir))
            except OSError as error:
                raise SettingError("chdir", f"can't enter {settings.chdir!r}: {error.strerror}") from None
        share_with(find_account(settings.user, settings.group, settings.initgroups), others_logs(loaded))
        only_terminal = settings.errorlog == "-" and not settings.enable_stdio_inheritance
        shown = SHOWN if self._launch is not None and only_terminal else "debug"
        self._log_file = set_up(settings.errorlog, settings.log_format, settings.loglevel, shown)
        self._outlets.settle(settings, self._log_file)

    async def _start_control(self, settings: Settings) -> None:
        await self._plane.start(settings, self._shell.name)
        self._control_started.set()

    def _on_serving(self) -> None:
        shell = self._shell
        settings = shell.loaded[shell.fleet.current].settings
        fields = {
            "listeners": " ".join(self._observer.status().listeners),
            "workers": WORKERS.shown(settings.workers)
            if isinstance(settings.workers, tuple)
            else settings.workers,
            "worker_class": settings.worker_class,
            "threads": settings.threads,
            "version": __version__,
            "pid": os.getpid(),
        }
        self._journal.record("info", "serving", fields)
        self._begin_looking()
        if self._launch is not None:
            self._leave_launcher(self._launch, settings)
        if self._order.demo:
            self._start_task(self._greet())

    def _leave_launcher(self, launch: Launch, settings: Settings) -> None:
        """It serves: whoever waits for that may go, and take the terminal along."""
        self._loop.remove_reader(launch.fileno())
        self._log_file.flush()
        kept = settings.enable_stdio_inheritance
        silence(outputs=not kept)
        if settings.errorlog == "-" and not kept:
            self._log_file = set_up("-", settings.log_format, settings.loglevel)
            self._outlets.settle(settings, self._log_file)
        launch.serving()

    def _stop_unlaunched(self, launch: Launch) -> None:
        self._loop.remove_reader(launch.fileno())
        self._shell.submit(events.StopAsked("end of the launcher", "quick"))

    def _begin_looking(self) -> None:
        set_title(f"ostler: supervisor [{terminal.one_line(self._shell.name)}]")
        sentence = health.sentence(self._shell.fleet)
        self._notifier.send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={sentence}")
        self._sensor.start()
        self._start_task(self._sample_forever())

    def _on_stopping(self) -> None:
        self._end_check()
        self._notifier.send("STOPPING=1")

    def _on_reload_ended(self, generation: int) -> None:
        self._observer.tell_reload_ended(generation)
        self._follow_current()

    def _follow_current(self) -> None:
        """Another generation may be current: its settings apply to the supervisor, too."""
        self._watcher.forget_before(self._shell.fleet.current)
        loaded = self._shell.loaded.get(self._shell.fleet.current)
        if loaded is None:
            return  # the first configuration is still being read
        settings = loaded.settings
        set_level(settings.loglevel)
        self._outlets.follow(settings)
        self._sensor.start()

    def _on_log_taken(self, number: int) -> None:
        self._outlets.taken(number)

    def _when_lines_taken(self, callback: Callable[[], None]) -> None:
        self._outlets.when_taken(callback)

    def _on_watch(self, generation: int, message: messages.Watch | messages.AppBroken) -> None:
        self._watcher.hear(generation, message)

    def _on_finish(self, finish: actions.Finish) -> None:
        if not self._finished.done():
            self._finished.set_result(finish)

    # -- signals that are no wish to the fleet ----------------------------------------------------------

    def _reopen_logs(self) -> None:
        self._log_file.reopen()
        loaded = self._shell.loaded.get(self._shell.fleet.current)
        if loaded is not None and "accesslog" not in loaded.confined:
            make_for_sharer(loaded.settings.accesslog)
        self._shell.tell_fork_servers(messages.ReopenLogs())
        self._shell.tell_workers(messages.ReopenLogs())
        self._journal.record("info", "logs_reopened", {"by": "signal USR1"})

    def _pause_unless_resized(self) -> None:
        """WINCH drains all workers, but a terminal sends it too, to say that its window has another size."""
        if has_terminal():
            get_logger().debug("winch_ignored", problem="a terminal controls this process and may resize")
        else:
            self._shell.submit(events.PauseAsked("signal WINCH"))

    # -- upgrades in place ------------------------------------------------------------------------------

    def _check_upgrade(self) -> None:
        try:
            pid, said = upgrade.start_check(self._carry(), self._order.folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits for the outcome must hear
            self._shell.submit(events.UpgradeChecked(f"can't start a process: {error}"))
            return
        # Configuration and app are loaded one after the other, and each may take its time.
        limit = 2 * (self._shell.loaded[self._shell.fleet.current].settings.boot_timeout or _FOREVER)
        self._checking = pid
        timer = self._loop.call_later(limit, self._end_check)

        def ended(status: ExitStatus) -> None:
            timer.cancel()
            self._checking = None
            problem, text = upgrade.what_it_said(status, said)
            if problem is not None and self._shell.fleet.upgrading is not None:
                get_logger().error("upgrade_check_failed", output=text)
            self._shell.submit(events.UpgradeChecked(problem))

        self._shell.reaper.expect(pid, ended)

    def _end_check(self) -> None:
        """What it has started ends with it."""
        if self._checking is not None:
            os.kill(self._checking, signal.SIGKILL)  # its number is not free before we have reaped it

    def _upgrade_soon(self) -> None:
        # Not in the middle of what brought it about: what else is to be done is done before.
        self._start_task(self._upgrade())

    async def _upgrade(self) -> None:
        await self._shell.hooks.pre_exec()
        # A signal whose handler has not run yet would be lost with this program. Those that come from now on
        # wait for the next one, and what those that came before ask for is done within three turns.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, upgrade.HANDLED)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if self._shell.fleet.upgrading == "replacing":
                self._replace_program()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def _replace_program(self) -> None:
        """Returns only if that failed; the fleet knows then."""
        self._outlets.give_up_waiting()
        self._log_file.flush()
        here = -1
        try:
            here = os.open(".", os.O_PATH | os.O_CLOEXEC)
            carried = self._carry()
            self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            upgrade.replace_program(carried, self._order.folder, self._notifier.path)
        except Exception as error:  # noqa: BLE001 - this program goes on, whatever it is
            if here >= 0:
                os.fchdir(here)
            self._notifier.send("READY=1")
            why = error.strerror if isinstance(error, OSError) else error
            self._shell.submit(events.UpgradeChecked(f"can't execute {sys.executable}: {why}"))
        finally:
            if here >= 0:
                os.close(here)

    def _carry(self) -> Carried:
        shell, control = self._shell, self._control.hand_over()
        pidfile = self._pidfile.hand_over() if self._pidfile is not None else None
        workers = [handle.carried() for handle in shell.workers.values()]
        fork_servers = [handle.carried() for handle in shell.fork_servers.values()]
        listeners, scoreboard = shell.listeners.snapshot(), shell.scoreboard.snapshot()
        handoff = shell.handoff[0].fileno(), shell.handoff[1].fileno()
        descriptors = [
            *handoff,
            *(cell.fd for cell in scoreboard.cells),
            *listeners.sockets.values(),
            *(fd for worker in workers for fd in (worker.channel, worker.stacks) if fd >= 0),
            *(server.channel for server in fork_servers if server.channel >= 0),
            *control.descriptors(),
            *([pidfile[1]] if pidfile else []),
        ]
        return Carried(
            descriptors=descriptors,
            fleet=shell.fleet.snapshot(),
            workers=workers,
            fork_servers=fork_servers,
            loaded=shell.loaded,
            name=shell.name,
            handoff=handoff,
            listeners=listeners,
            scoreboard=scoreboard,
            journal=self._journal.snapshot(),
            ledger=self._ledger.snapshot(),
            observer=self._observer.snapshot(),
            control=control,
            pidfile=pidfile,
            leaving=[handle.carried() for handle in shell.reaper.leaving.values()],
        )

    def _take_over(self, carried: Carried) -> None:
        """Go on where the program before us stopped, then replace workers and app as a reload does."""
        try:
            shell = self._shell
            self._journal.restore(carried.journal)
            self._ledger.restore(carried.ledger)
            shell.listeners.restore(carried.listeners)
            shell.take_over(
                carried.fleet, carried.workers, carried.fork_servers, carried.loaded, carried.handoff
            )
            shell.await_ends(carried.leaving)
            shell.name = carried.name
            self._observer.restore(carried.observer)
            self._sensor.resume()
            loaded = shell.loaded[shell.fleet.current]
            settings = loaded.settings
            try:
                self._settle(loaded)
            except SettingError as error:
                # Its log's folder is gone, say. The configuration that comes next may know better, and what
                # it says there counts: the fleet must not be left alone for that.
                self._journal.record("warning", "configuration", {"problem": str(error)})
            if carried.pidfile is not None:
                self._pidfile = PidFile(*carried.pidfile, account_for_pidfile(loaded))
            self._start_task(self._start_control(settings))
            self._begin_looking()
        except Exception as error:
            raise upgrade.TakeOverFailed from error
        upgrade.taken_over()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, upgrade.HANDLED)
        shell.reaper.reap()
        shell.submit(events.UpgradeDone(__version__))

    async def _greet(self) -> None:
        await self._control_started.wait()
        app = self._observer.status().listeners[0]
        lines = [
            "",
            f"  The demo app    {app}",
            f"  The dashboard   {self._control.login_link()}   (logs you in, once)",
            f"  Try             ctl workers   ctl scale +2   ctl reload   kill -TTIN {os.getpid()}   Ctrl-C",
            "",
        ]
        print("\n".join(lines), flush=True)

    # -- background -------------------------------------------------------------------------------------

    async def _sample_forever(self) -> None:
        while True:
            await asyncio.sleep(1.0 - time.time() % 1.0)
            self._chore(self._shell.reaper.reap)  # should a SIGCHLD have been lost
            self._chore(self._log_file.flush)
            self._chore(self._outlets.look)
            self._chore(self._limited.report)
            self._chore(self._sample)
            try:
                await self._control.ensure()
            except Exception as error:  # noqa: BLE001 - as in `_chore`
                self._chore_failed("ensure", error)

    def _chore(self, chore: Callable[[], object]) -> None:
        """Do what is due each second. If it fails that must not keep the others from being done, nor itself
        the next time."""
        try:
            chore()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._chore_failed(chore.__name__, error)

    def _chore_failed(self, name: str, error: Exception) -> None:
        self._log_loop_error(self._loop, {"message": f"failed: {name}", "exception": error})

    def _sample(self) -> None:
        try:
            # Once for both. Nothing can come in between that would make or end a worker.
            readings = self._shell.scoreboard.read_all()
            self._observer.take_sample(readings)
            self._shell.submit(self._measurer.take(readings))
            self._outlets.measure()
        except (OSError, psutil.Error) as error:
            # Out of descriptors, say; the next second may be better.
            get_logger().debug("sample_missed", problem=str(error))

    def _log_loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What fails once may fail with each event that a stranger causes.
        error = context.get("exception")
        self._limited.write(
            "error",
            "internal_error",
            type(error).__name__,
            problem=context.get("message"),
            exc_info=error or False,
        )

    def _start_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
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


def _first_log(command_line: dict[str, Any], launched: bool) -> LogFile:
    """The log until the configuration is known: standard error, in the form the command line asks for.

    No file yet: the configuration may say `chdir`, and a relative path counts from there.
    """
    table = rows()
    given = {
        name: table[name].kind.parse(command_line[name]) if name in command_line else table[name].default
        for name in ("log_format", "loglevel")
    }
    return set_up("-", given["log_format"], given["loglevel"], SHOWN if launched else "debug")


def run(order: Order) -> int:
    """Run the daemon; returns the exit code.

    Raises:
        OstlerError: it could not start because of a mistake the user can mend.
    """

    if not upgrade.is_successor():  # what is in use already stays in use
        check_calls()
    stay = reason_to_stay()
    order = replace(order, stay=stay)
    wanted = rows()["daemon"].kind.parse(order.command_line.get("daemon", False))

    def serve(carried: Carried | None) -> int:
        if carried is None and wanted and stay is None:
            return _run_detached(order)
        now = replace(order, detached=carried is not None and stay is None)
        code, must_detach = _run_once(now, carried)
        return _run_detached(order) if must_detach else code

    return upgrade.taking_over(serve)


def _run_detached(order: Order) -> int:
    gc.collect()  # what a first run in the foreground has left open
    launch = detach()
    code: int = ExitCode.FAILED
    try:
        code, _ = _run_once(replace(order, detached=True, launch=launch), None)
    except OstlerError as error:
        code = error.exit_code
        raise
    finally:
        launch.failing(code)
    return code


def _run_once(order: Order, carried: Carried | None) -> tuple[int, bool]:
    """One run of the supervisor; its exit code, and whether it has ended only to be run detached."""

    async def main() -> tuple[int, bool]:
        try:
            daemon = Daemon(order, carried)
        except OSError as error:
            if carried is not None:
                raise
            raise refused("what a start opens", error) from None
        return await daemon.run(), daemon.must_detach

    try:
        return asyncio.run(main())
    finally:
        release()
