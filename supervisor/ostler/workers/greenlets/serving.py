"""The greenlets that serve: one for each connection whose request is in the app.

Everything happens in one thread, and greenlets switch only where they wait: in the app, and for a client that
is slow to take an answer or to send a body that is read while it comes.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from greenlet import getcurrent, greenlet

from ostler.scoreboard.accounting import Accounting
from ostler.workers.connection import Connection
from ostler.workers.greenlets.hubs import Callback, Hub
from ostler.workers.parts import Parts
from ostler.workers.phase import CLOSED
from ostler.workers.reactor import IN
from ostler.wsgi import forked
from ostler.wsgi.interruption import QuitWorker


class ServingGreenlet(greenlet):  # type: ignore[misc]
    """A greenlet that serves one connection after another.

    A new greenlet costs some microseconds, because the interpreter maps memory for its stack. So one is used
    again, unless something else refers to it and may mean the request that it has served: a time-out that was
    never cancelled would be thrown into another request.

    Attributes:
        connection: what it is to serve; None: it is to end.
        slot: where its request is shown; None: it serves none.
        interrupted: when the request had started that was ended last because it took too long.
        links: called at the end of a request, as gevent does at the end of a greenlet: this is how
            gevent.local and threading.local drop what was a greenlet's own.
    """

    connection: Any = None
    slot: Any = None
    interrupted = 0

    def __init__(self, run: Callback, parent: greenlet) -> None:
        super().__init__(run, parent)
        self.links: list[Callable[[greenlet], object]] = []

    def rawlink(self, callback: Callable[[greenlet], object]) -> None:
        """gevent's way to have something called at the end of a greenlet."""
        self.links.append(callback)

    def unlink(self, callback: Callable[[greenlet], object]) -> None:
        if callback in self.links:
            self.links.remove(callback)

    def forget(self) -> None:
        """Drop all that belongs to a request: the next one must not see it."""
        links, self.links = self.links, []
        for link in links:
            link(self)
        self.gr_context = None


class ForkedProcess(BaseException):
    """This is a process that the app has forked: it may use the hub, but serves no client."""


class _Waiting(NamedTuple):
    """A greenlet that waits for a client until `deadline` (CLOCK_MONOTONIC, ns; 0: for ever)."""

    greenlet: greenlet
    deadline: int
    came: list[bool]


class ServingGreenlets:
    """Serves connections in greenlets. Called only in the hub's greenlet, but for `wait_for`.

    Args:
        hub: whose children they are.
        accounting: gives each its request slot.
        parts: returns the engine's parts, which are made later: their calls include `wait_for`.
    """

    def __init__(self, hub: Hub, accounting: Accounting, parts: Callable[[], Parts]) -> None:
        self._hub = hub
        self._accounting = accounting
        self._parts = parts
        # Greenlets without a connection, and how many of these were not needed since the last `end_unused`.
        self._parked: list[ServingGreenlet] = []
        self._unused = 0
        # References to a parked greenlet that is referred to by nothing else; 0: not counted yet.
        self._references = 0
        self._waiting: dict[int, _Waiting] = {}

    def serve(self, connection: Connection, prompt_until: int) -> None:
        """Serve a connection's requests; returns when that is done, or when the app waits.

        Raises:
            ForkedProcess: this is the child of a fork in the app.
        """
        connection.watched = False
        server = self._take()
        server.connection = connection
        server.switch(prompt_until)
        if forked.is_forked():
            raise ForkedProcess

    def resume(self, fd: int) -> bool:
        """Switch to the greenlet that waits for an event of a descriptor; False if none does."""
        if (waiting := self._waiting.get(fd)) is None:
            return False
        waiting.came.append(True)
        waiting.greenlet.switch()
        if forked.is_forked():
            raise ForkedProcess
        return True

    def end_waits(self, now: int) -> None:
        """Switch to those greenlets whose clients took too long."""
        for waiting in list(self._waiting.values()):
            if 0 < waiting.deadline <= now:
                waiting.came.append(False)
                waiting.greenlet.switch()

    def end_unused(self) -> None:
        """End half of the greenlets that were not needed for a while: each keeps some memory."""
        for _ in range((self._unused + 1) // 2):
            self._parked.pop(0).switch(0)  # it finds no connection
        self._unused = len(self._parked)

    def close(self) -> None:
        """End all that are parked: they would keep the engine, and all that it has, in the hub's memory."""
        while self._parked:
            server = self._parked.pop()
            server.parent = getcurrent()  # where its end leads: the hub's loop would not return
            server.switch(0)

    def wait_for(self, fd: int, event: int, deadline: int) -> bool:
        """As system_calls.wait_for, while others run; called in a greenlet that serves."""
        parts = self._parts()
        connection = parts.table.open[fd]
        waiting = self._waiting[fd] = _Waiting(getcurrent(), deadline, [])
        try:
            parts.reactor.watch_for(connection, event)
            while not waiting.came:
                self._hub.greenlet.switch()
        finally:
            del self._waiting[fd]
            if connection.phase is not CLOSED:
                parts.reactor.unwatch(connection)
        return waiting.came[0]

    # -- greenlets -----------------------------------------------------------------------------------------

    def _take(self) -> ServingGreenlet:
        """A greenlet that waits for a connection, and that nothing else refers to."""
        if not self._references:
            self._count_references()
        parked = self._parked
        while parked:
            server = parked.pop()
            if len(parked) < self._unused:
                self._unused = len(parked)
            if sys.getrefcount(server) <= self._references:
                return server
            server.switch(0)  # it finds no connection, and ends
        server = ServingGreenlet(self._run, self._hub.greenlet)
        server.switch()
        parked.pop()
        return server

    def _count_references(self) -> None:
        """Count those to a greenlet that nothing else refers to, at the same place in a call as `_take`."""
        ServingGreenlet(self._run, self._hub.greenlet).switch()
        server = self._parked.pop()
        self._references = sys.getrefcount(server)
        self._parked.append(server)

    def _run(self) -> None:
        """What a greenlet does until its end."""
        server = getcurrent()
        assert isinstance(server, ServingGreenlet)
        hub, parked = self._hub, self._parked
        while True:
            parked.append(server)
            try:
                prompt_until = hub.greenlet.switch()
            except BaseException:  # noqa: BLE001 - it was meant for a request that has ended
                break
            if (connection := server.connection) is None:
                break
            self._serve(server, connection, prompt_until)
            server.connection = connection = None
            if not hub.reuses:
                return
            if server.links or server.gr_context is not None:
                server.forget()
        if server in parked:
            parked.remove(server)  # something else has switched to it

    def _serve(self, server: ServingGreenlet, connection: Connection, prompt_until: int) -> None:
        parts = self._parts()
        slot = server.slot = self._accounting.take()
        slot.owner = server
        try:
            parts.runner.run(connection, slot, prompt_until)
        except QuitWorker:
            pass  # by a signal's handler, which has called `stop`
        finally:
            server.slot = None
            slot.release()
        if connection.output or connection.mask != IN:
            parts.reactor.watch(connection)
        else:
            connection.watched = True
