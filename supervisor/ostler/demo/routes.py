"""The demo's routes, as a table, and the one place that turns an answer into WSGI.

A route is a function from a request to an `Answer`; it raises `RequestError` for what the client got wrong.
`app` does the rest for all of them: which methods a path takes, HEAD, Content-Length. Everything a client may
ask for has an upper bound, because the demo may be left running and forgotten.
"""

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

from ostler.demo.page import home_page

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

MAX_SLEEP = 300.0  # seconds
MAX_HELD = 1024  # megabytes kept by one worker
MAX_ECHO = 64 * 1024 * 1024  # bytes
MEGABYTE = 1024 * 1024

TEXT = "text/plain; charset=utf-8"
SAFE_HEADERS = [("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store")]
HTML_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'",
    )
]


class DeliberateDemoError(Exception):
    """What `/fail` raises: not a defect, an exception to look at in the log."""


class RequestError(Exception):
    """The client's mistake, with the answer it gets.

    Args:
        status: the status line's code and reason.
        line: one line that says what is wrong and what would be right.
        headers: what else the answer has to say, e.g. `Allow`.
    """

    def __init__(self, status: str, line: str, headers: list[tuple[str, str]] | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.line = line
        self.headers = headers or []


class Answer(NamedTuple):
    """What a route gives; a body of bytes is sent with its length, an iterator as it comes."""

    body: bytes | Iterator[bytes]
    content_type: str = TEXT
    headers: list[tuple[str, str]] = []  # noqa: RUF012 - never changed
    status: str = "200 OK"


class Number(NamedTuple):
    """A number that a query may give."""

    name: str
    default: float
    least: float
    most: float

    def read(self, given: str | None) -> float:
        if given is None:
            return self.default
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most:  # false for nan, too
            line = f"{self.name}={given[:40]!r} is not a number from {self.least:g} to {self.most:g}"
            raise RequestError("400 Bad Request", line)
        return value


SECONDS = Number("seconds", 3, 0, MAX_SLEEP)
MILLISECONDS = Number("ms", 200, 0, 10_000)
MEGABYTES = Number("mb", 10, 1, MAX_HELD)
LINES = Number("lines", 10, 1, 1000)
INTERVAL = Number("interval", 0.3, 0, 10)


class Request:
    """The environ, read the way the routes need it."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        # A server gives an empty PATH_INFO for the root of a mounted app.
        self.path: str = environ.get("PATH_INFO", "") or "/"

    def numbers(self, *parameters: Number) -> list[float]:
        """The query's parameters, in this order; raises `RequestError` for any that is wrong or unknown."""
        given = dict(parse_qsl(self.environ.get("QUERY_STRING", ""), keep_blank_values=True))
        known = [parameter.name for parameter in parameters]
        for name in given:
            if name not in known:
                line = f"unknown parameter {name[:40]!r}: {self.path} takes {' and '.join(known)}"
                raise RequestError("400 Bad Request", line)
        return [parameter.read(given.get(parameter.name)) for parameter in parameters]

    def body(self) -> bytes:
        """The whole request body; without a length it is read to its end where the server marks one."""
        source = self.environ["wsgi.input"]
        length = self.environ.get("CONTENT_LENGTH")
        if length:
            if not (length.isascii() and length.isdigit()):
                raise RequestError("400 Bad Request", f"Content-Length {length[:40]!r} is not a number")
            left = int(length)
        else:
            # PEP 3333 knows no end of input without a length; servers that decode chunks say that theirs has.
            left = MAX_ECHO + 1 if self.environ.get("wsgi.input_terminated") else 0
        too_large = RequestError("413 Content Too Large", f"/echo takes at most {MAX_ECHO} bytes")
        if length and left > MAX_ECHO:
            raise too_large
        parts = []
        while left and (part := source.read(min(left, 65536))):
            parts.append(part)
            left -= len(part)
        if not length and parts and not left:
            raise too_large
        return b"".join(parts)


class Hoard:
    """The memory that `/leak` keeps in this worker; requests of several threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[bytes] = []
        self.megabytes = 0

    def add(self, megabytes: int) -> int:
        """Keep `megabytes` more; return how many are held now, or raise `RequestError` at the bound."""
        with self._lock:
            if self.megabytes + megabytes > MAX_HELD:
                raise RequestError(
                    "409 Conflict",
                    f"worker {os.getpid()} holds {self.megabytes} MB already and may hold {MAX_HELD} MB: "
                    "recycle it to free them",
                )
            # Not bytearray(n): untouched zero pages would count as nobody's memory.
            self._pieces.append(b"\xa5" * (megabytes * MEGABYTE))
            self.megabytes += megabytes
            return self.megabytes


hoard = Hoard()


def _text(line: str) -> Answer:
    return Answer(f"{line}\n".encode())


def home(request: Request) -> Answer:
    return Answer(home_page(request.environ), "text/html; charset=utf-8", HTML_HEADERS)


def slow(request: Request) -> Answer:
    [seconds] = request.numbers(SECONDS)
    time.sleep(seconds)
    return _text(f"worker {os.getpid()} slept {seconds:g} s")


def fail(request: Request) -> Answer:
    raise DeliberateDemoError(f"{request.method} /fail always raises; the worker goes on serving")


def cpu(request: Request) -> Answer:
    [milliseconds] = request.numbers(MILLISECONDS)
    started = time.monotonic()
    # CPU time of this thread, so that busy neighbours make it longer and not smaller.
    end = time.thread_time() + milliseconds / 1000
    rounds = 0
    while time.thread_time() < end:
        rounds += 1
    took = (time.monotonic() - started) * 1000
    return _text(f"worker {os.getpid()} burnt {milliseconds:g} ms of CPU in {took:.0f} ms")


def leak(request: Request) -> Answer:
    [asked] = request.numbers(MEGABYTES)
    megabytes = int(asked)
    held = hoard.add(megabytes)
    return _text(f"worker {os.getpid()} kept {megabytes} MB more and holds {held} MB now")


def echo(request: Request) -> Answer:
    content_type = request.environ.get("CONTENT_TYPE") or "application/octet-stream"
    return Answer(request.body(), content_type)


def as_json(request: Request) -> Answer:
    facts = {
        "app": "ostler demo",
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "server": request.environ.get("SERVER_SOFTWARE", ""),
        "multithread": bool(request.environ.get("wsgi.multithread")),
        "held_mb": hoard.megabytes,
    }
    return Answer(json.dumps(facts, indent=2).encode() + b"\n", "application/json")


def stream(request: Request) -> Answer:
    lines, interval = request.numbers(LINES, INTERVAL)
    if lines * interval > MAX_SLEEP:
        raise RequestError("400 Bad Request", f"lines times interval is more than {MAX_SLEEP:g} seconds")

    def generate() -> Iterator[bytes]:
        for number in range(1, int(lines) + 1):
            if number > 1:
                time.sleep(interval)
            yield f"line {number} of {int(lines)} from worker {os.getpid()}\n".encode()

    return Answer(generate())


def headers(request: Request) -> Answer:
    found = [
        (key.removeprefix("HTTP_").replace("_", "-").title(), value)
        for key, value in request.environ.items()
        if key.startswith("HTTP_") or (key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    ]
    # WSGI strings hold one byte a character (PEP 3333), so this gives back what was on the wire.
    lines = "".join(f"{name}: {value}\n" for name, value in sorted(found)).encode("latin-1")
    return Answer(lines)


def healthz(request: Request) -> Answer:  # noqa: ARG001 - every route has this shape
    return _text("ok")


class Route(NamedTuple):
    handler: Callable[[Request], Answer]
    methods: tuple[str, ...] = ("GET", "HEAD")


ROUTES = {
    "/": Route(home),
    "/slow": Route(slow),
    "/fail": Route(fail),
    "/cpu": Route(cpu),
    "/leak": Route(leak),
    "/echo": Route(echo, ("POST", "PUT")),
    "/json": Route(as_json),
    "/stream": Route(stream),
    "/headers": Route(headers),
    "/healthz": Route(healthz),
}


def answer(request: Request) -> Answer:
    """Find the route and call it; what the client got wrong comes back as an answer, too."""
    try:
        route = ROUTES.get(request.path)
        if route is None:
            raise RequestError("404 Not Found", f"no such page; there are: {' '.join(ROUTES)}")
        if request.method not in route.methods:
            allowed = ", ".join(route.methods)
            raise RequestError(
                "405 Method Not Allowed", f"{request.path} takes {allowed}", [("Allow", allowed)]
            )
        return route.handler(request)
    except RequestError as refused:
        return Answer(f"{refused.line}\n".encode(), TEXT, refused.headers, refused.status)


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """The WSGI application."""
    request = Request(environ)
    body, content_type, more, status = answer(request)
    fields = [("Content-Type", content_type), *SAFE_HEADERS, *more]
    if isinstance(body, bytes):
        fields.append(("Content-Length", str(len(body))))
        pieces: Iterable[bytes] = [body]
    else:
        pieces = body
    start_response(status, fields)
    return [] if request.method == "HEAD" else pieces
