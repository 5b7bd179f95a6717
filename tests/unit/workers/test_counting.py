"""What a worker counts stays plausible, whatever its app answers and its clients do."""

import os
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import ClientGone
from tests.kit.daemon import until
from tests.unit.workers.rig import Serve
from tests.unit.workers.test_queueing import Gate, let_pass

Start = Callable[..., Any]
MIB = 1024 * 1024
LARGE = 8 * MIB


class Files:
    """An app that answers with a file: `/large`, or `/huge`, a sparse file of 1 TiB."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name, size in (("large", LARGE), ("huge", 1 << 40)):
            with (folder / name).open("wb") as file:
                file.truncate(size)

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        file = (self._folder / environ["PATH_INFO"].strip("/")).open("rb")
        length = os.fstat(file.fileno()).st_size
        start_response("200 OK", [("Content-Length", str(length))])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_counts_as_far_as_it_was_sent(serve: Serve, tmp_path: Path, threads: int) -> None:
    """Otherwise clients that disconnect would make it terabytes, which no machine can send."""
    rig = serve(Files(tmp_path), threads=threads)
    for number in range(1, 6):
        client = rig.client(receive_buffer=4096)
        client.ask("/huge")
        received = 0
        while received < 2000:  # more than the head, so a part of the file
            received += len(client.sock.recv(2000))
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        until(lambda number=number: rig.counts().closed == number, "it is closed")  # type: ignore[misc]
    counts = rig.counts()
    assert counts.requests == 5
    assert 0 < counts.bytes_sent < 5 * 16 * MIB
    assert rig.scoreboard.trusted(rig.cell)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_counts_whole_when_it_was_taken(serve: Serve, tmp_path: Path, threads: int) -> None:
    """Also if the client reads slowly, and the file does not count again for the next request."""
    # Data that the kernel buffers for a slow client counts as sent, so the connection may look idle for long.
    rig = serve(Files(tmp_path), threads=threads, keepalive=60)
    client = rig.client(receive_buffer=4096)
    for number in (1, 2):
        assert len(client.get("/large").body) == LARGE
        until(lambda number=number: rig.counts().bytes_sent == number * LARGE, "counted")  # type: ignore[misc]
    client.close()
    until(lambda: rig.counts().closed == 1, "it is closed")
    assert rig.counts().bytes_sent == 2 * LARGE


def test_the_client_of_a_request_that_came_too_late_has_gone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wait is counted, and so is its end."""

    def gone(*_: Any) -> Iterable[bytes]:
        raise ClientGone

    monkeypatch.setattr("ostler.workers.wsgi_runner.queue_timeout_app", gone)
    gate = Gate()
    rig = serve(gate, queue_timeout=0.05, access=True)
    client = rig.client()
    client.get("/before")
    holding = gate.hold(rig)
    client.ask("/late")
    let_pass(0.15)
    gate.release()
    holding.answer()
    assert client.rest() == b""
    until(lambda: rig.counts().requests == 3, "all are counted")
    counts = rig.counts()
    assert counts.statuses[4] == 1
    assert sum(counts.queued) <= counts.requests
    until(lambda: any("/late" in line for line in rig.access_log()), "it is logged")
    (line,) = [line for line in rig.access_log() if "/late" in line]
    assert line == "GET /late HTTP/1.1 499 0"
