"""gevent-websocket's worker class for gunicorn, by the same name: `environ["wsgi.websocket"]` under gevent.

The package's handler decides about the handshake; it belongs to gevent's own server, so that it is given here
what it uses of that. Importing this needs gevent-websocket.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self

from geventwebsocket.exceptions import WebSocketError
from geventwebsocket.handler import Client, WebSocketHandler

from ostler.workers.app_socket import AppSocket
from ostler.workers.base import Context
from ostler.workers.greenlets.gevent_hub import GeventWorker
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App

_SWITCHING = "101"


class GeventWebSocketWorker(GeventWorker):
    """`geventwebsocket.gunicorn.workers.GeventWebSocketWorker`."""

    @classmethod
    def create(cls, context: Context) -> Self:
        return super().create(replace(context, app=with_websockets(context.app)))


class _Handshake(WebSocketHandler):  # type: ignore[misc]
    """The handshake of one request.

    Args:
        server: what the package looks for in a server: `application` and `clients`.
        sock: the request's connection.

    Attributes:
        status, headers: of the answer; empty while there is none.
        websocket: the package's, if the handshake succeeded.
    """

    websocket: Any = None

    def __init__(self, server: Any, environ: Environ, sock: AppSocket) -> None:
        # Not the base class's: there is no connection of gevent's server.
        self.server = server
        self.application = server.application
        self.environ = environ
        self.request_version = environ["SERVER_PROTOCOL"]
        self.socket = sock
        self.rfile = sock.makefile("rb")
        port = environ.get("REMOTE_PORT")
        self.client_address = (environ["REMOTE_ADDR"], int(port)) if port else id(sock)
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    def start_response(self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        self.status, self.headers = status, headers

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")


def with_websockets(app: App) -> App:
    """`app`, which gets `wsgi.websocket` in requests for a websocket; their answers are not sent."""
    server = SimpleNamespace(application=app, clients={})

    def run(environ: Environ, start_response: Callable[..., Any]) -> Any:
        if (sock := environ.get("gunicorn.socket")) is None:
            return app(environ, start_response)
        handshake = _Handshake(server, environ, sock)
        refusal = handshake.upgrade_websocket()
        websocket = handshake.websocket
        if websocket is not None and handshake.status.startswith(_SWITCHING):
            sock.sendall(handshake.head())
            server.clients[handshake.client_address] = Client(handshake.client_address, websocket)
            try:
                _run_to_its_end(app, environ)
            finally:
                server.clients.pop(handshake.client_address, None)
                environ["wsgi.websocket"] = None
                if not websocket.closed:
                    websocket.close()
            return []
        if handshake.status:
            start_response(handshake.status, handshake.headers)
            return [part.encode() if isinstance(part, str) else part for part in refusal or ()]
        return app(environ, start_response)

    return run


def _run_to_its_end(app: App, environ: Environ) -> None:
    result: Any = None
    try:
        result = app(environ, lambda _status, _headers, _exc_info=None: lambda _data: None)
        for _ in result:
            pass
    except WebSocketError:
        pass  # the client has gone
    finally:
        if (close := getattr(result, "close", None)) is not None:
            close()
