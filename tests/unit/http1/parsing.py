"""Helpers for tests of the parser: requests as plain values, and two ways to get them."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from ostler.http1 import errors
from ostler.http1.errors import ProtocolViolation
from ostler.http1.request import BodySink, RequestParser, Rules

RULES = Rules()
RULE_NAMES = errors.RULES.keys()
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
GET_LINE = b"GET / HTTP/1.1\r\n"
POST_CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Got:
    """A request as plain values, so that two parsings can be compared."""

    method: str
    target: bytes
    protocol: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | None
    keep_alive: bool


def taken(parser: RequestParser) -> list[Got]:
    """The complete requests."""
    found = []
    for request in parser.requests:
        body = None
        if request.body is not None:
            assert isinstance(request.body, io.BytesIO)
            body = request.body.getvalue()
        assert request.length == len(body or b"")
        found.append(
            Got(
                request.method,
                request.target,
                request.protocol,
                list(request.headers),
                body,
                request.keep_alive,
            )
        )
    return found


def parsed(*pieces: bytes, rules: Rules = RULES) -> list[Got]:
    """The requests in the bytes, which must end with a complete one. No upgrade is taken."""
    parser = RequestParser(rules, io.BytesIO)
    for piece in pieces:
        parser.feed(piece)
        resume(parser)
    assert not parser.receiving
    return taken(parser)


def refused(*pieces: bytes, rules: Rules = RULES) -> tuple[ProtocolViolation, list[Got]]:
    """How the bytes are refused, and the requests before that."""
    parser = RequestParser(rules, io.BytesIO)
    with pytest.raises(ProtocolViolation) as caught:  # noqa: PT012 - which piece is refused does not matter
        for piece in pieces:
            parser.feed(piece)
    assert caught.value.rule in RULE_NAMES - {"other"}
    assert caught.value.reason.endswith(f"({errors.RULES[caught.value.rule]})")
    return caught.value, taken(parser)


def resume(parser: RequestParser) -> None:
    """Take no upgrade."""
    while parser.holds and parser.requests[-1].keep_alive:
        parser.resume()


def fed(
    pieces: list[bytes],
    rules: Rules,
    remember: bool = True,
    new_body: Callable[[], BodySink] = io.BytesIO,
) -> tuple[RequestParser, str | None]:
    """A parser that was fed the pieces, and with which status it refused them, if it did.

    No upgrade is taken. remember: with what earlier requests taught.
    """
    parser = RequestParser(rules, new_body)
    try:
        for piece in pieces:
            if not remember:
                parser.forget()
            parser.feed(piece)
            resume(parser)
    except ProtocolViolation as violation:
        return parser, violation.status
    return parser, None


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def python_only(rules: Rules) -> Rules:
    """The same rules for a parser that does not use the C extension."""
    same = msgspec.structs.replace(rules)
    msgspec.structs.force_setattr(same, "native", None)
    return same


def parser_of(*pieces: bytes, rules: Rules = RULES) -> RequestParser:
    """A parser that has received the pieces."""
    parser = RequestParser(rules, io.BytesIO)
    for piece in pieces:
        parser.feed(piece)
    return parser
