"""`scope["server"]` of requests that came through a Unix socket.

ASGI's form for them is the socket's path with None as port, from which Django, for one, makes a SERVER_PORT
of `None`. So that what apps build from it is right, `Host` counts, as it does for WSGI apps.
"""

from collections.abc import Awaitable

from ostler.workers.asgi.interface import App, Receive, Scope, Send
from ostler.wsgi.environ import host_and_port


def from_host(app: App, path: str) -> App:
    """The app, called with a server's name and port from `Host` where there are none.

    path: of a Unix socket, for requests without `Host`.
    """

    def call(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "lifespan" and (scope.get("server") or (None, None))[1] is None:
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            found = host_and_port(host.decode("latin-1"), scope["scheme"] in ("https", "wss"))
            if found is not None:
                scope["server"] = found[0].strip("[]"), int(found[1])
            else:
                scope["server"] = scope.get("server") or (path, None)
        return app(scope, receive, send)

    return call
