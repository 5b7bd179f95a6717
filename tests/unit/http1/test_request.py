"""The parser's state: what it caches, reports and limits between reads."""

import gc
import io
import sys
from functools import partial

import pytest

from ostler.http1.errors import BodyNotStored, HeadTooLarge, LineTooLong, ProtocolViolation
from ostler.http1.head import _Fields, _hosts
from ostler.http1.request import MAX_FIELDS, MAX_HEAD, MAX_LINE, RequestParser, Rules
from tests.kit.threads import run_at_once
from tests.unit.http1.parsing import (
    GET,
    GET_LINE,
    POST_CHUNKED,
    RULES,
    Got,
    bytewise,
    parsed,
    parser_of,
    python_only,
    refused,
    taken,
)


class Sizes:
    """A sink that records the size of each write."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def write(self, data: bytes, /) -> int:
        self.sizes.append(len(data))
        return len(data)

    def flush(self) -> None:
        pass


# -- requests and their parts ----------------------------------------------------------------------------


def test_a_request_has_all_its_parts() -> None:
    """Method, target, protocol, fields in their order and spelling; no body is None, not empty."""
    (got,) = parsed(b"GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-One: 1\r\nx-one:2\r\nEmpty:\r\n\r\n")
    fields = [(b"Host", b"x"), (b"X-One", b"1"), (b"x-one", b"2"), (b"Empty", b"")]
    assert got == Got("GET", b"/a%20b?c=d", "HTTP/1.1", fields, None, True)


PLAY = (
    b"GET /first HTTP/1.1\r\nHost: x\r\nX-Long: abc def \r\n\r\n"
    b"POST /second?q HTTP/1.1\r\nHost: y\r\nContent-Length: 11\r\n\r\nGET / HTTP/\r\n"
    b"POST /third HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: z\r\n\r\n"
    b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    b"HEAD /last HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
)


def test_pipelined_requests_keep_their_order() -> None:
    """Four requests in one read are complete, in order, each with its own fields, body and version."""
    assert [(got.target, got.body, got.protocol) for got in parsed(PLAY)] == [
        (b"/first", None, "HTTP/1.1"),
        (b"/second?q", b"GET / HTTP/", "HTTP/1.1"),
        (b"/third", b"abcde", "HTTP/1.1"),
        (b"/last", None, "HTTP/1.0"),
    ]


def test_split_at_every_byte() -> None:
    """Two reads, split anywhere, yield the same as one read; so do reads of one byte."""
    whole = parsed(PLAY)
    for cut in range(1, len(PLAY)):
        assert parsed(PLAY[:cut], PLAY[cut:]) == whole, f"cut at {cut}: {PLAY[:cut][-20:]!r}"
    assert parsed(*bytewise(PLAY)) == whole


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: foo, Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: closed\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_keep_alive(head: bytes, keeps: bool) -> None:
    """RFC 9112 section 9.3.

    1.1 keeps the connection unless asked to close, 1.0 closes it unless asked to keep it.
    """
    assert parsed(head)[0].keep_alive is keeps


@pytest.mark.parametrize(
    "last", [b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"]
)
def test_nothing_after_the_last_request_is_parsed(last: bytes) -> None:
    """RFC 9112 section 9.6: nothing after a close is processed, not even a line end."""
    for rest in (GET, b"\r\n", b"\x00nonsense\r\n\r\n"):
        for pieces in ([GET + last + rest + GET], [GET, last, rest, GET], bytewise(GET + last + rest)):
            assert [got.keep_alive for got in parsed(*pieces)] == [True, False]


# -- what is remembered ----------------------------------------------------------------------------------


def test_the_same_fields_are_the_same_head() -> None:
    """A repeated block is not parsed again, for any request line before it and any split."""
    other = GET.replace(b"/a", b"/something/else?entirely")
    parser = parser_of(GET, other, other + GET, GET[:9], GET[9:], rules=python_only(RULES))
    assert len({id(request.head) for request in parser.requests}) == 1
    paths = [request.line.path for request in parser.requests]
    assert paths == ["/a", "/something/else", "/something/else", "/a", "/a"]


def test_other_fields_are_another_head() -> None:
    """A block with the same beginning or end as the last one is another block."""
    longer = GET.replace(b"Host", b"X-Host: y\r\nHost")
    assert [len(got.headers) for got in parsed(GET, longer, GET, longer + GET)] == [1, 2, 1, 2, 1]


def test_an_old_request_does_not_share_a_head() -> None:
    """The same block has another meaning in HTTP/1.0, so it is parsed again."""
    old = GET.replace(b"1.1", b"1.0")
    assert [got.keep_alive for got in parsed(GET, old)] == [True, False]
    hostless = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    violation, before = refused(hostless, hostless.replace(b"1.0", b"1.1"))
    assert len(before) == 1
    assert violation.status.startswith("400 ")


def test_a_head_with_a_body_is_not_remembered() -> None:
    """The second body is read as a body, not as a request."""
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    assert [got.body for got in parsed(post + b"hi", post + b"ho", GET, post + b"hu")] == [
        b"hi",
        b"ho",
        None,
        b"hu",
    ]


def test_known_bytes_within_a_body_are_no_request() -> None:
    """A read that equals the last request is part of the body that is being received."""
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GET)
    assert [got.body for got in parsed(GET, post, GET, GET)] == [None, GET, None]


def test_new_rules_apply_to_the_same_fields() -> None:
    """Blocks that were cached under other rules are parsed again."""
    wire = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\n\r\n"
    parser = parser_of(wire)
    parser.rules = Rules(secure_scheme_headers={b"x-forwarded-proto": b"https"})
    parser.feed(wire)
    assert [request.head.https for request in parser.requests] == [False, True]


def test_a_line_that_others_may_send_may_be_too_long_here() -> None:
    """Limits are those of a connection."""
    long = GET.replace(b"/a", b"/" + b"a" * 100)
    parser = parser_of(GET, long)
    assert len(parser.requests) == 2
    strict = RequestParser(Rules(limit_request_line=50), io.BytesIO)
    for _ in range(2):
        strict.feed(GET)
    with pytest.raises(LineTooLong):
        strict.feed(long)


def test_what_is_remembered_is_bounded() -> None:
    """New names and hosts do not make a process grow without limit."""
    rules = Rules()
    parser = RequestParser(rules, io.BytesIO)
    for number in range(5000):
        parser.feed(b"GET /%d HTTP/1.1\r\nHost: h%d\r\nX-%d: y\r\n\r\n" % (number, number, number))
        del parser.requests[:]
    assert len(rules.meanings.known) <= 1024
    assert len(_hosts) <= 256


def test_an_idle_parser_is_small() -> None:
    """Ten thousand idle connections need little memory: after `forget` a parser holds only an empty list."""
    parser = parser_of(GET)
    parser.requests.pop()
    parser.forget()
    own = [held for held in gc.get_referents(parser) if isinstance(held, (list, dict, bytes, bytearray))]
    assert own == [[]]
    assert sys.getsizeof(parser) + sys.getsizeof(own[0]) < 300


# -- names and schemes -----------------------------------------------------------------------------------

UNDERSCORES = b"GET / HTTP/1.1\r\nHost: x\r\nX_A: 1\r\nScript_Name: 2\r\nContent_Length: 5\r\nX-A: 3\r\n\r\n"


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        (Rules(), [b"Host", b"X-A"]),
        (Rules(forwarder_headers=frozenset([b"script_name"])), [b"Host", b"Script_Name", b"X-A"]),
        (Rules(header_map="dangerous"), [b"Host", b"X_A", b"Script_Name", b"Content_Length", b"X-A"]),
    ],
)
def test_names_with_underscores(rules: Rules, names: list[bytes]) -> None:
    """They are dropped unless the rules allow them; none ever counts as the name with a hyphen."""
    for _ in range(2):  # the second time the names are known
        assert [name for name, _ in parsed(UNDERSCORES, rules=rules)[0].headers] == names


@pytest.mark.parametrize(
    ("fields", "https"),
    [
        (b"", False),
        (b"X-Forwarded-Proto: https\r\n", True),
        (b"x-forwarded-proto: http\r\n", False),
        (b"X-Forwarded-Proto: https\r\nX-FORWARDED-SSL: on\r\n", True),
        (b"X-Forwarded-Proto: https, http\r\n", False),
    ],
)
def test_secure_scheme_headers(fields: bytes, https: bool) -> None:
    """The fields of a trusted proxy set the scheme; those of other peers do not."""
    trusting = Rules(secure_scheme_headers={b"x-forwarded-proto": b"https", b"x-forwarded-ssl": b"on"})
    wire = b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n"
    assert parser_of(wire, rules=trusting).requests[0].head.https is https
    assert parser_of(wire).requests[0].head.https is False


# -- bodies ----------------------------------------------------------------------------------------------


def test_trailers_do_not_reach_the_headers() -> None:
    """RFC 9110 section 6.5.1: a trailer must not become a header of this request or of the next."""
    first, second = parsed(POST_CHUNKED + b"1\r\na\r\n0\r\nX-Admin: yes\r\n\r\n" + GET)
    assert [name for name, _ in first.headers] == [b"Host", b"Transfer-Encoding"]
    assert second.headers == [(b"Host", b"x")]


def test_huge_body_goes_to_the_sink() -> None:
    """A body larger than any head limit is accepted, and the sink gets it piece by piece."""
    size, piece = 20 * MAX_HEAD, b"x" * 10_000
    parser = RequestParser(RULES, Sizes)
    parser.feed(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    left = size
    while left:
        assert parser.in_body
        assert parser.received == size - left
        parser.feed(piece[:left])
        left -= min(left, len(piece))
    (request,) = parser.requests
    assert isinstance(request.body, Sizes)
    assert request.length == sum(request.body.sizes) == size
    assert max(request.body.sizes) <= len(piece)
    assert parser.received == 0


def test_a_body_at_its_limit_passes() -> None:
    """limit_request_body is the largest accepted body, with either framing."""
    rules = Rules(limit_request_body=5)
    sized = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    bodies = [
        got.body for got in parsed(sized + POST_CHUNKED + b"4\r\nhell\r\n1\r\no\r\n0\r\n\r\n", rules=rules)
    ]
    assert bodies == [b"hello", b"hello"]


class Full:
    """A sink without room."""

    def write(self, data: bytes, /) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    "framed", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello"]
)
def test_the_last_bytes_of_a_body_that_can_not_be_stored(framed: bytes) -> None:
    """A sink may buffer, so a full disk may show only at the end of the body: the error is the same."""

    class FullAtTheEnd(io.BytesIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    end = b"\r\n0\r\n\r\n" if b"chunked" in framed else b""
    parser = RequestParser(RULES, FullAtTheEnd)
    with pytest.raises(BodyNotStored, match="No space left"):
        parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + framed + end)
    assert parser.requests == []


@pytest.mark.parametrize(
    "framed", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello"]
)
def test_a_body_that_can_not_be_stored(framed: bytes) -> None:
    """A full disk is not the client's fault: 507, and the request is not served."""
    parser = RequestParser(RULES, Full)
    with pytest.raises(BodyNotStored, match="No space left"):
        parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + framed)
    assert not parser.requests


def test_a_sink_that_can_not_be_made() -> None:
    """The same if the file can't be created."""

    def no_sink() -> io.BytesIO:
        raise OSError(24, "Too many open files")

    with pytest.raises(BodyNotStored):
        RequestParser(RULES, no_sink).feed(POST_CHUNKED)


# -- streaming -------------------------------------------------------------------------------------------

STREAM = Rules(stream=True)


@pytest.mark.parametrize(
    "framed",
    [
        [b"Content-Length: 5\r\n\r\n", b"he", b"llo"],
        [b"Transfer-Encoding: chunked\r\n\r\n", b"2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"],
    ],
)
def test_a_streamed_request_is_there_with_its_head(framed: list[bytes]) -> None:
    """Its body grows as it arrives; then it is complete, and the next request follows."""
    parser = RequestParser(STREAM, io.BytesIO)
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + framed[0])
    request = parser.requests.pop()
    assert (request.complete, request.length) == (False, 0)
    parser.feed(framed[1])
    assert (request.complete, request.length, parser.requests) == (False, 2, [])
    parser.feed(framed[2] + GET)
    assert (request.complete, request.length, len(parser.requests)) == (True, 5, 1)
    assert isinstance(request.body, io.BytesIO)
    assert request.body.getvalue() == b"hello"


def test_a_streamed_body_that_is_malformed_stays_incomplete() -> None:
    """Code that already serves the request can see that it is still incomplete."""
    parser = parser_of(POST_CHUNKED, rules=STREAM)
    with pytest.raises(ProtocolViolation):
        parser.feed(b"5\r\nhelloX")
    assert [(request.complete, request.length) for request in parser.requests] == [(False, 5)]


def test_without_a_body_streaming_changes_nothing() -> None:
    """A request without a body is complete at once."""
    assert [request.complete for request in parser_of(GET + GET, rules=STREAM).requests] == [True, True]


# -- the parser's attributes ----------------------------------------------------------------------------


def test_receiving_says_that_a_request_has_begun() -> None:
    """True from the first byte to the end of the body, to tell a stalled request from an idle client."""
    parser = RequestParser(RULES, io.BytesIO)
    seen = [(parser.receiving, parser.in_body)]
    for piece in (b"P", b"OST /a HTTP/1.1\r\nHo", b"st: x\r\nContent-Length: 2\r\n\r\nh", b"i", b"\r\n"):
        parser.feed(piece)
        seen.append((parser.receiving, parser.in_body))
    assert seen == [
        (False, False),
        (True, False),
        (True, False),
        (True, True),
        (False, False),
        (False, False),
    ]
    assert len(parser.requests) == 1


def test_empty_lines_are_counted_for_each_request() -> None:
    """Old clients send one after each body, without limit; empty lines without a request are limited."""
    assert len(parsed(*[b"\r\n", GET] * 50)) == 50
    assert len(parsed((b"\r\n" + GET) * 50)) == 50
    violation, before = refused(*[b"\r\n"] * 50)
    assert violation.status.startswith("400 ")
    assert before == []


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["sized", "chunked"]
)
def test_expect_asks_for_continue(framing: bytes) -> None:
    """RFC 9110 section 10.1.1: a client that waits is noticed as soon as its head is complete."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nEXPECT: 100-Continue\r\n" + framing
    parser = parser_of(head)
    assert not parser.wants_continue
    parser.feed(b"\r\n")
    assert parser.wants_continue
    parser.feed(b"1")
    assert not parser.wants_continue


def test_expect_is_asked_again_for_the_next_request() -> None:
    """A head with an expectation is never cached."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    parser = RequestParser(RULES, io.BytesIO)
    for _ in range(2):
        parser.feed(head)
        assert parser.wants_continue
        parser.feed(b"hi")
    assert [got.body for got in taken(parser)] == [b"hi", b"hi"]


@pytest.mark.parametrize(
    "wire",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nh",
        b"POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    ],
    ids=["the body has begun", "HTTP/1.0", "an empty body", "no body"],
)
def test_no_continue_is_sent(wire: bytes) -> None:
    """RFC 9110 section 10.1.1: if there is no body, or it has begun to arrive, or the client is HTTP/1.0."""
    assert not parser_of(wire).wants_continue


def test_a_parser_is_dead_after_a_violation() -> None:
    """Nothing after it becomes a request, not even a cached head."""
    parser = parser_of(GET)
    with pytest.raises(ProtocolViolation):
        parser.feed(b"nonsense\r\n\r\n")
    parser.feed(GET)
    assert len(parser.requests) == 1
    assert not parser.receiving


# -- upgrades --------------------------------------------------------------------------------------------

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_an_upgrade_that_is_not_taken_is_ignored() -> None:
    """RFC 9110 section 7.8: the request is served as if it had no Upgrade field, and so are later ones."""
    for pieces in ([UPGRADE + GET] * 2, [UPGRADE, GET] * 2, bytewise(UPGRADE + GET) * 2):
        got = parsed(*pieces)
        assert [(one.target, one.keep_alive) for one in got] == [(b"/ws", True), (b"/a", True)] * 2


@pytest.mark.parametrize(
    "framed",
    [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
)
def test_an_upgrade_with_a_body_keeps_it(framed: bytes) -> None:
    """Java's HttpClient asks for h2c in its first POST; the body is not the next request."""
    wire = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + framed + GET
    for pieces in ([wire], bytewise(wire)):
        assert [(got.method, got.body) for got in parsed(*pieces)] == [("POST", b"hello"), ("GET", None)]


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", True),
        (b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n", True),
        (b"Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", True),
        (b"Connection: close, Upgrade\r\nUpgrade: websocket\r\n", True),
        (b"Upgrade: websocket\r\n", False),
        (b"Connection: Upgrade\r\n", False),
        (b"Connection: keep-alive\r\n", False),
    ],
)
def test_an_upgrade_is_offered_by_two_fields(fields: bytes, offered: bool) -> None:
    """RFC 9110 section 7.8: Upgrade counts only if Connection names it, and not in HTTP/1.0."""
    wire = b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n"
    assert parser_of(wire).requests[0].head.upgrade is offered
    assert not parser_of(wire.replace(b"1.1", b"1.0")).requests[0].head.upgrade


FRAME = b"\x81\x85\0\0\0\0hello"


def test_what_comes_behind_an_upgrade_is_held() -> None:
    """It may be of the other protocol: nothing of it is parsed, nothing of it is lost, however it comes."""
    body = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhi"
    for head in (UPGRADE, body, UPGRADE.replace(b"Connection: ", b"Connection: close, ")):
        for pieces in ([GET + head + FRAME + GET], [head, FRAME, GET], bytewise(head + FRAME + GET)):
            parser = parser_of(*pieces)
            assert parser.requests[-1].head.upgrade
            assert parser.holds
            assert not parser.receiving
            assert parser.held == FRAME + GET
            parser.stop()
            parser.feed(GET)
            assert not parser.holds
            assert parser.requests[-1].head.upgrade, "nothing is parsed any more"


def test_what_was_held_can_be_invalid() -> None:
    """A frame behind an upgrade that is not taken is no request."""
    parser = parser_of(UPGRADE + FRAME)
    with pytest.raises(ProtocolViolation):
        parser.resume()
    assert len(parser.requests) == 1


def test_two_upgrades_are_decided_one_after_the_other() -> None:
    """What is held may begin with the next request that offers one."""
    parser = parser_of(UPGRADE + UPGRADE + FRAME)
    assert len(parser.requests) == 1
    parser.resume()
    assert len(parser.requests) == 2
    assert parser.held == FRAME


LINE = b"POST /path?q HTTP/1.1"
HEAD = LINE + b"\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("reads", "line"),
    [
        ([b"what is this\r\n\r\n"], b"what is this"),
        ([b"GET / HTTP/1.1 x", b" y\r\n"], b"GET / HTTP/1.1 x y"),
        ([LINE + b"\r\nno field\r\n\r\n"], LINE),
        ([LINE, b"\r\nHost: x\r\n", b"no field\r\n\r\n"], LINE),
        ([HEAD + b"zzz\r\n"], LINE),
        ([HEAD, b"3\r\nabc\r\n", b"zzz\r\n"], LINE),
        ([b"GET / HTTP/1.1\r\nHost: x\r\n\r\nwhat is this\r\n"], b""),
    ],
)
def test_the_beginning_of_what_is_refused(reads: list[bytes], line: bytes) -> None:
    """The access log shows its line however it came, and never a part of a body, or another one's line."""
    parser = parser_of()
    *before, last = reads
    for read in before:
        parser.feed(read)
    with pytest.raises(ProtocolViolation):
        parser.feed(last)
    assert parser.beginning.partition(b"\r\n")[0] == line


def test_the_beginning_of_what_is_not_complete() -> None:
    """The same for a request that takes too long."""
    parser = parser_of()
    for read, beginning in ((b"", b""), (LINE[:9], LINE[:9]), (LINE[9:] + b"\r\nHost", LINE)):
        parser.feed(read)
        assert parser.beginning == beginning
    parser.feed(b": x\r\nContent-Length: 3\r\n\r\na")
    assert parser.beginning == LINE


# -- bounds ----------------------------------------------------------------------------------------------

UNLIMITED = Rules(limit_request_line=0, limit_request_fields=0, limit_request_field_size=0)


@pytest.mark.parametrize("size", [1000, 65536])
@pytest.mark.parametrize(
    ("beginning", "error"), [(b"GET /", LineTooLong), (GET_LINE + b"Host: x\r\nX-Long: ", HeadTooLarge)]
)
def test_hard_bounds(beginning: bytes, error: type[ProtocolViolation], size: int) -> None:
    """Without a limit in the settings a hard limit bounds the memory."""
    parser = parser_of(beginning, rules=UNLIMITED)
    fed = 0
    with pytest.raises(error):  # noqa: PT012 - it counts what was fed until then
        while True:
            fed += size
            parser.feed(b"x" * size)
    assert fed <= max(MAX_LINE, MAX_HEAD) + size


def test_what_is_large_and_within_the_hard_bounds_passes() -> None:
    """0 means no limit: a long line, a long field and many fields are served."""
    long = b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n"
    many = GET_LINE + b"Host: x\r\n" + b"X: y\r\n" * (MAX_FIELDS - 1) + b"\r\n"
    assert [len(got.headers) for got in parsed(long, many, rules=UNLIMITED)] == [2, MAX_FIELDS]
    violation, _ = refused(many.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n"), rules=UNLIMITED)
    assert isinstance(violation, HeadTooLarge)


def test_a_head_may_be_as_large_as_its_fields() -> None:
    """Fields that each are within the limits are served, whatever their sum is: in one read and in many."""
    fields = b"Host: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 8000) for n in range(99))
    wire = GET_LINE + fields + b"\r\n"
    pieces = [wire[at : at + 1000] for at in range(0, len(wire), 1000)]
    for got in (*parsed(wire), *parsed(*pieces)):
        assert len(got.headers) == 100
    assert len(parsed(wire)) == len(parsed(*pieces)) == 1


@pytest.mark.parametrize(
    ("rules", "piece", "most"),
    [
        # One field more than there may be, each as long as it may be.
        (Rules(limit_request_fields=20), b"X: " + b"y" * 8186 + b"\r\n", 22 * 8192),
        (Rules(limit_request_fields=0, limit_request_field_size=70_000), b"y" * 1000, 71_000),
    ],
)
def test_a_long_head_is_refused_before_its_end(rules: Rules, piece: bytes, most: int) -> None:
    """What breaks a limit is refused when it has come, not when the head ends."""
    parser = parser_of(GET_LINE + b"Host: x\r\n", rules=rules)
    fed = 0
    with pytest.raises(HeadTooLarge):  # noqa: PT012 - it counts what was fed until then
        while True:
            fed += len(piece)
            parser.feed(piece)
    assert fed <= most


def test_limits_are_met_exactly() -> None:
    """Sizes up to the limit are accepted, in one read and in many."""
    rules = Rules(limit_request_line=14, limit_request_fields=2, limit_request_field_size=8)
    wire = GET_LINE + b"Host: xy\r\nX: 45678\r\n\r\n"
    assert len(parsed(wire, rules=rules)) == len(parsed(*bytewise(wire), rules=rules)) == 1


def test_a_million_tiny_chunks_cost_no_memory() -> None:
    """The parser's memory for a body does not grow with the number of chunks."""
    parser = RequestParser(RULES, Sizes)
    parser.feed(POST_CHUNKED)
    tiny = b"1\r\nx\r\n" * 10_000
    for _ in range(10):
        parser.feed(tiny)
    assert parser.received == 100_000
    parser.feed(b"0\r\n\r\n")
    assert parser.requests[0].length == 100_000


# -- threads and signals ---------------------------------------------------------------------------------


def test_parsers_of_different_threads_do_not_interfere() -> None:
    """All threads may use the caches that parsers share (lines, names, hosts) at the same time."""
    failures: list[object] = []

    def play(number: int) -> None:
        parser = RequestParser(RULES, io.BytesIO)
        for turn in range(1500):
            name, value = b"X-%d-%d" % (number, turn), b"%d" % turn
            parser.feed(
                b"GET /%d/%d HTTP/1.1\r\nHost: h%d\r\n%b: %b\r\n\r\n" % (number, turn, turn, name, value)
            )
            (got,) = taken(parser)
            del parser.requests[:]
            if got.headers[1] != (name, value) or got.target != b"/%d/%d" % (number, turn):
                failures.append(got)

    run_at_once((partial(play, number) for number in range(4)), 1e-5)
    assert not failures


class Quit(BaseException):
    """An exception that a signal handler may raise at any moment."""


def test_an_exception_of_a_signal_handler_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception raised in a callback of llhttp is passed on unchanged."""

    def interrupted(self: _Fields, name: bytes, value: bytes) -> None:
        raise Quit

    monkeypatch.setattr(_Fields, "on_header", interrupted)
    with pytest.raises(Quit):
        parser_of(*bytewise(GET.replace(b"\r\n\r\n", b"\r\nA: \xff\r\n\r\n")))  # a value that llhttp splits
