"""The hooks of a generation in its fork server; workers inherit all of it."""

import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ostler.hooks.calling import Calls
from ostler.hooks.objects import HookApp, HookLog, Server, Worker
from ostler.ipc import messages
from ostler.settings.table import Settings

Cause = Literal["start", "reload", "upgrade", "restart", "check"]


class Hooks:
    """Calls what is to be called in a fork server.

    Args:
        functions: hooks by name.
        settings: the generation's.
        emit: writes an event to the error log: level, name, fields.
        load: loads the app.
        cause: why there is this fork server.

    Attributes:
        server: what hooks know as `server`.
        calls: calls them.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        settings: Settings,
        emit: Callable[..., None],
        load: Callable[[], Any],
        cause: Cause,
    ) -> None:
        self._cause = cause
        self._any = bool(functions)
        self.calls = Calls(functions, emit)
        self.server = Server(settings, HookApp(load, settings.wsgi_app or ""), HookLog(emit))

    @property
    def names(self) -> list[str]:
        return sorted(self.calls.functions)

    # -- the beginning ---------------------------------------------------------------------------------

    def configured(self) -> None:
        """Before the app is loaded. Raises HookFailed."""
        if self._cause in ("start", "upgrade"):
            self.calls.call("nworkers_changed", self.server, self.server.num_workers, None)
            self._begin("on_starting")
        elif self._cause == "reload":
            self.calls.demand("on_reload", self.server)

    def listening(self, listeners: list[socket.socket]) -> None:
        """After the app was loaded, if it is here, and before the first fork. Raises HookFailed."""
        self.server.listen(listeners)
        if self._cause in ("start", "upgrade"):
            self._begin("when_ready")

    def _begin(self, name: str) -> None:
        # In an upgrade in place what the first start has begun runs on, and may have what this one wants, a
        # port say: no reason to keep the old app.
        begin = self.calls.call if self._cause == "upgrade" else self.calls.demand
        begin(name, self.server)

    def taken_over(self, emit: Callable[..., None]) -> None:
        """What was a worker is the fork server now: it has no children, and writes as a fork server does."""
        self.server.WORKERS.clear()
        self.calls.emit = emit
        self.server.log.rewire(emit)

    # -- forks and ends of workers ---------------------------------------------------------------------

    def about_to_fork(self, ask: messages.Spawn) -> Worker:
        self.server.worker_age = ask.worker_id
        worker = Worker(self.server, ask.worker_id, ask.slot)
        self.calls.call_in_time("pre_fork", self.server, worker)
        return worker

    def forked(self, worker: Worker, pid: int) -> None:
        worker.pid = pid
        if self._any:  # else nobody says when it ends
            self.server.WORKERS[pid] = worker

    def due(self, due: messages.HookDue) -> None:
        """Call what the supervisor says is to be called."""
        if due.name == "child_exit":
            worker = self.server.WORKERS.pop(due.pid, None)
            if worker is None:  # another process has forked it
                worker = Worker(self.server, due.worker_id, due.slot)
                worker.pid = due.pid
            worker.end()
            worker.exitcode = due.exitcode
            self.calls.call_in_time("child_exit", self.server, worker)
        elif due.name == "nworkers_changed":
            self.server.num_workers = due.new
            if due.new != due.old:
                self.calls.call_in_time("nworkers_changed", self.server, due.new, due.old)
        elif due.name == "retire":
            self.server.LISTENERS = []
            self.server.WORKERS.clear()  # nobody says any more when they end
        else:
            self.calls.call_in_time(due.name, self.server)
