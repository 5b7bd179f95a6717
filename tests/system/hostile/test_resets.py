"""Clients that reset their connection before the worker has looked at it."""

import signal
import socket
import struct
from pathlib import Path

import pytest

from tests.kit.daemon import Place
from tests.kit.hostile import CLASSES, EVERY_CLASS
from tests.kit.processes import Process, freeze
from tests.kit.tiers import tiers
from tests.kit.waiting import PATIENCE

pytestmark = [pytest.mark.system, pytest.mark.thorough]

FORGED = b"GET /forged HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.99\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "words", tiers({**CLASSES, "eventlet": EVERY_CLASS["eventlet"]}.items(), ["threads", "asgi"])
)
def test_their_address_is_known(hostile_place: Place, words: tuple[str, ...]) -> None:
    """The log has their address. They are not treated as clients of the Unix socket,
    which have no address and may name another client's address in X-Forwarded-For.
    """
    access = hostile_place.folder / "access.log"
    also = hostile_place.folder / "app.sock"
    # A peer on the Unix socket is a trusted proxy; 127.0.0.1 is not trusted here.
    trusts = ("--forwarded-allow-ips", "192.0.2.1", "-b", f"unix:{also}")
    daemon = hostile_place.start("-w", "1", *trusts, "--access-logfile", str(access), *words)
    worker = Process(daemon.pids()[0])
    freeze(worker)
    try:
        for _ in range(3):
            with socket.create_connection(daemon.address, timeout=PATIENCE) as sock:
                sock.sendall(FORGED)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        worker.send(signal.SIGCONT)
    assert daemon.get("/later").status == 200
    lines = daemon.until(lambda: _lines(access, "/later") and _lines(access), "the access log")
    assert [line for line in lines if not line.startswith("127.0.0.1 ")] == []
    worker.close()


def _lines(path: Path, what: str = "") -> list[str]:
    return [line for line in path.read_text().splitlines() if what in line] if path.exists() else []
