"""What Flask, Django, Bottle and Falcon read of a body: received whole or streamed, in one packet or two."""

import select
import socket
from http.client import HTTPResponse

import pytest

from tests.kit.daemon import Daemon, Place
from tests.kit.waiting import PATIENCE

for _name in ("flask", "django", "bottle", "falcon"):
    pytest.importorskip(_name, reason=f"{_name} is not installed")

pytestmark = pytest.mark.system

FRAMEWORKS = ["flask", "django", "bottle", "falcon"]
WAYS = ["own", "raw"]
SIZED = (b"Content-Length: 11\r\n", b"hello", b" world")
CHUNKED = (b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"6\r\n world\r\n0\r\n\r\n")


@pytest.fixture(scope="module", params=[[], ["--stream-request"]], ids=["whole", "streamed"])
def site(request: pytest.FixtureRequest, shared_place: Place) -> tuple[Daemon, bool]:
    return shared_place.start("--threads", "2", *request.param, "frameworks:app"), bool(request.param)


def posted(daemon: Daemon, target: str, body: tuple[bytes, bytes, bytes], packets: int, wait: bool) -> str:
    """The answer. wait: send the second packet when the app waits for it, or has answered without it."""
    fields, first, second = body
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode() + fields + b"\r\n"
    with socket.create_connection(daemon.address, PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if packets == 1:
            sock.sendall(head + first + second)
        else:
            sock.sendall(head + first)
            if wait:
                daemon.until(
                    lambda: (
                        select.select([sock], [], [], 0)[0]
                        or any(request.path == target for request in daemon.workers()[0].in_flight)
                    ),
                    "the app was called",
                )
            sock.sendall(second)
        response = HTTPResponse(sock, method="POST")
        response.begin()
        text = response.read().decode()
        assert response.status == 200, text
        return text


@pytest.mark.parametrize("packets", [1, 2])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bodies(site: tuple[Daemon, bool], framework: str, packets: int) -> None:
    """How many packets a body comes in makes no difference.

    A body with Content-Length is read everywhere. A chunked one is received whole first and has its length;
    streamed, its length is not known, and Django and Bottle read nothing without one, as on all servers.
    """
    daemon, streamed = site
    for way in WAYS:
        target = f"/{framework}/{way}"
        assert posted(daemon, target, SIZED, packets, streamed) == "11 hello world"
        read = "" if streamed and way == "own" and framework in ("django", "bottle") else "hello world"
        length = "none" if streamed else "11"
        assert posted(daemon, target, CHUNKED, packets, streamed) == f"{length} {read}"
