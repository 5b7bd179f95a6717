# ruff: noqa: SIM115 - the server closes the files that are opened here
"""wsgi.file_wrapper with all kinds of objects that apps pass, from the client's view.

The kernel sends real files, framed by the length of their rest; other objects are read. Each is
closed, once.
"""

import gzip
import io
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App
from ostler.wsgi.file_wrapper import FileWrapper
from tests.unit.workers.rig import Rig
from tests.unit.workers.wire import FAILED, GET, GET10, HEAD, talk, with_again

Start = Callable[..., Any]

TEN = b"0123456789"


def wraps(make: Callable[[], Any], headers: Any = (), *more: Any, status: str = "200 OK") -> App:
    """An app that answers with the file that `make` opens."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response(status, list(headers))
        return environ["wsgi.file_wrapper"](make(), *more)

    return with_again(app)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    path = tmp_path / "ten"
    path.write_bytes(TEN)
    return path


def at(position: int, buffering: int = -1) -> Callable[[Path], Any]:
    def make(path: Path) -> Any:
        file = path.open("rb", buffering=buffering)
        file.seek(position)
        return file

    return make


def behind_a_read(path: Path) -> Any:
    file = path.open("rb")
    assert file.read(3) == b"012"
    return file


def behind_a_line(path: Path) -> Any:
    path.write_bytes(b"a\n" + TEN[3:])
    file = path.open("rb")
    assert next(file) == b"a\n"
    return file


def behind_a_peek(path: Path) -> Any:
    file = path.open("rb")
    file.seek(3)
    assert file.peek(2)
    return file


def just_written(path: Path) -> Any:
    file = path.open("r+b")
    file.seek(10)
    file.write(b"abc")
    file.seek(3)
    return file


def not_flushed(path: Path) -> Any:
    file = path.open("r+b")
    file.seek(2)
    file.write(b"!")
    return file


def named(_: Path) -> Any:
    file = tempfile.NamedTemporaryFile()
    file.write(TEN)
    file.seek(3)
    return file


def unnamed(_: Path) -> Any:
    file = tempfile.TemporaryFile()
    file.write(TEN)
    file.seek(3)
    return file


REAL: dict[str, tuple[Callable[[Path], Any], bytes]] = {
    "beginning": (at(0), TEN),
    "middle": (at(3), TEN[3:]),
    "unbuffered": (at(3, buffering=0), TEN[3:]),
    "end": (at(10), b""),
    "beyond": (at(99), b""),
    "behind-a-read": (behind_a_read, TEN[3:]),
    "behind-a-line": (behind_a_line, TEN[3:]),
    "behind-a-peek": (behind_a_peek, TEN[3:]),
    "just-written": (just_written, TEN[3:] + b"abc"),
    "not-flushed": (not_flushed, TEN[3:]),
    "named": (named, TEN[3:]),
    "unnamed": (unnamed, TEN[3:]),
}


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("kind", REAL)
def test_real_files(tmp_path: Path, ten: Path, kind: str, sendfile: bool) -> None:
    """From the file's position to its end, whatever was buffered; the length is known in advance."""
    make, content = REAL[kind]
    with Rig(tmp_path, wraps(lambda: make(ten)), sendfile=sendfile) as rig:
        seen = talk(rig)
        if sendfile or not content:
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n(own)" % len(content)
            assert seen == (head + b"\r\n" + content, True)
            assert talk(rig, GET10) == (head + b"Connection: close\r\n\r\n" + content, False)
        else:
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n(own)\r\n"
            assert seen == (head + framed, True)
        assert (talk(rig, HEAD).body, rig.log()) == (b"", "")


@pytest.mark.parametrize(("make", "length"), [(at(3), 7), (at(0), 10)], ids=["middle", "beginning"])
def test_head(tmp_path: Path, ten: Path, make: Callable[[Path], Any], length: int) -> None:
    """HEAD gets the length and no byte of the file; the connection stays."""
    with Rig(tmp_path, wraps(lambda: make(ten))) as rig:
        assert talk(rig, HEAD) == (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n(own)\r\n" % length, True)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_statuses_without_a_body(tmp_path: Path, ten: Path, status: str) -> None:
    """A file with such a status is not sent."""
    with Rig(tmp_path, wraps(lambda: at(0)(ten), status=status)) as rig:
        assert talk(rig) == (b"HTTP/1.1 %b\r\n(own)\r\n" % status.encode(), True)


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("length", [0, 1, 4, 7])
def test_a_part_of_a_file(tmp_path: Path, ten: Path, length: int, sendfile: bool) -> None:
    """As for answers to Range: seek, then as many bytes as Content-Length announces."""
    headers = [("Content-Length", str(length)), ("Content-Range", "bytes 3-*/10")]
    with Rig(tmp_path, wraps(lambda: at(3)(ten), headers, status="206 Part"), sendfile=sendfile) as rig:
        assert talk(rig).wire.startswith(b"HTTP/1.1 206 Part\r\nContent-Length: %d\r\n" % length)
        assert talk(rig).body == TEN[3 : 3 + length]


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("make", [at(0), at(10)])
def test_a_file_shorter_than_promised(
    tmp_path: Path, ten: Path, make: Callable[[Path], Any], sendfile: bool
) -> None:
    """Only the end of the connection shows that it is incomplete."""
    with Rig(tmp_path, wraps(lambda: make(ten), [("Content-Length", "14")]), sendfile=sendfile) as rig:
        seen = talk(rig)
    assert not seen.kept
    with make(ten) as file:
        assert seen.body == file.read()


def a_pipe() -> Any:
    read, write = os.pipe()
    os.write(write, TEN)
    os.close(write)
    return os.fdopen(read, "rb")


def a_program() -> Any:
    program = subprocess.Popen(["printf", TEN.decode()], stdout=subprocess.PIPE)
    program.wait()
    return program.stdout


def a_gzip() -> Any:
    with tempfile.NamedTemporaryFile() as file:
        with gzip.open(file.name, "wb") as zipped:
            zipped.write(TEN)
        return gzip.open(file.name)


def spooled(most: int) -> Callable[[], Any]:
    def make() -> Any:
        file = tempfile.SpooledTemporaryFile(most)
        file.write(TEN)
        file.seek(0)
        return file

    return make


class OnlyRead:
    """The least that PEP 3333 asks of a file: a read()."""

    def __init__(self) -> None:
        self.left = TEN

    def read(self, size: int) -> bytes:
        data, self.left = self.left[:size], self.left[size:]
        return data


class Upper(io.FileIO):
    """A file object that reads other bytes than those on the disk."""

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        return super().read(size).replace(b"o", TEN)


def translated() -> Any:
    file = Upper(os.memfd_create("upper"), "r+b")
    file.write(b"o")
    file.seek(0)
    return file


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: io.BytesIO(TEN), a_pipe, a_program, a_gzip, spooled(100), spooled(1), OnlyRead, translated),
        lambda: io.BufferedReader(io.BytesIO(TEN)),
    ],
    ids="bytesio pipe program gzip spooled rolled only-read subclass buffered-memory".split(),
)
def test_other_objects_than_regular_files(tmp_path: Path, make: Callable[[], Any]) -> None:
    """It is read: the bytes of the app's object count, not those behind its descriptor."""
    with Rig(tmp_path, wraps(make)) as rig:
        assert talk(rig) == (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n(own)\r\na\r\n0123456789\r\n0\r\n\r\n",
            True,
        )
        assert talk(rig, GET10) == (b"HTTP/1.1 200 OK\r\n(own)Connection: close\r\n\r\n0123456789", False)
        assert rig.log() == ""


def test_files_that_do_not_know_their_size(tmp_path: Path) -> None:
    """Files of the kernel, as in /proc, have size 0 and are not empty."""
    with Rig(tmp_path, wraps(lambda: Path("/proc/self/stat").open("rb"))) as rig:
        assert b"%d (" % os.getpid() in talk(rig).body


def closed(path: Path) -> Any:
    file = path.open("rb")
    file.close()
    return file


def detached(path: Path) -> Any:
    file = path.open("rb")
    file.detach().close()
    return file


@pytest.mark.parametrize(
    "make",
    [closed, detached, lambda path: path.open(), lambda path: path.open("ab"), lambda _: None, str],
    ids="closed detached text write-only none name".split(),
)
def test_objects_that_can_t_be_read(tmp_path: Path, ten: Path, make: Callable[[Path], Any]) -> None:
    """The mistake is a plain 500 with a traceback, and does not affect later requests."""
    with Rig(tmp_path, wraps(lambda: make(ten))) as rig:
        assert talk(rig) == (FAILED, False)
        assert "request_failed" in rig.log()
        assert talk(rig, GET.replace(b"/ ", b"/again ")).wire.startswith(b"HTTP/1.1 299")


def test_the_block_size(tmp_path: Path) -> None:
    """It is read, and sent, in blocks of the given size."""
    with Rig(tmp_path, wraps(lambda: io.BytesIO(TEN), (), 4)) as rig:
        assert talk(rig).body == b"4\r\n0123\r\n4\r\n4567\r\n2\r\n89\r\n0\r\n\r\n"


def test_after_write(tmp_path: Path, ten: Path) -> None:
    """Data of write() comes before the file."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])(b"before ")
        return environ["wsgi.file_wrapper"](ten.open("rb"))

    with Rig(tmp_path, with_again(app)) as rig:
        assert talk(rig, GET10).body == b"before " + TEN


def test_a_wrapper_in_a_wrapper(tmp_path: Path, ten: Path) -> None:
    """Middleware that changes the blocks gets the blocks: sendfile must not bypass it."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        with ten.open("rb") as file:
            yield from (block.replace(b"5", b"five") for block in environ["wsgi.file_wrapper"](file))

    class Loud(FileWrapper):
        def __next__(self) -> bytes:
            return super().__next__().replace(b"5", b"five")

    def subclassed(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        return Loud(ten.open("rb"))

    for made in (app, subclassed):
        with Rig(tmp_path, with_again(made)) as rig:
            assert talk(rig, GET10).body == b"01234five6789"


def test_a_wrapper_that_was_begun(tmp_path: Path) -> None:
    """Bytes that the app has already read are not sent again."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        file = tempfile.TemporaryFile()
        file.write(TEN)
        file.seek(0)
        wrapper = environ["wsgi.file_wrapper"](file, 4)
        assert next(wrapper) == b"0123"
        return wrapper

    with Rig(tmp_path, with_again(app)) as rig:
        assert talk(rig, GET10).body == b"456789"


def noting(calls: list[Any], close: Callable[[], Any]) -> Callable[[], Any]:
    """A close() that records its calls."""

    def noted() -> None:
        calls.append(close)
        close()

    return noted


@pytest.mark.parametrize("request_", [GET, HEAD, GET10])
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified", "bad"])
def test_files_are_closed(tmp_path: Path, ten: Path, status: str, buffered: bool, request_: bytes) -> None:
    """PEP 3333: the wrapper's close() is that of the file, and is called once, also after an error."""
    closings: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Any:
        file: Any = ten.open("rb", buffering=-1 if buffered else 0)
        wrapper = environ["wsgi.file_wrapper"](file)
        wrapper.close = noting(closings, wrapper.close)
        try:
            start_response(status, [])
        except Exception:
            assert status == "bad"
        opened.append(file)
        return wrapper

    opened: list[Any] = []
    with Rig(tmp_path, with_again(app)) as rig:
        talk(rig, request_)
    assert (len(closings), opened[0].closed) == (1, True)


def test_django_s_way_of_closing(tmp_path: Path, ten: Path) -> None:
    """Django replaces the file's close before it wraps it; that one is called."""
    called: list[Any] = []

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [])
        file: Any = ten.open("rb")
        file.close = noting(called, file.close)
        return environ["wsgi.file_wrapper"](file, 4096)

    with Rig(tmp_path, with_again(app)) as rig:
        assert talk(rig).body == TEN
    assert len(called) == 1


def test_a_file_that_grows(tmp_path: Path, ten: Path) -> None:
    """It is sent with its length when the answer began: later data is not in Content-Length."""

    def app(environ: Environ, start_response: Start) -> Any:
        start_response("200 OK", [("Content-Length", "10")])
        file = ten.open("rb")
        with ten.open("ab") as more:
            more.write(b"more")
        return environ["wsgi.file_wrapper"](file)

    with Rig(tmp_path, with_again(app)) as rig:
        assert talk(rig).body == TEN


def test_a_file_that_shrinks_while_it_is_sent(tmp_path: Path) -> None:
    """The client sees that the answer is cut, and the server continues."""
    path = tmp_path / "large"
    size = 64 << 20
    with path.open("wb") as file:
        file.truncate(size)
    with Rig(tmp_path, wraps(lambda: path.open("rb"))) as rig:
        client = rig.client(receive_buffer=4096)
        client.send(GET)
        head = client._until(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % size in head
        os.truncate(path, 0)
        received = 0
        try:
            while data := client.sock.recv(1 << 20):
                received += len(data)
        except ConnectionResetError:
            pass
        assert received < size
        assert talk(rig, GET.replace(b"/ ", b"/again ")).wire.startswith(b"HTTP/1.1 299")


def test_the_wrapper_by_itself() -> None:
    """It is an iterator over blocks, for middleware that reads it."""
    wrapper = FileWrapper(io.BytesIO(TEN), 3)
    assert isinstance(wrapper, Iterator)
    assert list(wrapper) == [b"012", b"345", b"678", b"9"]
