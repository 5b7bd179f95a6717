"""Bytes to requests: whatever the pieces they come in, and whatever clients do wrong."""

import io
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.http1.errors import HeadTooLarge, ProtocolViolation
from supervisor.http1.request import MAX_FIELDS, MAX_HEAD, RequestParser

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


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
    """The requests that are ready."""
    found = []
    for request in parser.requests:
        body = None
        if request.body is not None:
            assert isinstance(request.body, io.BytesIO)
            body = request.body.getvalue()
        assert request.length == len(body or b"")
        found.append(
            Got(request.method, request.target, request.protocol, request.headers, body, request.keep_alive)
        )
    return found


def parsed(*pieces: bytes) -> list[Got]:
    """The requests in the bytes, which must end with a whole one."""
    parser = RequestParser(io.BytesIO)
    for piece in pieces:
        parser.feed(piece)
    assert not parser.receiving
    return taken(parser)


def refused(*pieces: bytes) -> tuple[ProtocolViolation, list[Got]]:
    """How the bytes are refused, and the requests before that."""
    parser = RequestParser(io.BytesIO)
    with pytest.raises(ProtocolViolation) as caught:  # noqa: PT012 - which piece is refused does not matter
        for piece in pieces:
            parser.feed(piece)
    return caught.value, taken(parser)


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# -- what everyday requests look like --------------------------------------------------------------------


def test_a_request_has_all_its_parts() -> None:
    """Method, target, protocol, fields in their order and spelling; no body is None, not empty."""
    (got,) = parsed(b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nx-one:2\r\nEmpty:\r\n\r\n")
    fields = [(b"Host", b"x"), (b"X-One", b"1"), (b"x-one", b"2"), (b"Empty", b"")]
    assert got == Got("GET", b"/a%20b?c=d", "HTTP/1.1", fields, None, True)


@pytest.mark.parametrize("method", "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE PROPFIND REPORT".split())
def test_methods(method: str) -> None:
    """Methods of HTTP and of WebDAV arrive by name."""
    (got,) = parsed(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert got.method == method


@pytest.mark.parametrize("target", [b"*", b"http://a.example/x?y", b"//double", b"/?a=b?c"])
def test_targets_arrive_as_sent(target: bytes) -> None:
    """The parser does not interpret the target; that is the environ's business."""
    (got,) = parsed(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert got.target == target


def test_blanks_before_a_value_are_no_part_of_it() -> None:
    """RFC 9112 section 5: a value is what stands between its surrounding blanks; inner ones stay."""
    (got,) = parsed(b"GET / HTTP/1.1\r\nHost: \t x y\r\n\r\n")
    assert got.headers == [(b"Host", b"x y")]


@pytest.mark.parametrize("pieces", [1, 2])
def test_blanks_behind_a_value_are_no_part_of_it(pieces: int) -> None:
    """RFC 9112 section 5.1: blanks on both sides are excluded, also when they arrive by themselves."""
    head = b"GET / HTTP/1.1\r\nHost: x \t\r\n\r\n"
    cut = head.index(b" \t\r\n") + 1
    (got,) = parsed(*([head] if pieces == 1 else [head[:cut], head[cut:]]))
    assert got.headers == [(b"Host", b"x")]


def test_non_ascii_values_arrive_as_bytes() -> None:
    """RFC 9110 section 5.5: obs-text is opaque."""
    (got,) = parsed(b"GET / HTTP/1.1\r\nHost: x\r\nX-Name: caf\xe9 \xc3\xa9\r\n\r\n")
    assert got.headers[1] == (b"X-Name", b"caf\xe9 \xc3\xa9")


def test_empty_lines_before_a_request_are_skipped() -> None:
    """RFC 9112 section 2.2: old clients send an extra line end behind a body."""
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi\r\n"
    assert [got.method for got in parsed(b"\r\n" + post + GET)] == ["POST", "GET"]


# -- bodies ----------------------------------------------------------------------------------------------


def test_body_of_known_length() -> None:
    """The body is exactly Content-Length bytes; what follows is the next request."""
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    assert [got.body for got in parsed(post + post + GET)] == [b"hello", b"hello", None]


def test_empty_body() -> None:
    """Content-Length: 0 is no body; a length of a request before it does not linger."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
    assert [got.body for got in parsed(head % (1, b"x") + head % (0, b""))] == [b"x", None]


def test_chunked_body() -> None:
    """The coding is undone; extensions of chunks are ignored (RFC 9112 section 7.1.1)."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    (got,) = parsed(head + b"5;ext=1\r\nhello\r\n00A\r\n, world...\r\n0\r\n\r\n")
    assert got.body == b"hello, world..."


def test_trailers_do_not_reach_the_headers() -> None:
    """RFC 9110 section 6.5.1: a trailer must not pass for a header, of this request or of the next."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, second = parsed(head + b"1\r\na\r\n0\r\nX-Admin: yes\r\nCookie: a=b\r\n\r\n" + GET)
    assert [name for name, _ in first.headers] == [b"Host", b"Transfer-Encoding"]
    assert second.headers == [(b"Host", b"x")]


def test_trailers_behind_an_empty_body_do_not_reach_the_headers() -> None:
    """The same if nothing but the last chunk came before them."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    first, second = parsed(head + b"0\r\nX-Admin: yes\r\n\r\n" + GET)
    assert [name for name, _ in first.headers] == [b"Host", b"Transfer-Encoding"]
    assert first.body is None
    assert second.headers == [(b"Host", b"x")]


def test_huge_body_goes_to_the_sink() -> None:
    """A body beyond any head limit passes, piece by piece, and the sink gets it as it comes."""
    size, piece = 20 * MAX_HEAD, b"x" * 10_000
    sizes: list[int] = []

    class Sink:
        def write(self, data: bytes, /) -> int:
            sizes.append(len(data))
            return len(data)

    parser = RequestParser(Sink)
    parser.feed(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    left = size
    while left:
        assert parser.receiving
        parser.feed(piece[:left])
        left -= min(left, len(piece))
    (request,) = parser.requests
    assert request.length == sum(sizes) == size
    assert max(sizes) <= len(piece)


# -- pieces ----------------------------------------------------------------------------------------------

PLAY = (
    b"GET /first HTTP/1.1\r\nHost: x\r\nX-Long: abc def\r\n\r\n"
    b"POST /second?q HTTP/1.1\r\nHost: y\r\nContent-Length: 11\r\n\r\nGET / HTTP/\r\n"
    b"POST /third HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: z\r\n\r\n"
    b"3\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n"
    b"HEAD /last HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
)


def test_pipelined_requests_keep_their_order() -> None:
    """Four requests in one read come out whole, in order, each with its own fields, body and version."""
    assert [(got.target, got.body, got.protocol) for got in parsed(PLAY)] == [
        (b"/first", None, "HTTP/1.1"),
        (b"/second?q", b"GET / HTTP/", "HTTP/1.1"),
        (b"/third", b"abcde", "HTTP/1.1"),
        (b"/last", None, "HTTP/1.0"),
    ]


@pytest.mark.parametrize(
    ("first", "second"), [("HTTP/1.0", "HTTP/1.1"), ("HTTP/1.1", "HTTP/1.0"), ("HTTP/1.1", "HTTP/1.1")]
)
def test_each_pipelined_request_has_its_own_version(first: str, second: str) -> None:
    """A neighbour's version in the same read is not taken for one's own."""
    template = "GET / {}\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
    got = parsed((template.format(first) + template.format(second)).encode())
    assert [one.protocol for one in got] == [first, second]


def test_split_at_every_byte() -> None:
    """Two reads, cut anywhere, give what one read gives."""
    whole = parsed(PLAY)
    for cut in range(1, len(PLAY)):
        assert parsed(PLAY[:cut], PLAY[cut:]) == whole, f"cut at {cut}: {PLAY[:cut][-20:]!r}"


def test_byte_by_byte() -> None:
    """One byte a read gives what one read gives."""
    assert parsed(*bytewise(PLAY)) == parsed(PLAY)


_TOKENS = st.text("abcXYZ-019", min_size=1, max_size=12).map(str.encode)
_VALUES = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b > 32 and b != 127))
_BODIES = st.binary(min_size=1, max_size=200)
# Names that mean something to the framing would make another request of it.
_FIELDS = st.lists(st.tuples(_TOKENS.map(lambda name: b"X-" + name), _VALUES), max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Got]:
    """A valid request, and what must come of it."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]))
    target = b"/" + draw(_TOKENS)
    protocol = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0"]))
    fields = draw(_FIELDS)
    if protocol == "HTTP/1.0":
        fields = [*fields, (b"Connection", b"keep-alive")]
    body, wire = None, b""
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "length":
        body = wire = draw(_BODIES)
        fields = [*fields, (b"Content-Length", b"%d" % len(body))]
    elif kind == "chunked" and protocol == "HTTP/1.1":
        chunks = draw(st.lists(_BODIES, min_size=1, max_size=3))
        body = b"".join(chunks)
        wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n"
        wire += b"".join(b"%b: %b\r\n" % field for field in draw(_FIELDS)) + b"\r\n"
        fields = [*fields, (b"Transfer-Encoding", b"chunked")]
    head = b"%b %b %b\r\n" % (method.encode(), target, protocol.encode())
    head += b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    return head + wire, Got(method, target, protocol, fields, body, True)


@settings(deadline=None, max_examples=200)
@given(st.lists(requests(), min_size=1, max_size=4), st.data())
def test_any_requests_in_any_pieces(play: list[tuple[bytes, Got]], data: st.DataObject) -> None:
    """Whatever requests are pipelined and wherever the reads end, what was sent is what is parsed."""
    wire = b"".join(raw for raw, _ in play)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=8).map(sorted))
    pieces = [wire[a:b] for a, b in pairwise([0, *cuts, len(wire)]) if a < b]
    assert parsed(*pieces) == [got for _, got in play]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_noise_never_does_more_than_a_violation(pieces: list[bytes]) -> None:
    """No bytes make the parser raise anything but ProtocolViolation, which knows its answer."""
    parser = RequestParser(io.BytesIO)
    try:
        for piece in pieces:
            parser.feed(piece)
    except ProtocolViolation as violation:
        assert violation.status[:1] == "4"  # noqa: PT017 - most examples raise nothing


# -- state between reads ---------------------------------------------------------------------------------


def test_receiving_says_that_a_request_has_begun() -> None:
    """True from the target to the end of the body, so that a stalled request is told from an idle client."""
    parser = RequestParser(io.BytesIO)
    said = [parser.receiving]
    for piece in (b"POST /a HTTP/1.1\r\nHo", b"st: x\r\nContent-Length: 2\r\n\r\nh", b"i"):
        parser.feed(piece)
        said.append(parser.receiving)
    assert said == [False, True, True, False]
    assert len(parser.requests) == 1


def test_expect_asks_for_continue() -> None:
    """RFC 9110 section 10.1.1: a client that waits is noticed as soon as its head is whole."""
    parser = RequestParser(io.BytesIO)
    said = []
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nEXPECT: 100-Continue\r\n"
    for piece in (head, b"\r\n", b"h", b"i"):
        parser.feed(piece)
        said.append(parser.wants_continue)
        parser.wants_continue = False
    assert said == [False, True, False, False]
    assert taken(parser)[0].body == b"hi"


def test_expect_with_the_body_asks_for_nothing() -> None:
    """A body that is there needs no `100 Continue` (RFC 9110 section 10.1.1)."""
    parser = RequestParser(io.BytesIO)
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi" + GET)
    assert not parser.wants_continue
    assert len(parser.requests) == 2


def test_expect_of_an_old_client_is_ignored() -> None:
    """RFC 9110 section 10.1.1: an HTTP/1.0 client does not know interim responses."""
    parser = RequestParser(io.BytesIO)
    parser.feed(b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert not parser.wants_continue


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_keep_alive(head: bytes, keeps: bool) -> None:
    """RFC 9112 section 9.3: 1.1 stays unless told to close, 1.0 goes unless told to stay."""
    assert parsed(head)[0].keep_alive is keeps


def test_what_follows_a_close_is_no_request() -> None:
    """RFC 9112 section 9.6: a client that said close sends nothing more; the request before it stands."""
    _, before = refused(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET)
    assert [got.keep_alive for got in before] == [False]


# -- upgrades --------------------------------------------------------------------------------------------

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_an_upgrade_is_ignored() -> None:
    """RFC 9110 section 7.8: the request is served as if it had not asked, and so are those behind it."""
    for pieces in (
        [UPGRADE + GET + UPGRADE + GET],
        [UPGRADE, GET, UPGRADE, GET],
        bytewise(UPGRADE + GET) * 2,
    ):
        got = parsed(*pieces)
        assert [(one.target, one.keep_alive) for one in got] == [(b"/ws", True), (b"/a", True)] * 2


@pytest.mark.parametrize("bytes_a_read", [1, 100_000])
@pytest.mark.parametrize(
    "framed",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
)
def test_an_upgrade_with_a_body_keeps_it(framed: bytes, bytes_a_read: int) -> None:
    """Java's HttpClient asks for h2c in its first POST; its body belongs to it and is no next request."""
    wire = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + framed + GET
    pieces = [wire[at : at + bytes_a_read] for at in range(0, len(wire), bytes_a_read)]
    assert [(got.method, got.body) for got in parsed(*pieces)] == [("POST", b"hello"), ("GET", None)]


def test_many_upgrades_in_one_read() -> None:
    """One read holds more of them than Python's stack; they are no violation."""
    assert len(parsed(UPGRADE * 1200)) == 1200


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello world\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: five\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n",
    ],
)
def test_garbage_is_a_bad_request(garbage: bytes) -> None:
    """What is no HTTP is refused with 400, in one read as in many."""
    for pieces in ([garbage], bytewise(garbage)):
        violation, before = refused(*pieces)
        assert violation.status == "400 Bad Request"
        assert before == []


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/9.9", b"HTTQ/1.1", b""])
def test_other_versions_are_refused(version: bytes) -> None:
    """1.0 and 1.1 are spoken, nothing else."""
    refused(b"GET / " + version + b"\r\nHost: x\r\n\r\n")


def test_the_preface_of_http2_is_refused() -> None:
    """RFC 9113 section 3.4: the preface is made so that an HTTP/1 server refuses it."""
    _, before = refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert before == []


def test_requests_before_garbage_are_there() -> None:
    """A violation takes nothing away from the whole requests before it."""
    _, before = refused(GET + GET + b"nonsense\r\n\r\n")
    assert [got.target for got in before] == [b"/a", b"/a"]


@pytest.mark.parametrize(
    "endless", [b"GET /" + b"x" * 100_000, b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000]
)
@pytest.mark.parametrize("size", [1000, 65536])
def test_an_endless_head_is_refused(endless: bytes, size: int) -> None:
    """A head that does not end by the limit gets 431, not more memory."""
    parser = RequestParser(io.BytesIO)
    fed = 0
    with pytest.raises(HeadTooLarge) as caught:  # noqa: PT012 - it counts what was fed until then
        for at in range(0, len(endless), size):
            fed += size
            parser.feed(endless[at : at + size])
    assert caught.value.status.startswith("431 ")
    assert fed <= MAX_HEAD + size


def test_a_large_head_within_the_limit_passes() -> None:
    """32 KiB of cookies are ugly and legal; the limit is for each head, not for all of a connection."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 32 * 1024 + b"\r\n\r\n"
    assert len(parsed(*[head[:5000], head[5000:]] * 5)) == 5


def test_a_head_behind_a_body_is_counted_alone() -> None:
    """A small head in pieces is no large head because a body ended in the read where it began."""
    body = b"x" * (MAX_HEAD - 100)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert len(parsed(post, body + b"GET / HTTP/1.1\r\n", b"X: " + b"y" * 200 + b"\r\n", b"\r\n")) == 2


@pytest.mark.parametrize("whole", [True, False])
def test_too_many_fields_are_refused(whole: bool) -> None:
    """So many fields pass and no more, whether the head ends or not."""
    line, end = b"a: b\r\n", b"\r\n" if whole else b""
    head = b"GET / HTTP/1.1\r\n"
    parser = RequestParser(io.BytesIO)
    parser.feed(head + line * MAX_FIELDS + b"\r\n")
    assert len(parser.requests[0].headers) == MAX_FIELDS
    violation, before = refused(head + line * (MAX_FIELDS + 2) + end)
    assert isinstance(violation, HeadTooLarge)
    assert before == []


def test_too_many_trailers_are_refused() -> None:
    """Trailers are dropped, yet they must not pile up."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    violation, _ = refused(head, b"a: b\r\n" * (MAX_FIELDS + 2))
    assert isinstance(violation, HeadTooLarge)


def test_endless_trailers_are_refused() -> None:
    """Fields behind a body are bounded like those before it, however small the body was."""
    parser = RequestParser(io.BytesIO)
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: ")
    for _ in range(MAX_HEAD // 4096):
        parser.feed(b"a" * 4096)
    with pytest.raises(HeadTooLarge):
        parser.feed(b"a" * 4096)
