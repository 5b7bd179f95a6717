"""A minimal supervisor: starts a real fork server and exchanges messages with it and its workers.

It has what a supervisor has (channels, scoreboard, listener, hand-off) and decides nothing. At its
end it closes the channels, and kills processes that do not end.

    with Keeper(folder, wsgi_app="app:app") as keeper:
        worker = keeper.spawn(keeper.server())
        assert worker.get("/") == ("200 OK", b"hello")
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import pytest

import ostler
from ostler.ipc import messages
from ostler.ipc.channel import Channel, pair
from ostler.scoreboard import layout, memory
from ostler.settings.load import Loaded

PATIENCE = 20.0
M = TypeVar("M", bound=msgspec.Struct)

# Request slots of a cell: the largest number that a worker's settings may ask for. More than needed do not
# matter.
_REQUEST_SLOTS = 257

WORKERS: dict[str, dict[str, Any]] = {
    "sync": {},
    "threads": {"threads": 4},
    "gevent": {"worker_class": "gevent"},
    "eventlet": {"worker_class": "eventlet"},
    "asgi": {"worker_class": "asgi", "wsgi_app": "app:asgi"},
    "meinheld": {"worker_class": "meinheld"},
}
"""Settings of the kinds of workers, but for the app: see `settings_of`."""

_START = "import sys; from ostler.forkserver.main import main; main(int(sys.argv[1]), 0)"


def settings_of(kind: str) -> dict[str, Any]:
    """For a worker of WORKERS that serves `wsgi` or `asgi` of app.py; skips the test without its package."""
    if kind in ("gevent", "eventlet", "meinheld"):
        pytest.importorskip(kind)
    return {"wsgi_app": "app:wsgi", **WORKERS[kind]}


class Peer:
    """The other end of a channel, and the process behind it once it is known."""

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self._sock = sock
        sock.settimeout(PATIENCE)
        self.channel: Channel[Any] = Channel(sock, incoming)
        self.pid = 0
        self.cell = 0
        self.stacks = -1
        self._pidfd = -1

    def attach(self, pid: int) -> None:
        """Open a pidfd for the process."""
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def send_message(self, message: msgspec.Struct, descriptors: list[int] | None = None) -> None:
        """Send a message over the channel."""
        self.channel.send(message, descriptors)

    def receive(self, kind: type[M]) -> M:
        """Receive the next message, which must be of this kind; a `Decided` before it is skipped."""
        received = self.channel.receive()
        if received is not None and isinstance(received[0], messages.Decided):
            received = self.channel.receive()
        assert received is not None, f"the channel ended before {kind.__name__}"
        assert isinstance(received[0], kind), received[0]
        return received[0]

    def close_channel(self) -> None:
        self.channel.close()

    def wait_until_ended(self) -> None:
        """Wait for the end of the process."""
        assert self.wait_for_end(PATIENCE), f"{self.pid} has not ended"

    @property
    def alive(self) -> bool:
        return not self.wait_for_end(0)

    def wait_for_end(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process."""
        signal.pidfd_send_signal(self._pidfd, signum)

    @property
    def title(self) -> str:
        return self.proc("cmdline").replace("\0", " ").strip()

    def proc(self, name: str) -> str:
        return Path(f"/proc/{self.pid}/{name}").read_text()

    @property
    def thread_ids(self) -> list[str]:
        """The ids of its threads."""
        return [entry.name for entry in Path(f"/proc/{self.pid}/task").iterdir()]

    def descriptors(self) -> list[str]:
        """The targets of its descriptors, for comparing one process with another."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                found.append(str(entry.readlink()))
            except OSError:
                continue
        return sorted(found)

    def close(self) -> None:
        self.channel.close()
        if self._pidfd >= 0:
            if not self.wait_for_end(2.0):
                self.send_signal(signal.SIGKILL)
                self.wait_until_ended()
            os.close(self._pidfd)


class Keeper:
    """`settings`: as on the command line; `log`, `output`: stderr and stdout of its processes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.log, self.output = folder / "stderr.log", folder / "stdout.log"
        self._settings = settings
        self._stack = ExitStack()
        self._worker_ids = 0
        self._peers: list[Peer] = []
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._handoff = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener = socket.create_server(("127.0.0.1", 0))
        for sock in (*self._handoff, self._listener):
            sock.setblocking(False)
            self._stack.enter_context(sock)
        self.address = self._listener.getsockname()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self._peers:
            peer.close_channel()
        for peer in self._peers:
            peer.close()
        for server in self._servers:
            server.wait(PATIENCE)
        self._stack.close()
        if kind is not None and self.log.exists():
            print(self.log.read_text())

    # -- fork servers -------------------------------------------------------------------------------------

    def start(self) -> Peer:
        """A fork server that has received no message yet."""
        ours, theirs = pair()
        environ = os.environ | {"PYTHONPATH": str(Path(ostler.__file__).parent.parent)}
        environ.pop("PYTHONUNBUFFERED", None)
        with theirs, self.log.open("ab") as log, self.output.open("ab") as output:
            argv = [sys.executable, "-c", _START, str(theirs.fileno())]
            options: dict[str, Any] = {"cwd": self.folder, "env": environ, "stdout": output, "stderr": log}
            server = subprocess.Popen(argv, pass_fds=(theirs.fileno(),), **options)
        self._servers.append(server)
        peer = Peer(ours, messages.FromForkServer)
        peer.attach(server.pid)
        self._peers.append(peer)
        return peer

    def configure(self, peer: Peer, config: str | None = None, known: Loaded | None = None) -> None:
        peer.send_message(
            messages.Configure(messages.VERSION, 7, self._settings, config, str(self.folder), known)
        )

    def server(self, config: str | None = None) -> Peer:
        """A fork server that is ready."""
        peer = self.start()
        self.configure(peer, config)
        peer.receive(messages.Configured)
        self.load(peer)
        return peer

    def load(self, peer: Peer) -> None:
        """Make a configured fork server ready."""
        self.ask_to_load(peer)
        peer.receive(messages.AppLoaded)

    def ask_to_load(self, peer: Peer) -> None:
        fds = [*(end.fileno() for end in self._handoff), self._listener.fileno()]
        peer.send_message(messages.Load(["127.0.0.1:0"], "shop"), fds)

    # -- workers ------------------------------------------------------------------------------------------

    def boot(self, server: Peer, slot: int = 1) -> Peer:
        """A worker that was asked to boot."""
        self._worker_ids += 1
        worker_id = self._worker_ids
        ours, theirs = pair()
        reading, writing = os.pipe()
        cell = memory.create(_REQUEST_SLOTS)
        for fd in (reading, cell):
            self._stack.callback(os.close, fd)
        with theirs:
            server.send_message(messages.Spawn(worker_id, slot, True), [theirs.fileno(), writing, cell])
        os.close(writing)
        forked = server.receive(messages.Forked)
        assert forked.worker_id == worker_id
        peer = Peer(ours, messages.FromWorker | messages.FromForkServer)
        peer.attach(forked.pid)
        peer.cell, peer.stacks = cell, reading
        self._peers.append(peer)
        peer.send_message(messages.Boot())
        return peer

    def spawn(self, server: Peer, slot: int = 1) -> Peer:
        """A worker that serves."""
        peer = self.boot(server, slot)
        peer.receive(messages.Ready)
        return peer

    def make_zygote(self, worker: Peer) -> Peer:
        """Make a worker the fork server; returns the same process."""
        worker.send_message(messages.Drain(hand_over=True, zygote=True))
        worker.receive(messages.ZygoteReady)
        return worker

    def answered(self, worker: Peer) -> int:
        """How many requests with a 2xx status the worker's cell counts."""
        return sum(self._words(worker, layout.STATUS_CLASSES + 2))

    def wait_for_request(self, worker: Peer) -> None:
        """Wait until a request is in the app."""
        self.until(lambda: any(self._words(worker, layout.STARTED)), "a request in the app")

    def _words(self, worker: Peer, number: int) -> list[int]:
        """One word of each request slot."""
        starts = (layout.PAGE + slot * layout.SLOT_SIZE for slot in range(8))
        words = (start + number * layout.WORD for start in starts)
        return [int.from_bytes(os.pread(worker.cell, layout.WORD, word), sys.byteorder) for word in words]

    def get(self, target: str = "/") -> tuple[str, bytes]:
        """A request on a connection of its own, answered by any worker."""
        with socket.create_connection(self.address, timeout=PATIENCE) as sock:
            sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while piece := sock.recv(65536):
                data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0].decode().removeprefix("HTTP/1.1 "), body

    def wait_for_log(self, text: str) -> str:
        self.until(lambda: text in self.log.read_text(), f"{text!r} in the log")
        return self.log.read_text()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
            time.sleep(0.01)
