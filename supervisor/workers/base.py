"""What a worker class is: the part of a worker process that serves.

Third parties bring worker classes by an entry point in the group `ostler.workers`, whose name is what
`--worker-class` says and whose value is a subclass of `BaseWorker`. Everything around it is done for it: the
process, its signals and titles, loading the app, the channel to the supervisor, logs, recycling.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from supervisor.logs.access import AccessLog
from supervisor.logs.lean import Log
from supervisor.scoreboard.writer import CellWriter
from supervisor.settings.table import Settings
from supervisor.workers.relay import Relay
from supervisor.wsgi.exchange import Exchange

if TYPE_CHECKING:
    from ssl import SSLContext
    from types import FrameType


@dataclass(frozen=True, slots=True)
class Context:
    """What a worker class is given to serve with.

    Args:
        app: the app, a WSGI callable unless the class says otherwise.
        listeners: listening sockets, non-blocking, shared with all workers.
        settings: of this generation.
        cell: the worker's cell of the scoreboard, with `settings.classes.lanes` lanes.
        log: takes events with fields.
        access: the access log, or None. Its `flush` is to be called when there is nothing else to do, and
            about once a second.
        quota: call `on_quota` with the number of answers once so many have been given; 0: never.
        on_quota: asks for a successor; the worker goes on serving until it is told to drain.
        relay: to sibling workers, or None.
        tls: what connections are wrapped with, or None.
        exchange: what serves one WSGI request; with hooks around the app if the configuration file has such.
        stacks_fd: takes dumps of stacks in faulthandler's format, at DUMP_SIGNAL; -1: nobody wants them.
    """

    app: Any
    listeners: list[socket.socket]
    settings: Settings
    cell: CellWriter
    log: Log
    access: AccessLog | None
    quota: int
    on_quota: Callable[[int], None]
    relay: Relay | None
    tls: "SSLContext | None"
    exchange: type[Exchange] = Exchange
    stacks_fd: int = -1


class BaseWorker(ABC):
    """Serves requests in a worker process.

    Attributes:
        interface: what kind of app it calls, `wsgi` or `asgi`.
        draining: `drain` was called.
    """

    interface: ClassVar[str] = "wsgi"
    draining: bool = False

    @classmethod
    def prepare(cls, settings: Settings) -> None:
        """Get the process ready for the app, e.g. by monkey-patching; in the process that imports it, before.

        That is the fork server with `preload_app`, else each worker.

        Raises:
            SettingError: it can't be used here, e.g. because a package is missing.
        """

    @classmethod
    def check(cls, settings: Settings) -> list[str]:
        """What to warn of once in a generation, e.g. settings that mean nothing here; before `prepare`.

        Raises:
            SettingError: it can't be used with these settings.
        """
        return []

    @classmethod
    @abstractmethod
    def create(cls, context: Context) -> Self:
        """Be ready to serve; nothing is accepted yet."""

    def start(self) -> None:
        """Whatever else must work before the worker says that it is ready, such as an ASGI app's startup.

        Raises:
            AppLoadError, WarmupError: it can't serve.
        """

    @abstractmethod
    def run(self) -> None:
        """Serve; returns when it has been drained or stopped."""

    @abstractmethod
    def drain(self, hand_over: bool = False) -> None:
        """Stop accepting; `run` returns when what is there has been answered or `graceful_timeout` is over.

        May be called from a signal handler, and from a reader's callback.

        Args:
            hand_over: other workers go on serving.
        """

    @abstractmethod
    def stop(self) -> None:
        """Make `run` return soon, whatever is unanswered; may be called from a signal handler."""

    @abstractmethod
    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the thread that `run` runs in whenever `fd` is readable."""

    @abstractmethod
    def remove_reader(self, fd: int) -> None: ...

    def abandon(self) -> None:
        """As `drain`, and close the listeners at once: another daemon may want the addresses."""
        self.drain()

    def attend(self) -> None:
        """A message of the supervisor has come; called by a signal handler, also within a long request."""

    def interrupt(self, signum: int, frame: "FrameType | None") -> None:
        """Signal handler: end requests that the supervisor has marked as overdue, if that can be done.

        Raises:
            DeadlineExceeded: in the request that the signal has interrupted.
        """

    def extend_deadline(self, seconds: float) -> None:
        """The request that the calling thread serves has at least `seconds` from now, if that can be.

        Raises:
            RuntimeError: this thread serves no request.
        """

    def descriptors(self) -> set[int]:
        """What `close` will close."""
        return set()

    def close(self) -> None:
        """Give back all descriptors but the listeners'; after `run`."""
