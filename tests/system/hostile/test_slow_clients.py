"""Clients that open many connections and send as little as they can: other clients are served meanwhile."""

import _ssl
import ctypes
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.kit.certificates import Authority
from tests.kit.daemon import OSTLER, Daemon, Place
from tests.kit.hostile import CLASSES, SLACK, USUAL, each_class
from tests.kit.tiers import thorough, tiers
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

CONNECTIONS = 50
ATTACKERS = 300
"""Sockets against one worker that keeps `CONNECTIONS`; each that is cut is opened again at once."""
ANSWERED_WITHIN = 1.0
PROBES = 5
LIMITS = ("-w", "1", "--worker-connections", str(CONNECTIONS))
READS = """
async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""
LATER = """
import asyncio
async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    await asyncio.sleep(0.2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})
"""
BIG = """
async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    body = bytes(8_000_000 if scope["path"] == "/big" else 1)
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})
"""
SIZE = 3_000_000
LARGE = f"""
import asyncio.constants
asyncio.constants.SSL_SHUTDOWN_TIMEOUT = 1.0  # instead of 30 s: how long a closed connection may take
LARGE = bytes({SIZE})
def app(environ, start_response):
    body = {{"/large": LARGE, "/larger": LARGE * 4}}.get(environ["PATH_INFO"], b"x")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("only http")
    body = {{"/large": LARGE, "/larger": LARGE * 4}}.get(scope["path"], b"x")
    length = str(len(body)).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}})
    await send({{"type": "http.response.body", "body": body}})
"""
ATTACKS = {
    "nothing": b"",
    "heads": b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
    "bodies": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
    "chunks": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n",
}

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(autouse=True)
def reads(hostile_place: Place) -> None:
    """The app waits for the request's body.
    ASGI apps are called before it has arrived, WSGI apps after that.
    """
    hostile_place.add("reads.py", READS)


def reading(words: tuple[str, ...]) -> list[str]:
    return [word.replace("attacked:asgi", "reads:asgi") for word in words]


def hello() -> bytes:
    """The first half of a TLS ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    data = outgoing.read()
    return data[: len(data) // 2]


class Siege:
    """Keeps `ATTACKERS` connections open, in a thread; each sends `first`, and a byte now and then."""

    def __init__(self, address: tuple[str, int], first: bytes) -> None:
        self._address, self._first = address, first
        self._sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        self._over = threading.Event()
        self.cut = 0
        self.all_there = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        trickle_at = time.monotonic() + 0.2
        while not self._over.is_set():
            while len(self._sockets) < ATTACKERS:
                self._open()
            self.all_there.set()
            for fd, event in self._epoll.poll(0.01):
                sock = self._sockets[fd]
                try:
                    if event & select.EPOLLOUT:
                        sock.send(self._first)
                        self._epoll.modify(fd, select.EPOLLIN)
                        continue
                    ended = not sock.recv(4096)
                except OSError:
                    ended = True
                if ended:
                    self._drop(fd)
            if time.monotonic() > trickle_at and self._first:
                trickle_at = time.monotonic() + 0.2
                for fd, sock in list(self._sockets.items()):
                    try:
                        sock.send(b"x")
                    except BlockingIOError:
                        pass
                    except OSError:
                        self._drop(fd)

    def _open(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self._address)
        self._sockets[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLOUT if self._first else select.EPOLLIN)

    def _drop(self, fd: int) -> None:
        self.cut += 1
        self._epoll.unregister(fd)
        self._sockets.pop(fd).close()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()
        self._epoll.close()


@contextmanager
def siege(daemon: Daemon, first: bytes) -> Iterator[Siege]:
    attack = Siege(daemon.address, first)
    try:
        assert attack.all_there.wait(SLACK * 2)
        yield attack
    finally:
        attack.close()


def answered(daemon: Daemon, context: ssl.SSLContext | None = None) -> float:
    """Seconds until a new client gets an answer."""
    began = time.monotonic()

    def ask() -> bool:
        with ExitStack() as stack:
            sock = stack.enter_context(
                socket.create_connection(daemon.address, timeout=ANSWERED_WITHIN * SLACK)
            )
            if context is not None:
                sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return sock.recv(4096).startswith(b"HTTP/1.1 200 ")

    assert ask(), "no answer"
    return time.monotonic() - began


def assert_open(daemon: Daemon, first: bytes, context: ssl.SSLContext | None = None) -> None:
    """While the attack runs, each new client is answered in time,
    and the log reports that connections were evicted.
    """
    with siege(daemon, first) as attack:
        took = [answered(daemon, context) for _ in range(PROBES)]
        until(lambda: attack.cut > 0, "attackers are cut")
    assert max(took) < ANSWERED_WITHIN * SLACK, took
    daemon.event("connections_evicted")
    assert daemon.events("worker_died") == []
    assert daemon.events("internal_error") == []


@each_class
@pytest.mark.parametrize("attack", [*thorough("nothing", "chunks", "heads"), "bodies"])
def test_new_clients_are_answered(hostile_place: Place, words: tuple[str, ...], attack: str) -> None:
    """Six times as many slow connections as the worker keeps: the slowest are closed."""
    daemon = hostile_place.start(*LIMITS, *reading(words))
    assert_open(daemon, ATTACKS[attack])


@pytest.mark.thorough
@each_class
@pytest.mark.parametrize(
    "first", tiers({"nothing": bytes, "half a ClientHello": hello}.items(), ["half a ClientHello"])
)
def test_slow_handshakes(
    hostile_place: Place, words: tuple[str, ...], first: Callable[[], bytes], tmp_path: Path
) -> None:
    """The same for TLS handshakes that do not continue."""
    authority = Authority(tmp_path)
    server = authority.issue("localhost")
    daemon = hostile_place.start(*LIMITS, "--certfile", server.cert, "--keyfile", server.key, *reading(words))
    assert_open(daemon, first(), authority.client_context())


@pytest.mark.thorough
@pytest.mark.parametrize("words", [CLASSES["threads"], *thorough((CLASSES["sync"],), (CLASSES["gevent"],))])
def test_slow_proxy_headers(hostile_place: Place, words: tuple[str, ...]) -> None:
    """The same for PROXY headers that do not end."""
    daemon = hostile_place.start(*LIMITS, "--proxy-protocol", "auto", *reading(words))
    assert_open(daemon, b"PROXY TCP4 192.0.2.1 ")


@pytest.mark.thorough
@each_class
def test_few_descriptors(hostile_place: Place, words: tuple[str, ...]) -> None:
    """The same when the limit is that of descriptors, not of connections; some stay free for the app."""
    argv = ("prlimit", "--nofile=200:200", *OSTLER)
    daemon = hostile_place.start("-w", "1", *reading(words), argv=argv)
    assert_open(daemon, ATTACKS["heads"])
    assert daemon.events("accept_paused") == []


@pytest.mark.thorough
@each_class
def test_a_slow_upload_outlives_the_attack(hostile_place: Place, words: tuple[str, ...]) -> None:
    """A client that sends faster than `body_min_rate` is not an attacker: its upload is answered."""
    daemon = hostile_place.start(*LIMITS, "--body-min-rate", "100", *reading(words))
    with socket.create_connection(daemon.address, timeout=PATIENCE) as upload:
        upload.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"x" * 500)
        with siege(daemon, ATTACKS["bodies"]) as attack:
            for _ in range(3):
                cut = attack.cut
                until(lambda cut=cut: attack.cut > cut, "attackers are cut")  # type: ignore[misc]
                upload.sendall(b"x" * 500)
            assert upload.recv(4096).startswith(b"HTTP/1.1 200 ")


@each_class
def test_a_slow_body_is_cut_early(hostile_place: Place, words: tuple[str, ...]) -> None:
    """Also without an attack, long before `body_timeout`: a body that does not arrive is refused."""
    daemon = hostile_place.start("-w", "1", *reading(words))
    began = time.monotonic()
    with socket.create_connection(daemon.address, timeout=PATIENCE) as sock:
        sock.sendall(ATTACKS["bodies"])
        assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 3 + SLACK


@each_class
def test_connections_of_one_address(hostile_place: Place, words: tuple[str, ...]) -> None:
    """`limit_connections_per_address`:
    more connections of the address are closed at once, those of others are not.
    """
    daemon = hostile_place.start("-w", "1", "--limit-connections-per-address", "3", *reading(words))
    held = [socket.create_connection(daemon.address, timeout=PATIENCE) for _ in range(3)]
    try:
        for sock in held:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        beyond = socket.create_connection(daemon.address, timeout=PATIENCE)
        held.append(beyond)
        try:
            assert beyond.recv(1) == b""
        except ConnectionResetError:
            pass
        elsewhere = socket.create_connection(
            daemon.address, timeout=PATIENCE, source_address=("127.0.0.2", 0)
        )
        held.append(elsewhere)
        elsewhere.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert elsewhere.recv(4096).startswith(b"HTTP/1.1 200 ")
    finally:
        for sock in held:
            sock.close()
    daemon.event("too_many_connections")


@pytest.mark.thorough
@each_class
def test_heads_and_idling_over_tls(hostile_place: Place, words: tuple[str, ...], tmp_path: Path) -> None:
    """Clients that have done their handshake and then send nothing, or a part of a head, or idle,
    are evicted at once, without waiting for the end of TLS, for which the client would have to answer.
    """
    authority = Authority(tmp_path)
    server = authority.issue("localhost")
    limits = ("-w", "1", "--worker-connections", "12", "--keep-alive", "600")
    daemon = hostile_place.start(*limits, "--certfile", server.cert, "--keyfile", server.key, *reading(words))
    context = authority.client_context()
    sent = (b"", ATTACKS["heads"], ATTACKS["bodies"], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    with ExitStack() as stack:
        for number in range(36):
            began = time.monotonic()
            plain = stack.enter_context(socket.create_connection(daemon.address, timeout=PATIENCE))
            sock = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
            assert time.monotonic() - began < ANSWERED_WITHIN * SLACK, number
            sock.sendall(sent[number % len(sent)])
        took = [answered(daemon, context) for _ in range(PROBES)]
    assert max(took) < ANSWERED_WITHIN * SLACK, took
    assert daemon.events("worker_died") == []
    assert daemon.events("internal_error") == []


@pytest.mark.thorough
def test_tls_connections_that_are_closed_twice(hostile_place: Place, tmp_path: Path) -> None:
    """Bytes that are not HTTP follow a request whose answer ends the connection, so that uvicorn closes it
    twice. asyncio has then released its part of the connection, while the client does not end its own. The
    worker's checks twice a second continue, and such connections can be evicted.
    """
    hostile_place.add("later.py", LATER)
    server = Authority(tmp_path).issue("localhost")
    limits = ("-w", "1", "--worker-connections", "8", "--graceful-timeout", "1")
    certificate = ("--certfile", server.cert, "--keyfile", server.key)
    daemon = hostile_place.start(*limits, *certificate, "-k", "asgi", "later:asgi")
    context = ssl._create_unverified_context()

    def connect(stack: ExitStack) -> socket.socket:
        sock = socket.create_connection(daemon.address, timeout=ANSWERED_WITHIN * SLACK)
        return stack.enter_context(context.wrap_socket(stack.enter_context(sock)))

    def date() -> bytes:
        with ExitStack() as stack:
            sock = connect(stack)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return next(line for line in sock.recv(4096).split(b"\r\n") if line.startswith(b"date:"))

    with ExitStack() as stack:
        for _ in range(20):
            sock = connect(stack)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nwhat is this?\r\n\r\n")
        for _ in range(2):
            before = date()
            until(lambda before=before: date() != before, "time goes on")  # type: ignore[misc]
        assert daemon.stop() == 0
    assert daemon.events("worker_died") == []
    assert daemon.events("internal_error") == []
    (end,) = daemon.events("worker_exited")
    assert end["status"] == "exit code 0"


@pytest.mark.thorough
def test_answers_under_tls_are_not_cut(hostile_place: Place, tmp_path: Path) -> None:
    """A connection whose answer uvicorn has written completely, and whose client still reads, is not idle."""
    hostile_place.add("big.py", BIG)
    server = Authority(tmp_path).issue("localhost")
    limits = ("-w", "1", "--worker-connections", "4", "--keep-alive", "600")
    certificate = ("--certfile", server.cert, "--keyfile", server.key)
    daemon = hostile_place.start(*limits, *certificate, "-k", "asgi", "big:asgi", "--graceful-timeout", "1")
    context = ssl._create_unverified_context()
    with ExitStack() as stack:

        def ask(path: bytes) -> socket.socket:
            sock = stack.enter_context(socket.create_connection(daemon.address, timeout=PATIENCE))
            sock = stack.enter_context(context.wrap_socket(sock))
            sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(1)
            return sock

        first, size = ask(b"/big"), 0
        for _ in range(8):
            ask(b"/")
        while size < 8_000_000 and (data := first.recv(1 << 16)):
            size += len(data)
    assert size >= 8_000_000


def tls_words(folder: Path) -> tuple[tuple[str, ...], ssl.SSLContext]:
    """Flags that make a daemon serve TLS, and the authority for its clients."""
    authority = Authority(folder)
    server = authority.issue("localhost")
    return ("--certfile", server.cert, "--keyfile", server.key), authority.client_context()


def ask_for(
    daemon: Daemon, stack: ExitStack, request: bytes, context: ssl.SSLContext | None, kept: int = 4096
) -> socket.socket:
    """Send a request on a new connection whose kernel buffers at most `kept` bytes of the answer."""
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kept)
    sock.settimeout(PATIENCE)
    sock.connect(daemon.address)
    if context is not None:
        sock = stack.enter_context(context.wrap_socket(sock, server_hostname="localhost"))
    sock.sendall(request)
    return sock


class SlowReader:
    """Reads slowly, in a thread, until `finish`, which then reads the rest of a large answer."""

    def __init__(self, sock: socket.socket, expected: int = SIZE) -> None:
        self._sock, self._expected = sock, expected
        self._quickly = threading.Event()
        self.size = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while self.size < self._expected and (data := self._sock.recv(1 << 14)):
                self.size += len(data)
                self._quickly.wait(0.02)

    def finish(self) -> int:
        """Read the rest; returns how many bytes there were."""
        self._quickly.set()
        self._thread.join()
        return self.size


GET_LARGE = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
WITH_EVENTLET = {**CLASSES, "eventlet": ("-k", "eventlet", "attacked:app")}


@pytest.mark.parametrize("tls", [False, *thorough(True)], ids=["plain", "tls"])
@pytest.mark.parametrize("words", tiers(WITH_EVENTLET.items(), USUAL))
def test_slow_readers(hostile_place: Place, words: tuple[str, ...], tls: bool, tmp_path: Path) -> None:
    """Clients that request a large answer and read nothing are evicted, and a client that reads is not."""
    hostile_place.add("large.py", LARGE)
    certificate, context = tls_words(tmp_path) if tls else ((), None)
    words = tuple(word.replace("attacked:", "large:") for word in words)
    limits = ("-w", "1", "--worker-connections", "12", "--keep-alive", "600", "--graceful-timeout", "1")
    daemon = hostile_place.start(*limits, *certificate, *words)
    with ExitStack() as stack:
        reader = SlowReader(ask_for(daemon, stack, GET_LARGE, context, 1 << 16))
        stack.callback(reader.finish)
        for _ in range(18):
            ask_for(daemon, stack, GET_LARGE, context)
        took = [answered(daemon, context) for _ in range(PROBES)]
        size = reader.finish()
        # Only new clients wake the worker now.
        took += [answered(daemon, context) for _ in range(20)]
    assert size >= SIZE
    assert sum(took[1:]) < ANSWERED_WITHIN * SLACK, took
    assert took[0] < ANSWERED_WITHIN * SLACK
    daemon.event("connections_evicted")
    assert daemon.events("worker_died") == []
    assert daemon.events("internal_error") == []


@pytest.mark.thorough
def test_tls_clients_that_do_not_close(hostile_place: Place, tmp_path: Path) -> None:
    """The client's part of the end of TLS is not waited for long, while serving and while draining."""
    certificate, context = tls_words(tmp_path)
    times = ("--keep-alive", "1", "--graceful-timeout", "60")
    daemon = hostile_place.start("-w", "1", *times, *certificate, *CLASSES["asgi"])
    requests = (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"what is this?\r\n\r\n",
        ATTACKS["heads"],
        b"",
    )
    with ExitStack() as stack:
        for request in requests[:3]:
            ask_for(daemon, stack, request, context)
        daemon.until(lambda: daemon.status().totals.connections == 3, "all were accepted")
        daemon.until(lambda: daemon.workers()[0].connections == 0, "all have ended", 20)
        for request in requests:
            ask_for(daemon, stack, request, context)
        daemon.until(lambda: daemon.status().totals.connections == 3 + len(requests), "all were accepted")
        assert daemon.stop(within=30) == 0


@pytest.mark.thorough
def test_a_slow_reader_of_a_last_answer(hostile_place: Place, tmp_path: Path) -> None:
    """A connection whose answer is its last stays open as long as its client reads, also under TLS."""
    hostile_place.add("large.py", LARGE)
    certificate, context = tls_words(tmp_path)
    daemon = hostile_place.start("-w", "1", *certificate, "-k", "asgi", "large:asgi")
    with ExitStack() as stack:
        # More than the kernel accepts in that time.
        request = b"GET /larger HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        reader = SlowReader(ask_for(daemon, stack, request, context, 1 << 16), 4 * SIZE)
        stack.callback(reader.finish)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 2.0 and reader.size, "more time than it once had")
        size = reader.finish()
    assert size >= 4 * SIZE


class KeyUpdates:
    """Connections that send TLS 1.3 key updates endlessly, in a thread; each that is closed is opened again.

    Args:
        kind: 1: each asks for an answer; 0: none does (ssl.h, SSL_KEY_UPDATE_REQUESTED).

    Attributes:
        ended: how many were ended.
    """

    def __init__(self, daemon: Daemon, kind: int) -> None:
        self._kind = kind
        # Python's ssl has no function for it; its own OpenSSL does.
        lib = ctypes.CDLL(_ssl.__file__)
        try:
            self._new_context, self._new = lib.SSL_CTX_new, lib.SSL_new
            self._update, self._do = lib.SSL_key_update, lib.SSL_do_handshake
            self._free, self._method = lib.SSL_free, lib.TLS_client_method
            self._set_fd, self._connect = lib.SSL_set_fd, lib.SSL_connect
        except AttributeError:
            pytest.skip("OpenSSL is a part of Python's ssl here")
        for function in (self._method, self._new_context, self._new):
            function.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._new_context(ctypes.c_void_p(self._method())))
        self._address = daemon.address
        self._over = threading.Event()
        self.ended = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            with suppress(OSError), socket.create_connection(self._address, 5) as sock:
                sock.setblocking(True)
                self._flood(sock.fileno())

    def _flood(self, fd: int) -> None:
        tls = ctypes.c_void_p(self._new(self._context))
        try:
            self._set_fd(tls, fd)
            if self._connect(tls) != 1:
                return
            while not self._over.is_set():
                if self._update(tls, self._kind) != 1 or self._do(tls) != 1:
                    self.ended += 1
                    return
        finally:
            self._free(tls)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.thorough
@each_class
def test_records_without_data(hostile_place: Place, words: tuple[str, ...], tmp_path: Path) -> None:
    """Endless key updates end their connection; bytes that are not TLS have no other effect."""
    certificate, context = tls_words(tmp_path)
    daemon = hostile_place.start("-w", "1", "--keep-alive", "60", *certificate, *words)
    with ExitStack() as stack:
        floods = [KeyUpdates(daemon, kind) for kind in (0, 1)]
        for flood in floods:
            stack.callback(flood.close)
        for number in range(20):
            plain = stack.enter_context(socket.create_connection(daemon.address, timeout=PATIENCE))
            if number % 2:
                sock = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                plain = stack.enter_context(socket.socket(fileno=os.dup(sock.fileno())))
            plain.sendall((b"\x16\x03\x01\x02\x00", b"\x17\x03\x03\x00\x40")[number % 2] + b"?" * 600)
        took = [answered(daemon, context) for _ in range(PROBES)]
        until(lambda: all(flood.ended for flood in floods), "floods are ended")
    assert max(took) < ANSWERED_WITHIN * SLACK, took
    assert daemon.events("worker_died") == []
    assert len(daemon.events()) < 30
    assert "Traceback" not in daemon.log.read_text()


@pytest.mark.thorough
def test_websockets_that_have_ended_are_not_counted(hostile_place: Place) -> None:
    """When an upgraded connection ends, another one of its address is accepted."""
    limits = ("-w", "1", "--limit-connections-per-address", "2")
    daemon = hostile_place.start(*limits, *reading(CLASSES["asgi"]))
    for _ in range(4):
        with socket.create_connection(daemon.address, timeout=PATIENCE) as sock:
            sock.sendall(UPGRADE)
            assert sock.recv(4096).startswith(b"HTTP/1.1 ")
        until(lambda: daemon.workers()[0].connections == 0, "it has ended")
    answered(daemon)


@pytest.mark.thorough
def test_malformed_requests_fill_no_log(hostile_place: Place) -> None:
    """uvicorn warns of each malformed request: only some of the warnings are logged."""
    daemon = hostile_place.start("-w", "1", *reading(CLASSES["asgi"]))
    for _ in range(50):
        with socket.create_connection(daemon.address, timeout=PATIENCE) as sock:
            sock.sendall(b"what is this?\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 400 ")
    answered(daemon)
    assert len(daemon.events("uvicorn")) <= 10
