"""The hooks of one worker process, from its fork to its end."""

import os
from collections.abc import Callable
from typing import Any

from ostler.hooks.generation import Hooks
from ostler.hooks.objects import HookApp, HookWorker
from ostler.hooks.requests import RequestHooks
from ostler.logs.worker_log import Log
from ostler.scoreboard.accounting import Accounting
from ostler.wsgi.exchange import Exchange
from ostler.wsgi.interruption import QuitWorker


class WorkerHooks:
    """Calls the hooks of a worker process.

    Args:
        hooks: the generation's.
        worker: the object that hooks get as `worker`.
        log: the worker's.
    """

    def __init__(self, hooks: Hooks, worker: HookWorker, log: Log) -> None:
        self._caller = hooks.caller
        self._server = hooks.server
        self._worker = worker
        self._begun = self._ended = False
        self._requests = RequestHooks(self._caller, worker)
        worker.pid = os.getpid()
        self._caller.emit = log.event
        self._server.log.rewire(log.event)

    @property
    def wants_abort(self) -> bool:
        return "worker_abort" in self._caller.functions

    @property
    def wants_exit(self) -> bool:
        return "worker_exit" in self._caller.functions

    @property
    def app(self) -> HookApp:
        return self._server.app

    def forked(self) -> None:
        """post_fork, before anything of the app is loaded here. Raises HookFailed."""
        self._begun = True
        self._caller.require("post_fork", self._server, self._worker)

    def loaded(self, app: Any) -> Any:
        """post_worker_init, before any request; returns the app, or the one that the hook has replaced it
        with.

        Raises:
            HookFailed: the hook has raised.
        """
        worker = self._worker
        worker.wsgi = self.app.callable = app
        self._caller.require("post_worker_init", worker)
        worker.booted = True
        return worker.wsgi if worker.wsgi is not app else self.app.callable

    def quota(self) -> int:
        """After how many requests `quota_reached` is to be called; 0: never."""
        quota = self._worker.quota
        return 0 if quota is None else max(1, quota)

    def quota_reached(self, answered: int) -> int | None:
        """So many requests were answered: ask for a successor, unless hooks have changed the number.

        Returns:
            After how many requests it is to be called again; None: never.
        """
        quota = self._worker.quota
        if quota is None or quota > answered:
            return quota
        self._worker.retire(answered)
        return None

    def exchange(self) -> type[Exchange]:
        """The class that serves a request, with pre_request and post_request if they exist."""
        return self._requests.exchange()

    def serving(
        self, accounting: Accounting, retire: Callable[[int], object], extend: Callable[[float], object]
    ) -> None:
        """The worker is about to serve."""
        # The scoreboard does not count the current request.
        count = (lambda: self._requests.begun) if self._requests.wanted else lambda: accounting.answered
        self._worker.work(count, retire, extend)

    def interrupted(self) -> None:
        """worker_int: SIGINT or SIGQUIT was received; called by a signal handler."""
        self._worker.end()
        if self._begun and not self._ended:
            self._caller.call("worker_int", self._worker)

    def aborted(self) -> None:
        """worker_abort: SIGABRT was received; called by a signal handler."""
        self._worker.end()
        self._worker.aborted = True
        if self._begun and not self._ended:
            self._caller.call("worker_abort", self._worker)

    def ended(self) -> None:
        """worker_exit, once, and only after post_fork. Raises nothing."""
        if self._begun and not self._ended:
            self._ended = True
            self._worker.end()
            try:
                self._caller.call("worker_exit", self._server, self._worker)
            except QuitWorker:
                pass  # the worker is ending already
        self._worker.work()
