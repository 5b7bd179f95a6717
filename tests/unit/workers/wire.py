"""All bytes of an answer, and whether the connection was kept after it.

A second request follows the request under test at once, on the same connection. If the connection is kept, it
is answered with known bytes and then closed; if it is not, there is no second answer. In both cases the
client reads to a clean end, and does not have to wait.
"""

import re
from typing import Any, NamedTuple

from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App
from tests.unit.workers.rig import Rig

OWN = b"(own)"
"""Stands for the lines Server and Date, whose values are checked while they are replaced."""

_OWN = re.compile(
    rb"Server: ostler\r\nDate: [A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT\r\n"
)
_HEAD_END = re.compile(rb"(?:\r\n|\(own\))\r\n")
_AGAIN = b"GET /again HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_ANSWERED_AGAIN = b"HTTP/1.1 299 Again\r\nContent-Length: 5\r\n(own)Connection: close\r\n\r\nagain"

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"
GET10_STAY = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD10_STAY = b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"

FAILED = (
    b"HTTP/1.1 500 Internal Server Error\r\n(own)Content-Type: text/plain; charset=iso-8859-1\r\n"
    b"Content-Length: 22\r\nConnection: close\r\n\r\nInternal Server Error\n"
)
"""What a client sees of an app's error while nothing was sent."""


class Seen(NamedTuple):
    wire: bytes
    """All bytes of the answer; the server's own lines are OWN."""
    kept: bool
    """The connection went on."""

    @property
    def body(self) -> bytes:
        return _HEAD_END.split(self.wire, maxsplit=1)[1]


def with_again(app: App) -> App:
    """Answers the second request itself."""

    def outer(environ: Environ, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/again":
            start_response("299 Again", [("Content-Length", "5")])
            return [b"again"]
        return app(environ, start_response)

    return outer


def talk(rig: Rig, request: bytes = GET) -> Seen:
    """Send a request to an app that was made by `with_again`; returns what was received."""
    client = rig.client()
    client.send(request + _AGAIN)
    wire = _OWN.sub(OWN, client.rest())
    first = wire.removesuffix(_ANSWERED_AGAIN)
    return Seen(first, len(first) < len(wire))
