"""The hubs of gevent and eventlet, as far as an engine needs them.

A hub is the greenlet that waits for everything and switches to whatever has something to do. Our engine is a
callback in it: it runs in the hub's greenlet and must not wait. Greenlets that serve are children of the hub:
what they switch to when they wait, and when they have ended, is the callback that has switched to them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

Callback = Callable[[], object]


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


class Hub(ABC):
    """A library's hub in the calling thread; made where `run` will be called.

    Attributes:
        greenlet: the hub's own.
        reuses: whether greenlets may serve more than one request.
    """

    greenlet: greenlet
    reuses: bool

    def __init__(self) -> None:
        self._main = getcurrent()
        self._left = False

    def run(self) -> None:
        """Let the hub run until `leave`; in the thread's first greenlet."""
        while not self._left:
            self.greenlet.switch()

    def leave(self) -> None:
        """Make `run` return; in the hub."""
        self._left = True
        self._main.switch()

    @abstractmethod
    def watch(self, fd: int, callback: Callback) -> Callback:
        """Call back whenever `fd` is readable; returns what ends that."""

    @abstractmethod
    def every(self, seconds: float, callback: Callback) -> Callback:
        """Call back every so many seconds; returns what ends that."""

    @abstractmethod
    def soon(self, callback: Callback) -> None:
        """Call back in the hub once what is ready now has run; not for signal handlers."""

    @abstractmethod
    def close(self) -> None:
        """End the hub's threads, and leave it as it was; after `run`."""

    def descriptors(self) -> set[int]:
        """Those of the hub that each process makes for itself."""
        return set()
