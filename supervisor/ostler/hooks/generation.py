"""The hooks of a generation in its fork server; workers inherit the objects.

Each fork server that loads a configuration begins with what the first one began with: `nworkers_changed`,
`on_starting` and, when the listeners are there, `when_ready`. So hooks of workers find what those have set:
attributes of `server`, filters of loggers, variables of the environment, a Manager. gunicorn calls
`on_starting` and `when_ready` once, in a master that lives on; here no process does. Only at the daemon's
start do their exceptions matter: later, what an earlier fork server has started may still run and hold e.g. a
port.
"""

import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ostler.hooks.calling import HookFailed, HookFunctions
from ostler.hooks.objects import HookApp, HookLog, HookServer, HookWorker
from ostler.ipc import messages
from ostler.osapi.process import number_of_children
from ostler.settings.table import Settings

Cause = Literal["start", "reload", "upgrade", "restart", "check"]

AT_START = frozenset(("on_starting", "when_ready"))
"""The hooks that may start something which outlives their generation."""


class Hooks:
    """Calls the hooks of a fork server, in its main thread.

    Args:
        functions: hooks by name.
        settings: the generation's.
        emit: writes an event to the error log: level, name, fields.
        load: loads the app.
        cause: why this fork server was started.
        workers_before: how many workers were wanted before a reload.

    Attributes:
        server: the object that hooks get as `server`.
        caller: calls the hooks.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        settings: Settings,
        emit: Callable[..., None],
        load: Callable[[], Any],
        cause: Cause,
        workers_before: int | None = None,
    ) -> None:
        self._cause = cause
        self._workers_before = workers_before
        self._failed = self._began = False
        self._any = bool(functions)
        self.caller = HookFunctions(functions, emit)
        self.server = HookServer(settings, HookApp(load, settings.wsgi_app or ""), HookLog(emit))
        self.server.cause = cause

    @property
    def names(self) -> list[str]:
        return sorted(self.caller.functions)

    # -- the beginning ---------------------------------------------------------------------------------

    def configured(self) -> None:
        """To be called before the app is loaded. Raises HookFailed."""
        if self._cause == "check":
            return
        self.caller.call("nworkers_changed", self.server, self.server.num_workers, self._workers_before)
        self._call_at_start("on_starting")
        if self._cause == "reload":
            self.caller.require("on_reload", self.server)

    def listening(self, listeners: list[socket.socket]) -> None:
        """To be called after a preloaded app was loaded, before the first fork. Raises HookFailed."""
        self.server.listen(listeners)
        if self._cause != "check":
            self._call_at_start("when_ready")

    @property
    def replaces_background_work(self) -> bool:
        """Whether what earlier fork servers' hooks have started is not needed any more.

        That is so if the hooks here have started something as well, or there are none that could.
        """
        could = not AT_START.isdisjoint(self.caller.functions)
        return not self._failed and (self._began or not could)

    def _call_at_start(self, name: str) -> None:
        before = _background_work()
        try:
            self.caller.require(name, self.server)
        except HookFailed as failed:
            if self._cause == "start":
                raise
            self._failed = True
            self.caller.log_failure(name, failed, "warning")
        self._began |= _background_work() > before

    def taken_over(self, emit: Callable[..., None]) -> None:
        """A worker has become the fork server: it has no children, and logs as a fork server."""
        self.server.WORKERS.clear()
        self.caller.emit = emit
        self.server.log.rewire(emit)

    # -- forks and ends of workers ---------------------------------------------------------------------

    def about_to_fork(self, ask: messages.Spawn) -> HookWorker:
        self.server.worker_age = ask.worker_id
        worker = HookWorker(self.server, ask.worker_id, ask.slot)
        self.caller.call_in_time("pre_fork", self.server, worker)
        return worker

    def forked(self, worker: HookWorker, pid: int) -> None:
        worker.pid = pid
        if self._any:  # without hooks no message comes at its end
            self.server.WORKERS[pid] = worker

    def due(self, due: messages.HookDue) -> None:
        """Call the hook of a message of the supervisor."""
        if due.name == "child_exit":
            worker = self.server.WORKERS.pop(due.pid, None)
            if worker is None:  # another process has forked it
                worker = HookWorker(self.server, due.worker_id, due.slot)
                worker.pid = due.pid
            worker.end()
            worker.exitcode = due.exitcode
            self.caller.call_in_time("child_exit", self.server, worker)
        elif due.name == "nworkers_changed":
            self.server.num_workers = due.new
            if due.new != due.old:
                self.caller.call_in_time("nworkers_changed", self.server, due.new, due.old)
        elif due.name == "retire":
            self.server.LISTENERS = []
            self.server.WORKERS.clear()  # no more messages come at their ends
        else:
            self.caller.call_in_time(due.name, self.server)


def _background_work() -> int:
    """How many threads and processes of its own this process has."""
    return threading.active_count() + number_of_children()
