"""Heads that are split without llhttp are what llhttp makes of them."""

import re
from unittest import mock

import pytest
from hypothesis import example, given, settings

from ostler.http1 import head
from ostler.http1.errors import ProtocolViolation
from ostler.http1.request import Head, Rules
from tests.property.test_native_requests import ALL_RULES, SCHEMES, varied, wires, with_body
from tests.unit.http1.test_malformed import MALFORMED

NEVER = re.compile(rb"(?!)")


def block_of(wire: bytes) -> bytes:
    """From the first line end to the first empty line."""
    begin, end = wire.find(b"\r\n"), wire.find(b"\r\n\r\n")
    return wire[begin : end + 4] if 0 <= begin <= end else b""


def check(block: bytes, rules: Rules, protocol: str = "HTTP/1.1") -> bool:
    """Whether llhttp is not asked about a block; in any case the result is the one by llhttp."""
    with mock.patch.object(head, "_split", wraps=head._split) as llhttp:
        result = parsed(block, protocol, rules)
    with mock.patch.object(head, "_PLAIN_BLOCK", NEVER):
        by_llhttp = parsed(block, protocol, rules)
    assert repr(result) == repr(by_llhttp)  # a refusal too, with its words
    return not llhttp.called


def parsed(block: bytes, protocol: str, rules: Rules) -> Head | ProtocolViolation:
    try:
        return head.parse_head(block, protocol, rules)
    except ProtocolViolation as violation:
        return violation


def test_ordinary_ones_are_plain() -> None:
    """Else the other tests here would check nothing."""
    for rules in ALL_RULES[:2]:
        assert all(check(block_of(varied(number)), rules) for number in range(50))
        assert check(block_of(with_body(b"xy")), rules)


def test_others_are_plain_too() -> None:
    fields = [
        *(b"Host: unknown", b"Host: x\r\nUpgrade: y", b"Host: x\r\nExpect: 100-continue"),
        *(b"Host: x\r\nConnection: %b" % value for value in (b"close", b"upgrade", b"keep-alive, TE")),
        b"Host: x\r\nTransfer-Encoding: chunked",
    ]
    assert all(check(b"\r\n%b\r\n\r\n" % field, Rules()) for field in fields)
    assert all(check(b"\r\n%b\r\n\r\n" % field, Rules(), "HTTP/1.0") for field in fields[:-1])


def test_what_is_not_plain() -> None:
    """What is refused, and what is not made of plain lines, is left to llhttp."""
    fields = [
        *(b"Host: x\r\nHost: x", b"A: b", b"Host: x\r\nA b: c", b"Host: x\r\nA: \xff"),
        *(
            b"Host: x\r\n%b" % line
            for line in (b"Content-Length: 2\r\nContent-Length: 2", b"Content-Length: +2")
        ),
        *(b"Host: x\r\n%b: y" % name for name in (b"Transfer-Encoding", b"Expect", b"X_Y")),
        b"Host: x\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off",
        b"Host: x\r\nA: b\r\n c",
    ]
    rules = Rules(secure_scheme_headers=SCHEMES)
    assert [field for field in fields if check(b"\r\n%b\r\n\r\n" % field, rules)] == []


@pytest.mark.parametrize("raw", [raw for _, raw, _ in MALFORMED])
def test_malformed_ones(raw: bytes) -> None:
    """They are refused as llhttp's fields are, with the same words."""
    for rules in ALL_RULES:
        check(block_of(raw), rules)
        check(block_of(raw), rules, "HTTP/1.0")


@settings(max_examples=500)
@given(wires())
@example(b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nA: c\r\nConnection: Keep-Alive\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 007\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: \t0 \r\nContent-Type:\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 123456789012345678\r\n\r\n")
def test_any(wire: bytes) -> None:
    for rules in ALL_RULES:
        check(block_of(wire), rules)
