"""wsgi.input: for an app it is the same in memory, in a file, and while the body still arrives.

The last part is about apps that read meanwhile (setting `stream_request`), on real sockets.
"""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from ostler.wsgi.body import BufferedBody, StreamedBody
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App
from tests.unit.workers.rig import Rig
from tests.unit.workers.wire import FAILED, GET, talk, with_again

Start = Callable[..., Any]

LINES = b"one\ntwo\n\nfour" + b"x" * 30 + b"\n" + b"no end"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def in_memory(parts: list[bytes]) -> IO[bytes]:
    body = BufferedBody(1000, None)
    for part in parts:
        body.write(part)
    assert type(body.file) is io.BytesIO
    return body.input()


def in_file(parts: list[bytes]) -> IO[bytes]:
    body = BufferedBody(0, None)
    for part in parts:
        body.write(part)
    if parts:
        assert os.fstat(body.file.fileno()).st_nlink == 0
    return body.input()


def half_in_memory(parts: list[bytes]) -> IO[bytes]:
    """The limit is reached between two parts."""
    body = BufferedBody(len(parts[0]) if parts else 0, None)
    for part in parts:
        body.write(part)
    return body.input()


def streamed(parts: list[bytes]) -> IO[bytes]:
    """Each part arrives when it is requested."""
    body = StreamedBody()
    coming = list(parts)
    body.complete = lambda: not coming

    def pull() -> None:
        body.write(coming.pop(0))

    body.pull = pull
    return body.input()


WAYS = pytest.mark.parametrize("way", [in_memory, in_file, half_in_memory, streamed])
CUTS = pytest.mark.parametrize("size", [1, 3, 7, 1000])

READS: dict[str, Callable[[IO[bytes]], Any]] = {
    "read": lambda body: body.read(),
    "read-minus": lambda body: body.read(-1),
    "read-twice": lambda body: (body.read(), body.read(), body.read(1), body.readline()),
    "read-none-of-it": lambda body: (body.read(0), body.readline(0), body.read()),
    "read-some": lambda body: [body.read(5) for _ in range(20)],
    "read-too-much": lambda body: (body.read(10_000), body.read(10_000)),
    "readline": lambda body: [body.readline() for _ in range(8)],
    "readline-some": lambda body: [body.readline(2) for _ in range(50)],
    "readline-minus": lambda body: [body.readline(-1) for _ in range(8)],
    "readlines": lambda body: (body.readlines(), body.readlines()),
    "readlines-hint": lambda body: (body.readlines(1), body.readlines(6), body.readlines(10_000)),
    "iterate": list,
    "iterate-and-read": lambda body: (next(body), body.read(2), next(body), body.read()),
    "mixed": lambda body: (body.read(2), body.readline(), body.readlines(3), list(body), body.read()),
}


@WAYS
@CUTS
@pytest.mark.parametrize("read", READS)
def test_reading(way: Callable[[list[bytes]], IO[bytes]], size: int, read: str) -> None:
    """However it is stored, and in whatever parts it arrived, it reads like a file of these bytes."""
    parts = [LINES[at : at + size] for at in range(0, len(LINES), size)]
    with way(parts) as body:
        assert READS[read](body) == READS[read](io.BytesIO(LINES))


@WAYS
@pytest.mark.parametrize("read", [name for name in READS if name != "iterate-and-read"])
def test_nothing_to_read(way: Callable[[list[bytes]], IO[bytes]], read: str) -> None:
    """An empty body is at its end from the beginning."""
    with way([]) as body:
        assert READS[read](body) == READS[read](io.BytesIO())


@pytest.mark.parametrize("way", [in_memory, in_file, half_in_memory])
def test_received_bodies_can_be_read_again(way: Callable[[list[bytes]], IO[bytes]]) -> None:
    """A buffered body is seekable, which middleware uses."""
    with way([LINES[:9], LINES[9:]]) as body:
        assert body.read() == LINES
        assert body.seek(0) == 0
        assert body.read(3) == LINES[:3]
        assert body.tell() == 3


def test_a_file_is_given_back(tmp_path: Path) -> None:
    """The file is removed from the folder, and its descriptor is closed with the last reference."""
    body = BufferedBody(1, str(tmp_path))
    body.write(LINES)
    descriptor = body.file.fileno()
    assert list(tmp_path.iterdir()) == []
    taken = body.input()
    del body
    assert taken.read() == LINES
    del taken
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_no_room_for_a_file(tmp_path: Path) -> None:
    """The caller sends the error to the client."""
    body = BufferedBody(1, str(tmp_path / "missing"))
    with pytest.raises(OSError, match="missing"):
        body.write(LINES)


def test_errors_reach_the_app() -> None:
    """An error while more is received makes the read raise, and does not look like the end of the body."""
    body = StreamedBody()
    body.write(b"some")
    body.complete = lambda: False

    def pull() -> None:
        raise ConnectionResetError("gone")

    body.pull = pull
    with body.input() as taken, pytest.raises(ConnectionResetError, match="gone"):
        taken.read()


# -- while it comes, on real sockets ---------------------------------------------------------------------


def echo(environ: Environ, start_response: Start) -> list[bytes]:
    data = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Length", environ.get("CONTENT_LENGTH", "none"))])
    return [data]


def ignore(environ: Environ, start_response: Start) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


def streaming(folder: Path, app: App, **settings: Any) -> Rig:
    return Rig(folder, with_again(app), stream_request=True, **settings)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_streamed_body(tmp_path: Path, threads: int) -> None:
    """The app reads the body before all of it was sent; the connection ends with the answer."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from environ["wsgi.input"]

    with streaming(tmp_path, app, threads=threads) as rig:
        client = rig.client()
        client.send(POST + b"Content-Length: 12\r\n\r\n")
        for line in (b"first\n", b"other\n"):
            client.send(line)
            client._until(b"6\r\n" + line + b"\r\n")
        assert client.rest() == b"0\r\n\r\n"


def test_a_streamed_body_that_was_there_at_once(tmp_path: Path) -> None:
    """Everything was received, so the connection is kept; chunks have no CONTENT_LENGTH all the same."""
    with streaming(tmp_path, echo) as rig:
        for framed, length in (
            (b"Content-Length: 5\r\n\r\nhello", b"5"),
            (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Late: 1\r\n\r\n", b"none"),
        ):
            assert talk(rig, POST + framed) == (
                b"HTTP/1.1 200 OK\r\nX-Length: %b\r\nContent-Length: 5\r\n(own)\r\nhello" % length,
                True,
            )


@pytest.mark.parametrize("app", [ignore, echo])
def test_a_client_that_waits_to_be_asked(tmp_path: Path, app: App) -> None:
    """RFC 9110 section 10.1.1: `100 Continue` is sent when the app reads, and not if it never does."""
    with streaming(tmp_path, app) as rig:
        client = rig.client()
        client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        if app is echo:
            assert client.answer().status == "100 Continue"
            client.send(b"hello")
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == ("200 OK", "close")
        assert answer.body == (b"hello" if app is echo else b"ok")
        assert client.rest() == b""


def test_no_continue_within_an_answer(tmp_path: Path) -> None:
    """After the head `100 Continue` would be a part of the body."""

    def app(environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        yield environ["wsgi.input"].read()

    with streaming(tmp_path, app) as rig:
        client = rig.client()
        client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        client._until(b"5\r\nbegun\r\n")
        client.send(b"hello")
        assert client.rest() == b"5\r\nhello\r\n0\r\n\r\n"


def test_an_unread_streamed_body(tmp_path: Path) -> None:
    """The answer arrives completely, without a reset, although the client continues to send."""
    with streaming(tmp_path, ignore) as rig:
        client = rig.client()
        client.send(POST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 10)
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
        client.send(b"x" * 10_000)
        assert client.rest() == b""


@pytest.mark.parametrize("header_timeout", [0, 30])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_streamed_body_that_is_malformed(tmp_path: Path, pieces: int, header_timeout: int) -> None:
    """The app's read fails at once, and the client gets 400 if the app does not handle that."""
    head = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    with streaming(tmp_path, echo, header_timeout=header_timeout) as rig:
        client = rig.client()
        for piece in [head + b"5\r\nhello\r\nzz\r\n"] if pieces == 1 else [head, b"5\r\nhello\r\nzz\r\n"]:
            client.send(piece)
        assert client.answer().status == "400 Bad Request"
        assert client.rest() == b""
        assert "request_failed" not in rig.log()


def test_a_client_that_leaves_within_its_body(tmp_path: Path) -> None:
    """Frameworks handle an OSError of read(); the app may answer or not."""
    seen: list[BaseException] = []

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            seen.append(error)
        start_response("400 Incomplete", [])
        return [b"so what"]

    with streaming(tmp_path, app) as rig:
        client = rig.client()
        client.send(POST + b"Content-Length: 5\r\n\r\nhel")
        client.sock.shutdown(1)
        answer = client.answer()
        assert (answer.status, answer.body) == ("400 Incomplete", b"so what")
        assert client.rest() == b""
        assert len(seen) == 1


@pytest.mark.parametrize("settings", [{}, {"buffer_request": 1}, {"stream_request": True}], ids=str)
def test_an_app_may_close_its_input(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The next request has a body of its own."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        environ["wsgi.input"].close()
        return ignore(environ, start_response)

    with Rig(tmp_path, with_again(app), **settings) as rig:
        assert talk(rig, POST + b"Content-Length: 5\r\n\r\nhello") == (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n(own)\r\nok",
            True,
        )


@pytest.mark.parametrize("settings", [{}, {"buffer_request": 1}], ids=str)
def test_an_unread_body(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Bytes that the app does not read are not parsed as the next request."""
    smuggled = GET.replace(b"/ ", b"/smuggled ")
    with Rig(tmp_path, with_again(ignore), **settings) as rig:
        assert talk(rig, POST + b"Content-Length: %d\r\n\r\n" % len(smuggled) + smuggled) == (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n(own)\r\nok",
            True,
        )


@pytest.mark.parametrize("size", [1, 65_536, 3_000_000])
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("settings", [{}, {"buffer_request": 1000}, {"stream_request": True}], ids=str)
def test_bodies_of_any_size(tmp_path: Path, settings: dict[str, Any], size: int, chunked: bool) -> None:
    """Every byte arrives, wherever it is stored."""
    body = (b"0123456789abcde\n" * (size // 16 + 1))[:size]
    framed = b"Content-Length: %d\r\n\r\n" % size + body
    if chunked:
        parts = [body[at : at + 70_001] for at in range(0, size, 70_001)]
        framed = b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (*parts, b"")
        )
    with Rig(tmp_path, with_again(echo), **settings) as rig:
        client = rig.client()
        client.send(POST + framed)
        answer = client.answer()
    assert answer.status == "200 OK"
    assert answer.body == body


def test_an_app_that_fails_on_a_streamed_body(tmp_path: Path) -> None:
    """The 500 arrives, although the rest of the body is still being sent."""

    def app(environ: Environ, start_response: Start) -> list[bytes]:
        environ["wsgi.input"].read(1)
        raise ValueError("oops")

    with streaming(tmp_path, app) as rig:
        assert talk(rig, POST + b"Content-Length: 500\r\n\r\nhel") == (FAILED, False)
        assert "ValueError: oops" in rig.log()
