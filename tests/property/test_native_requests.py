"""Requests that the C extension recognizes are those that the Python code makes of the same bytes."""

import gc
import io
import resource
import string
import sys
import weakref
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ostler import native
from ostler.http1.request import RequestParser, Rules
from ostler.wsgi.body import BufferedBody
from ostler.wsgi.environ import (
    connection_environ,
    listener_environ,
    request_environ,
    worker_environ,
)
from tests.unit.http1.parsing import GET, fed, python_only
from tests.unit.http1.test_malformed import MALFORMED

pytestmark = pytest.mark.skipif(native.module is None, reason="there is no C extension")

SCHEMES = {b"x-forwarded-proto": b"https", b"x-forwarded-ssl": b"on"}
MEMORY = 128 * 1024
ALL_RULES = [
    Rules(body_in_memory=MEMORY),
    Rules(body_in_memory=MEMORY, secure_scheme_headers=SCHEMES),
    Rules(body_in_memory=MEMORY, header_map="dangerous", forwarder_headers=frozenset([b"script_name"])),
    Rules(limit_request_line=40, limit_request_fields=4, limit_request_field_size=30),
    Rules(limit_request_line=0, limit_request_fields=0, limit_request_field_size=0, body_in_memory=2),
    Rules(body_in_memory=MEMORY, limit_request_body=3),
]
# As behind a proxy: see varied.lua of the benchmarks.
VARIED = (
    b"GET /items/%(a)s?page=3&q=%(b)s HTTP/1.1\r\nHost: www.example.com\r\nX-Request-Id: %(c)s\r\n"
    b"X-Forwarded-For: 192.0.2.%(d)s\r\nX-Forwarded-Proto: https\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,*/*;q=0.8\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\nReferer: https://www.example.com/?id=%(e)s\r\n"
    b"Connection: keep-alive\r\nCookie: sessionid=%(f)s; csrftoken=%(g)s\r\n\r\n"
)


def varied(number: int) -> bytes:
    return VARIED % {b"abcdefg"[i : i + 1]: b"%d" % (number * 7919 + i) for i in range(7)}


def recognized(data: bytes, rules: Rules = ALL_RULES[1]) -> Any:
    assert native.module is not None
    return native.module.ordinary_request(data, rules.native)


def request_by(data: bytes, rules: Rules) -> Any:
    """The only request in the bytes."""
    parser = RequestParser(rules, lambda: BufferedBody(MEMORY, None))
    parser.feed(data)
    (request,) = parser.requests
    assert not parser.receiving
    assert not parser.holds
    return request


def shown(request: Any) -> dict[str, Any]:
    """All that is known of a request."""
    line, head = request.line, request.head
    lines = [line.method, line.target, line.protocol, line.raw_uri, line.path, line.query, line.authority]
    found = [request.method, request.target, request.protocol, request.headers, request.keep_alive]
    more = [request.length, request.complete, line.ordinary]
    heads = [head.block, head.headers, head.https, head.keep_alive, head.length, head.upgrade]
    return {"line": lines, "request": found, "more": more, "head": heads}


def environ_of(request: Any, address: Any, mount: str) -> dict[str, Any]:
    listener = listener_environ(worker_environ(False, errors=sys.stderr, root_path=mount), address)
    peer = ("192.0.2.7", 50123) if isinstance(address, tuple) else ""
    template = connection_environ(listener, peer, {})
    before = dict(template)
    environ = request_environ(template, request, True)
    assert template == before
    body = environ.pop("wsgi.input")
    assert type(body) is io.BytesIO
    return environ | {"body": body.read()}


def check(data: bytes, rules: Rules, address: Any = ("127.0.0.1", 8000), mount: str = "") -> bool:
    """Whether it is recognized; if it is, everything is as in Python."""
    request = recognized(data, rules)
    if request is None:
        return False
    compare(request, request_by(data, python_only(rules)), address, mount)
    return True


def compare(request: Any, reference: Any, address: Any, mount: str) -> None:
    """Check that a request of the C extension is the same as one of the Python code."""
    assert shown(request) == shown(reference)
    ours, theirs = environ_of(request, address, mount), environ_of(reference, address, mount)
    assert ours == theirs
    assert {key: type(value) for key, value in ours.items()} == {
        key: type(value) for key, value in theirs.items()
    }
    assert all(type(key) is str for key in ours)


def test_ordinary_requests_are_recognized() -> None:
    """Requests of browsers and proxies; else the other tests here would check nothing."""
    for number in range(100):
        assert check(varied(number), ALL_RULES[1])
    assert type(request_by(varied(1), ALL_RULES[1])) is type(recognized(varied(1)))
    for data in (GET, GET.replace(b"GET", b"DELETE"), GET.replace(b"x\r", b"localhost:8000\r")):
        assert check(data, Rules())


@pytest.mark.parametrize(("source", "raw"), [(source, raw) for source, raw, _ in MALFORMED])
def test_malformed_ones_are_not(source: str, raw: bytes) -> None:
    """Nor, by other limits, is what Python refuses by these; nor is the part up to the first empty line."""
    for rules in ALL_RULES:
        for end in (len(raw), raw.find(b"\r\n\r\n") + 4):
            check(raw[:end], rules)
    assert recognized(raw, ALL_RULES[0]) is None


# -- arbitrary ones ----------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(
        "Host host HOST Cookie cookie Connection Content-Type content-type Content-Length Transfer-Encoding "
        "Expect Upgrade TE Proxy X-Forwarded-Proto x-forwarded-ssl X-Forwarded-For Script-Name script_name "
        "X_Y Accept Keep-Alive Trailer".split()
    ),
    st.text(string.ascii_letters + string.digits + "-_!.", min_size=1, max_size=70),
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *("", "x", "keep-alive", "close", "Keep-Alive", "https", "on", "http", "a=b; c=d", " x ", "\tx"),
            *("0", "00", "1", "2", "+2", "02", "3", "4", "65536", "100000"),
        ]
    ),
    st.text(st.characters(min_codepoint=0x09, max_codepoint=0xFF), max_size=60),
)
HOSTS = st.sampled_from(
    [
        "x",
        "www.example.com",
        "a-b.c:80",
        "x:",
        "x:65535",
        "x:65536",
        "[::1]",
        "",
        "x:8a",
        "192.0.2.1:1",
        "x%41",
        "a_b",
    ]
)
TARGETS = st.one_of(
    st.sampled_from(
        ["/", "/a?b=c", "/%41%zz%4", "/mount", "/mount/x?y", "/mounted", "/?", "//x", "*", "http://y/"]
    ),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40).map(lambda text: "/" + text),
)
BODIES = st.sampled_from(
    [""] * 4 + ["x", "xy", "\r\n", "\r\n\r\n", "xyz", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
)
METHODS = st.sampled_from(
    ["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "PROPFIND", "A" * 20, "A" * 21, "get", "M-SEARCH"]
)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """Requests, some with a byte replaced, added or removed."""
    version = draw(st.sampled_from(["HTTP/1.1"] * 6 + ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0"]))
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    fields.insert(draw(st.integers(0, 6)), ("Host", draw(HOSTS)))
    body = draw(BODIES)
    if draw(st.booleans()):
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{draw(METHODS)} {draw(TARGETS)} {version}", *(f"{name}: {value}" for name, value in fields)]
    wire = "\r\n".join([*lines, "", body]).encode("latin-1")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(wire)))
        wire = wire[:at] + draw(st.binary(max_size=2)) + wire[at + draw(st.integers(0, 2)) :]
    return wire


@settings(max_examples=500)
@given(
    wires(),
    st.sampled_from(ALL_RULES),
    st.sampled_from([("127.0.0.1", 8000), ("::1", 80, 0, 0), "/run/x.sock"]),
    st.sampled_from(["", "mount"]),
)
@example(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", ALL_RULES[0], "/run/x.sock", "mount")
@example(
    b"GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\nA: c\r\nCookie: d\r\nCookie: e\r\n\r\n", ALL_RULES[0], "/x", ""
)
def test_all_is_as_in_python(wire: bytes, rules: Rules, address: Any, mount: str) -> None:
    check(wire, rules, address, mount)


def with_body(body: bytes, length: bytes | None = None) -> bytes:
    """A POST request; length: the value of Content-Length, if it is not the right one."""
    length = b"%d" % len(body) if length is None else length
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n%b" % (length, body)


def test_bodies() -> None:
    """They are recognized if they are whole, within the limits, and nothing is behind them."""
    for size in (0, 1, 3, 1000, 60_000):
        assert check(with_body(b"x" * size), ALL_RULES[0])
    bodies = [b"{}", b"\r\n", b"\r\n\r\n", b"\0\0", bytes(range(256)), GET]
    assert all(check(with_body(body), ALL_RULES[0]) for body in bodies)
    several = b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n"
    others = [
        *(with_body(b"xy", length) for length in (b"1", b"3", b"02", b"+2", b"2,2", b"0x2", b"", b"2 2")),
        with_body(b"xy", b"2" * 30),
        with_body(b"xy") + GET,
        with_body(b"xy").replace(b"Content-Length: 2\r\n\r\n", several),
        with_body(b"xy").replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
        with_body(b"xy").replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        with_body(b"x" * 65_500),
    ]
    assert [recognized(data, ALL_RULES[0]) for data in others] == [None] * len(others)


def test_limits_of_bodies() -> None:
    """What does not stay in memory, is longer than permitted, or is streamed, is Python's."""
    limited, none = ALL_RULES[5], Rules()
    streamed = Rules(body_in_memory=MEMORY, stream=True)
    assert recognized(with_body(b"xyz"), limited) is not None
    assert recognized(with_body(b"wxyz"), limited) is None
    assert recognized(with_body(b"xy"), ALL_RULES[4]) is not None
    assert recognized(with_body(b"xyz"), ALL_RULES[4]) is None
    for rules in (none, streamed):
        assert recognized(with_body(b""), rules) is not None
        assert recognized(with_body(b"x"), rules) is None


@pytest.mark.parametrize("name", [b"host", b"connection", b"content-type", b"content-length", b"expect"])
def test_a_scheme_field_of_another_meaning(name: bytes) -> None:
    """What the settings say of a field comes before what it means otherwise."""
    rules = Rules(body_in_memory=MEMORY, secure_scheme_headers={name: b"x"})
    for data in (varied(1), with_body(b"xy"), GET.replace(b"\r\n\r\n", b"\r\nContent-Type: x\r\n\r\n")):
        ours, refused = fed([data], rules)
        theirs, refused_by_python = fed([data], python_only(rules))
        assert refused == refused_by_python
        assert [*map(shown, ours.requests)] == [*map(shown, theirs.requests)]


@pytest.mark.parametrize("at", range(420))
def test_any_byte_in_the_place_of_another(at: int) -> None:
    """Each byte of an ordinary request, replaced by any other one."""
    for data in (varied(1), with_body(b"xy")):
        if at < len(data):
            for byte in range(256):
                check(data[:at] + bytes([byte]) + data[at + 1 :], ALL_RULES[1])


# -- memory ------------------------------------------------------------------------------------------------


def test_more_names_than_are_remembered() -> None:
    """Names that are not remembered, because there are too many or they are too long, change nothing."""
    rules = Rules()
    for number in range(400):
        assert check(b"GET / HTTP/1.1\r\nHost: x\r\nX-%d: y\r\nX-%d: z\r\n\r\n" % (number, number), rules)
    for size in (51, 52, 53, 255, 256, 300):
        check(b"GET / HTTP/1.1\r\nHost: x\r\n%b: y\r\n\r\n" % (b"x" * size), rules)


def test_nothing_is_left() -> None:
    """Thousands of requests, refused ones and rules leave no objects and no memory behind."""
    rules = ALL_RULES[1]
    template = environ_template()

    def run(count: int) -> None:
        for number in range(count):
            data = varied(number)
            found = recognized(data, rules)
            found.environ(template)
            assert recognized(with_body(data), rules).environ(template)["wsgi.input"].read() == data
            assert found.target
            assert recognized(data[:-1], rules) is None
            with pytest.raises(ValueError, match="is missing"):
                found.environ({})
            assert Rules(secure_scheme_headers=SCHEMES).native is not None

    run(2000)
    gc.collect()
    objects, memory = sys.getallocatedblocks(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(20_000)
    gc.collect()
    assert sys.getallocatedblocks() - objects < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8000  # KiB


def test_a_head_that_is_made_twice_at_once() -> None:
    """By two threads, or in a signal handler: both get the same one in the end, and the other is not left."""
    assert native.module is not None
    made: list[Any] = []
    requests: list[Any] = []

    class Made:
        pass

    def parse_head(*_: Any) -> Made:
        head = Made()
        made.append(weakref.ref(head))
        if len(made) == 1:
            assert requests[0].head is made[1]()
        return head

    rules = native.module.RequestRules(Rules(), parse_head, {}, 100, 100, 100, 100)
    requests.append(native.module.ordinary_request(GET, rules))
    assert requests[0].head is requests[0].head
    requests.clear()
    assert [head() for head in made] == [None, None]


def environ_template() -> dict[str, Any]:
    listener = listener_environ(worker_environ(False), ("127.0.0.1", 8000))
    return connection_environ(listener, ("192.0.2.7", 50123), {})
