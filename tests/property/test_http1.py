"""The request parser with arbitrary input: the sizes of reads and the caches do not matter;
garbage is refused.
"""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ostler.http1.errors import ProtocolViolation
from ostler.http1.request import MAX_HEAD, MAX_LINE, RequestParser, Rules
from ostler.http1.response import LAST_CHUNK, chunk
from tests.unit.http1.parsing import GET, POST_CHUNKED, Got, bytewise, fed, parsed, taken

RULES = st.sampled_from(
    [
        Rules(),
        Rules(
            limit_request_line=30, limit_request_fields=3, limit_request_field_size=40, limit_request_body=9
        ),
        Rules(
            limit_request_line=0, limit_request_fields=0, limit_request_field_size=0, header_map="dangerous"
        ),
        Rules(header_map="refuse", secure_scheme_headers={b"x-forwarded-proto": b"https"}),
        Rules(stream=True),
    ]
)


@dataclass
class Outcome:
    """All that the caller of a parser can see after some bytes."""

    requests: list[Got]
    https: list[bool]
    complete: list[bool]
    status: str | None
    receiving: bool
    in_body: bool
    received: int


def outcome(pieces: list[bytes], rules: Rules, remember: bool = True) -> Outcome:
    """What comes of the pieces; `remember`: with what earlier requests taught."""
    parser, status = fed(pieces, rules, remember)
    return Outcome(
        requests=taken(parser),
        https=[request.head.https for request in parser.requests],
        complete=[request.complete for request in parser.requests],
        status=status,
        receiving=parser.receiving,
        in_body=parser.in_body,
        received=parser.received,
    )


# Valid and invalid pieces of requests, which can be combined in nearly any order.
FRAGMENTS = [
    *(b"GET ", b"POST ", b"OPTIONS ", b"get ", b"CONNECT ", b"A" * 21),
    *(b"/", b"/a?b ", b"/ ", b"* ", b"http://y/ ", b"x:80 ", b"/caf\xc3\xa9 ", b"/%41 "),
    *(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"HTTP/2.0\r\n", b"HTTP/1.1\n"),
    *(b"GET / HTTP/1.1\r\n", b"POST /b HTTP/1.1\r\nHost: x\r\n", GET, GET, POST_CHUNKED),
    *(
        b"Host: x\r\n",
        b"Host: x\r\n\r\n",
        b"Host: \xff\r\n",
        b"X: y \r\n",
        b"X_Y: z\r\n",
        b"X : y\r\n",
        b" z\r\n",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Length: 5\r\n\r\nhello", b"Content-Length: 0\r\n\r\n"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n",
    ),
    *(
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n\r\n",
    ),
    *(b"Expect: 100-continue\r\n", b"X-Forwarded-Proto: https\r\n", b"X-Forwarded-Proto: http\r\n\r\n"),
    *(b"5\r\nhello\r\n", b"1", b"A\r\n", b";a=b", b';a="b"', b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n"),
    *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\x00", b"x" * 50),
]
MIXTURES = st.lists(st.sampled_from(FRAGMENTS), max_size=10).map(b"".join)
MAIMED = st.builds(
    lambda wire, at, put: wire[: at % (len(wire) + 1)] + put + wire[at % (len(wire) + 1) + 1 :],
    MIXTURES,
    st.integers(0, 500),
    st.binary(max_size=2),
)
WIRES = st.one_of(MIXTURES, MAIMED, st.binary(max_size=80))


def cut(wire: bytes, at: list[int]) -> list[bytes]:
    """The bytes in pieces that end at these positions; positions beyond the end wrap around."""
    places = sorted(place % (len(wire) + 1) for place in at)
    return [wire[a:b] for a, b in pairwise([0, *places, len(wire)])]


@settings(deadline=None, max_examples=200)
@given(WIRES, st.lists(st.integers(0, 1000), max_size=8), RULES)
@example(b"\r" + GET, [1], Rules())
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\n\r\n", [26], Rules())
@example(POST_CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + GET, [len(POST_CHUNKED) + 9], Rules())
def test_cuts_make_no_difference(wire: bytes, at: list[int], rules: Rules) -> None:
    """For valid and invalid bytes, reads of any sizes give the same result as one read."""
    whole = outcome([wire], rules)
    assert outcome(cut(wire, at), rules) == whole
    assert outcome(bytewise(wire), rules) == whole


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.just(GET), WIRES), max_size=6), RULES)
def test_caches_make_no_difference(pieces: list[bytes], rules: Rules) -> None:
    """A parser with filled caches gives the same result as one whose caches are empty."""
    twice = [piece for piece in pieces for _ in range(2)]
    assert outcome(twice, rules) == outcome(twice, rules, remember=False)


_TOKENS = st.text("abcXYZ-019", min_size=1, max_size=12).map(str.encode)
_VALUES = st.binary(max_size=20).map(lambda raw: bytes(b for b in raw if b > 32 and b != 127))
_BODIES = st.binary(min_size=1, max_size=200)
# Names that affect the framing would make it a different request.
_FIELDS = st.lists(st.tuples(_TOKENS.map(lambda name: b"X-" + name), _VALUES), max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Got]:
    """A valid request, and the expected result."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "X-OWN"]))
    target = b"/" + draw(_TOKENS)
    protocol = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0"]))
    fields = [(b"Host", draw(_TOKENS)), *draw(_FIELDS)]
    if protocol == "HTTP/1.0":
        fields = [*fields, (b"Connection", b"keep-alive")]
    body, wire = None, b""
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    if kind == "length":
        body = wire = draw(_BODIES)
        fields = [*fields, (b"Content-Length", b"%d" % len(body))]
    elif kind == "chunked" and protocol == "HTTP/1.1":
        chunks = draw(st.lists(_BODIES, max_size=3))
        body = b"".join(chunks)
        wire = b"".join(map(chunk, chunks)) + b"0\r\n"
        wire += b"".join(b"%b: %b\r\n" % field for field in draw(_FIELDS)) + b"\r\n"
        fields = [*fields, (b"Transfer-Encoding", b"chunked")]
    head = b"%b %b %b\r\n" % (method.encode(), target, protocol.encode())
    head += b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    return head + wire, Got(method, target, protocol, fields, body, True)


@settings(deadline=None, max_examples=200)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 5000), max_size=8))
def test_what_was_sent_is_what_is_parsed(play: list[tuple[bytes, Got]], at: list[int]) -> None:
    """Valid requests that are pipelined and read in any pieces are parsed as they were sent."""
    wire = b"".join(raw for raw, _ in play)
    assert parsed(*cut(wire, at)) == [got for _, got in play]


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=3000),
    st.lists(st.integers(1, 500), max_size=8),
    st.lists(st.integers(0, 5000), max_size=8),
    st.sampled_from([b"", b";a", b';name="a; \\"b"', b" ; a = b"]),
)
def test_chunks_go_round(body: bytes, sizes: list[int], at: list[int], extension: bytes) -> None:
    """A body that our encoder sends in any chunks is parsed as the same body, with and without extensions."""
    chunks, start = [], 0
    for size in [*sizes, len(body)]:
        if start < len(body):
            chunks.append(chunk(body[start : start + size]).replace(b"\r\n", extension + b"\r\n", 1))
        start += size
    wire = POST_CHUNKED + b"".join(chunks) + LAST_CHUNK + GET
    assert [got.body for got in parsed(*cut(wire, at))] == [body, None]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=60)), max_size=20), RULES)
def test_noise_never_does_more_than_a_violation(pieces: list[bytes], rules: Rules) -> None:
    """Random bytes raise nothing but ProtocolViolation, and give no more requests than they can contain."""
    result = outcome(pieces, rules)
    assert result.status is None or result.status[:1] in "45"
    # `G / HTTP/1.0` and two line ends are the shortest request.
    assert len(result.requests) <= sum(map(len, pieces)) / 16


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(FRAGMENTS), st.lists(st.sampled_from(FRAGMENTS), max_size=4).map(b"".join))
def test_repetition_is_bounded(piece: bytes, beginning: bytes) -> None:
    """Input that is repeated for long is served, refused or dropped; the memory for it is bounded."""
    kept = 0

    class Sink:
        def write(self, data: bytes, /) -> int:
            return len(data)

        def flush(self) -> None:
            pass

    parser = RequestParser(Rules(limit_request_line=0), Sink)
    read = piece * (4096 // len(piece))
    try:
        parser.feed(beginning)
        for _ in range(40):
            parser.feed(read)
            del parser.requests[:]
            kept = max(kept, len(parser._part or b""))
    except ProtocolViolation:
        return
    assert kept <= max(MAX_LINE, MAX_HEAD) + len(read)
