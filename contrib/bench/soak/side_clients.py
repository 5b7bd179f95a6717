"""Clients beside the load: each has one connection and one purpose."""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from soak.account import Account
from tests.kit.answers import AnswerParser, MalformedAnswerError

PATIENCE = 60.0  # seconds for a connect
ANSWERED_WITHIN = 30.0


@dataclass
class SideClient:
    """A client and its connection."""

    kind: str
    sock: socket.socket
    allowed: frozenset[int]
    """The statuses it may be answered with; 0: the connection's end without an answer."""
    deadline: float
    drip: bytes = b""
    """Still to be sent, a byte at a time."""
    sip: int = 65536
    """How much it reads at a time."""
    parser: AnswerParser = field(default_factory=AnswerParser)
    port: int = 0

    def fileno(self) -> int:
        return self.sock.fileno()


class SideClients:
    """Opens them, and judges how each of them ends.

    Args:
        read_notes: called before an end is judged: the account may not have the cause yet.
    """

    def __init__(self, account: Account, address: tuple[str, int], read_notes: Callable[[], None]) -> None:
        self._account = account
        self._address = address
        self._read_notes = read_notes
        self._open: list[SideClient] = []

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self, kind: str, data: bytes, allowed: frozenset[int], *, drip: bool = False, sip: int = 65536
    ) -> SideClient:
        """Connect and send; all at once, or a byte at a time (`drip`)."""
        sock = socket.socket()
        if sip < 65536:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(PATIENCE)
        sock.connect(self._address)
        deadline = time.monotonic() + ANSWERED_WITHIN
        client = SideClient(kind, sock, allowed, deadline, sip=sip, port=sock.getsockname()[1])
        if drip:
            client.drip = data
        else:
            with contextlib.suppress(ConnectionError):  # it may have been refused before it was all sent
                sock.sendall(data)
        sock.setblocking(False)
        self._open.append(client)
        return client

    def reset(self, client: SideClient) -> None:
        """End its connection by a reset."""
        self._open.remove(client)
        self._account.asides[client.kind, "reset by us"] += 1
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()

    def look_after(self, patience: float) -> None:
        """Read and send what is possible; waits so many seconds for something to read."""
        if not self._open:
            time.sleep(patience)
            return
        readable, _, _ = select.select(self._open, [], [], patience)
        now = time.monotonic()
        for client in list(self._open):
            if client in readable:
                self._read(client, now)
            elif now > client.deadline:
                self._close(client, "no answer in time", 0, now, fine=False)
            elif client.drip:
                with contextlib.suppress(OSError):  # its end is read, too
                    sent = client.sock.send(client.drip[:1])
                    client.drip = client.drip[sent:]

    def _read(self, client: SideClient, now: float) -> None:
        try:
            data = client.sock.recv(client.sip)
            answer = client.parser.feed(data) if data else client.parser.end()
        except BlockingIOError:
            return
        except ConnectionError:
            data, answer = b"", None
        except MalformedAnswerError as error:
            self._close(client, f"not HTTP: {error}", 0, now, fine=False)
            return
        if answer is not None:
            self._close(
                client, f"status {answer.status}", answer.status, now, fine=answer.status in client.allowed
            )
        elif not data:
            self._close(client, "closed", 0, now, fine=0 in client.allowed)

    def _close(self, client: SideClient, how: str, status: int, now: float, *, fine: bool) -> None:
        self._open.remove(client)
        client.sock.close()
        account = self._account
        if status:
            account.answered_aside += 1
        else:
            account.lost_aside += 1
        if not fine:
            self._read_notes()
            why = account.explanation(client.port, now)
            if why is None:
                account.unexplained.append(f"{client.kind}: {how}, port {client.port}, at {now:.3f}")
            else:
                how += f" ({why})"
        account.asides[client.kind, how] += 1
