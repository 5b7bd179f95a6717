"""What a worker class is: the part of a worker process that serves.

Third parties bring worker classes by an entry point in the group `ostler.workers`, whose name is what
`--worker-class` says and whose value is a subclass of `BaseWorker`; one of an app's own code needs none, its
path will do: `--worker-class myapp.workers.Mine`.

Done for it: the process, its title, signals and end; loading and warming up the app; the channel to the
supervisor; opening logs and reopening them; replacing it when it has served enough, takes too much memory,
or hangs; sharing what it has loaded with its successors. It runs in one process, which may have threads.
What is left to do:

- `run` accepts from `context.listeners`, which are non-blocking and shared, so `accept` may fail. At the
  latest once a second it writes the time into `context.cell.header[HEARTBEAT]` (monotonic_ns; names of words
  are those of `scoreboard.layout`), and calls the callbacks of readers that are readable: by one of them the
  supervisor says that it is to drain.
- For each request it takes a lane, one of `settings.threads`, by `lane = workers.lane.Lane(context.cell,
  number)` made in the thread that will use it. While a request is in the app `lane.words[STARTED]` says since
  when (monotonic_ns), and `lane.show` has said what it is called; afterwards it is 0 again, and one is added
  to `STATUS_CLASSES` + the status's first digit and to `HISTOGRAM` + `bucket_of(nanoseconds)`. From this come
  deadlines, metrics, and what `ctl` shows; who leaves it out serves, but nobody sees it, or finds out that it
  hangs. `OPENED` and `CLOSED` count connections, `BYTES_SENT` bytes of bodies.
- It calls `context.on_quota` once, if `context.quota` is not 0.
- Optionally it ends requests that take too long (`interrupt`; see workers.interrupt), writes the access log
  (`context.access.answered`, and `flush` before it waits), takes connections from siblings.

Signal handlers run in the main thread, and between any two steps of `run` if that is where it runs. The order
of calls is `check`, `prepare`, the app is imported, `create`, `add_reader`, `run`, `close`; `check` is called
in the fork server, and `prepare` as well if it loads the app.

There is a complete one, in tests/system/apps/reference.py.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ostler.logs.access import AccessLog
from ostler.logs.lean import Log
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.writer import CellWriter
from ostler.settings.table import Settings
from ostler.workers.handoff import HandOff
from ostler.wsgi.exchange import Exchange

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
        accounting: shows and counts requests and connections; see ostler.scoreboard.accounting.
        log: takes events with fields.
        access: the access log, or None. Its `flush` is to be called when there is nothing else to do, and
            about once a second.
        quota: call `on_quota` with the number of answers once so many have been given; 0: never.
        on_quota: asks for a successor; the worker goes on serving until it is told to drain.
        handoff: to sibling workers, or None.
        tls: what connections are wrapped with, or None.
        exchange: what serves one WSGI request; with hooks around the app if the configuration file has such.
        stacks_fd: takes dumps of stacks in faulthandler's format, at DUMP_SIGNAL; -1: nobody wants them.
    """

    app: Any
    listeners: list[socket.socket]
    settings: Settings
    accounting: Accounting
    log: Log
    access: AccessLog | None = None
    quota: int = 0
    on_quota: Callable[[int], None] = lambda _answers: None
    handoff: HandOff | None = None
    tls: "SSLContext | None" = None
    exchange: type[Exchange] = Exchange
    stacks_fd: int = -1

    @property
    def cell(self) -> CellWriter:
        """Raw words of the scoreboard; internal, for what does not use `accounting` yet."""
        return self.accounting.writer


class BaseWorker(ABC):
    """Serves requests in a worker process.

    Attributes:
        interface: what kind of app it calls, `wsgi` or `asgi`.
        one_loop: all requests of a worker take turns in one thread, so that a request in the app is no reason
            for the loop to stand still: it must write HEARTBEAT twice a second. There is a lane for each of
            `worker_connections`, up to 256, and `threads` is without meaning.
        calls_request_hooks: it serves by `context.exchange`, and so calls pre_request and post_request.
        draining: `drain` was called.
    """

    interface: ClassVar[str] = "wsgi"
    one_loop: ClassVar[bool] = False
    calls_request_hooks: ClassVar[bool] = False
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
        """What to warn of once in a generation, e.g. settings without meaning here; before `prepare`.

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

    def start_threads(self) -> None:
        """Make the threads that serve; they wait for `run`. After `start`, before the worker is ready.

        Raises:
            RuntimeError: no more can be made (RLIMIT_NPROC, a cgroup's pids.max, memory).
        """

    @abstractmethod
    def run(self) -> None:
        """Serve; returns when it has been drained or stopped."""

    @abstractmethod
    def drain(self, hand_over: bool = False, seconds: float | None = None) -> None:
        """Stop accepting; `run` returns when what is there has been answered or the time is over.

        May be called from a signal handler, and from a reader's callback.

        Args:
            hand_over: other workers go on serving.
            seconds: how long open requests may take; None: as long as `graceful_timeout` of this worker says.
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
