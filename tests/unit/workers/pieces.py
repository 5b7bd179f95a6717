"""The parts of an engine without the engine: a test calls them one by one, as the thread that polls would.

Connections use pairs of sockets, so that the test controls each byte and each event.
"""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ostler.logs.access import AccessLog
from ostler.logs.worker_log import Log, LogFile
from ostler.osapi.wake import Wake
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.memory import map_cell
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.connection import Connection
from ostler.workers.handoff import HandOff
from ostler.workers.parts import Parts
from ostler.workers.reactor import Reactor
from ostler.workers.soft_interrupt import SoftInterrupts
from ostler.workers.system_calls import PLAIN
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import Exchange

SECOND = 1_000_000_000
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PEER = ("192.0.2.1", 4711)


def hello(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """Answers with the request's path and body."""
    answer = environ["PATH_INFO"].encode() + environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


class Pieces:
    """The parts of an engine; see the module.

    Args:
        listeners: what the acceptor has; closed by their maker.
        turn: of the runner.

    Attributes:
        slot: of the calling thread.
        quotas: what `on_quota` was called with.
    """

    def __init__(
        self,
        folder: Path,
        app: Any = hello,
        listeners: list[socket.socket] | None = None,
        handoff: HandOff | None = None,
        access: bool = False,
        exchange: type[Exchange] = Exchange,
        quota: int = 0,
        turn: int = 0,
        **settings: Any,
    ) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.scoreboard = Scoreboard()
        self._stack.callback(self.scoreboard.close)
        self.cell = self.scoreboard.allocate_cell(2)
        self.accounting = Accounting(map_cell(self.scoreboard.fileno(self.cell)), 2)
        self.slot = self.accounting.thread_slot(0)
        self.quotas: list[int] = []
        log = AccessLog(LogFile(str(folder / "access"), 1), "%(r)s %(s)s %(B)s") if access else None
        self.context = Context(
            *(app, listeners or [], Settings(**settings), self.accounting),
            Log(LogFile(str(folder / "log"), 2), "json", "debug", {}),
            *(log, quota, self.quotas.append, handoff, None, exchange),
        )
        self.soft_interrupts = SoftInterrupts(self.accounting)
        self.reactor = Reactor(Wake(), PLAIN)
        self._stack.callback(self.reactor.close)
        flush = log.flush if log is not None else lambda: None
        self.parts = Parts.of(self.context, self.reactor, PLAIN, self.soft_interrupts, flush, False, turn)
        self.parts.date.update(0)
        self._stack.callback(self.parts.table.close_all, self.slot)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def connect(self, proxied: bool = False) -> tuple[Connection, socket.socket]:
        """A connection in the table, which the reactor watches, and the client's end; that is closed with the
        parts.
        """
        connection, theirs = self.open(proxied)
        self._stack.enter_context(theirs)
        return connection, theirs

    def open(self, proxied: bool = False) -> tuple[Connection, socket.socket]:
        """As `connect`, but the caller closes the client's end."""
        ours, theirs = socket.socketpair()
        theirs.settimeout(5.0)
        ours.setblocking(False)
        connection = self.parts.factory.make(ours, "", PEER, proxied)
        self.slot.connection_opened()
        assert self.parts.table.add(connection, PEER[0], self.slot)
        self.parts.reactor.watch(connection)
        return connection, theirs

    def receive(self, connection: Connection) -> bool:
        """Receive what the client has sent; returns whether there is a request."""
        return self.parts.receiver.receive(connection, self.slot, self.reactor.read_clock())

    def counts(self) -> Counts:
        return self.scoreboard.counts(self.cell)

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def access_log(self) -> list[str]:
        return (self._folder / "access").read_text().splitlines()


def received(client: socket.socket) -> bytes:
    """The bytes of answers that have arrived at the client."""
    client.setblocking(False)
    data = b""
    try:
        while piece := client.recv(1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data
