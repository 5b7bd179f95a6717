"""A real engine in a thread, and clients that check every byte.

The engine runs as in a worker, on a loopback port of its own, with a scoreboard and log files. At the end of
a test the rig closes the clients, drains the engine, waits for its threads and closes accepted connections.
"""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ostler.logs.access import AccessLog
from ostler.logs.logfile import LogFile
from ostler.logs.worker_log import Log
from ostler.scoreboard import layout
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.memory import map_cell
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.handoff import HandOff
from ostler.workers.thread_engine import Engine
from ostler.wsgi.exchange import App, Exchange

if TYPE_CHECKING:
    from ssl import SSLContext

PATIENCE = 15.0
"""Seconds for what usually takes a millisecond; machines that run tests are busy."""


class Answer(NamedTuple):
    status: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Client:
    """One connection. Every operation has a deadline."""

    def __init__(self, address: tuple[str, int], receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        if receive_buffer is not None:
            # Before connecting: afterwards the receive window was already announced.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(self, target: str = "/", *lines: str) -> None:
        """Send a GET and do not wait for the answer."""
        self.send(
            "".join(f"{line}\r\n" for line in (f"GET {target} HTTP/1.1", "Host: x", *lines, "")).encode()
        )

    def get(self, target: str = "/", *lines: str) -> Answer:
        self.ask(target, *lines)
        return self.answer()

    def answer(self, method: str = "GET") -> Answer:
        """The next answer, by its own framing."""
        head = self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        status = first.removeprefix("HTTP/1.1 ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if method == "HEAD" or status[:3] in ("100", "204", "304"):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                assert self._exactly(2) == b"\r\n"
            assert self._exactly(2) == b"\r\n"
            return Answer(status, headers, body)
        if (length := headers.get("content-length")) is not None:
            return Answer(status, headers, self._exactly(int(length)))
        return Answer(status, headers, self.rest())

    def rest(self) -> bytes:
        """Everything up to the end of the connection, which must be clean: a reset is an error."""
        while data := self.sock.recv(1 << 20):
            self._buffer += data
        data, self._buffer = self._buffer, b""
        return data

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, self._buffer = self._buffer.split(mark, 1)
        return found + mark

    def _exactly(self, size: int) -> bytes:
        if len(self._buffer) < size:
            pieces = [self._buffer]
            missing = size - len(self._buffer)
            while missing > 0:
                data = self.sock.recv(1 << 20)
                assert data, f"the connection ended, {missing} bytes too early"
                pieces.append(data)
                missing -= len(data)
            self._buffer = b"".join(pieces)
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        assert data, f"the connection ended behind {self._buffer!r}"
        self._buffer += data

    def close(self) -> None:
        self.sock.close()


class Listener(socket.socket):
    """A listening socket that records what was accepted, so that nothing stays open if an engine raises."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen(128)
        self.setblocking(False)
        self.accepted: list[socket.socket] = []
        self.errors: list[OSError] = []
        """Raised instead of accepting, one at a time."""

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            raise self.errors.pop(0)
        sock, peer = super().accept()
        self.accepted.append(sock)
        return sock, peer


class Rig:
    """A running engine.

    Args:
        handoff: shared with other rigs; closed by its maker.
        tls: what connections are wrapped with.
        make: makes the engine.
        exchange: what serves one request.

    Attributes:
        quotas: what `on_quota` was called with.
        failure: the exception that ended the engine.
    """

    def __init__(
        self,
        folder: Path,
        app: App,
        threads: int = 1,
        quota: int = 0,
        access: bool = False,
        handoff: HandOff | None = None,
        tls: "SSLContext | None" = None,
        make: Callable[..., Any] = Engine,
        exchange: type[Exchange] = Exchange,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.threads = threads
        self.quotas: list[int] = []
        self.failure: BaseException | None = None
        self.scoreboard = Scoreboard()
        self.cell = self.scoreboard.allocate_cell(threads + 1)
        memory = map_cell(self.scoreboard.fileno(self.cell))
        self._memory = memoryview(memory)
        self.listener = Listener()
        self.address: tuple[str, int] = self.listener.getsockname()
        access_log = AccessLog(LogFile(str(folder / "access"), 1), "%(r)s %(s)s %(B)s") if access else None
        context = Context(
            app,
            [self.listener],
            Settings(**{"threads": threads, "graceful_timeout": PATIENCE} | settings),
            Accounting(memory, threads + 1),
            Log(LogFile(str(folder / "log"), 2), "json", "debug", {}),
            access_log,
            quota,
            self.quotas.append,
            handoff,
            tls,
            exchange,
        )
        self.engine: Any = make(context)
        self._hand_over = False
        self._clients: list[Client] = []
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[0], False)
        self._drained = threading.Event()
        self.engine.add_reader(self._pipe[0], self._on_pipe)
        self._thread = threading.Thread(target=self._run, name="engine")

    def _run(self) -> None:
        try:
            self.engine.start_threads()
            self.engine.run()
        except BaseException as error:
            self.failure = error

    def run_here(self, play: Callable[[], object]) -> None:
        """Instead of `with`: run the engine in the calling thread, and `play`,
        the clients' part, in another.
        """

        def clients() -> None:
            try:
                play()
            except BaseException as error:
                self.failure = error
            finally:
                self.engine.drain()

        self._thread = threading.Thread(target=clients, name="clients")
        self._thread.start()
        try:
            self.engine.start_threads()
            self.engine.run()
        finally:
            self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()
        self.engine.drain()
        self._thread.join(PATIENCE)
        watcher = self.engine.leader._watcher.thread if isinstance(self.engine, Engine) else None
        if watcher is not None:
            watcher.join(PATIENCE)
        if not self._thread.is_alive():
            self.engine.close()
        for sock in (self.listener, *self.listener.accepted):
            sock.close()
        self.scoreboard.close()
        for fd in self._pipe:
            os.close(fd)
        if error is None:
            assert not self._thread.is_alive(), "the engine does not end"
            assert watcher is None or not watcher.is_alive(), "its watcher does not end"
            if self.failure is not None:
                raise self.failure

    def client(self, receive_buffer: int | None = None) -> Client:
        client = Client(self.address, receive_buffer)
        self._clients.append(client)
        return client

    def drain(self, hand_over: bool = False) -> None:
        """Drain as the supervisor does, by a message in the loop; returns when the loop has handled it."""
        self._hand_over = hand_over
        os.write(self._pipe[1], b"!!")
        assert self._drained.wait(PATIENCE)

    def _on_pipe(self) -> None:
        os.read(self._pipe[0], 1)
        if self.engine.draining:
            # The second byte is read in the loop's next pass, so the pass of the first one has ended.
            self._drained.set()
        else:
            self.engine.drain(self._hand_over)

    def words(self, slot: int) -> memoryview:
        """The words of a request slot in the scoreboard, which a test may change."""
        start = layout.PAGE + slot * layout.SLOT_SIZE
        return self._memory[start : start + layout.TEXT].cast("Q")

    def ended(self) -> bool:
        """Wait for the engine to end by itself."""
        self._thread.join(PATIENCE)
        return not self._thread.is_alive()

    def counts(self) -> Counts:
        return self.scoreboard.counts(self.cell)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def access_log(self) -> list[str]:
        return (self.folder / "access").read_text().splitlines()


Serve = Callable[..., Rig]
