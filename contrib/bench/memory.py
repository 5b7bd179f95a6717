#!/usr/bin/env python3
"""What requests leave in memory, in whatever way they end: resident memory of a worker and of the supervisor.

For each worker class and each kind of request a new daemon with one worker is started. The app has turned
the garbage collector off, so that reference cycles stay in memory. Paths, fields, cookies and client
addresses are different in each request, so that caches keyed by them grow. After a tenth of the
requests and after all of them, when all connections have ended, resident memory is read. The growth in
between is printed in MB.

Kinds that must wait for a time-out are requested less often, in proportion: see `Kind.share`. So are those
under TLS, each of which costs a handshake (`--tls-share`).

- worker kinds: requests that are served, refused, reset by the client, or too late;
- `control`: refused requests to the control API, by its Unix socket and by TCP; the supervisor's memory;
- `churn`: workers replaced one after another; the supervisor's memory, descriptors and threads.

Exit status: 1 if a worker grew by more than 5 MB or the supervisor by more than 2 MB, or a run failed. The
supervisor remembers the newest 1,000 events, so that requests that are overdue, which have stacks, fill up to
some megabytes.
"""

import argparse
import contextlib
import itertools
import json
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from ostler.errors import OstlerError
from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.processes import descriptors
from tests.kit.waiting import until

WORKER_MOST, SUPERVISOR_MOST = 5.0, 2.0  # MB
STUCK = 60.0  # seconds without any progress
CHURNED = 300  # workers
CONNECTING = 64  # connections opened in one pass, so that no listen queue overflows

APP = """\
import gc
gc.disable()
import asyncio, sys, time

LARGE = b"x" * 500_000

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/sleep"):
        while True:
            time.sleep(0.01)
    environ["wsgi.input"].read()
    if path.startswith("/error"):
        raise ValueError(path)
    if path.startswith("/missing"):
        body, status = b"not here\\n", "404 Not Found"
    else:
        body, status = (LARGE if path.startswith("/large") else b"ok\\n"), "200 OK"
    start_response(status, [("Content-Length", str(len(body))), ("X-Path", path)])
    return [body]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    path = scope["path"]
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close" if path.startswith("/refused") else "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": path})
        return
    if path.startswith("/sleep"):
        await asyncio.sleep(1000)
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if path.startswith("/error"):
        raise ValueError(path)
    if path.startswith("/missing"):
        body, status = b"not here\\n", 404
    else:
        body, status = (LARGE if path.startswith("/large") else b"ok\\n"), 200
    headers = [(b"content-length", str(len(body)).encode()), (b"x-path", path.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

CLASSES: dict[str, tuple[str, ...]] = {
    "sync": ("grown:app",),
    "threads": ("--threads", "4", "grown:app"),
    "gevent": ("-k", "gevent", "grown:app"),
    "eventlet": ("-k", "eventlet", "grown:app"),
    "asgi": ("-k", "asgi", "grown:asgi"),
    "sync tls": ("grown:app",),
    "gevent tls": ("-k", "gevent", "grown:app"),
    "eventlet tls": ("-k", "eventlet", "grown:app"),
    "asgi tls": ("-k", "asgi", "grown:asgi"),
}

# -- what is sent ------------------------------------------------------------------------------------------


def fields(number: int, more: str = "") -> str:
    """Header fields that differ in each request."""
    return (
        f"Host: host{number}.example\r\nCookie: id={number:x}; other={number * 7919}\r\n"
        f"User-Agent: agent/{number}\r\nX-Id-{number}: {number}\r\n"
        f"X-Forwarded-For: 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}\r\n{more}"
    )


def get(path: str, number: int, more: str = "Connection: close\r\n") -> bytes:
    return f"GET {path}/{number}?n={number} HTTP/1.1\r\n{fields(number, more)}\r\n".encode()


def post(number: int, more: str, body: str = "") -> bytes:
    return f"POST /{number} HTTP/1.1\r\n{fields(number, more)}\r\n{body}".encode()


def upgrade(path: str, number: int) -> bytes:
    return get(
        path,
        number,
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    )


BATCH = 50


def batch(path: str) -> Callable[[int], bytes]:
    """Pipelined requests; the last one ends the connection."""

    def made(number: int) -> bytes:
        numbers = range(number * BATCH, (number + 1) * BATCH - 1)
        return b"".join(get(path, n, "") for n in numbers) + get(path, numbers.stop)

    return made


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        data: what connection number n sends.
        per_connection: requests that this is.
        end: the client waits for the `server` to close, or resets `at once` or at an `answer`'s first byte.
        share: how many of the requests are made.
        at_once: connections open at a time.
        words: more of the command line.
        status: of the first answer on most connections; empty: any or none.
        prefix: sent before all else, TLS included; then: sent when an answer begins.
    """

    data: Callable[[int], bytes]
    per_connection: int = 1
    end: str = "server"
    share: float = 1.0
    at_once: int = 100
    words: tuple[str, ...] = ()
    status: bytes = b""
    prefix: Callable[[int], bytes] | None = None
    then: bytes = b""


LATE = ("--header-timeout", "0.2", "--body-timeout", "0.2", "--keep-alive", "0.2")
SMALL = ("--limit-request-body", "100000")
OVERDUE = ("--timeout", "0.1", "--timeout-grace", "60")
CUT = "Content-Length: 100\r\n"
MANY = 2000
CHUNKED = "Connection: close\r\nTransfer-Encoding: chunked\r\n"
PROXIED = ("--proxy-protocol", "v1", "--proxy-allow-from", "*")
# RFC 6455 section 5.2: a text of one letter, and the end; both masked with zeros.
FRAMES = b"\x81\x81\0\0\0\0x\x88\x82\0\0\0\0\x03\xe8"


def proxied(number: int) -> bytes:
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return f"PROXY TCP4 {address} 192.0.2.1 {number % 50_000 + 1} 443\r\n".encode()


KINDS: dict[str, Kind] = {
    "served": Kind(batch("/ok"), BATCH, at_once=16, status=b"200"),
    "served, new": Kind(lambda n: get("/ok", n), status=b"200"),
    "body": Kind(lambda n: post(n, "Connection: close\r\nContent-Length: 3\r\n", "abc"), status=b"200"),
    "404 of the app": Kind(batch("/missing"), BATCH, at_once=16, status=b"404"),
    "error in the app": Kind(lambda n: get("/error", n), share=0.2, status=b"500"),
    "400 line": Kind(lambda n: f"what is {n}?\r\n\r\n".encode(), status=b"400"),
    "400 field": Kind(lambda n: get("/", n, f"a b{n}: c\r\n"), status=b"400"),
    "413": Kind(lambda n: post(n, "Content-Length: 100001\r\n"), words=SMALL, status=b"413"),
    "414": Kind(lambda n: get("/" + "x" * 9000, n), status=b"414"),
    "431": Kind(lambda n: get("/", n, f"x: {'x' * 60_000}\r\n"), status=b"431"),
    "431 fields": Kind(lambda n: get("/", n, "".join(f"n{i}-{n}: b\r\n" for i in range(200))), status=b"431"),
    "reset in a head": Kind(lambda n: get("/", n)[:-10], end="at once"),
    "reset in a body": Kind(lambda n: post(n, CUT, "abc"), end="at once"),
    "reset in an answer": Kind(lambda n: get("/large", n), end="answer", at_once=16),
    "504 deadline": Kind(lambda n: get("/sleep", n), share=0.02, at_once=200, words=OVERDUE, status=b"504"),
    "408 head": Kind(lambda n: get("/", n)[:-10], at_once=MANY, words=LATE, status=b"408"),
    "408 body": Kind(lambda n: post(n, CUT, "abc"), at_once=MANY, words=LATE, status=b"408"),
    "idle": Kind(lambda n: get("/ok", n, ""), at_once=MANY, words=LATE, status=b"200"),
    "silent": Kind(lambda _: b"", share=0.05, at_once=MANY, words=LATE),
    "trailers": Kind(lambda n: post(n, CHUNKED, f"3\r\nabc\r\n0\r\nX-{n}: {n}\r\n\r\n"), status=b"200"),
    "continue, reset": Kind(lambda n: post(n, f"{CUT}Expect: 100-continue\r\n"), end="answer", status=b"100"),
    "pipelined, reset": Kind(batch("/large"), BATCH, end="at once", at_once=16),
    "PROXY": Kind(lambda n: get("/ok", n), words=PROXIED, prefix=proxied, status=b"200"),
    "PROXY, reset": Kind(lambda n: get("/ok", n)[:-10], end="at once", words=PROXIED, prefix=proxied),
}  # fmt: skip
WEBSOCKETS: dict[str, Kind] = {
    "websocket": Kind(lambda n: upgrade("/ok", n), then=FRAMES, status=b"101"),
    "websocket refused": Kind(lambda n: upgrade("/refused", n), status=b"403"),
    "websocket reset": Kind(lambda n: upgrade("/ok", n), end="answer", status=b"101"),
    "websocket cut": Kind(lambda n: upgrade("/ok", n)[:-10], end="at once"),
}
TLS_KINDS: dict[str, Kind] = {
    "plain HTTP": Kind(lambda n: get("/", n)),
    "no TLS": Kind(lambda n: b"\x16\x03\x01" + bytes([n & 255]) * 300),
    "late handshake": Kind(lambda _: b"\x16\x03\x01", at_once=MANY, words=LATE),
}
# uvicorn has no such limits, or higher ones, or does not support PROXY headers.
NOT_FOR_ASGI = {"413", "414", "431", "431 fields", "PROXY", "PROXY, reset"}
# uvicorn sends no answer to a first head that is late.
SILENT_IN_ASGI = {"408 head"}


# -- the client --------------------------------------------------------------------------------------------


class Connection:
    """One connection of the client."""

    def __init__(
        self, sock: socket.socket, number: int, kind: Kind, data: bytes, tls: ssl.SSLContext | None
    ) -> None:
        self.sock = sock
        self.number = number
        self.status = b""
        self._kind = kind
        self._left = data
        if tls is not None:
            self.sock = tls.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")

    def go_on(self) -> int:
        """Continue the connection. Returns the events to wait for (epoll(7)); 0: it has ended."""
        try:
            if isinstance(self.sock, ssl.SSLSocket) and self._left and not self.sock.version():
                self.sock.do_handshake()
            while self._left:
                self._left = self._left[self.sock.send(self._left) :]
            if self._kind.end == "at once":
                return 0
            while data := self.sock.recv(1 << 18):
                if self._kind.then and not self.status:
                    self.sock.send(self._kind.then)
                self.status = self.status or data[9:12]
                if self._kind.end == "answer":
                    return 0
        except (BlockingIOError, ssl.SSLWantReadError):
            return select.EPOLLIN | (
                select.EPOLLOUT if self._left and not isinstance(self.sock, ssl.SSLSocket) else 0
            )
        except ssl.SSLWantWriteError:
            return select.EPOLLOUT
        except OSError:
            pass
        return 0


def play(
    address: tuple[str, int], kind: Kind, numbers: range, tls: ssl.SSLContext | None
) -> dict[bytes, int]:
    """Make connections, `at_once` at a time; returns how many first answers had which status.

    Raises:
        AssertionError: the server does nothing any more.
    """
    epoll = select.epoll()
    live: dict[int, Connection] = {}
    found: dict[bytes, int] = {}
    todo = iter(numbers)
    more = True
    moved = time.monotonic()
    linger = struct.pack("ii", 1, 0)  # each close is a reset, so that no port stays in TIME_WAIT
    while more or live:
        for _ in range(min(CONNECTING, kind.at_once - len(live))):
            number = next(todo, None)
            if number is None:
                more = False
                break
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.bind((f"127.{number >> 14 & 63}.{number >> 7 & 127}.{(number & 127) + 1}", 0))
            sock.setblocking(False)
            sock.connect_ex(address)
            if kind.prefix is not None:
                sock.send(kind.prefix(number))
            connection = Connection(sock, number, kind, kind.data(number), tls)
            # On loopback a connection is established at once, as long as the listen queue has room.
            if mask := connection.go_on():
                live[connection.sock.fileno()] = connection
                epoll.register(connection.sock.fileno(), mask)
            else:
                connection.sock.close()
                found[connection.status] = found.get(connection.status, 0) + 1
                moved = time.monotonic()
        events = epoll.poll(1.0 if live else 0.0)
        for fd, _ in events:
            connection = live[fd]
            if mask := connection.go_on():
                epoll.modify(fd, mask)
                continue
            del live[fd]
            connection.sock.close()
            found[connection.status] = found.get(connection.status, 0) + 1
            moved = time.monotonic()
        assert time.monotonic() - moved < STUCK, f"{len(live)} connections do not end"
    epoll.close()
    return found


# -- memory ------------------------------------------------------------------------------------------------


def resident(pid: int) -> float:
    """Resident memory in MB, without pages of files (proc_pid_status(5): RssAnon)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def sockets(pid: int) -> int:
    return sum(name.startswith("socket:") for name in descriptors(pid))


@dataclass(frozen=True)
class Sample:
    """Resident memory in MB; descriptors and threads of the supervisor."""

    worker: float
    supervisor: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Figures:
    """What was there after a tenth and after all of the requests.

    Attributes:
        count: requests in between; seconds: what these took; statuses: of their answers.
    """

    worker_class: str
    kind: str
    count: int
    seconds: float
    first: Sample
    last: Sample
    statuses: dict[str, int]
    problem: str = ""

    @property
    def good(self) -> bool:
        return (
            not self.problem
            and self.last.worker - self.first.worker <= WORKER_MOST
            and self.last.supervisor - self.first.supervisor <= SUPERVISOR_MOST
            and self.last.descriptors <= self.first.descriptors + 3
            and self.last.threads <= self.first.threads + 3
        )

    def row(self) -> str:
        def memory(name: str, before: float, after: float) -> str:
            return f"{name} {before:6.1f} MB {after - before:+6.2f}"

        return "  ".join(
            [
                f"{self.worker_class:10} {self.kind:18} {self.count:7,} in {self.seconds:6.1f} s",
                memory("worker", self.first.worker, self.last.worker),
                memory("supervisor", self.first.supervisor, self.last.supervisor),
                f"fds {self.first.descriptors}/{self.last.descriptors}",
                f"threads {self.first.threads}/{self.last.threads}",
                " ".join(f"{status or '-'}: {count:,}" for status, count in sorted(self.statuses.items())),
                self.problem or ("" if self.good else "GREW"),
            ]
        )


def sample(daemon: Daemon, worker: int | None) -> Sample:
    threads = len(list(Path(f"/proc/{daemon.pid}/task").iterdir()))
    return Sample(
        resident(worker) if worker is not None else 0.0,
        resident(daemon.pid),
        len(descriptors(daemon.pid)),
        threads,
    )


# -- runs --------------------------------------------------------------------------------------------------


def run_kind(worker_class: str, name: str, kind: Kind, options: argparse.Namespace) -> Figures:
    secure, silent = worker_class.endswith("tls"), worker_class.startswith("asgi")
    count = int(options.requests * kind.share * (options.tls_share if secure else 1))
    connections = max(10, count // kind.per_connection)
    with Place() as place:
        place.add("grown.py", APP)
        words = ["--worker-connections", str(2 * MANY), "--limit-connections-per-address", "100"]
        words += ["--backlog", str(2 * MANY), "--access-logfile", str(place.folder / "access.log")]
        tls = None
        if secure:
            authority = Authority(place.folder)
            server = authority.issue("localhost")
            words += ["--certfile", server.cert, "--keyfile", server.key]
            if name not in TLS_KINDS:
                tls = authority.client_context()
        daemon = place.start(*words, *kind.words, *CLASSES[worker_class])
        worker = daemon.pids()[0]
        open_before = sockets(worker)

        def settled() -> None:
            until(lambda: sockets(worker) <= open_before, "all connections are closed")

        # The first sample already contains the memory for connections that are open at the same time.
        tenth = max(connections // 10, min(2 * kind.at_once, connections // 2))
        play(daemon.address, kind, range(tenth), tls)
        settled()
        first, began = sample(daemon, worker), time.monotonic()
        found = play(daemon.address, kind, range(tenth, connections), tls)
        settled()
        seconds = time.monotonic() - began
        problem = ""
        if daemon.pids() != [worker]:
            problem = "the worker was replaced"
        elif (
            kind.status
            and not (silent and name in SILENT_IN_ASGI)
            and found.get(kind.status, 0) < 0.9 * (connections - tenth)
        ):
            problem = f"not answered with {kind.status.decode()}"
        if problem:
            place.keep = True
        return Figures(
            worker_class,
            name,
            (connections - tenth) * kind.per_connection,
            seconds,
            first,
            sample(daemon, worker),
            {status.decode("latin-1"): number for status, number in found.items()},
            problem,
        )


STATUS_LINE = "GET /v1/status?n=@ HTTP/1.1\r\n"
SCALE = "POST /v1/scale HTTP/1.1\r\nHost: HOST\r\nTOKENContent-Type: application/json\r\n"
CLOSE = "Connection: close\r\n\r\n"

# The answer's status, and the request. HOST stands for the listener's name, @ for the request's number.
CONTROL: dict[str, tuple[bytes, str]] = {
    "200": (b"200", f"{STATUS_LINE}Host: HOST\r\nX-@: @\r\nTOKEN{CLOSE}"),
    "401": (b"401", f"{STATUS_LINE}Host: HOST\r\nAuthorization: Bearer @\r\n{CLOSE}"),
    "404": (b"404", f"GET /v1/@ HTTP/1.1\r\nHost: HOST\r\nTOKEN{CLOSE}"),
    "413": (b"413", f"{SCALE}X-@: @\r\nContent-Length: 100000\r\n\r\n"),
    "400": (b"400", "what is @?\r\n\r\n"),
    "bad Host": (b"403", f"{STATUS_LINE}Host: @.example\r\nTOKEN{CLOSE}"),
    "closed early": (b"", f"{STATUS_LINE}Host: HOST\r\nX-@"),
    "closed in a body": (b"", f"{SCALE}Content-Length: 1000\r\n\r\n["),
    "closed": (b"", ""),
}
TCP_ALONE = {"401", "bad Host"}


def run_control(name: str, tcp: bool, options: argparse.Namespace) -> Figures:
    status, template = CONTROL[name]
    with Place() as place:
        place.add("grown.py", APP)
        token = place.folder / "token"
        token.write_text("t" * 40 + "\n")
        token.chmod(0o600)
        port = servers.free_port()
        words = ["--control-bind", f"127.0.0.1:{port}", "--control-token-file", str(token)]
        daemon = place.start(*words, *CLASSES["sync"])
        daemon.settled(1)
        where: tuple[str, int] | str = ("127.0.0.1", port) if tcp else str(daemon.socket)
        given = f"Authorization: Bearer {'t' * 40}\r\n" if tcp else ""
        request = template.replace("HOST", f"127.0.0.1:{port}" if tcp else "localhost").replace(
            "TOKEN", given
        )

        def run(numbers: range) -> dict[bytes, int]:
            found: dict[bytes, int] = {}
            for number in numbers:
                data = request.replace("@", str(number)).encode()
                with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as sock:
                    if tcp:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.connect(where)  # connect() waits for room in the listen queue, without a time-out
                    sock.settimeout(STUCK)
                    answer = b""
                    try:
                        sock.sendall(data)
                        while status and (part := sock.recv(1 << 16)):
                            answer = answer or part
                            if status == b"413":
                                break
                    except (BrokenPipeError, ConnectionResetError):
                        pass
                found[answer[9:12]] = found.get(answer[9:12], 0) + 1
            return found

        tenth = options.control_requests // 10
        run(range(tenth))
        time.sleep(1.0)
        first, began = sample(daemon, None), time.monotonic()
        found = run(range(tenth, options.control_requests))
        seconds = time.monotonic() - began
        time.sleep(1.0)
        problem = ""
        if found.get(status, 0) < 0.9 * (options.control_requests - tenth):
            problem = f"not answered with {status.decode()}"
        statuses = {status.decode("latin-1"): number for status, number in found.items()}
        where = "tcp" if tcp else "unix"
        return Figures(
            "control",
            f"{name}, {where}",
            options.control_requests - tenth,
            seconds,
            first,
            sample(daemon, None),
            statuses,
            problem,
        )


def run_churn(options: argparse.Namespace) -> Figures:
    with Place() as place:
        place.add("grown.py", APP)
        daemon = place.start("-w", "4", "--max-requests", "1", *CLASSES["sync"])
        daemon.settled(4)

        def run(number: int) -> None:
            """Each answer is the last one of a worker."""
            end = len(daemon.events("worker_ready")) + number
            while (left := end - len(daemon.events("worker_ready"))) > 0:
                for _ in range(left):
                    with contextlib.suppress(OSError):
                        daemon.get()
            daemon.settled(4)

        run(options.churned // 3)
        first, began = sample(daemon, None), time.monotonic()
        run(options.churned)
        seconds = time.monotonic() - began
        return Figures("sync", "churn", options.churned, seconds, first, sample(daemon, None), {})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--tls-share",
        type=float,
        default=0.2,
        metavar="PART",
        help="of the requests, under TLS; default: %(default)s",
    )
    parser.add_argument(
        "--control-requests", type=int, default=20_000, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--churned", type=int, default=CHURNED, metavar="N", help="workers; default: %(default)s"
    )
    parser.add_argument(
        "--classes",
        default=",".join([*CLASSES, "control", "churn"]),
        metavar="NAMES",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--kinds", default="", metavar="WORDS", help="kinds that have one of these in their name"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    options = parser.parse_args()
    servers.end_on_sigterm()
    found: list[Figures] = []
    good = True
    for worker_class, name, run in runs(options):
        try:
            figures = run()
        except (AssertionError, OSError, OstlerError, subprocess.CalledProcessError) as error:
            print(f"{worker_class:10} {name:18}  FAILED: {str(error).splitlines()[0]}", flush=True)
            good = False
            continue
        print(figures.row(), flush=True)
        found.append(figures)
        good = good and figures.good
    if options.json:
        options.json.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")
    return 0 if found and good else 1


def runs(options: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], Figures]]]:
    """Worker class, kind, and what measures it."""
    words = options.kinds.split(",")
    for worker_class in options.classes.split(","):
        if worker_class == "control":
            for name, tcp in itertools.product(CONTROL, (False, True)):
                title = f"{name}, {'tcp' if tcp else 'unix'}"
                if (tcp or name not in TCP_ALONE) and any(word in title for word in words):
                    yield "control", title, lambda n=name, t=tcp: run_control(n, t, options)
            continue
        if worker_class == "churn":
            yield "sync", "churn", lambda: run_churn(options)
            continue
        kinds = KINDS | TLS_KINDS if worker_class.endswith("tls") else KINDS
        if worker_class.startswith("asgi"):
            kinds = kinds | WEBSOCKETS
        for name, kind in kinds.items():
            if (worker_class.startswith("asgi") and name in NOT_FOR_ASGI) or not any(
                w in name for w in words
            ):
                continue
            yield worker_class, name, lambda c=worker_class, n=name, k=kind: run_kind(c, n, k, options)


if __name__ == "__main__":
    sys.exit(main())
