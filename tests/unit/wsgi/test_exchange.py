"""One request and its answer: what PEP 3333 requires for apps, and HTTP for clients."""

import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from ostler.http1.request import RequestParser, Rules
from ostler.wsgi.body import BufferedBody
from ostler.wsgi.environ import (
    Environ,
    connection_environ,
    listener_environ,
    request_environ,
    worker_environ,
)
from ostler.wsgi.exchange import App, ClientGone, Exchange
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker

Start = Callable[..., Any]

DATE_SERVER = b"Server: ostler\r\nDate: Sat, 21 Nov 2026 09:00:00 GMT\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"
GET10_STAY = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
TEXT = [("Content-Type", "text/plain")]


class Wire:
    """A transport that records what is sent; its client may disconnect after some sends."""

    def __init__(self, patience: int = 1000) -> None:
        self.sends: list[bytes] = []
        self.parts = 0
        self.patience = patience

    def send(self, data: bytes) -> None:
        if self.patience == 0:
            raise ClientGone
        self.patience -= 1
        self.sends.append(bytes(data))

    def send_file(self, fd: int, offset: int, count: int) -> None:
        self.send(os.pread(fd, count, offset))

    def note_part(self, silent: bool, /) -> None:
        self.parts += 1


class Answered:
    """An answer, parsed as a client would."""

    def __init__(self, exchange: Exchange, wire: Wire) -> None:
        self.exchange = exchange
        self.wire = b"".join(wire.sends)
        self.sends = wire.sends
        self.parts = wire.parts
        head, self.separator, self.raw_body = self.wire.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = first.removeprefix("HTTP/1.1 ")
        self.headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]

    def __getitem__(self, name: str) -> str | None:
        """A header's value; it must not be there twice."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None

    @property
    def body(self) -> bytes:
        """The body by its framing, which must fit exactly unless only the end of the connection frames it."""
        if self["Transfer-Encoding"] is not None:
            assert self["Transfer-Encoding"] == "chunked"
            assert self["Content-Length"] is None
            body, rest = b"", self.raw_body
            while True:
                size, _, rest = rest.partition(b"\r\n")
                length = int(size, 16)
                body, end, rest = body + rest[:length], rest[length : length + 2], rest[length + 2 :]
                assert end == b"\r\n"
                if length == 0:
                    assert rest == b""
                    return body
        if (length_text := self["Content-Length"]) is not None:
            assert len(self.raw_body) == int(length_text)
        else:
            assert self["Connection"] == "close"
        return self.raw_body

    @property
    def stays(self) -> bool:
        """Whether the connection is kept; server and headers must agree, where a header is required."""
        stays = self.exchange.keep_alive
        if stays:
            assert self["Connection"] in (None, "keep-alive")
        return stays


def setting_of(raw: bytes) -> tuple[Any, Environ]:
    """A request and its environ."""
    parser = RequestParser(Rules(), lambda: BufferedBody(100_000, None))
    parser.feed(raw)
    (request,) = parser.requests
    listener = listener_environ(worker_environ(False, errors=io.StringIO()), ("127.0.0.1", 8000))
    template = connection_environ(listener, ("127.0.0.1", 5), {})
    return request, request_environ(template, request)


def ask(app: App, raw: bytes = GET, patience: int = 1000) -> Answered:
    """Run one exchange."""
    request, environ = setting_of(raw)
    wire = Wire(patience)
    exchange = Exchange(request, wire, DATE_SERVER, request.keep_alive)
    exchange.run(app, environ)
    return Answered(exchange, wire)


def gives(
    result: Callable[[], Any], status: str = "200 OK", headers: list[tuple[str, str]] | None = None
) -> App:
    """An app that calls start_response and returns the result of `result`."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response(status, list(TEXT if headers is None else headers))
        return result()

    return app


def blocks(*parts: Any) -> Iterator[Any]:
    yield from parts


# -- everyday answers ------------------------------------------------------------------------------------


def test_one_block() -> None:
    """The usual answer is one send, framed by its length, with the server's own headers."""
    answer = ask(gives(lambda: [b"hello"]))
    assert answer.status == "200 OK"
    assert answer["Content-Length"] == "5"
    assert answer["Content-Type"] == "text/plain"
    assert answer["Server"] == "ostler"
    assert answer["Date"] == "Sat, 21 Nov 2026 09:00:00 GMT"
    assert answer.body == b"hello"
    assert answer.stays
    assert answer["Connection"] is None
    assert len(answer.sends) == 1
    assert (answer.exchange.status, answer.exchange.code, answer.exchange.sent) == ("200 OK", 200, 5)
    assert answer.exchange.headers == TEXT
    assert answer.exchange.error is None


def test_a_large_block() -> None:
    """A block that is too large to be joined with its head arrives as well."""
    answer = ask(gives(lambda: [b"x" * 1_000_000]))
    assert answer.body == b"x" * 1_000_000
    assert answer.exchange.sent == 1_000_000


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_parts_get_a_content_length(kind: type) -> None:
    """An answer that exists completely is framed by its length, whatever parts it has."""
    answer = ask(gives(lambda: kind([b"hel", b"", b"lo"])))
    assert answer["Content-Length"] == "5"
    assert answer.body == b"hello"
    assert answer.stays


def test_a_tuple_of_one() -> None:
    """A tuple is treated like a list."""
    answer = ask(gives(lambda: (b"hello",)))
    assert (answer["Content-Length"], answer.body) == ("5", b"hello")


@pytest.mark.parametrize(
    "result", [list, tuple, lambda: [b""], lambda: (b"", b""), blocks, lambda: blocks(b"")]
)
@pytest.mark.parametrize("raw", [GET, GET10_STAY])
def test_nothing(result: Callable[[], Any], raw: bytes) -> None:
    """An answer without a body has Content-Length 0 and keeps the connection."""
    answer = ask(gives(result), raw)
    assert answer.status == "200 OK"
    assert answer.body == b""
    assert answer["Content-Length"] == "0"
    assert answer.stays


def test_a_generator_is_chunked() -> None:
    """An unknown length is sent in chunks, each part when the app yields it."""
    answer = ask(gives(lambda: blocks(b"a", b"", b"b" * 20, b"c")))
    assert answer["Transfer-Encoding"] == "chunked"
    assert answer.raw_body == b"1\r\na\r\n14\r\n" + b"b" * 20 + b"\r\n1\r\nc\r\n0\r\n\r\n"
    assert answer.body == b"a" + b"b" * 20 + b"c"
    assert answer.exchange.sent == 22
    assert answer.stays
    assert len(answer.sends) >= 3


@pytest.mark.parametrize("raw", [GET10, GET10_STAY])
def test_a_generator_for_an_old_client_ends_with_the_connection(raw: bytes) -> None:
    """HTTP/1.0 knows no chunks: the closed connection ends the body, even if the client asked to keep it."""
    answer = ask(gives(lambda: blocks(b"a", b"b")), raw)
    assert answer["Transfer-Encoding"] is None
    assert answer["Connection"] == "close"
    assert answer.body == b"ab"
    assert not answer.stays


def test_a_generator_with_a_length_is_not_chunked() -> None:
    """The app's own Content-Length frames it, also for an HTTP/1.0 client with keep-alive."""
    app = gives(lambda: blocks(b"a", b"b"), headers=[("Content-Length", "2")])
    for raw in (GET, GET10_STAY):
        answer = ask(app, raw)
        assert answer["Transfer-Encoding"] is None
        assert answer.raw_body == b"ab"
        assert answer.stays


def test_keep_alive_is_announced_to_http_1_0() -> None:
    """RFC 9112 section 9.3: without `keep-alive` an HTTP/1.0 client would wait for the end."""
    assert ask(gives(lambda: [b"x"]), GET10_STAY)["Connection"] == "keep-alive"
    answer = ask(gives(lambda: [b"x"]), GET10)
    assert answer["Connection"] == "close"
    assert not answer.stays


def test_a_generator_may_call_start_response_late() -> None:
    """PEP 3333: before the first block is early enough."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"late"

    assert ask(app).body == b"late"


def test_empty_blocks_do_not_send_the_head() -> None:
    """PEP 3333: until the first block that is not empty the app may replace the head."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b""
        try:
            raise ValueError("changed")
        except ValueError:
            start_response("503 Service Unavailable", TEXT, sys.exc_info())
        yield b""
        yield b"sorry"

    answer = ask(app)
    assert answer.status == "503 Service Unavailable"
    assert answer.body == b"sorry"
    assert answer.exchange.code == 503


def test_the_app_s_own_date_and_server() -> None:
    """Those that an app sends replace the server's; no header is duplicated."""
    answer = ask(gives(lambda: [b""], headers=[("date", "then"), ("SERVER", "mine")]))
    assert (answer["Date"], answer["Server"]) == ("then", "mine")
    answer = ask(gives(blocks, headers=[("Server", "mine")]))
    assert (answer["Date"], answer["Server"]) == ("Sat, 21 Nov 2026 09:00:00 GMT", "mine")


@pytest.mark.parametrize(
    "result", [lambda: [b"x"], lambda: blocks(b"x"), lambda: (b"x", b"y"), lambda: [b""]]
)
def test_the_app_closes_the_connection(result: Callable[[], Any]) -> None:
    """`Connection: close` is the one hop-by-hop header that is obeyed, and it is sent once."""
    answer = ask(gives(result, headers=[("connection", "Close")]))
    assert answer["Connection"] == "close"
    assert not answer.stays


def test_the_app_does_not_frame_its_answer() -> None:
    """Transfer-Encoding and the like are set by the server (PEP 3333, `other HTTP features`)."""
    answer = ask(gives(lambda: blocks(b"abc"), headers=[("Transfer-Encoding", "gzip"), ("Keep-Alive", "x")]))
    assert answer.body == b"abc"
    assert answer["Keep-Alive"] is None


def test_bytes_like_parts() -> None:
    """The contents of bytearray and memoryview are sent."""
    assert ask(gives(lambda: [bytearray(b"abc")])).body == b"abc"
    assert ask(gives(lambda: blocks(bytearray(b"abc"), memoryview(b"de")))).body == b"abcde"


# -- answers without a body ------------------------------------------------------------------------------

SHAPES = {
    "list": lambda: [b"hello"],
    "parts": lambda: [b"he", b"llo"],
    "tuple": lambda: (b"hello",),
    "generator": lambda: blocks(b"he", b"llo"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_head_has_the_head_of_get_and_no_body(shape: str) -> None:
    """RFC 9110 section 9.3.2: the same head, no byte after it, and the connection is kept."""
    get, head = ask(gives(SHAPES[shape])), ask(gives(SHAPES[shape]), HEAD)
    assert head.raw_body == b""
    assert head.separator
    assert head.headers == get.headers
    assert head.exchange.sent == 0
    assert head.stays


@pytest.mark.parametrize("result", [list, lambda: [b""], blocks, lambda: [b"hello"]])
def test_head_keeps_the_app_s_length(result: Callable[[], Any]) -> None:
    """An app that knows HEAD sends no body and the length that GET would have: neither is an error."""
    answer = ask(gives(result, headers=[("Content-Length", "5")]), HEAD)
    assert answer["Content-Length"] == "5"
    assert answer.raw_body == b""
    assert answer.stays


@pytest.mark.parametrize("result", [list, tuple, lambda: [b""], lambda: (b"", b"")])
def test_head_without_a_body_claims_no_length(result: Callable[[], Any]) -> None:
    """RFC 9110 section 8.6: no Content-Length in answer to HEAD unless GET would have the same."""
    assert ask(gives(result), HEAD)["Content-Length"] is None


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("result", [*SHAPES.values(), list, blocks, lambda: [b""]])
@pytest.mark.parametrize("raw", [GET, HEAD, GET10_STAY])
def test_statuses_without_a_body(status: str, result: Callable[[], Any], raw: bytes) -> None:
    """RFC 9110 section 6.4.1: nothing after the head, no framing, and the connection is kept."""
    answer = ask(gives(result, status, [("ETag", '"x"')]), raw)
    assert answer.status == status
    assert answer.raw_body == b""
    assert answer["Content-Length"] is None
    assert answer["Transfer-Encoding"] is None
    assert answer["ETag"] == '"x"'
    assert answer.stays


def test_lengths_of_statuses_without_a_body() -> None:
    """RFC 9110 section 8.6: 304 may have the length of the 200, 204 must not."""
    headers = [("Content-Length", "5")]
    assert ask(gives(list, "304 Not Modified", headers))["Content-Length"] == "5"
    answer = ask(gives(list, "204 No Content", headers))
    assert answer["Content-Length"] is None
    assert answer.stays


# -- Content-Length that is not true ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_more_than_promised_is_cut(shape: str) -> None:
    """RFC 9110 section 8.6: bytes beyond the length would be read as the next answer."""
    answer = ask(gives(SHAPES[shape], headers=[("Content-Length", "3")]))
    assert answer["Content-Length"] == "3"
    assert answer.raw_body == b"hel"
    assert answer.exchange.sent == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_less_than_promised_ends_the_connection(shape: str) -> None:
    """Only the closed connection shows the client that the answer is incomplete."""
    answer = ask(gives(SHAPES[shape], headers=[("Content-Length", "9")]))
    assert answer["Content-Length"] == "9"
    assert answer.raw_body == b"hello"
    assert not answer.stays


@pytest.mark.parametrize("result", [list, blocks, lambda: [b""]])
def test_no_byte_of_the_announced_length(result: Callable[[], Any]) -> None:
    """The same if not a single byte is sent."""
    answer = ask(gives(result, headers=[("Content-Length", "9")]))
    assert answer["Content-Length"] == "9"
    assert answer.raw_body == b""
    assert not answer.stays


# -- start_response and write ----------------------------------------------------------------------------


def failed(answer: Answered, *words: str) -> bool:
    """Whether this is a clean 500 that ends the connection, with the words in the traceback."""
    assert answer.status == "500 Internal Server Error"
    assert answer.body == b"Internal Server Error\n"
    assert answer.exchange.sent == len(answer.body)
    assert answer["Connection"] == "close"
    assert answer["Date"] is not None
    assert (answer.exchange.code, answer.exchange.status) == (500, answer.status)
    assert not answer.stays
    assert answer.exchange.error is not None
    assert all(word in answer.exchange.error for word in words), answer.exchange.error
    return True


def test_start_response_twice() -> None:
    """PEP 3333: without exc_info it is an error."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", TEXT)
        start_response("201 Created", TEXT)
        return [b"x"]

    assert failed(ask(app), "start_response")


def test_exc_info_before_the_head_replaces_the_answer() -> None:
    """PEP 3333: nothing was sent, so the error page is sent instead, without any part of the first answer."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [("X-First", "1"), ("Content-Length", "1000"), ("Connection", "close")])
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("502 Bad Gateway", TEXT, sys.exc_info())
        return [b"error page"]

    answer = ask(app)
    assert answer.status == "502 Bad Gateway"
    assert answer["X-First"] is None
    assert answer.body == b"error page"
    assert answer.stays
    assert answer.exchange.error is None
    assert (answer.exchange.code, answer.exchange.headers) == (502, TEXT)


def test_exc_info_behind_the_head_is_raised_again() -> None:
    """PEP 3333: too late for another head; the answer is cut, and the exception is the app's own."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"begun"
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("502 Bad Gateway", TEXT, sys.exc_info())
        yield b"never"

    answer = ask(app)
    assert answer.status == "200 OK"
    assert answer.raw_body == b"5\r\nbegun\r\n"
    assert not answer.stays
    assert "ValueError: oops" in (answer.exchange.error or "")


def test_exc_info_without_a_first_call() -> None:
    """PEP 3333: exc_info may come with the first call too."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("502 Bad Gateway", TEXT, sys.exc_info())
        return [b"x"]

    assert ask(app).status == "502 Bad Gateway"


@pytest.mark.parametrize("result", [lambda: [b"x"], lambda: [b"x", b"y"], lambda: blocks(b"x"), list, blocks])
def test_start_response_not_called(result: Callable[[], Any]) -> None:
    """An answer without a head is an error that says what is missing."""
    assert failed(ask(lambda environ, start_response: result()), "start_response")


@pytest.mark.parametrize(
    ("status", "headers", "word"),
    [
        ("200 OK\r\nX: y", TEXT, "status"),
        ("OK", TEXT, "status"),
        (200, TEXT, "status"),
        ("200 OK", [("X", "a\r\nSet-Cookie: b")], "'a"),
        ("200 OK", [("X Y", "a")], "X Y"),
        ("200 OK", [("X", 5)], "str"),
        ("200 OK", [("Content-Length", "five")], "five"),
        ("200 OK", [("Content-Length", "1"), ("Content-Length", "2")], "set twice"),
    ],
)
def test_an_invalid_head_is_an_error(status: Any, headers: Any, word: str) -> None:
    """Nothing of it reaches the client; the log has the reason."""
    assert failed(ask(gives(lambda: [b"x"], status, headers)), word)


def test_write() -> None:
    """PEP 3333's write() sends at once, before what the app returns."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"")
        write(b"one ")
        write(b"two ")
        return [b"three"]

    answer = ask(app)
    assert answer.body == b"one two three"
    assert answer["Transfer-Encoding"] == "chunked"
    assert answer.exchange.sent == 13
    assert answer.sends[0].startswith(b"HTTP/1.1 200 OK")
    assert b"one " in answer.sends[0]


@pytest.mark.parametrize("returned", [list, tuple, lambda: [b""], blocks])
def test_write_alone(returned: Callable[[], Any]) -> None:
    """An app may write everything and return nothing."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [("Content-Length", "3")])(b"abc")
        return returned()

    answer = ask(app)
    assert answer.body == b"abc"
    assert answer.stays


# -- apps that fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("oops"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopIteration()]
)
def test_raising_before_the_head(error: BaseException) -> None:
    """A plain 500, whether or not start_response was called; SystemExit does not end the worker either."""

    def silent(environ: Environ, start_response: Start) -> list[bytes]:
        raise error

    def begun(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [*TEXT, ("X-Half", "1")])
        raise error

    for app in (silent, begun):
        answer = ask(app)
        assert failed(answer, type(error).__name__)
        assert answer["X-Half"] is None
        assert answer.exchange.headers == []


def test_raising_in_a_generator_before_the_head() -> None:
    """A generator that fails before its first block can still be answered with 500."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b""
        raise ValueError("oops")

    assert failed(ask(app), "ValueError: oops")


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit(1)])
@pytest.mark.parametrize("headers", [TEXT, [("Content-Length", "10")]])
def test_raising_behind_the_head(error: BaseException, headers: list[tuple[str, str]]) -> None:
    """The answer is cut: no last chunk, no error page in it; the client sees that it is incomplete."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", headers)
        yield b"begun"
        raise error

    answer = ask(app)
    assert answer.status == "200 OK"
    assert b"begun" in answer.raw_body
    assert b"Error" not in answer.wire
    assert not answer.raw_body.endswith(b"0\r\n\r\n")
    assert not answer.stays
    assert type(error).__name__ in (answer.exchange.error or "")
    assert (answer.exchange.code, answer.exchange.status) == (500, "500 Internal Server Error")
    assert answer.exchange.sent == 5


def test_raising_behind_the_whole_answer() -> None:
    """The client has all that was announced: it counts as what was sent, and the error is logged."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        yield b"whole"
        raise ValueError("oops")

    answer = ask(app)
    assert answer.exchange.code == 200
    assert "oops" in (answer.exchange.error or "")


@pytest.mark.parametrize("blocks", [[b"all"], [b"", b"all"], [b"all", b""]])
def test_an_answer_in_one_part_is_no_progress(blocks: list[bytes]) -> None:
    """An ordinary answer, whatever iterable it comes in, needs no more time, and costs no more."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "3")])
        return iter(blocks)

    assert ask(app).parts == 0


def test_each_part_is_progress() -> None:
    """The first one too, as more may follow it; and those that the app writes."""

    def written(environ: Environ, start_response: Start) -> list[bytes]:
        write = start_response("200 OK", TEXT)
        for _ in range(3):
            write(b"part")
        write(b"")
        return []

    def announced(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "3")])
        return iter([b"a", b"", b"b", b"c"])

    assert (ask(written).parts, ask(announced).parts) == (3, 3)
    assert ask(gives(lambda: iter([b"a", b"b"]))).parts == 2


def test_failing_head_requests() -> None:
    """The answer to HEAD has no body, not even an error page."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        raise ValueError("oops")

    answer = ask(app, HEAD)
    assert answer.status == "500 Internal Server Error"
    assert answer.raw_body == b""
    assert answer.exchange.sent == 0
    assert not answer.stays


@pytest.mark.parametrize(
    "result", [lambda: None, lambda: 5, lambda: [None], lambda: [5], lambda: blocks(None), lambda: blocks("")]
)
def test_returning_other_types_than_iterables_of_bytes(result: Callable[[], Any]) -> None:
    """None, numbers and empty text are errors of the app; the message names the value."""
    assert failed(ask(gives(result)), "TypeError")


@pytest.mark.parametrize("raw", [GET, GET10])
def test_returning_a_list_with_text(raw: bytes) -> None:
    """This common mistake gets a clear 500."""
    assert failed(ask(gives(lambda: ["text"]), raw), "TypeError")


@pytest.mark.parametrize(
    "result",
    [
        lambda: "text",
        lambda: ["te", "xt"],
        lambda: ("text",),
        lambda: blocks("text"),
        lambda: ["x" * 100_000],
        lambda: blocks(5),
    ],
)
@pytest.mark.parametrize("raw", [GET, GET10])
def test_returning_text_in_parts(result: Callable[[], Any], raw: bytes) -> None:
    """Nothing was sent yet, so text in any form is a clean 500 as well."""
    assert failed(ask(gives(result), raw), "TypeError")


# -- close() ---------------------------------------------------------------------------------------------


class Result:
    """An iterable that counts how often it was closed."""

    def __init__(self, *parts: Any, error: BaseException | None = None, close_error: Any = None) -> None:
        self.parts = parts
        self.error = error
        self.close_error = close_error
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        yield from self.parts
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


class ListResult(list[bytes]):
    """A list may have a close() too."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("raw", [GET, GET10, HEAD])
@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "bad"])
@pytest.mark.parametrize(
    "make",
    [
        Result,
        lambda: Result(b"a", b"b"),
        lambda: Result(b""),
        lambda: Result("text"),
        lambda: Result(None),
        lambda: Result(error=ValueError("oops")),
        lambda: Result(b"a", error=ValueError("oops")),
        lambda: Result(b"a", error=SystemExit(1)),
        lambda: Result(b"a", close_error=ValueError("oops")),
        lambda: Result(b"a", error=ValueError("oops"), close_error=ValueError("again")),
        lambda: ListResult([b"a"]),
        lambda: ListResult([b"a", b"b"]),
    ],
)
def test_close_is_called_exactly_once(make: Callable[[], Any], status: str, raw: bytes) -> None:
    """PEP 3333: exactly once, whatever happened before."""
    result = make()

    def app(environ: Environ, start_response: Start) -> Any:
        try:
            start_response(status, TEXT)
        except Exception:  # the server's exception about `bad`; the app continues
            assert status == "bad"
        return result

    ask(app, raw)
    assert result.closed == 1


def test_an_error_in_close_is_logged() -> None:
    """The answer is complete, so the error is only logged."""
    answer = ask(gives(lambda: Result(b"abc", close_error=ValueError("in close"))))
    assert answer.body == b"abc"
    assert "in close" in (answer.exchange.error or "")


def test_an_error_while_close_is_looked_for_is_logged() -> None:
    """As one in close(): it is the app's."""

    class NoResult(Result):
        def __getattribute__(self, name: str) -> Any:
            if name == "close":
                raise ValueError("of a property")
            return super().__getattribute__(name)

    answer = ask(gives(lambda: NoResult(b"abc")))
    assert answer.body == b"abc"
    assert "of a property" in (answer.exchange.error or "")


def test_generators_are_closed() -> None:
    """A generator that is not exhausted runs its finally clause when the client has disconnected."""
    ended: list[str] = []

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"more"
        finally:
            ended.append("yes")

    with pytest.raises(ClientGone):
        ask(app, patience=3)
    assert ended == ["yes"]


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("parts", [(b"a", b"b", b"c"), (b"x" * 100_000, b"y")])
def test_a_client_that_goes_away(patience: int, parts: tuple[bytes, ...]) -> None:
    """ClientGone reaches the worker, close() is called once, and it is not logged as an error of the app."""
    result = Result(*parts)
    request, environ = setting_of(GET)
    exchange = Exchange(request, Wire(patience), DATE_SERVER, request.keep_alive)
    with pytest.raises(ClientGone):
        exchange.run(gives(lambda: result), environ)
    assert result.closed == 1
    assert exchange.error is None
    assert not exchange.keep_alive


@pytest.mark.parametrize("patience", [0, 1])
def test_a_client_that_goes_away_before_a_large_list(patience: int) -> None:
    """The same for an answer that is completely known."""
    request, environ = setting_of(GET)
    exchange = Exchange(request, Wire(patience), DATE_SERVER, request.keep_alive)
    with pytest.raises(ClientGone):
        exchange.run(gives(lambda: [b"x" * 100_000]), environ)
    assert not exchange.keep_alive


def test_a_client_that_goes_away_before_the_error_page() -> None:
    """The app's error is kept for the log even if the page can't be sent."""
    request, environ = setting_of(GET)
    exchange = Exchange(request, Wire(0), DATE_SERVER, request.keep_alive)

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        raise ValueError("oops")

    with pytest.raises(ClientGone):
        exchange.run(app, environ)
    assert "ValueError: oops" in (exchange.error or "")


def test_quit_worker_passes() -> None:
    """QuitWorker is not an error of the app; close() is called."""
    result = Result(b"a", error=QuitWorker())
    request, environ = setting_of(GET)
    exchange = Exchange(request, Wire(), DATE_SERVER, request.keep_alive)
    with pytest.raises(QuitWorker):
        exchange.run(gives(lambda: result), environ)
    assert result.closed == 1
    assert exchange.error is None


def test_a_deadline_before_the_head() -> None:
    """504 with a short text, and the connection ends; no traceback, because the supervisor has the stack."""
    result = Result(error=DeadlineExceeded())
    answer = ask(gives(lambda: result))
    assert (answer.status, answer.body) == ("504 Gateway Timeout", b"Gateway Timeout\n")
    assert not answer.stays
    assert (answer.exchange.code, answer.exchange.status) == (504, "504 Gateway Timeout")
    assert answer.exchange.sent == len(answer.body)
    assert answer.exchange.error is None
    assert result.closed == 1


def test_a_deadline_behind_the_head() -> None:
    """Nothing more is sent, the connection must be cut, close() is called; it counts as 504."""
    result = Result(b"a", error=DeadlineExceeded())
    request, environ = setting_of(GET)
    wire = Wire()
    exchange = Exchange(request, wire, DATE_SERVER, request.keep_alive)
    with pytest.raises(DeadlineExceeded):
        exchange.run(gives(lambda: result), environ)
    assert wire.sends[-1].endswith(b"1\r\na\r\n")
    assert not exchange.keep_alive
    assert result.closed == 1
    exchange.give_up()
    assert (exchange.code, exchange.status, exchange.error) == (504, "504 Gateway Timeout", None)


def test_a_deadline_behind_the_whole_answer() -> None:
    """What the app does after the last byte that it has announced cuts nothing off."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        yield b"whole"
        raise DeadlineExceeded

    request, environ = setting_of(GET)
    exchange = Exchange(request, Wire(), DATE_SERVER, request.keep_alive)
    with pytest.raises(DeadlineExceeded):
        exchange.run(app, environ)
    exchange.give_up()
    assert exchange.code == 200


def test_a_deadline_before_anything_could_be_said() -> None:
    """If the 504 can't be sent either, the request still counts as 504."""
    request, _ = setting_of(GET)
    exchange = Exchange(request, Wire(), DATE_SERVER, request.keep_alive)
    exchange.give_up()
    assert (exchange.code, exchange.status, exchange.head_sent) == (504, "504 Gateway Timeout", True)


def test_an_error_because_of_a_deadline() -> None:
    """An exception that the app raises from it, e.g. in a finally clause, is an error like others."""

    def app(environ: Environ, start_response: Start) -> Iterable[bytes]:
        try:
            raise DeadlineExceeded
        finally:
            raise ValueError("half done")

    answer = ask(app)
    assert answer.status == "500 Internal Server Error"
    assert "DeadlineExceeded" in (answer.exchange.error or "")
    assert "half done" in (answer.exchange.error or "")


def test_quit_worker_passes_an_error_in_close() -> None:
    """A close() that fails, perhaps because of the interruption, must not keep the worker from ending."""
    result = Result(b"a", error=QuitWorker(), close_error=ValueError("interrupted"))
    with pytest.raises(QuitWorker):
        ask(gives(lambda: result))


def test_client_gone_passes_an_error_in_close() -> None:
    """The worker must be notified that the client is gone, whatever close() raises."""
    result = Result(b"a", b"b", close_error=ValueError("oops"))
    with pytest.raises(ClientGone):
        ask(gives(lambda: result), patience=1)


# -- wsgiref.validate ------------------------------------------------------------------------------------


def validated(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """An app that uses all of its environ; the path chooses the answer."""
    body = environ["wsgi.input"].read(1000)
    environ["wsgi.errors"].write("noted\n")
    path = environ["PATH_INFO"]
    if path == "/204":
        start_response("204 No Content", [])
        return []
    if path == "/304":
        start_response("304 Not Modified", [("ETag", '"x"')])
        return []
    if path == "/write":
        start_response("200 OK", TEXT)(b"written ")
        return [b"returned"]
    if path == "/error":
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("500 Oops", TEXT, sys.exc_info())
        return [b"sorry"]
    start_response("200 OK", TEXT)
    return blocks(b"got ", body) if path == "/parts" else [b"got " + body]


# The validator's own __del__ complains on stderr if an iterator was not closed.
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/", b"", b"got "),
        ("POST", "/", b"hello", b"got hello"),
        ("POST", "/parts", b"hello", b"got hello"),
        ("HEAD", "/", b"", b""),
        ("HEAD", "/parts", b"", b""),
        ("OPTIONS", "/a%20b?c", b"", b"got "),
        ("GET", "/204", b"", b""),
        ("GET", "/304", b"", b""),
        ("GET", "/write", b"", b"written returned"),
        ("GET", "/error", b"", b"sorry"),
    ],
)
def test_wsgiref_finds_nothing(
    method: str, path: str, body: bytes, expected: bytes, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """wsgiref.validate between server and app finds no violation."""
    head = f"{method} {path} {version}\r\nHost: x\r\nX-Y: z\r\nConnection: close\r\n"
    if body:
        head += f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    answer = ask(validator(validated), head.encode() + b"\r\n" + body)
    assert answer.exchange.error is None
    if expected:
        assert answer.body == expected
    else:
        assert answer.raw_body == b""
    assert capsys.readouterr() == ("", "")


def test_wsgiref_accepts_a_spilled_body() -> None:
    """A body in a temporary file is a valid input stream as well."""
    parser = RequestParser(Rules(), lambda: BufferedBody(100_000, None))
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
    (request,) = parser.requests
    listener = listener_environ(worker_environ(False), ("127.0.0.1", 8000))
    environ = request_environ(connection_environ(listener, ("127.0.0.1", 5), {}), request)
    wire = Wire()
    exchange = Exchange(request, wire, DATE_SERVER, request.keep_alive)
    with environ["wsgi.input"]:
        exchange.run(validator(validated), environ)
    assert exchange.error is None
    assert Answered(exchange, wire).body == b"got " + b"x" * 1000
