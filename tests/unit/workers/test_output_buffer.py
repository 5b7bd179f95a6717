"""The output buffer: what a client has not read yet, its order, where it is stored, its limits, and how it
ends.

The client is the other end of a socket pair with a small buffer, and reads when the test asks it to.
"""

import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.workers.output_buffer import OutputBuffer, Truncated

MEMORY, FILE = 1000, 10_000


class Ends:
    """Our end of a connection, and a client that reads only when asked to."""

    def __init__(self) -> None:
        self.ours, self.client = socket.socketpair()
        for end in (self.ours, self.client):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            end.setblocking(False)

    def read(self) -> bytes:
        """Read what has arrived so far."""
        parts = []
        try:
            while part := self.client.recv(1 << 20):
                parts.append(part)
        except BlockingIOError:
            pass
        return b"".join(parts)

    def read_all(self, output_buffer: OutputBuffer) -> bytes:
        """Let the client read until the output buffer is empty."""
        received = self.read()
        while not output_buffer.flush(self.ours):
            received += self.read()
        return received + self.read()

    def stuff(self) -> int:
        """Send until the kernel accepts nothing more; returns how much was sent."""
        sent = 0
        try:
            while True:
                sent += self.ours.send(b"." * 1024)
        except BlockingIOError:
            return sent

    def close(self) -> None:
        self.ours.close()
        self.client.close()


class Plain:
    """A socket that the kernel can't use directly, as under TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.send = sock.send


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


@pytest.fixture
def descriptors() -> Iterator[Callable[[], int]]:
    """Counts the descriptors that were opened since; fails if the test leaves any open."""
    before = len(list(Path("/proc/self/fd").iterdir()))

    def more() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) - before

    yield more
    assert more() <= 0  # fewer if the garbage collector has run


def add(output_buffer: OutputBuffer, data: bytes) -> None:
    output_buffer.add(memoryview(data))


def temporary_files(folder: Path) -> list[int]:
    """Sizes of the unlinked files of a folder that this process has open."""
    sizes = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith(str(folder)):
                sizes.append(entry.stat().st_size)
        except OSError:
            pass  # the descriptor of the listing itself
    return sizes


# -- order -----------------------------------------------------------------------------------------------


def test_an_empty_one_is_false(ends: Ends) -> None:
    """It holds nothing, is not full, and flushing does nothing."""
    output_buffer = OutputBuffer(MEMORY, FILE, None)
    assert not output_buffer
    assert not output_buffer.full
    assert output_buffer.flush(ends.ours)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("bytes"), st.integers(1, 4000)),
            st.tuples(st.just("file"), st.integers(1, 4000)),
            st.tuples(st.just("read"), st.just(0)),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_parts_leave_in_their_order(acts: list[tuple[str, int]], tls: bool) -> None:
    """Memory, temporary file, the app's files, and memory again:
    the client receives them in the order of adding.
    """
    ends = Ends()
    before = len(list(Path("/proc/self/fd").iterdir()))
    try:
        output_buffer = OutputBuffer(MEMORY, FILE, None)
        sock: Any = Plain(ends.ours) if tls else ends.ours
        expected = received = b""
        for number, (act, size) in enumerate(acts):
            block = bytes([number]) * size
            if act == "read":
                output_buffer.flush(sock)
                received += ends.read()
                continue
            expected += block
            if act == "bytes":
                add(output_buffer, block)
            else:
                with tempfile.TemporaryFile() as file:
                    file.write(b"skip" + block + b"behind")
                    file.flush()
                    output_buffer.add_file(os.dup(file.fileno()), 4, size)
        while not output_buffer.flush(sock):
            received += ends.read()
        received += ends.read()
        assert received == expected
        assert (output_buffer.size, output_buffer.stored, bool(output_buffer), output_buffer.full) == (
            0,
            0,
            False,
            False,
        )
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
    finally:
        ends.close()


# -- where it lies ---------------------------------------------------------------------------------------


def test_the_first_block_stays_in_memory(ends: Ends, tmp_path: Path) -> None:
    """It is already in memory, however large; later blocks go to the file, and the buffer is not full yet."""
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    add(output_buffer, b"a" * 5 * MEMORY)
    assert not output_buffer.full
    assert temporary_files(tmp_path) == []
    add(output_buffer, b"b" * 10)
    assert temporary_files(tmp_path) == [10]
    assert not output_buffer.full
    assert (output_buffer.size, output_buffer.stored) == (5 * MEMORY, 10)
    assert ends.read_all(output_buffer) == b"a" * 5 * MEMORY + b"b" * 10


def test_what_is_little_makes_no_file(tmp_path: Path) -> None:
    """Up to the limit everything is in memory."""
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    for _ in range(10):
        add(output_buffer, b"x" * (MEMORY // 10))
    assert temporary_files(tmp_path) == []
    assert not output_buffer.full
    add(output_buffer, b"x")
    assert temporary_files(tmp_path) == [1]
    assert list(tmp_path.iterdir()) == []


def test_beyond_memory_and_file_it_is_full(ends: Ends, tmp_path: Path) -> None:
    """It is not full any more as soon as the client has read enough."""
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    ends.stuff()
    while not output_buffer.full:
        add(output_buffer, b"x" * 500)
    assert FILE < output_buffer.stored <= FILE + 500
    assert output_buffer.size <= MEMORY
    while output_buffer.full:
        assert ends.read()
        output_buffer.flush(ends.ours)
    assert output_buffer.stored <= FILE


def test_without_a_file_memory_is_the_bound(tmp_path: Path) -> None:
    """With `in_file` 0 a second block beyond the limit makes it full."""
    output_buffer = OutputBuffer(MEMORY, 0, str(tmp_path))
    add(output_buffer, b"x" * 2 * MEMORY)
    assert not output_buffer.full
    add(output_buffer, b"x")
    assert output_buffer.full
    assert temporary_files(tmp_path) == []


def test_a_stream_needs_no_more_disk_than_twice_its_bound(tmp_path: Path) -> None:
    """For a slow endless reader, data that it has read is not kept on the disk."""

    class Lagging:
        """Accepts a thousand bytes at a time."""

        left = 0
        taken = b""

        def send(self, data: bytes) -> int:
            if not self.left:
                raise BlockingIOError
            sent = min(self.left, len(data))
            self.left -= sent
            self.taken += data[:sent]
            return sent

    client = Lagging()
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    sent = b""
    most = 0
    for number in range(200):
        block = bytes([number]) * 1000
        sent += block
        add(output_buffer, block)
        most = max(most, sum(temporary_files(tmp_path)))
        while output_buffer.full:
            client.left = 1000
            output_buffer.flush(client)
    assert FILE <= most <= 2 * FILE + 2000
    client.left = len(sent)
    assert output_buffer.flush(client)
    assert client.taken == sent
    assert temporary_files(tmp_path) == []


# -- a disk that is full ---------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 300, 1500])
def test_a_full_disk_loses_nothing(
    ends: Ends, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Data in the file is sent from there, the rest from memory;
    more must wait, and the disk is not tried again.
    """
    left = room
    attempts = 0
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal left, attempts
        attempts += 1
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, memoryview(data)[:left], offset)
        left -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    blocks = [bytes([number]) * 400 for number in range(10)]
    for block in blocks:
        add(output_buffer, block)
    assert output_buffer.full
    failed = attempts
    add(output_buffer, b"last")
    assert attempts == failed
    assert len(temporary_files(tmp_path)) == bool(room)
    assert ends.read_all(output_buffer) == b"".join(blocks) + b"last"
    assert (output_buffer.size, output_buffer.stored) == (0, 0)
    assert temporary_files(tmp_path) == []


def test_without_a_folder_memory_is_the_bound(ends: Ends, tmp_path: Path) -> None:
    """A temporary file that can't be made is not an error: the app has to wait earlier."""
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path / "missing"))
    add(output_buffer, b"a" * MEMORY)
    add(output_buffer, b"b")
    assert output_buffer.full
    assert ends.read_all(output_buffer) == b"a" * MEMORY + b"b"


# -- files of the app ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_a_file_that_became_shorter(ends: Ends, tmp_path: Path, tls: bool) -> None:
    """The existing bytes are sent, then it is an error: the client must see that the answer is incomplete."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 500)
    output_buffer = OutputBuffer(MEMORY, FILE, None)
    output_buffer.add_file(os.open(path, os.O_RDONLY), 100, 600)
    with pytest.raises(Truncated):
        output_buffer.flush(Plain(ends.ours) if tls else ends.ours)
    assert ends.read() == b"x" * 400
    output_buffer.close()


def test_a_large_file_leaves_in_turns(ends: Ends, tmp_path: Path) -> None:
    """A client that reads as fast as the file is sent does not keep the loop from other clients."""
    path = tmp_path / "file"
    size = 10 << 20
    with path.open("wb") as file:
        file.truncate(size)

    class Greedy:
        """Accepts everything."""

        taken = 0

        def send(self, data: bytes) -> int:
            self.taken += len(data)
            return len(data)

    client = Greedy()
    output_buffer = OutputBuffer(MEMORY, FILE, None)
    output_buffer.add_file(os.open(path, os.O_RDONLY), 0, size)
    assert not output_buffer.flush(client)
    assert 1 << 20 <= client.taken <= 5 << 20
    turns = 1
    while not output_buffer.flush(client):
        turns += 1
    assert client.taken == size
    assert turns == 2


# -- the end ---------------------------------------------------------------------------------------------


def test_descriptors_are_closed_when_all_is_sent(
    descriptors: Callable[[], int], ends: Ends, tmp_path: Path
) -> None:
    """That of the app's file and of the temporary one, each as soon as it is sent."""
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    base = descriptors()
    (tmp_path / "file").write_bytes(b"x" * 100)
    output_buffer.add_file(os.open(tmp_path / "file", os.O_RDONLY), 0, 100)
    add(output_buffer, b"y" * 2000)
    assert descriptors() == base + 2
    assert ends.read_all(output_buffer) == b"x" * 100 + b"y" * 2000
    assert descriptors() == base
    ends.close()


@pytest.mark.parametrize("how", ["close", "forgotten"])
def test_descriptors_are_closed_when_the_client_has_gone(
    descriptors: Callable[[], int], tmp_path: Path, how: str
) -> None:
    """When the buffer is closed, and when it is only not referenced any more."""
    base = descriptors()
    output_buffer = OutputBuffer(MEMORY, FILE, str(tmp_path))
    (tmp_path / "file").write_bytes(b"x" * 100)
    output_buffer.add_file(os.open(tmp_path / "file", os.O_RDONLY), 0, 100)
    add(output_buffer, b"y" * 2000)
    assert descriptors() == base + 2
    if how == "close":
        output_buffer.close()
        assert not output_buffer
        output_buffer.close()
    else:
        del output_buffer
    assert descriptors() == base


def test_a_broken_connection_is_an_error(ends: Ends) -> None:
    """For bytes and for files."""
    ends.client.close()
    for file in (False, True):
        output_buffer = OutputBuffer(MEMORY, FILE, None)
        if file:
            output_buffer.add_file(os.open(__file__, os.O_RDONLY), 0, 100)
        else:
            add(output_buffer, b"x")
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            output_buffer.flush(ends.ours)
        output_buffer.close()
