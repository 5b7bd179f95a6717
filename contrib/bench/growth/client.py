"""The client: makes many connections of one kind at a time."""

import select
import socket
import ssl
import struct
import time

from growth.kinds import Kind

STUCK = 60.0  # seconds without any progress
CONNECTING = 64  # connections begun in one pass, so that no listen queue overflows


class Connection:
    """One connection of the client's."""

    def __init__(
        self, sock: socket.socket, number: int, kind: Kind, data: bytes, tls: ssl.SSLContext | None
    ) -> None:
        self.sock = sock
        self.number = number
        self.status = b""
        self._kind = kind
        self._left = data
        if tls is not None:
            self.sock = tls.wrap_socket(sock, do_handshake_on_connect=False, server_hostname="localhost")

    def go_on(self) -> int:
        """What to wait for, as of epoll(7); 0: it is over."""
        try:
            if isinstance(self.sock, ssl.SSLSocket) and self._left and not self.sock.version():
                self.sock.do_handshake()
            while self._left:
                self._left = self._left[self.sock.send(self._left) :]
            if self._kind.end == "at once":
                return 0
            while data := self.sock.recv(1 << 18):
                if self._kind.then and not self.status:
                    self.sock.send(self._kind.then)
                self.status = self.status or data[9:12]
                if self._kind.end == "answer":
                    return 0
        except (BlockingIOError, ssl.SSLWantReadError):
            return select.EPOLLIN | (
                select.EPOLLOUT if self._left and not isinstance(self.sock, ssl.SSLSocket) else 0
            )
        except ssl.SSLWantWriteError:
            return select.EPOLLOUT
        except OSError:
            pass
        return 0


def play(
    address: tuple[str, int], kind: Kind, numbers: range, tls: ssl.SSLContext | None
) -> dict[bytes, int]:
    """Make connections, `at_once` at a time; returns how many first answers had which status.

    Raises:
        AssertionError: the server does nothing any more.
    """
    epoll = select.epoll()
    live: dict[int, Connection] = {}
    found: dict[bytes, int] = {}
    todo = iter(numbers)
    more = True
    moved = time.monotonic()
    linger = struct.pack("ii", 1, 0)  # each close is a reset: no port waits for its end
    while more or live:
        for _ in range(min(CONNECTING, kind.at_once - len(live))):
            number = next(todo, None)
            if number is None:
                more = False
                break
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.bind((f"127.{number >> 14 & 63}.{number >> 7 & 127}.{(number & 127) + 1}", 0))
            sock.setblocking(False)
            sock.connect_ex(address)
            if kind.preface is not None:
                sock.send(kind.preface(number))
            connection = Connection(sock, number, kind, kind.data(number), tls)
            # On this machine a connection is there at once, as long as the listen queue has room.
            if mask := connection.go_on():
                live[connection.sock.fileno()] = connection
                epoll.register(connection.sock.fileno(), mask)
            else:
                connection.sock.close()
                found[connection.status] = found.get(connection.status, 0) + 1
                moved = time.monotonic()
        events = epoll.poll(1.0 if live else 0.0)
        for fd, _ in events:
            connection = live[fd]
            if mask := connection.go_on():
                epoll.modify(fd, mask)
                continue
            del live[fd]
            connection.sock.close()
            found[connection.status] = found.get(connection.status, 0) + 1
            moved = time.monotonic()
        assert time.monotonic() - moved < STUCK, f"{len(live)} connections do not end"
    epoll.close()
    return found
