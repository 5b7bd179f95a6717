"""Ending ASGI requests that are overdue, and giving one more time.

A request that is overdue is ended where it waits: its task is cancelled. If instead it computes, so that the
whole loop waits for it, the signal's handler raises in it.
"""

import asyncio
import traceback
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from traceback import FrameSummary
from types import FrameType
from typing import Any

from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.request_slot import check_extension
from ostler.workers.asgi.app import SERVING
from ostler.workers.asgi.request import AsgiRequest
from ostler.workers.asgi.tasks import current, frames_of, is_in_app, local_of, stack_under, tasks_of
from ostler.workers.stacks import dump_of
from ostler.wsgi.interruption import DeadlineExceeded


class AsgiSoftInterrupts:
    """The deadlines of a worker's requests.

    Args:
        accounting: the worker's; the owners of its slots are `AsgiRequest`s.
        call: has the loop call a function; may be used in signal handlers.
    """

    def __init__(
        self,
        accounting: Accounting,
        loop: asyncio.AbstractEventLoop,
        call: Callable[[Callable[[], object]], None],
    ) -> None:
        self._accounting = accounting
        self._loop = loop
        self._call = call
        # Requests that wait and are to be ended; signal handlers add to it.
        self._waiting: set[AsgiRequest] = set()

    def interrupt(self, frame: FrameType | None) -> None:
        """Called by the signal's handler: end requests that are overdue.

        Raises:
            DeadlineExceeded: the request that computes is one of them. Others end when it is the loop's turn.
        """
        here, computing = None, self._computing(frame)
        for request in self._overdue():
            if request is computing:
                here = request
            else:
                self._waiting.add(request)
        if self._waiting:
            self._call(self._interrupt_waiting)
        if here is not None:
            here.log_overdue(stack_under(frame), self._tasks().get(here))
            raise DeadlineExceeded

    def extend(self, seconds: float) -> None:
        """`scope["ostler.extend_deadline"]`: the request at hand has at least `seconds` from now.

        It never shortens a deadline. To be called by code that serves the request, in any task or thread.

        Raises:
            ValueError: that is no time.
            RuntimeError: no request is being served here.
        """
        check_extension(seconds)
        started = current.get()
        if not started:
            raise RuntimeError("extend_deadline was called where no request is served")
        if (request := self._find(started)) is not None:
            request.slot.extend_until(monotonic_ns() + int(seconds * 1_000_000_000), started)

    def stacks(self, frame: FrameType | None) -> str:
        """Where overdue requests stand, for `workers.stacks`; called by the handler of its signal.

        Args:
            frame: what the signal has interrupted.
        """
        overdue = self._overdue()
        if not overdue:
            return ""
        serving, computing = self._tasks(), current.get()
        tasks = tasks_of(self._loop, {request.started: serving.get(request) for request in overdue})

        def frames(request: AsgiRequest) -> list[FrameSummary]:
            if request.started == computing:
                return list(traceback.extract_stack(frame))
            return [entry for task in tasks[request.started] for entry in frames_of(task)]

        return dump_of("task", ((request.slot.ident, partial(frames, request)) for request in overdue))

    def _interrupt_waiting(self) -> None:
        # All at once: there is a signal for each, and with a look at all tasks each time hundreds that are
        # overdue would hold up the loop until the supervisor takes it for stalled.
        tasks = self._tasks() if self._waiting else {}
        while self._waiting:
            request = self._waiting.pop()
            request.interrupt(tasks.get(request))

    def _overdue(self) -> list[AsgiRequest]:
        """The requests that the supervisor has marked; safe in a signal handler."""
        now = monotonic_ns()
        slots = list(self._accounting.slots)
        return [slot.owner for slot in slots if slot.owner is not None and slot.is_overdue(now)]

    def _computing(self, frame: FrameType | None) -> AsgiRequest | None:
        """The request whose code a signal has interrupted; None: it is not the app's, or must not be."""
        started = current.get()
        return self._find(started) if started and is_in_app(frame) else None

    def _find(self, started: int) -> AsgiRequest | None:
        """The request in flight that began then; those that are not shown have no deadline."""
        for slot in list(self._accounting.slots):
            if slot.started == started:
                found: AsgiRequest | None = slot.owner
                return found
        return None

    def _tasks(self) -> "dict[AsgiRequest, asyncio.Task[Any]]":
        """The tasks that serve requests. Looked for when they are needed, which is hardly ever."""
        found: dict[AsgiRequest, asyncio.Task[Any]] = {}
        for task in asyncio.all_tasks(self._loop):
            request = local_of(task, "request", SERVING)
            if isinstance(request, AsgiRequest):
                found[request] = task
        return found
