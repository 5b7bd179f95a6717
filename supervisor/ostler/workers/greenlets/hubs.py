"""The hubs of gevent and eventlet, as far as an engine needs them.

A hub is the greenlet that waits for everything and switches to each greenlet that has something to do. Our
engine is a callback in it: it runs in the hub's greenlet and must not wait. The hub is the parent of the
greenlets that serve: when one of them waits or ends, the hub's greenlet goes on in the callback that had
switched to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from greenlet import getcurrent, greenlet

Callback = Callable[[], object]


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
    def wait(self, fd: int, event: int, seconds: float | None) -> bool:
        """As system_calls.wait_in_app: in any greenlet but the hub's, also of another thread."""

    @abstractmethod
    def close(self) -> None:
        """End the hub's threads, and leave it as it was; after `run`."""

    def descriptors(self) -> set[int]:
        """Those of the hub that each process makes for itself."""
        return set()
