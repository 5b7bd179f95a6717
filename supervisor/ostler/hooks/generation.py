"""The hooks of a generation in its fork server; workers inherit the objects."""

import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ostler.hooks.calling import HookFunctions
from ostler.hooks.objects import HookApp, HookLog, HookServer, HookWorker
from ostler.ipc import messages
from ostler.settings.table import Settings

Cause = Literal["start", "reload", "upgrade", "restart", "check"]


class Hooks:
    """Calls the hooks of a fork server, in its main thread.

    Args:
        functions: hooks by name.
        settings: the generation's.
        emit: writes an event to the error log: level, name, fields.
        load: loads the app.
        cause: why this fork server was started.

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
    ) -> None:
        self._cause = cause
        self._any = bool(functions)
        self.caller = HookFunctions(functions, emit)
        self.server = HookServer(settings, HookApp(load, settings.wsgi_app or ""), HookLog(emit))

    @property
    def names(self) -> list[str]:
        return sorted(self.caller.functions)

    # -- the beginning ---------------------------------------------------------------------------------

    def configured(self) -> None:
        """To be called before the app is loaded. Raises HookFailed."""
        if self._cause in ("start", "upgrade"):
            self.caller.call("nworkers_changed", self.server, self.server.num_workers, None)
            self._call_at_start("on_starting")
        elif self._cause == "reload":
            self.caller.require("on_reload", self.server)

    def listening(self, listeners: list[socket.socket]) -> None:
        """To be called after a preloaded app was loaded, before the first fork. Raises HookFailed."""
        self.server.listen(listeners)
        if self._cause in ("start", "upgrade"):
            self._call_at_start("when_ready")

    def _call_at_start(self, name: str) -> None:
        # In an upgrade in place, what the hook started at the first start is still running and may hold e.g.
        # a port that this call needs. That is no reason to keep the old app.
        call = self.caller.call if self._cause == "upgrade" else self.caller.require
        call(name, self.server)

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
