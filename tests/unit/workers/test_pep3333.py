"""PEP 3333 and the semantics of answers, checked on every byte on the wire.

Each test has a small app, next to what the client must receive. Threads make no difference to this, so only
the first table is run with several.
"""

import enum
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from wsgiref.validate import validator

import pytest

from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App
from tests.unit.workers.rig import PATIENCE, Serve
from tests.unit.workers.wire import FAILED, GET, GET10, GET10_STAY, HEAD, HEAD10_STAY, talk, with_again

Start = Callable[..., Any]
Headers = list[tuple[str, str]]

BOTH = pytest.mark.parametrize("threads", [1, 4])
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


class Text(str, enum.Enum):  # noqa: UP042 - a StrEnum is formatted as what it is
    """A str whose format() gives another text."""

    JSON = "application/json"


class Forged(str):
    """A str that looks harmless, and whose format() gives something else."""

    __slots__ = ()

    def __format__(self, _spec: str) -> str:
        return "x\r\nInjected: y"


class One:
    """An iterable with a length of one that is not a list."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"hello"])


def blocks(*parts: Any) -> Iterator[Any]:
    yield from parts


def says(result: Callable[[], Any], status: Any = "200 OK", headers: Any = ()) -> App:
    """An app that calls start_response and returns the result of `result`."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response(status, list(headers))
        return result()

    return with_again(app)


def writes(*parts: bytes, then: Callable[[], Any] = list, headers: Any = ()) -> App:
    """An app that uses write()."""

    def app(environ: Environ, start_response: Start) -> Any:
        write = start_response("200 OK", list(headers))
        for part in parts:
            write(part)
        return then()

    return with_again(app)


def files(content: bytes, headers: Any = ()) -> App:
    """An app that answers with a real file through wsgi.file_wrapper."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", list(headers))
        fd = os.memfd_create("content")
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return environ["wsgi.file_wrapper"](os.fdopen(fd, "rb"))

    return with_again(app)


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b""))


# -- framing ---------------------------------------------------------------------------------------------

KNOWN: dict[str, App] = {
    "list": says(lambda: [b"hello"]),
    "parts": says(lambda: [b"he", b"", b"llo"]),
    "tuple": says(lambda: (b"hello",)),
    "bytearray": says(lambda: [bytearray(b"hello")]),
    "file": files(b"hello"),
    "length": says(lambda: blocks(b"he", b"llo"), headers=[("Content-Length", "5")]),
    "written-length": writes(b"he", b"llo", headers=[("Content-Length", "5")]),
}
OPEN: dict[str, tuple[App, list[bytes]]] = {
    "generator": (says(lambda: blocks(b"he", b"llo")), [b"he", b"llo"]),
    "empty-first": (says(lambda: blocks(b"", b"he", b"", b"llo", b"")), [b"he", b"llo"]),
    "one": (says(One), [b"hello"]),
    "map": (says(lambda: map(bytes, [b"hello"])), [b"hello"]),
    "written": (writes(b"he", b"", b"llo"), [b"he", b"llo"]),
    "written-and-list": (writes(b"he", then=lambda: [b"llo"]), [b"he", b"llo"]),
    "written-and-parts": (writes(b"he", then=lambda: blocks(b"l", b"lo")), [b"he", b"l", b"lo"]),
}


@BOTH
@pytest.mark.parametrize("shape", KNOWN)
def test_a_known_length(serve: Serve, shape: str, threads: int) -> None:
    """For any client: Content-Length frames the body, HEAD has the same head, the connection is kept."""
    rig = serve(KNOWN[shape], threads=threads)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n(own)"
    assert talk(rig, GET) == (head + b"\r\nhello", True)
    assert talk(rig, HEAD) == (head + b"\r\n", True)
    assert talk(rig, GET10) == (head + b"Connection: close\r\n\r\nhello", False)
    assert talk(rig, GET10_STAY) == (head + b"Connection: keep-alive\r\n\r\nhello", True)
    assert talk(rig, HEAD10_STAY) == (head + b"Connection: keep-alive\r\n\r\n", True)
    assert talk(rig, GET.replace(b"x\r\n", b"x\r\nConnection: Close\r\n")) == (
        head + b"Connection: close\r\n\r\nhello",
        False,
    )


@BOTH
@pytest.mark.parametrize("shape", OPEN)
def test_an_unknown_length(serve: Serve, shape: str, threads: int) -> None:
    """Chunked for HTTP/1.1, and kept;
    for HTTP/1.0 the connection ends, although the client asked to keep it.
    """
    app, parts = OPEN[shape]
    rig = serve(app, threads=threads)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n(own)\r\n"
    old = b"HTTP/1.1 200 OK\r\n(own)Connection: close\r\n\r\n"
    assert talk(rig, GET) == (head + chunks(*parts), True)
    assert talk(rig, HEAD) == (head, True)
    for request in (GET10, GET10_STAY):
        assert talk(rig, request) == (old + b"".join(parts), False)
    assert talk(rig, HEAD10_STAY) == (old, False)


@pytest.mark.parametrize(
    "result", [list, tuple, lambda: [b""], lambda: [b"", b""], blocks, lambda: blocks(b"", b"")]
)
def test_nothing(serve: Serve, result: Callable[[], Any]) -> None:
    """No body is a body of length 0, and the connection is kept, for HTTP/1.0 as well."""
    rig = serve(says(result))
    assert talk(rig, GET) == (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n(own)\r\n", True)
    assert talk(rig, GET10_STAY) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n(own)Connection: keep-alive\r\n\r\n",
        True,
    )


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("request_", [GET, HEAD, GET10_STAY])
@pytest.mark.parametrize(
    "result", [list, lambda: [b"hello"], lambda: [b"a", b"b"], lambda: blocks(b"hello"), blocks]
)
def test_statuses_without_a_body(
    serve: Serve, status: str, result: Callable[[], Any], request_: bytes
) -> None:
    """RFC 9110 section 6.4.1: no byte after the head, no framing, and the next answer is parsed correctly."""
    stay = b"Connection: keep-alive\r\n" if request_ == GET10_STAY else b""
    assert talk(serve(says(result, status)), request_) == (
        b"HTTP/1.1 %b\r\n(own)%b\r\n" % (status.encode(), stay),
        True,
    )


def test_lengths_of_statuses_without_a_body(serve: Serve) -> None:
    """RFC 9110 section 8.6: 304 may have the length that 200 would have, 204 must not have any."""
    length = [("Content-Length", "5")]
    assert talk(serve(says(list, "304 Not Modified", length))) == (
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n(own)\r\n",
        True,
    )
    assert talk(serve(says(list, "204 No Content", length))) == (
        b"HTTP/1.1 204 No Content\r\n(own)\r\n",
        True,
    )


@pytest.mark.parametrize("status", ["100 Continue", "101 Switching Protocols", "103 Early Hints"])
@pytest.mark.parametrize("result", [list, lambda: [b"hello"], lambda: blocks(b"hello")])
def test_an_interim_status_ends_the_connection(serve: Serve, status: str, result: Callable[[], Any]) -> None:
    """RFC 9110 section 15.2: a client waits for the final answer, and must not take the next one for it."""
    seen = talk(serve(says(result, status)))
    assert not seen.kept
    assert seen.wire in (b"HTTP/1.1 %b\r\n(own)Connection: close\r\n\r\n" % status.encode(), FAILED)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("200 OK", b"200 OK"),
        ("200", b"200 "),
        ("200 ", b"200 "),
        ("299 Own Words", b"299 Own Words"),
        ("404 caf\xe9", b"404 caf\xe9"),
        ("599 \t!", b"599 \t!"),
        ("999 Beyond", b"999 Beyond"),
    ],
)
def test_statuses(serve: Serve, status: str, line: bytes) -> None:
    """RFC 9112 section 4: any three digits, a space even without a reason, a reason of any words."""
    assert talk(serve(says(lambda: [b"x"], status))) == (
        b"HTTP/1.1 %b\r\nContent-Length: 1\r\n(own)\r\nx" % line,
        True,
    )


# -- heads that are refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status",
    [
        *("", "OK", "200OK", " 200 OK", "20 OK", "2000 OK", "0200 OK", "099 X", "200\tOK", "-20 OK"),
        *("200 OK\r\nX: y", "200 OK\n", "200 O\0K", "200 O\x7fK", "200 \u20ac", "\u0662\u0660\u0660 OK"),
        *(200, None, b"200 OK"),
    ],
)
def test_invalid_statuses(serve: Serve, status: Any) -> None:
    """PEP 3333: `an HTTP status string`; an invalid one is the app's error, and nothing of it is sent."""
    rig = serve(says(lambda: [b"x"], status))
    assert talk(rig) == (FAILED, False)
    assert "status must be" in rig.log()


@pytest.mark.parametrize(
    "header",
    [
        *(
            ("", "x"),
            ("X Y", "x"),
            ("X:", "x"),
            ("X\r\nY", "x"),
            ("X\0", "x"),
            ("caf\xe9", "x"),
            ("X\t", "x"),
        ),
        *(("X", "a\r\nSet-Cookie: b=c"), ("X", "a\nb"), ("X", "a\rb"), ("X", "a\0b"), ("X", "a\x7fb")),
        *(("X", "\u20ac"), ("X", "\ud800"), ("X", "a\r\n b"), ("X", "\x0b")),
        *(
            ("X", 5),
            ("X", None),
            ("X", b"x"),
            (b"X", "x"),
            (None, "x"),
            ("X",),
            ("X", "y", "z"),
            "X: y",
            None,
        ),
    ],
    ids=repr,
)
def test_invalid_headers(serve: Serve, header: Any) -> None:
    """Names are tokens, values have no line end or control character, both are str: else nothing is sent."""
    rig = serve(says(lambda: [b"x"], headers=[("X-First", "1"), header]))
    assert talk(rig) == (FAILED, False)
    assert "header" in rig.log()


@pytest.mark.parametrize(
    "length", ["", "-1", "+1", "1.0", "0x1", "1, 1", "1,1", " 1", "1 1", "\xb9", "\u0661", "1" * 30]
)
def test_invalid_lengths(serve: Serve, length: str) -> None:
    """RFC 9110 section 8.6: only digits, because a value that clients parse differently allows smuggling."""
    assert talk(serve(says(lambda: [b"x"], headers=[("Content-Length", length)]))) == (FAILED, False)


def test_two_lengths(serve: Serve) -> None:
    """The same value twice is sent once; two different values are refused."""
    same = says(lambda: [b"x"], headers=[("Content-Length", "1"), ("content-length", "1")])
    assert talk(serve(same)) == (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n(own)\r\nx", True)
    other = says(lambda: [b"x"], headers=[("Content-Length", "1"), ("content-length", "2")])
    assert talk(serve(other)) == (FAILED, False)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("", b""),
        ("caf\xe9", b"caf\xe9"),
        ("\xc3\xa9", b"\xc3\xa9"),
        ("a\tb", b"a\tb"),
        ("  a", b"  a"),
        ("x" * 70_000, b"x" * 70_000),
        (Text.JSON, b"application/json"),
    ],
    ids=["empty", "latin-1", "utf-8", "tab", "blanks", "long", "enum"],
)
def test_values(serve: Serve, value: str, line: bytes) -> None:
    """Values are sent as their own bytes, also if a subclass of str formats itself differently."""
    rig = serve(says(lambda: [b"x"], headers=[("X-A", value), ("X-A", "b")]))
    for _ in range(2):  # the cached encoding is the same
        assert talk(rig) == (
            b"HTTP/1.1 200 OK\r\nX-A: %b\r\nX-A: b\r\nContent-Length: 1\r\n(own)\r\nx" % line,
            True,
        )


def test_what_was_checked_is_what_is_sent(serve: Serve) -> None:
    """A str that formats itself differently can't inject a line into any part of the head."""
    headers = [("X-A", Forged("a")), (Forged("X-B"), "b")]
    rig = serve(says(lambda: [b"x"], Forged("222 C"), headers))
    assert talk(rig) == (
        b"HTTP/1.1 222 C\r\nX-A: a\r\nX-B: b\r\nContent-Length: 1\r\n(own)\r\nx",
        True,
    )


@pytest.mark.parametrize(
    "make", [iter, tuple, lambda pairs: (pair for pair in pairs), lambda pairs: dict(pairs).items()]
)
def test_headers_in_another_kind_of_collection(serve: Serve, make: Callable[[Any], Any]) -> None:
    """PEP 3333 wants a list; other collections are accepted,
    and must not appear in another request's answer.
    """
    pairs = (("Set-Cookie", "session=1"), ("X-A", "b"))

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [] if environ["PATH_INFO"] == "/other" else make(pairs))
        return [b"x"]

    rig = serve(app, access=True)
    for _ in range(3):  # the cached encoding of the first may only be used by the next
        answer = rig.client().get("/")
        assert answer.headers["set-cookie"] == "session=1"
        answer = rig.client().get("/other")
        assert sorted(answer.headers) == ["content-length", "date", "server"]
    assert rig.log() == ""


def test_headers_that_change_afterwards(serve: Serve) -> None:
    """A list that an app reuses and changes is encoded again each time."""
    shared: Headers = [("X-Number", "0")]

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        shared[0] = ("X-Number", str(int(shared[0][1]) + 1))
        start_response("200 OK", shared)
        shared.append(("X-Late", "1"))
        shared.pop()
        return [b"x"]

    rig = serve(with_again(app))
    for number in (1, 2, 3):
        assert talk(rig).wire == (
            b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: 1\r\n(own)\r\nx" % number
        )


# -- what is the server's business -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    "Connection Keep-Alive Proxy-Connection Transfer-Encoding TE Trailer Upgrade Proxy-Authenticate "
    "Proxy-Authorization".split(),
)
@pytest.mark.parametrize("value", ["chunked", "keep-alive", "x"])
def test_hop_by_hop(serve: Serve, name: str, value: str) -> None:
    """PEP 3333: apps must not send them, so they do not reach the client and change nothing."""
    app = says(lambda: blocks(b"hello"), headers=[(name, value), ("X-A", "b"), (name.lower(), value)])
    assert talk(serve(app)) == (
        b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n(own)\r\n" + chunks(b"hello"),
        True,
    )


@pytest.mark.parametrize("value", ["close", "Close", "CLOSE", " close ", "close, x-a", "x-a,close"])
@pytest.mark.parametrize(
    ("result", "framing", "body"),
    [
        (lambda: [b"hello"], b"Content-Length: 5\r\n", b"hello"),
        (lambda: blocks(b"hello"), b"Transfer-Encoding: chunked\r\n", chunks(b"hello")),
    ],
    ids=["list", "generator"],
)
def test_the_app_closes(
    serve: Serve, value: str, result: Callable[[], Any], framing: bytes, body: bytes
) -> None:
    """`Connection: close` is the only one that is obeyed, in any spelling, and it is sent once."""
    assert talk(serve(says(result, headers=[("Connection", value)]))) == (
        b"HTTP/1.1 200 OK\r\n%b(own)Connection: close\r\n\r\n%b" % (framing, body),
        False,
    )


def test_the_app_s_date_and_server(serve: Serve) -> None:
    """Each one from the app replaces the server's, also in answers without a body."""
    both = [("DATE", "then"), ("server", "mine")]
    assert talk(serve(says(lambda: [b"x"], headers=both))).wire == (
        b"HTTP/1.1 200 OK\r\nDATE: then\r\nserver: mine\r\nContent-Length: 1\r\n\r\nx"
    )
    seen = talk(serve(says(list, "204 No Content", [("Server", "mine")])))
    assert seen.wire.startswith(b"HTTP/1.1 204 No Content\r\nServer: mine\r\nDate: ")
    assert seen.wire.count(b"\r\n") == 4
    assert seen.kept


# -- a Content-Length that is not true -------------------------------------------------------------------


def promising(length: int) -> dict[str, App]:
    """Apps that send five bytes and announce `length`."""
    headers = [("Content-Length", str(length))]
    return {
        "list": says(lambda: [b"hello"], headers=headers),
        "parts": says(lambda: [b"he", b"llo"], headers=headers),
        "generator": says(lambda: blocks(b"he", b"l", b"lo"), headers=headers),
        "written": writes(b"he", b"llo", headers=headers),
        "written-and-list": writes(b"he", then=lambda: [b"llo"], headers=headers),
        "written-and-parts": writes(b"he", then=lambda: blocks(b"l", b"lo"), headers=headers),
        "file": files(b"hello", headers),
    }


@pytest.mark.parametrize("shape", promising(0))
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_more_than_promised(serve: Serve, shape: str, length: int) -> None:
    """PEP 3333: never more than Content-Length; the client would take the rest for the next answer."""
    rig = serve(promising(length)[shape])
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n(own)" % length
    seen = talk(rig)
    # The server may keep or close the connection after an error of the app.
    assert seen.wire in (
        head + b"\r\n" + b"hello"[:length],
        head + b"Connection: close\r\n\r\n" + b"hello"[:length],
    )
    assert talk(rig, HEAD).wire in (head + b"\r\n", head + b"Connection: close\r\n\r\n")


@pytest.mark.parametrize("shape", promising(0))
@pytest.mark.parametrize("length", [6, 1000])
def test_less_than_promised(serve: Serve, shape: str, length: int) -> None:
    """Only the end of the connection shows that something is missing; an answer to HEAD misses nothing."""
    rig = serve(promising(length)[shape])
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n(own)" % length
    seen = talk(rig)
    assert not seen.kept
    assert seen.wire in (head + b"\r\nhello", head + b"Connection: close\r\n\r\nhello")
    assert talk(rig, HEAD) == (head + b"\r\n", True)


def test_iteration_stops_when_enough_was_sent(serve: Serve) -> None:
    """PEP 3333: an endless iterable with a Content-Length is iterated to that length, and closed."""
    closed = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "3")])
        try:
            for _ in range(1_000_000):
                yield b"ab"
            raise AssertionError("not stopped")
        finally:
            closed.set()

    rig = serve(with_again(app))
    seen = talk(rig)
    assert seen.body == b"aba"
    assert closed.wait(PATIENCE)
    assert "not stopped" not in rig.log()


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
def test_head_of_an_endless_answer(serve: Serve, status: str) -> None:
    """Only the head is needed, so the endless iterable is not iterated."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response(status, [])
        for _ in range(1_000_000):
            yield b"ab"
        raise AssertionError("not stopped")

    rig = serve(with_again(app))
    assert talk(rig, HEAD).kept
    assert "not stopped" not in rig.log()


def test_what_stands_behind_the_last_block_runs(serve: Serve) -> None:
    """A generator that has yielded its whole length is run to its end."""
    ended = threading.Event()

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        yield b"hello"
        yield b""
        ended.set()

    assert talk(serve(with_again(app))).kept
    assert ended.is_set()


# -- start_response and write ----------------------------------------------------------------------------


def test_start_response_twice(serve: Serve) -> None:
    """Without exc_info it raises in the app, before and after the head; the first call counts."""
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        for block in (b"a", b"b"):
            try:
                start_response("201 Created", [])
            except AssertionError as error:
                raised.append(error)
            yield block

    rig = serve(with_again(app))
    assert talk(rig).wire == (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n(own)\r\n" + chunks(b"a", b"b")
    )
    assert len(raised) == 2


def test_exc_info_replaces_everything(serve: Serve) -> None:
    """PEP 3333: while nothing is sent the whole first head is replaced,
    including its length and `Connection`.
    """

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        write = start_response("200 OK", [("X-A", "1"), ("Content-Length", "999"), ("Connection", "close")])
        write(b"")
        try:
            raise ValueError("oops")
        except ValueError:
            start_response("503 Sorry", [("X-B", "2")], sys.exc_info())
        return [b"sorry"]

    assert talk(serve(with_again(app))) == (
        b"HTTP/1.1 503 Sorry\r\nX-B: 2\r\nContent-Length: 5\r\n(own)\r\nsorry",
        True,
    )


@pytest.mark.parametrize("via", ["write", "yield"])
def test_exc_info_behind_the_head(serve: Serve, via: str) -> None:
    """PEP 3333: the same exception is raised again, and the answer is cut at that point."""
    caught: list[BaseException] = []
    error = ValueError("oops")

    def app(environ: Environ, start_response: Start) -> Any:
        write = start_response("200 OK", [])

        def tail() -> Iterator[bytes]:
            if via == "yield":
                yield b"begun"
            try:
                raise error
            except ValueError:
                try:
                    start_response("503 Sorry", [], sys.exc_info())
                except ValueError as again:
                    caught.append(again)
                    raise
            yield b"never"

        if via == "write":
            write(b"begun")
        return tail()

    rig = serve(with_again(app))
    assert talk(rig) == (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n(own)\r\n5\r\nbegun\r\n",
        False,
    )
    assert caught == [error]
    assert "ValueError: oops" in rig.log()


def test_a_refused_head_may_be_replaced(serve: Serve) -> None:
    """A call whose head was refused does not count."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            start_response("200 OK", [("X", "\r\n")])
        except Exception:
            start_response("200 OK", [("X", "y")])
        return [b"x"]

    assert talk(serve(with_again(app))).wire == (
        b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 1\r\n(own)\r\nx"
    )


def test_write_wants_bytes(serve: Serve) -> None:
    """Text is an error of the app; nothing was sent, so the client gets a 500."""
    rig = serve(writes("text"))  # type: ignore[arg-type]
    assert talk(rig) == (FAILED, False)
    assert "bytes" in rig.log()


@pytest.mark.parametrize("headers", [[("Content-Length", "2")], []], ids=["length", "no-length"])
def test_write_behind_the_end(serve: Serve, headers: Headers) -> None:
    """A write() kept from an earlier request raises and reaches no client:
    the connection belongs to another request.
    """
    kept: list[Callable[[bytes], None]] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        for write in kept:
            with suppress(AssertionError):
                write(b"INJECTED")
        kept.append(start_response("200 OK", headers))
        return [b"ok"]

    rig = serve(with_again(app))
    assert b"INJECTED" not in talk(rig, GET + GET).wire


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("Content-Length", "5")], id="length"),
        pytest.param([], id="no-length"),
    ],
)
def test_write_while_closing(serve: Serve, headers: Headers) -> None:
    """The answer has ended when close() is called: nothing may be written after it."""

    class Late:
        def __init__(self, write: Callable[[bytes], None]) -> None:
            self.write = write

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"hello"])

        def close(self) -> None:
            self.write(b"INJECTED")

    rig = serve(with_again(lambda environ, start_response: Late(start_response("200 OK", headers))))
    assert b"INJECTED" not in talk(rig).wire


@pytest.mark.parametrize("exc_info", [(None, None, None), ()], ids=["no-error", "empty"])
def test_start_response_behind_the_head(serve: Serve, exc_info: Any) -> None:
    """Without exc_info it is a second call; the status in the log is the one that was sent."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        with suppress(AssertionError):
            start_response("503 Sorry", [], exc_info)

    rig = serve(with_again(app), access=True, threads=4)  # several threads write their lines at the same time
    assert talk(rig).kept
    assert rig.access_log()[0] == "GET / HTTP/1.1 200 5"


# -- apps that fail --------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "error",
    [ValueError("oops"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()],
    ids=repr,
)
def test_raising(serve: Serve, error: BaseException, threads: int) -> None:
    """A 500 while nothing was sent, a cut afterwards; in both cases the next client is served."""

    def app(environ: Environ, start_response: Start) -> Any:
        if environ["PATH_INFO"] == "/early":
            raise error
        start_response("200 OK", [("X-A", "b")])
        if environ["PATH_INFO"] == "/called":
            raise error
        return late()

    def late() -> Iterator[bytes]:
        yield b"begun"
        raise error

    rig = serve(with_again(app), threads=threads)
    for path in (b"/early", b"/called"):
        assert talk(rig, GET.replace(b"/ ", path + b" ")) == (FAILED, False)
    head_only = FAILED.removesuffix(b"Internal Server Error\n")
    assert talk(rig, HEAD.replace(b"/ ", b"/early ")) == (head_only, False)
    assert talk(rig, GET) == (
        b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n(own)\r\n5\r\nbegun\r\n",
        False,
    )
    assert rig.log().count("request_failed") == 4
    assert rig.failure is None


@pytest.mark.parametrize(
    "result",
    [
        *(lambda: None, lambda: 5, lambda: "text", lambda: b"bytes", lambda: ["text"], lambda: [b"a", "b"]),
        *(
            lambda: [None],
            lambda: ("text",),
            lambda: blocks("text"),
            lambda: blocks(b"", 5),
            lambda: {"a": b"b"},
        ),
    ],
)
@pytest.mark.parametrize("headers", [[], [("Content-Length", "4")]], ids=["no-length", "length"])
def test_answers_of_other_types_than_bytes(serve: Serve, result: Callable[[], Any], headers: Headers) -> None:
    """A wrong return value of an app is a clear error while nothing was sent."""
    rig = serve(says(result, headers=headers))
    assert talk(rig) == (FAILED, False)
    assert "TypeError" in rig.log()


@pytest.mark.parametrize("result", [lambda: [b"x"], list, lambda: blocks(b"x"), blocks, lambda: [b"a", b"b"]])
def test_start_response_is_missing(serve: Serve, result: Callable[[], Any]) -> None:
    """For an app that never calls it the error says so."""
    rig = serve(with_again(lambda environ, start_response: result()))
    assert talk(rig) == (FAILED, False)
    assert "start_response" in rig.log()


# -- close() ---------------------------------------------------------------------------------------------


class Result:
    """An iterable that counts its close() calls."""

    def __init__(self, *parts: Any, error: BaseException | None = None, endless: bool = False) -> None:
        self.parts = parts
        self.error = error
        self.endless = endless
        self.closed = 0
        self.was_closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        yield from self.parts
        while self.endless:
            yield b"x" * 65536
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()


@pytest.mark.parametrize(
    "result",
    [
        *(Result(), Result(b"a"), Result(b"a", b"b"), Result(b""), Result(b"a", "text"), Result("text")),
        *(Result(error=ValueError()), Result(b"a", error=ValueError()), Result(b"a", error=SystemExit(1))),
    ],
    ids=["empty", "one", "two", "nothing", "late-text", "text", "error", "late-error", "exit"],
)
@pytest.mark.parametrize("how", ["said", "silent", "written", "failed"])
@pytest.mark.parametrize("request_", [GET, HEAD, GET10])
def test_close_is_called_once(serve: Serve, result: Result, how: str, request_: bytes) -> None:
    """PEP 3333: in whatever way the request ends, close() is called once."""
    result.closed = 0

    def app(environ: Environ, start_response: Start) -> Any:
        if how == "failed":
            with pytest.raises(Exception, match="status"):
                start_response("bad", [])
        elif how != "silent":
            write = start_response("200 OK", [])
            if how == "written":
                write(b"before")
        return result

    talk(serve(with_again(app)), request_)
    assert result.closed == 1


@BOTH
@pytest.mark.parametrize("headers", [[], [("Content-Length", "9999999999")]], ids=["chunked", "length"])
def test_close_when_the_client_goes(serve: Serve, headers: Headers, threads: int) -> None:
    """When the client disconnects, an endless answer ends and is closed; it is not logged as an error."""
    result = Result(b"begun", endless=True)
    rig = serve(says(lambda: result, headers=headers), threads=threads)
    client = rig.client()
    client.send(GET)
    client._until(b"begun")
    client.close()
    assert result.was_closed.wait(PATIENCE)
    assert talk(rig, GET.replace(b"/ ", b"/again ")).wire.startswith(b"HTTP/1.1 299 Again")
    assert result.closed == 1
    assert "request_failed" not in rig.log()


def test_the_client_goes_while_the_app_writes(serve: Serve) -> None:
    """write() raises in the app, so that it does not write endlessly."""
    ended = threading.Event()

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        write = start_response("200 OK", [])
        try:
            while True:
                write(b"x" * 65536)
        finally:
            ended.set()

    rig = serve(with_again(app))
    client = rig.client()
    client.send(GET)
    client._until(b"xxx")
    client.close()
    assert ended.wait(PATIENCE)


# -- wsgiref's opinion -----------------------------------------------------------------------------------

TEXT = [("Content-Type", "text/plain")]


def valid_file(environ: Environ, start_response: Start) -> Any:
    start_response("200 OK", TEXT)
    fd = os.memfd_create("content")
    os.write(fd, b"hello")
    os.lseek(fd, 0, os.SEEK_SET)
    return environ["wsgi.file_wrapper"](os.fdopen(fd, "rb"))


def valid_echo(environ: Environ, start_response: Start) -> Any:
    body = environ["wsgi.input"]
    data = body.read(2) + body.readline() + b"".join(body.readlines(1)) + b"".join(body) + body.read(-1)
    environ["wsgi.errors"].writelines([""])
    environ["wsgi.errors"].flush()
    start_response("200 OK", TEXT)
    return [data]


VALID: dict[str, App] = {
    "list": lambda environ, start_response: start_response("200 OK", TEXT) and [b"hello"],
    "generator": lambda environ, start_response: start_response("200 OK", TEXT) and blocks(b"he", b"llo"),
    "written": lambda environ, start_response: start_response("200 OK", TEXT)(b"hello") or [],
    "file": valid_file,
}


@BOTH
@pytest.mark.parametrize("shape", VALID)
def test_wsgiref_validates(serve: Serve, shape: str, threads: int) -> None:
    """The validator between server and app reports no error of either, for any kind of request."""
    rig = serve(with_again(validator(VALID[shape])), threads=threads)
    for request in (GET, HEAD, GET10, GET10_STAY, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"):
        seen = talk(rig, request)
        assert seen.wire.startswith(b"HTTP/1.1 200 OK\r\n")
    assert rig.log() == ""


@pytest.mark.parametrize("settings", [{}, {"buffer_request": 1}, {"stream_request": True}], ids=str)
@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 12\r\n\r\nab\ncde\nfghij",
        b"Transfer-Encoding: chunked\r\n\r\n" + chunks(b"ab\nc", b"de\nfghij"),
    ],
    ids=["length", "chunked"],
)
def test_wsgiref_validates_bodies(serve: Serve, framed: bytes, settings: dict[str, Any]) -> None:
    """wsgi.input conforms to PEP 3333, in memory, in a file and while the body arrives."""
    rig = serve(with_again(validator(valid_echo)), **settings)
    seen = talk(rig, POST + framed)
    assert rig.log() == ""
    assert seen.wire == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n(own)\r\n"
        + chunks(b"ab\ncde\nfghij")
    )
