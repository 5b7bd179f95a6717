"""A request that offers an upgrade, and an app that may take its connection for that (`app_socket`).

If the app takes it, nothing of ours is sent any more: neither what the app returns nor an error. Libraries
end such a request as gunicorn wants it, by StopIteration, or return an answer that no client is to get.
"""

from collections.abc import Callable, Iterator
from errno import EBADF, ECONNABORTED, ECONNRESET, ENOTCONN, EPIPE
from typing import Any

from ostler.http1.request import Request
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.app_socket import AppSocket
from ostler.workers.connection import Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.system_calls import WaitInApp
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App, Exchange
from ostler.wsgi.file_wrapper import FileWrapper

# What the app sees when its connection has ended.
_CONNECTION_ENDED = frozenset((EBADF, EPIPE, ENOTCONN, ECONNRESET, ECONNABORTED))
SWITCHED = "101 Switching Protocols"


class Upgrade:
    """The transport of the exchange of one such request; see `exchange.Transport`.

    Called by the thread that serves the request; the connection is taken by any thread of the app.

    Args:
        on_stays: called with `slot` when the app takes the connection.

    Attributes:
        socket: for the app.
        peer: the client's getpeername(), for hooks.
    """

    def __init__(
        self,
        connection: Connection,
        request: Request,
        table: ConnectionTable,
        slot: RequestSlot,
        wait: WaitInApp,
        on_stays: Callable[[RequestSlot], object],
    ) -> None:
        self._connection = connection
        self._table = table
        self._slot = slot
        self._on_stays = on_stays
        self.peer = connection.peer
        self.socket = AppSocket(
            connection.sock,
            connection.tls,
            connection.parser.held,
            self._take,
            wait,
            _offers_websocket(request),
        )

    @property
    def taken(self) -> bool:
        return self.socket.taken

    def send(self, data: bytes) -> None:
        if not self.socket.taken:
            self._connection.send(data)

    def send_file(self, fd: int, offset: int, count: int) -> None:
        if not self.socket.taken:
            self._connection.send_file(fd, offset, count)

    def note_part(self, silent: bool) -> None:
        if not self.socket.taken:
            self._connection.note_part(silent)

    def around(self, app: App, exchange: Exchange) -> App:
        """`app`, with an end that is none of an ordinary request if it has taken the connection."""

        def run(environ: Environ, start_response: Callable[..., Any]) -> Any:
            result: Any = ()
            try:
                result = app(environ, start_response)
            except (StopIteration, OSError) as error:
                if not self.is_end(error):
                    raise
            if result is None and self.socket.taken:
                result = ()
            if type(result) not in (list, tuple, FileWrapper):
                return _Parts(self, exchange, result)
            if self.socket.taken:
                self.switched(exchange)
                return ()
            return result

        return run

    def is_end(self, error: BaseException) -> bool:
        """Whether an exception says no more than that the app's connection has ended."""
        if not self.socket.taken:
            return False
        return not isinstance(error, OSError) or (
            isinstance(error, ConnectionError) or error.errno in _CONNECTION_ENDED
        )

    def switched(self, exchange: Exchange) -> None:
        """Note what the app's answer was, in place of what it may have passed to start_response."""
        if not exchange.head_sent:
            exchange.start_response(SWITCHED, [], (None, None, None))  # type: ignore[arg-type]

    def _take(self) -> None:
        self._table.upgrade(self._connection, self.socket, self._slot)
        self._on_stays(self._slot)


class _Parts:
    """What an app returns whose code runs while it is iterated: it may take the connection then."""

    def __init__(self, upgrade: Upgrade, exchange: Exchange, result: Any) -> None:
        self._upgrade = upgrade
        self._exchange = exchange
        self._result = result

    def __iter__(self) -> Iterator[Any]:
        upgrade = self._upgrade
        try:
            for part in self._result:
                if not upgrade.taken:
                    yield part
        except OSError as error:
            if not upgrade.is_end(error):
                raise
        if upgrade.taken:
            upgrade.switched(self._exchange)

    def close(self) -> None:
        """PEP 3333's close()."""
        if (close := getattr(self._result, "close", None)) is not None:
            close()


def _offers_websocket(request: Request) -> bool:
    return any(value.lower() == b"websocket" for name, value in request.headers if name.lower() == b"upgrade")
