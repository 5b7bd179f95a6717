"""Answers whose body uvicorn's protocols do not frame as HTTP wants it.

- To 204 and 304 no body belongs, whatever the app sends and whatever length it says (RFC 9110 section 6.4.1).
  uvicorn sends such a body, which the client takes for the next answer, or ends the connection.
- To a client of HTTP/1.0 a body of unknown length ends with the connection (RFC 9112 section 6.3). uvicorn's
  protocol with httptools sends chunks, which such a client does not know.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from ostler.workers.asgi.interface import Message, Send

BODILESS = frozenset({204, 304})


def framed(start: Message, send: Send, method: str) -> tuple[Message, Send]:
    """What to send instead of `start`, a message `http.response.start`, and what to send all messages by.

    Args:
        send: uvicorn's: a method of the object that frames the answer.
        method: of the request, whose version is 1.0 unless the status is one of `BODILESS`.
    """
    headers = list(start.get("headers", ()))
    unwanted = {b"transfer-encoding"}
    if start["status"] == 204:
        unwanted.add(b"content-length")  # RFC 9110 section 8.6
    wanted = [header for header in headers if header[0].lower() not in unwanted]
    cycle: Any = getattr(send, "__self__", None)
    if start["status"] in BODILESS:
        send = _resized(send, cycle, _without_body)
    elif method != "HEAD" and not any(name.lower() == b"content-length" for name, _ in wanted):
        if hasattr(cycle, "chunked_encoding"):
            cycle.chunked_encoding = False
        send = _resized(send, cycle, _whole)
    return {**start, "headers": wanted}, send


def _resized(send: Send, cycle: Any, resize: Callable[[Message], Message]) -> Send:
    """A `send` that applies `resize` to each part of a body, and lets uvicorn expect just that part.

    Like `send` it has the object that frames the answer as `__self__`.
    """

    def send_resized(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.body":
            message = resize(message)
            if hasattr(cycle, "expected_content_length"):
                cycle.expected_content_length = len(message.get("body", b""))
        return send(message)

    send_resized.__self__ = cycle  # type: ignore[attr-defined]
    return send_resized


def _without_body(message: Message) -> Message:
    return {**message, "body": b""}


def _whole(message: Message) -> Message:
    return message
