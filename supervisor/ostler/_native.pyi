"""The C extension, from supervisor/native. It is optional: see `ostler.native`."""

from collections.abc import Callable
from typing import Any

from ostler.http1.head import Head, Rules
from ostler.http1.request import RequestParser
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.connection import Connection
from ostler.workers.wsgi_runner import WsgiRunner

def fork_orphan(own_group: bool, /) -> int:
    """Fork a process whose parent becomes the next subreaper (prctl(2)) and not this process.

    The functions of `os.register_at_fork`, and handlers of pthread_atfork(3), run once: "before" and
    "after in parent" in this process, "after in child" in the new one.

    own_group: the new process leads a process group of its own.

    Returns 0 in the new process, else its pid. Raises OSError.
    """

class RequestRules:
    """What `ordinary_request` has to know of `ostler.http1.head.Rules`.

    schemes: `Rules.secure_scheme_headers`; parse_head: `ostler.http1.head.parse_head`. One object is for one
    process, which may have threads.
    """

    def __init__(
        self,
        rules: Rules,
        parse_head: Callable[[bytes, str, Rules], Head],
        schemes: dict[bytes, bytes],
        max_line: int,
        max_fields: int,
        max_field_size: int,
        max_body: int,
    ) -> None: ...

class Request:
    """A request that is complete; stands for `ostler.http1.request.Request` and for its `Line`.

    body: None; its bytes are in the environ, as `wsgi.input`.
    head: made by `parse_head` when it is asked for; nothing that serves ordinary requests does.
    """

    keep_alive: bool
    line: Request
    head: Head
    headers: list[tuple[bytes, bytes]]
    method: str
    target: bytes
    protocol: str
    raw_uri: str
    path: str
    query: str
    authority: None
    body: None
    length: int
    complete: bool
    ordinary: bool
    upgrade: bool

    def environ(self, template: dict[str, Any], /) -> dict[str, Any]:
        """Its environ, as `ostler.wsgi.environ.request_environ` would make it.

        template: what all requests of its connection have in common: the result of `connection_environ`.
        """

def ordinary_request(data: bytes, rules: RequestRules, /) -> Request | None:
    """The request that `data` is, if these are exactly one, and it is plainly ordinary; else None.

    What it does not recognize may be valid, incomplete, malformed, or several requests.
    """

class OrdinaryReceiver:
    """Reads from connections. Called only by the thread that polls.

    size: bytes of one read.
    """

    def __init__(
        self, *, connection_type: type[Connection], parser_type: type[RequestParser], size: int
    ) -> None: ...
    def receive(self, connection: Connection, /) -> bytes | None:
        """Read once from a connection without TLS and without output that waits.

        Returns what has come, which the parser has not got; or None if that is one ordinary request, which
        was put into `parser.requests`, and no other one is being received.

        Raises OSError, e.g. BlockingIOError.
        """

def note_fork() -> None:
    """This process was forked by the app, so nothing is sent by `OrdinaryRunner` any more."""

class SlotMemory:
    """The memory of a `RequestSlot`, for `OrdinaryRunner`; its arguments are those of a slot."""

    def __init__(self, words: memoryview, text: memoryview, counts: memoryview, /) -> None: ...
    def unmap(self) -> None:
        """Give the memory back."""

class Response:
    """`start_response` of a request that OrdinaryRunner serves; for the access log, what was answered.

    What it does not encode itself, such as the head of an answer without a body, it leaves to an `Exchange`.
    """

    status: str
    headers: list[tuple[str, str]]
    sent: int
    error: None

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = ...
    ) -> Callable[[bytes], None]: ...
    def write(self, data: bytes, /) -> None:
        """PEP 3333's write()."""

class Begun:
    """An app that goes on with what another has returned or raised; and the iterable that it returns."""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any: ...
    def __iter__(self) -> Begun: ...
    def __next__(self) -> Any: ...
    def close(self) -> None:
        """Call close() of what the app has returned, if that was not done; raise what it has raised."""
    def fail(self, error: BaseException, /) -> None:
        """Raise this instead of what would come next."""

class OrdinaryRunner:
    """Serves ordinary requests whose answers go out in one send; see supervisor/native/exchange.c.

    app: the WSGI app. make_exchange: makes what goes on with a request in Python. date: has `lines`, those
    that the server adds to each head. layout: the module of this name. quick: `request_slot.QUICK`. logs,
    counts_down, averages: whether requests are logged, counted for the quota, and taken into the runner's
    average. is_exact: requests that may have waited are left to Python. long_request: one that takes longer
    (ns) may have been interrupted, so Python ends it. most_of_average: a longer one counts as this (ns) in
    the average. join_limit: `exchange.JOIN_LIMIT`.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        make_exchange: Callable[[Request, Any], Any],
        date: Any,
        connection_type: type,
        parser_type: type,
        slot_type: type,
        file_wrapper: type,
        layout: Any,
        quick: list[int],
        logs: bool,
        counts_down: bool,
        averages: bool,
        is_exact: bool,
        long_request: int,
        most_of_average: int,
        join_limit: int,
    ) -> None: ...
    def run(self, runner: WsgiRunner, connection: Connection, slot: RequestSlot, prompt_until: int, /) -> int:
        """Serve the connection's only request.

        Returns 1 if it was answered and counted; 2 if it was begun and Python has to go on: `slot.unfinished`
        is its request, exchange, environ, app (a `Begun`), and when it began; 0 if it was not begun.
        """
