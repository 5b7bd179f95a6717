"""The composition root: puts the daemon together and runs it."""

import asyncio
import os
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from supervisor import __version__
from supervisor.control.server import ControlServer, default_socket_path
from supervisor.control.sockets import SocketInUse, safe_name
from supervisor.daemon.deadlines import DeadlineSensor
from supervisor.daemon.journal import Journal
from supervisor.daemon.ledger import Ledger
from supervisor.daemon.listeners import Listeners, systemd_listeners
from supervisor.daemon.notify import SystemdNotifier
from supervisor.daemon.observer import Observer
from supervisor.daemon.pidfile import PidFile
from supervisor.daemon.shell import Callbacks, Shell, Start
from supervisor.errors import ExitCode, OstlerError, SettingError
from supervisor.fleet import actions, events, health
from supervisor.ipc import messages
from supervisor.logs.lean import LogFile
from supervisor.logs.setup import get_logger, set_up
from supervisor.osapi.process import become_subreaper, has_terminal
from supervisor.scoreboard.reader import Scoreboard
from supervisor.settings.address import parse_address
from supervisor.settings.load import Loaded
from supervisor.settings.table import Settings, rows

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

    demo: greet a newcomer; any_control_port: if the one in `control_bind` is taken, any will do.
    """

    demo: bool = False
    any_control_port: bool = False


class Daemon:
    """One run of the supervisor."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._log_file = _first_log(order.command_line)
        self._journal = Journal(get_logger())
        self._ledger = Ledger()
        self._notifier = SystemdNotifier()
        self._finished: asyncio.Future[actions.Finish] = asyncio.get_running_loop().create_future()
        self._shell = Shell(
            order,
            Listeners(systemd_listeners()),
            Scoreboard(),
            self._journal,
            Callbacks(
                configured=self._on_configured,
                serving=self._on_serving,
                stopping=self._on_stopping,
                reload_ended=self._on_reload_ended,
                finish=self._on_finish,
                check_upgrade=self._check_upgrade,
                upgrade=self._upgrade,
            ),
        )
        self._sensor = DeadlineSensor(self._shell)
        self._observer = Observer(self._shell, self._sensor, self._ledger)
        self._control = ControlServer(self._observer, get_logger())
        self._control_started = asyncio.Event()
        self._token_file: Path | None = None
        self._pidfile: PidFile | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_loop_error)
        become_subreaper()
        setproctitle("ostler: supervisor")
        for signum, event in SIGNAL_EVENTS.items():
            loop.add_signal_handler(signum, self._shell.submit, event)
        loop.add_signal_handler(signal.SIGWINCH, self._pause_unless_resized)
        loop.add_signal_handler(signal.SIGCHLD, self._shell.reaper.reap)
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        self._shell.submit(events.StartAsked())
        try:
            finish = await self._finished
        finally:
            await self._close()
        if not finish.failed:
            self._journal.record("info", "stopped", {"uptime": round(self._observer.status().uptime, 1)})
            return ExitCode.OK
        if finish.traceback:
            print(finish.traceback, file=sys.stderr)
        print(f"ostler: error: {finish.reason}", file=sys.stderr)
        return ExitCode.BOOT if finish.app_failed else ExitCode.FAILED

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._control.close()
        self._shell.listeners.keep_only(set())
        if self._token_file is not None:
            self._token_file.unlink(missing_ok=True)
        if self._pidfile is not None:
            self._pidfile.remove()

    # -- what the fleet says ----------------------------------------------------------------------------

    def _on_configured(self, loaded: Loaded) -> None:
        """A generation's settings are known; the first one's also say how the daemon itself is to be."""
        if self._shell.loaded:
            return
        settings = loaded.settings
        if settings.chdir:
            # As in gunicorn, relative paths of logs, pid file and sockets count from there, in every process.
            try:
                os.chdir(Path(self._order.folder, settings.chdir))
            except OSError as error:
                raise SettingError("chdir", f"can't enter {settings.chdir!r}: {error.strerror}") from None
        self._log_file = set_up(settings.errorlog, settings.log_format, settings.loglevel)
        if settings.pidfile:
            pidfile = PidFile(settings.pidfile)
            pidfile.write()
            self._pidfile = pidfile
        # Before the app is loaded: whoever waits for a slow start wants to see it.
        self._start_task(self._start_control(settings))

    def _on_serving(self) -> None:
        shell = self._shell
        settings = shell.loaded[shell.fleet.current].settings
        setproctitle(f"ostler: supervisor [{shell.name}]")
        fields = {
            "listeners": " ".join(self._observer.status().listeners),
            "workers": settings.workers,
            "worker_class": settings.worker_class,
            "threads": settings.threads,
            "version": __version__,
            "pid": os.getpid(),
        }
        self._journal.record("info", "serving", fields)
        self._notifier.send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={health.sentence(shell.fleet)}")
        self._sensor.start()
        self._start_task(self._sample_forever())
        if self._order.demo:
            self._start_task(self._greet())

    def _on_stopping(self) -> None:
        self._notifier.send("STOPPING=1")

    def _on_reload_ended(self, generation: int) -> None:
        self._observer.tell_reload_ended(generation)
        self._sensor.start()  # the time-out may be another now

    def _on_finish(self, finish: actions.Finish) -> None:
        if not self._finished.done():
            self._finished.set_result(finish)

    # -- signals that are no wish to the fleet ----------------------------------------------------------

    def _reopen_logs(self) -> None:
        self._log_file.reopen()
        self._shell.tell_workers(messages.ReopenLogs())
        self._journal.record("info", "logs_reopened", {"by": "signal USR1"})

    def _pause_unless_resized(self) -> None:
        """WINCH drains all workers, but a terminal sends it too, to say that its window has another size."""
        if has_terminal():
            get_logger().debug("winch_ignored", problem="a terminal controls this process and may resize")
        else:
            self._shell.submit(events.PauseAsked("signal WINCH"))

    def _check_upgrade(self) -> None:
        self._shell.submit(events.UpgradeChecked("to be written"))

    def _upgrade(self) -> None:
        pass

    # -- the control plane ------------------------------------------------------------------------------

    async def _start_control(self, settings: Settings) -> None:
        """The data plane comes first: what fails here is one warning each."""
        socket_path: Path | None = None
        if not settings.control_socket_disable:
            try:
                socket_path = await self._start_socket(settings)
            except OstlerError as error:
                self._journal.record("warning", "control_unavailable", {"problem": str(error)})
        if settings.control_bind:
            try:
                await self._start_tcp(settings, socket_path)
            except OstlerError as error:
                self._journal.record("warning", "control_unavailable", {"problem": str(error)})
        self._control_started.set()

    async def _start_socket(self, settings: Settings) -> Path:
        if settings.control_socket:
            path = Path(settings.control_socket)
            await self._control.start_unix(path)
            return path
        name = self._shell.name
        path = default_socket_path(name)
        try:
            await self._control.start_unix(path)
        except SocketInUse:
            # A second instance of the same app: its socket's name tells it apart.
            path = default_socket_path(f"{safe_name(name)}-{os.getpid()}")
            await self._control.start_unix(path)
        return path

    async def _start_tcp(self, settings: Settings, socket_path: Path | None) -> None:
        address = _control_address(settings)
        token = self._token(settings, socket_path)
        try:
            url = await self._control.start_tcp(address.host, address.port, token)
        except SettingError:
            if not self._order.any_control_port:
                raise
            url = await self._control.start_tcp(address.host, 0, token)
        self._journal.record("info", "control", {"url": url, "socket": str(socket_path or "")})

    def _token(self, settings: Settings, socket_path: Path | None) -> str:
        """The bearer token: read from the file that was named, else made anew.

        Raises:
            SettingError: the file can't be read, or the new one not be written.
        """
        if settings.control_token_file:
            path = Path(settings.control_token_file)
            try:
                return path.read_text().strip()
            except OSError as error:
                raise SettingError("control_token_file", f"can't read {path}: {error.strerror}") from None
        token = secrets.token_urlsafe(32)
        if socket_path is None:
            return token  # nobody could learn it, but one-time logins printed by us work
        path = socket_path.with_suffix(".token")
        try:
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingError("control_token_file", f"can't write {path}: {error.strerror}") from None
        with os.fdopen(fd, "w") as file:
            file.write(f"{token}\n")
        self._token_file = path
        return token

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
            self._observer.take_sample()

    def _start_task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            get_logger().error("internal_error", exc_info=error)


def _control_address(settings: Settings) -> Any:
    try:
        address = parse_address(settings.control_bind or "")
    except ValueError as error:
        raise SettingError("control_bind", str(error)) from None
    if address.kind != "tcp":
        raise SettingError("control_bind", f"expected HOST:PORT, got {settings.control_bind!r}")
    return address


def _first_log(command_line: dict[str, Any]) -> LogFile:
    """The log until the configuration is known: standard error, in the form the command line asks for.

    No file yet: the configuration may say `chdir`, and a relative path counts from there.
    """
    table = rows()
    given = {
        name: table[name].kind.parse(command_line[name]) if name in command_line else table[name].default
        for name in ("log_format", "loglevel")
    }
    return set_up("-", given["log_format"], given["loglevel"])


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    get_logger().error(
        "internal_error", problem=context.get("message"), exc_info=context.get("exception") or False
    )


def run(order: Order) -> int:
    """Run the daemon; returns the exit code.

    Raises:
        OstlerError: it could not start because of a mistake the user can mend.
    """

    async def main() -> int:
        return await Daemon(order).run()

    return asyncio.run(main())
