"""The demo's routes, as a table, and their WSGI application.

A route is a function from a request to an `DemoAnswer`; it raises `RequestError` for a mistake of the
client. `app` handles methods, HEAD and Content-Length for all of them. All parameters have an upper bound,
because a demo may be left running.
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
    """Raised by `/fail` on purpose."""


class RequestError(Exception):
    """A mistake of the client, with the answer for it.

    Args:
        status: the status line's code and reason.
        line: what is wrong, and what would be right.
        headers: further headers of the answer, e.g. `Allow`.
    """

    def __init__(self, status: str, line: str, headers: list[tuple[str, str]] | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.line = line
        self.headers = headers or []


class DemoAnswer(NamedTuple):
    """The result of a route; a body of bytes is sent with its length, an iterator in parts."""

    body: bytes | Iterator[bytes]
    content_type: str = TEXT
    headers: list[tuple[str, str]] = []  # noqa: RUF012 - never changed
    status: str = "200 OK"


class Number(NamedTuple):
    """A numeric parameter of a query."""

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
            raise RequestError("400 Bad DemoRequest", line)
        return value


SECONDS = Number("seconds", 3, 0, MAX_SLEEP)
MILLISECONDS = Number("ms", 200, 0, 10_000)
MEGABYTES = Number("mb", 10, 1, MAX_HELD)
LINES = Number("lines", 10, 1, 1000)
INTERVAL = Number("interval", 0.3, 0, 10)


class DemoRequest:
    """An environ, as the routes use it."""

    def __init__(self, environ: "WSGIEnvironment") -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        # A server gives an empty PATH_INFO for the root of a mounted app.
        self.path: str = environ.get("PATH_INFO", "") or "/"

    def numbers(self, *parameters: Number) -> list[float]:
        """The parameters of the query, in this order; raises `RequestError` for an invalid or unknown one."""
        given = dict(parse_qsl(self.environ.get("QUERY_STRING", ""), keep_blank_values=True))
        known = [parameter.name for parameter in parameters]
        for name in given:
            if name not in known:
                line = f"unknown parameter {name[:40]!r}: {self.path} takes {' and '.join(known)}"
                raise RequestError("400 Bad DemoRequest", line)
        return [parameter.read(given.get(parameter.name)) for parameter in parameters]

    def body(self) -> bytes:
        """The request body; without a length it is read to its end if the server supports that."""
        source = self.environ["wsgi.input"]
        length = self.environ.get("CONTENT_LENGTH")
        if length:
            if not (length.isascii() and length.isdigit()):
                raise RequestError("400 Bad DemoRequest", f"Content-Length {length[:40]!r} is not a number")
            left = int(length)
        else:
            # PEP 3333 defines no end of input without a length; servers that decode chunks set this key.
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


class KeptMemory:
    """The memory that `/leak` keeps in this worker; requests of several threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: list[bytes] = []
        self.megabytes = 0

    def add(self, megabytes: int) -> int:
        """Keep `megabytes` more; returns the total, or raises `RequestError` at the bound."""
        with self._lock:
            if self.megabytes + megabytes > MAX_HELD:
                raise RequestError(
                    "409 Conflict",
                    f"worker {os.getpid()} holds {self.megabytes} MB already and may hold {MAX_HELD} MB: "
                    "recycle it to free them",
                )
            # Not bytearray(n): untouched zero pages would use no memory.
            self._pieces.append(b"\xa5" * (megabytes * MEGABYTE))
            self.megabytes += megabytes
            return self.megabytes


kept = KeptMemory()


def _text(line: str) -> DemoAnswer:
    return DemoAnswer(f"{line}\n".encode())


def home(request: DemoRequest) -> DemoAnswer:
    return DemoAnswer(home_page(request.environ), "text/html; charset=utf-8", HTML_HEADERS)


def slow(request: DemoRequest) -> DemoAnswer:
    [seconds] = request.numbers(SECONDS)
    time.sleep(seconds)
    return _text(f"worker {os.getpid()} slept {seconds:g} s")


def fail(request: DemoRequest) -> DemoAnswer:
    raise DeliberateDemoError(f"{request.method} /fail always raises; the worker goes on serving")


def cpu(request: DemoRequest) -> DemoAnswer:
    [milliseconds] = request.numbers(MILLISECONDS)
    started = time.monotonic()
    # CPU time of this thread, so that other load makes the request longer.
    end = time.thread_time() + milliseconds / 1000
    rounds = 0
    while time.thread_time() < end:
        rounds += 1
    took = (time.monotonic() - started) * 1000
    return _text(f"worker {os.getpid()} used {milliseconds:g} ms of CPU in {took:.0f} ms")


def leak(request: DemoRequest) -> DemoAnswer:
    [asked] = request.numbers(MEGABYTES)
    megabytes = int(asked)
    held = kept.add(megabytes)
    return _text(f"worker {os.getpid()} kept {megabytes} MB more and holds {held} MB now")


def echo(request: DemoRequest) -> DemoAnswer:
    content_type = request.environ.get("CONTENT_TYPE") or "application/octet-stream"
    return DemoAnswer(request.body(), content_type)


def as_json(request: DemoRequest) -> DemoAnswer:
    found = {
        "app": "ostler demo",
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "server": request.environ.get("SERVER_SOFTWARE", ""),
        "multithread": bool(request.environ.get("wsgi.multithread")),
        "held_mb": kept.megabytes,
    }
    return DemoAnswer(json.dumps(found, indent=2).encode() + b"\n", "application/json")


def stream(request: DemoRequest) -> DemoAnswer:
    lines, interval = request.numbers(LINES, INTERVAL)
    if lines * interval > MAX_SLEEP:
        raise RequestError("400 Bad DemoRequest", f"lines times interval is more than {MAX_SLEEP:g} seconds")

    def generate() -> Iterator[bytes]:
        for number in range(1, int(lines) + 1):
            if number > 1:
                time.sleep(interval)
            yield f"line {number} of {int(lines)} from worker {os.getpid()}\n".encode()

    return DemoAnswer(generate())


def headers(request: DemoRequest) -> DemoAnswer:
    found = [
        (key.removeprefix("HTTP_").replace("_", "-").title(), value)
        for key, value in request.environ.items()
        if key.startswith("HTTP_") or (key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    ]
    # WSGI strings have one byte per character (PEP 3333), so this restores the received bytes.
    lines = "".join(f"{name}: {value}\n" for name, value in sorted(found)).encode("latin-1")
    return DemoAnswer(lines)


def healthz(request: DemoRequest) -> DemoAnswer:  # noqa: ARG001 - every route has this shape
    return _text("ok")


class DemoRoute(NamedTuple):
    handler: Callable[[DemoRequest], DemoAnswer]
    methods: tuple[str, ...] = ("GET", "HEAD")


ROUTES = {
    "/": DemoRoute(home),
    "/slow": DemoRoute(slow),
    "/fail": DemoRoute(fail),
    "/cpu": DemoRoute(cpu),
    "/leak": DemoRoute(leak),
    "/echo": DemoRoute(echo, ("POST", "PUT")),
    "/json": DemoRoute(as_json),
    "/stream": DemoRoute(stream),
    "/headers": DemoRoute(headers),
    "/healthz": DemoRoute(healthz),
}


def answer(request: DemoRequest) -> DemoAnswer:
    """Find and call the route; mistakes of the client become answers, too."""
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
    except RequestError as error:
        return DemoAnswer(f"{error.line}\n".encode(), TEXT, error.headers, error.status)


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """The WSGI application."""
    request = DemoRequest(environ)
    body, content_type, more, status = answer(request)
    fields = [("Content-Type", content_type), *SAFE_HEADERS, *more]
    if isinstance(body, bytes):
        fields.append(("Content-Length", str(len(body))))
        pieces: Iterable[bytes] = [body]
    else:
        pieces = body
    start_response(status, fields)
    return [] if request.method == "HEAD" else pieces
