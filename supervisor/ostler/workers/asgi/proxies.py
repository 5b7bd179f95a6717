"""What proxies say about clients: `X-Forwarded-For` and `X-Forwarded-Proto`, as uvicorn applies them.

Which proxies are trusted is decided as in the other worker classes, by `settings.networks`: IPv4 clients of
an IPv6 socket included.
"""

from collections.abc import Awaitable, Iterable

from ostler.settings.networks import Networks, normalized
from ostler.workers.asgi.interface import App, Receive, Scope, Send

_SCHEMES = frozenset({"http", "https", "ws", "wss"})
# Characters of an address, with a zone. `Networks` would keep what is longer.
_LONGEST = 100


class BehindProxies:
    """An app whose scopes have the client and the scheme that trusted proxies name.

    Args:
        trusted: addresses and networks, or `*`.
        unix: clients without an address come through a Unix socket, and are trusted.

    Raises:
        ValueError: `trusted` has a part that is none of these.
    """

    def __init__(self, app: App, trusted: str | Iterable[str], unix: bool) -> None:
        parts = normalized(trusted)
        self._app = app
        self._networks = Networks.parse(parts)
        self._everyone = "*" in parts
        self._unix = unix

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "lifespan":
            client = scope["client"]
            if client[0] in self._networks if client else self._unix:
                self._apply(scope)
        return self._app(scope, receive, send)

    def _apply(self, scope: Scope) -> None:
        scheme = ""
        clients = []
        for name, value in scope["headers"]:
            if name == b"x-forwarded-proto":
                scheme = value.decode("latin-1").strip()
            elif name == b"x-forwarded-for":
                clients.append(value.decode("latin-1"))
        if scheme in _SCHEMES:
            scope["scheme"] = scheme.replace("http", "ws") if scope["type"] == "websocket" else scheme
        if clients:
            host, port = self._client(",".join(clients))
            if host:
                scope["client"] = host, port

    def _client(self, forwarded: str) -> tuple[str, int]:
        """The last that is no trusted proxy: each proxy adds the address that it was connected from."""
        found = [_host_and_port(part.strip()) for part in forwarded.split(",")]
        if not self._everyone:
            for host, port in reversed(found):
                if not host or len(host) > _LONGEST or host not in self._networks:
                    return host, port
        return found[0]


def _host_and_port(text: str) -> tuple[str, int]:
    """Address and port of `1.2.3.4`, `1.2.3.4:80`, `::1` or `[::1]:80`; the port is 0 where there is none.

    What is none of these stays as it is.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return text, 0
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        return text, 0
    return host, int(port) if port.isascii() and port.isdigit() else 0
