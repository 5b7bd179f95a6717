#!/usr/bin/env python3
"""Load clients for what wrk can't do, each a process of its own (drive.py starts them).

- `open`: the strict open loop of tests/kit/load.py: requests are due at fixed times, and latency counts from
  then.
- `closed`: each connection sends its next request when it has the answer to the one before.
- `slow`: connections that drip the body of a POST, and connections that are slow to read a large answer.
- `idle`: connections that have had one answer and send nothing more.

`open` and `closed` end after `--seconds`; `slow` and `idle` write a line when their connections are as they
should be, and end when their standard input does. The last line of each is a JSON object.
"""

import argparse
import contextlib
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from tests.kit.load import Load
from tests.kit.report import Outcome

DRIPPED = 100_000  # Content-Length of a dripped body: more than any run can bring
TICK = 0.1  # seconds between two of a slow client's bytes or reads
READ = 1000  # bytes that a slow reader takes each time
RECEIVE_BUFFER = 16_384  # bytes of a slow reader's receive buffer: the kernel must not read ahead for it
SEGMENT = 1448  # bytes, over Ethernet
SETTLE = 1.0  # seconds from the first connection until a slow client reports that it is ready
AT_ONCE = 100  # idle connections that are opened at the same time, so that no listen queue overflows
CONNECT_WITHIN = 40.0  # seconds, for all idle connections
TIMEOUT = 20.0  # seconds for one request

Result = dict[str, Any]


def send_open(options: argparse.Namespace) -> Result:
    """Requests at fixed times; `records` are [latency in s, connection, body]."""
    load = Load(
        ("127.0.0.1", options.port),
        path=options.path,
        rate=options.rate,
        connections=options.connections,
        requests=int(options.rate * options.seconds),
        timeout=TIMEOUT,
    )
    report = load.run()
    answered = [record for record in report.records if record.outcome is Outcome.OK]
    return {
        "records": [[record.latency, record.connection, record.body.decode()] for record in answered],
        "failed": report.failed,
        "lags": list(report.lags),
    }


class Client:
    """One connection of the closed loop."""

    def __init__(self, number: int, port: int, request: bytes) -> None:
        self.number = number
        self._port = port
        self._request = request
        self._sock: socket.socket | None = None
        self._data = b""
        self.began = 0.0

    def send(self, epoll: select.epoll, clients: dict[int, "Client"]) -> None:
        """Send a request, on a new connection if there is none or the server has just closed it."""
        self.began = time.monotonic()
        self._data = b""
        if self._sock is not None:
            try:
                self._sock.sendall(self._request)
            except OSError:
                self.drop(clients)
            else:
                return
        self._sock = socket.create_connection(("127.0.0.1", self._port), TIMEOUT)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients[self._sock.fileno()] = self
        epoll.register(self._sock.fileno(), select.EPOLLIN)
        self._sock.sendall(self._request)

    def drop(self, clients: dict[int, "Client"]) -> None:
        if self._sock is not None:
            del clients[self._sock.fileno()]
            self._sock.close()  # this also removes it from the epoll
            self._sock = None

    def receive(self) -> tuple[bytes, bool] | None:
        """The body of the answer, once it is complete, and whether the connection stays.

        Raises:
            OSError: the connection was lost.
            ValueError: it is not an answer that apps.py gives.
        """
        assert self._sock is not None
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionError("end of file")
        self._data += data
        head, separator, body = self._data.partition(b"\r\n\r\n")
        if not separator:
            return None
        status, _, fields = head.lower().partition(b"\r\n")
        _, found, rest = fields.partition(b"content-length:")
        if status[8:12] != b" 200" or not found:
            raise ValueError(status.decode(errors="replace"))
        if len(body) < int(rest.partition(b"\r\n")[0]):
            return None
        return body, status.startswith(b"http/1.1") and b"connection: close" not in fields


def send_closed(options: argparse.Namespace) -> Result:
    """Keep one request under way on each connection; `records` have the same form as those of `open`."""
    request = f"GET {options.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    epoll = select.epoll()
    clients: dict[int, Client] = {}
    records: list[tuple[float, int, str]] = []
    failed = 0
    started = time.monotonic()
    for number in range(options.connections):
        Client(number, options.port, request).send(epoll, clients)
    while (left := started + options.seconds - time.monotonic()) > 0:
        for fd, _ in epoll.poll(left):
            client = clients[fd]
            try:
                answer = client.receive()
            except (OSError, ValueError):
                failed += 1
                client.drop(clients)
            else:
                if answer is None:
                    continue
                body, stays = answer
                records.append((time.monotonic() - client.began, client.number, body.decode()))
                if not stays:
                    client.drop(clients)
            client.send(epoll, clients)
    return {"records": records, "failed": failed, "seconds": time.monotonic() - started}


class Slow:
    """A slow client. It connects again when the server closes its connection.
    Each tick does one thing and never waits.
    """

    def __init__(
        self, port: int, head: bytes, receive_buffer: int, act: Callable[[socket.socket], int]
    ) -> None:
        self._port = port
        self._head = head
        self._receive_buffer = receive_buffer
        self._act = act
        self._sock: socket.socket | None = None
        self._greeted = False
        self.moved = 0
        """Bytes, over all its connections."""
        self.losses = 0

    def tick(self) -> None:
        try:
            if self._sock is None:
                self._sock, self._greeted = socket.socket(), False
                # Segments as on a network: with loopback's large segments the kernel accepts the whole body
                # at once.
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
                if self._receive_buffer:
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sock.setblocking(False)
                self._sock.connect_ex(("127.0.0.1", self._port))
            elif not self._greeted:
                self._sock.send(self._head)
                self._greeted = True
            else:
                self.moved += self._act(self._sock)
        except BlockingIOError:
            pass  # still connecting, or the server does not read or answer
        except OSError:
            self.losses += 1
            self.close()

    @property
    def connected(self) -> bool:
        return self._greeted

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock, self._greeted = None, False


def drip(sock: socket.socket) -> int:
    return sock.send(b"x")


def read(sock: socket.socket) -> int:
    data = sock.recv(READ)
    if not data:
        raise ConnectionError("end of file")
    return len(data)


def be_slow(options: argparse.Namespace) -> Result:
    """Drip and read until the end of standard input."""
    post = f"POST /upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {DRIPPED}\r\n\r\n".encode()
    get = b"GET /big HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    drippers = [Slow(options.port, post, 0, drip) for _ in range(options.drip)]
    readers = [Slow(options.port, get, RECEIVE_BUFFER, read) for _ in range(options.read)]
    # All have the same period, so their order never changes. They are spread evenly over it.
    everyone = [client for pair in _alternating(drippers, readers) for client in pair]
    started = time.monotonic()
    due = deque((started + TICK * place / len(everyone), client) for place, client in enumerate(everyone))
    ready = False
    while True:
        at, client = due[0]
        now = time.monotonic()
        if not ready and now > started + SETTLE:
            ready = True
            print("ready", flush=True)
        if at > now:
            if select.select([sys.stdin], [], [], at - now)[0]:
                break
            continue
        due.popleft()
        client.tick()
        due.append((max(at + TICK, now), client))
    seconds = time.monotonic() - started
    return {
        "connected": sum(client.connected for client in everyone),
        "dripped_per_second": sum(client.moved for client in drippers) / seconds,
        "read_per_second": sum(client.moved for client in readers) / seconds,
        "losses": sum(client.losses for client in everyone),
    }


def _alternating(one: list[Slow], other: list[Slow]) -> list[list[Slow]]:
    return [one[place : place + 1] + other[place : place + 1] for place in range(max(len(one), len(other)))]


def be_idle(options: argparse.Namespace) -> Result:
    """Open connections, receive one answer on each, then send nothing until the end of standard input."""
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    epoll = select.epoll()
    making: dict[int, socket.socket] = {}
    made: list[socket.socket] = []
    failed = 0
    deadline = time.monotonic() + CONNECT_WITHIN
    while len(made) + failed < options.connections and time.monotonic() < deadline:
        while len(making) < AT_ONCE and len(made) + failed + len(making) < options.connections:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", options.port))
            making[sock.fileno()] = sock
            epoll.register(sock.fileno(), select.EPOLLOUT)
        for fd, mask in epoll.poll(1.0):
            sock = making[fd]
            try:
                if mask & select.EPOLLOUT:
                    sock.send(request)
                    epoll.modify(fd, select.EPOLLIN)
                    continue
                # These servers write such a short answer in one piece, or the body immediately after the
                # head.
                if not sock.recv(65536).startswith(b"HTTP/1."):
                    raise ConnectionError("no answer")
                made.append(sock)
                epoll.unregister(fd)
            except OSError:
                failed += 1
                sock.close()
            del making[fd]
    for sock in making.values():
        sock.close()
    print(json.dumps({"made": len(made)}), flush=True)
    sys.stdin.read()
    return {"made": len(made), "kept": sum(map(is_open, made))}


def is_open(sock: socket.socket) -> bool:
    """Whether the server has not closed the connection. Reads what is left of the answer."""
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    for name, run in (("open", send_open), ("closed", send_closed), ("slow", be_slow), ("idle", be_idle)):
        mode = modes.add_parser(name)
        mode.add_argument("--port", type=int, required=True)
        mode.set_defaults(run=run)
        if name == "slow":
            mode.add_argument("--drip", type=int, default=0)
            mode.add_argument("--read", type=int, default=0)
            continue
        mode.add_argument("--connections", type=int, required=True)
        if name in ("open", "closed"):
            mode.add_argument("--path", default="/")
            mode.add_argument("--seconds", type=float, required=True)
        if name == "open":
            mode.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(options.run(options)))


if __name__ == "__main__":
    main()
