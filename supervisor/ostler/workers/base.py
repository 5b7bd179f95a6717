"""What a worker class is: the part of a worker process that serves. This is the interface for plug-ins.

Third parties bring worker classes by an entry point in the group `ostler.workers`, whose name is the value of
`--worker-class` and whose object is a subclass of `BaseWorker`. A class in an app's own code needs no entry
point, its path will do: `--worker-class myapp.workers.Mine`.

Done for a worker class: the process, its title, signals and end; loading and warming up the app; the channel
to the supervisor; opening logs and reopening them; replacing the worker when it has served enough, takes too
much memory, or hangs; sharing what it has loaded with its successors. It runs in one process, which may have
threads. A worker class has to do this:

- `run` accepts from `context.listeners`, which are non-blocking and shared, so that `accept` may fail. It
  fails with EINVAL, and the listener is readable for ever, if the supervisor has shut that down: at the end
  of the daemon, or because a reload has dropped its address. At least once a second `run` calls
  `context.accounting.heartbeat(monotonic_ns())`. It also calls the callbacks of readers that are readable: in
  one of them `drain` will be called.
- It shows each request. A thread that serves makes its slot once, `slot = accounting.thread_slot(number)`,
  with a number below `settings.threads`. For each request it calls `slot.begin(method, target, now)` before
  the app, and `slot.end(status, bytes_sent, now)` after it. With `one_loop`, the loop's thread makes
  `thread_slot(0)`, and gets a slot for each request by `slot = accounting.begin(method, target, now)`. From
  this come deadlines, metrics, and what `ctl` shows: a request without it is served, but is not shown, not
  counted, and not found when it hangs.
- It counts connections: `slot.connection_opened()`, `slot.connection_closed()`.
- It calls `context.on_quota` when so many requests are answered, if `context.quota` is not 0.

It may do this:

- End requests that take too long: `interrupt` is called after the supervisor has found one overdue, which is
  then `slot.is_overdue(now)` (see workers.soft_interrupt). Give a request more time: `slot.extend(seconds)`.
- Say that a request makes progress, so that `timeout` counts from then: `slot.progressed(now)`. Say that it
  waits for its client, so that its time does not count: `slot.pause()`, until `slot.progressed(now)`.
- Write the access log (`context.access.answered`, and `flush` before it waits).
- Receive connections from siblings and hand them off (`context.handoff`).
- Serve TLS (`serves_tls`).

Signal handlers run in the main thread, and between any two steps of `run` if that is where it runs. The order
of calls is `prepare_process`, `check`, `prepare`, the app is imported, `create`, `add_reader`, `start`,
`start_threads`, `run`, `close`. The first two are called in the fork server, and `prepare` as well if it
loads the app.

A complete one is in tests/system/apps/reference.py. `ostler.scoreboard.accounting` documents the accounting.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ostler.logs.access import AccessLog
from ostler.logs.worker_log import Log
from ostler.scoreboard.accounting import Accounting
from ostler.settings.classes import Core
from ostler.settings.table import Settings
from ostler.workers.handoff import HandOff
from ostler.wsgi.exchange import Exchange

if TYPE_CHECKING:
    from ssl import SSLContext
    from types import FrameType


@dataclass(frozen=True, slots=True)
class Context:
    """What a worker class gets to serve with.

    Args:
        app: the app, a WSGI callable unless the class says otherwise.
        listeners: listening sockets, non-blocking, shared with all workers.
        settings: of this generation.
        accounting: shows and counts requests and connections; see ostler.scoreboard.accounting.
        log: takes events with fields.
        access: the access log, or None. Its `flush` is to be called when there is nothing else to do, and
            about once a second.
        quota: call `on_quota` with the number of answers once so many have been given; 0: never.
        on_quota: asks for a successor; the worker goes on serving until `drain` is called. Or it returns a
            number, because hooks have changed how many requests count: it is to be called again after so
            many answers.
        handoff: to sibling workers; None while priming and in tests.
        tls: what connections are wrapped with, or None; always None unless the class has `serves_tls`.
        exchange: serves one WSGI request, with the configuration file's hooks around the app if it has any.
        stacks_fd: takes dumps of stacks in faulthandler's format, at DUMP_SIGNAL; -1: they are not wanted.
    """

    app: Any
    listeners: list[socket.socket]
    settings: Settings
    accounting: Accounting
    log: Log
    access: AccessLog | None = None
    quota: int = 0
    on_quota: Callable[[int], int | None] = lambda _answers: None
    handoff: HandOff | None = None
    tls: "SSLContext | None" = None
    exchange: type[Exchange] = Exchange
    stacks_fd: int = -1


class BaseWorker(ABC):
    """Serves requests in a worker process.

    Attributes:
        interface: what kind of app it calls, `wsgi` or `asgi`.
        one_loop: all requests of a worker take turns in one thread, so that a loop without passes hangs,
            also while requests are in the app. It must call `heartbeat` twice a second. It may show as many
            requests at once as `worker_connections` says, and `threads` is without meaning.
        core: what serves its ordinary requests, for `ctl status`.
        calls_request_hooks: it serves by `context.exchange`, and so calls pre_request and post_request.
        serves_tls: it serves TLS with `context.tls`. Other classes are refused where TLS is configured.
        draining: `drain` was called.
    """

    interface: ClassVar[str] = "wsgi"
    one_loop: ClassVar[bool] = False
    core: ClassVar[Core] = "own"
    calls_request_hooks: ClassVar[bool] = False
    serves_tls: ClassVar[bool] = False
    draining: bool = False

    @classmethod
    def prepare_process(cls) -> list[str]:
        """Get the fork server ready for code of others, e.g. by monkey-patching; workers inherit that.

        It is called once: before the configuration file is evaluated if the command line names the class, or
        the file does so in a way that can be read without evaluating it; else right after the file.

        Returns:
            Why it comes too late for something that was imported before, for the log.
        """
        return []

    @classmethod
    def prepare(cls, settings: Settings) -> None:
        """Get the process ready for the app, e.g. by monkey-patching, before the app is imported.

        It is called in the process that imports the app: the fork server with `preload_app`, else each
        worker.

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
        """Make a worker that is ready to serve; nothing is accepted yet."""

    def start(self) -> None:
        """Do what else must succeed before the worker reports that it is ready, e.g. an ASGI app's startup.

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
        """Stop accepting; `run` returns when what is there has been answered, or the time is over.

        May be called from a signal handler, and from a reader's callback. May be called again.

        Args:
            hand_over: other workers go on serving: idle connections may be handed off to them.
            seconds: how long it may take from now, the supervisor's `graceful_timeout`. After that it kills
                the worker. None: as long as the worker's own setting says.
        """

    def empty_queue(self, listeners: list[socket.socket]) -> None:
        """Called before `drain` if the daemon stops: go on accepting from `listeners` until they are shut.

        They take no new connections. When none waits any more the supervisor shuts them down, and `accept`
        fails with EINVAL. A class that does not do this leaves waiting connections to be reset.

        Args:
            listeners: those of `context.listeners` that the daemon has bound, at least one. What waits in the
                others (`fd://`) is for the program that accepts from them next.
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
        """As `drain`, and close the listeners at once: another daemon may bind their addresses."""
        self.drain()

    def on_message(self) -> None:
        """A message of the supervisor has come. Called by a signal handler, also within a long request."""

    def interrupt(self, signum: int, frame: "FrameType | None") -> None:
        """Signal handler: end requests that the supervisor has marked as overdue, if that can be done.

        Raises:
            DeadlineExceeded: in the request that the signal has interrupted.
        """

    def extend_deadline(self, seconds: float) -> None:
        """Give the request that the calling thread serves at least `seconds` from now, if that can be done.

        Raises:
            ValueError: that is no time.
            RuntimeError: this thread serves no request.
        """

    def descriptors(self) -> set[int]:
        """The descriptors that `close` will close."""
        return set()

    def private_descriptors(self) -> Iterable[int]:
        """Descriptors for which a process that the app forks gets /dev/null: all of clients' connections, and
        what wakes this worker. Called in that process.
        """
        return ()

    def forked_by_app(self) -> None:
        """Called in a process that the app has forked: see to it that it ends when the app returns in it.

        If it went on in `run` it would be a second worker.
        """

    def close(self) -> None:
        """Close all descriptors but the listeners'; called after `run`."""
