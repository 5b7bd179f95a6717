"""Local users flood the control plane: connections, slow and costly requests, streams.

Over TCP without any scope, over a shared Unix socket with the scope read. The supervisor continues to replace
workers and to answer its own user, and its log stays short.
"""

import contextlib
import gzip
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kit.accounts import as_nobody, second_account
from tests.kit.daemon import OSTLER, Daemon, Place
from tests.kit.hostile import CLASSES, assert_unharmed, each_class
from tests.kit.http_client import Connection, ask
from tests.kit.processes import client_ports
from tests.kit.waiting import PATIENCE, until

pytestmark = [pytest.mark.system, pytest.mark.thorough]

TCP = ("--control-bind", "127.0.0.1:0")
FLOOD = 1000
MOST_LINES = 100

FLOODER = '''\
"""ADDRESS REQUEST CONNECTIONS: sends the request again and again, without pause, on so many connections.

Prints how many answers it got with each status of the first requests, one a connection.
"""
import select, socket, sys

def connect():
    host, _, port = sys.argv[1].rpartition(":")
    sock = socket.socket(socket.AF_INET if host else socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect((host, int(port)) if host else sys.argv[1])
    return sock

request = sys.argv[2].encode().decode("unicode_escape").encode()
socks = [connect() for _ in range(int(sys.argv[3]))]
statuses = []
for sock in socks:
    sock.sendall(request)
for sock in socks:
    try:
        statuses.append(sock.recv(12)[9:12].decode() or "none")
    except OSError:
        statuses.append("none")
print(*statuses, flush=True)
if len(sys.argv) > 4:
    sys.stdin.read()  # holds them
while True:
    readable, writable, _ = select.select(socks, socks, [], 1)
    for sock in {*readable, *writable}:
        try:
            if sock in readable and not sock.recv(1 << 16):
                raise ConnectionResetError
            if sock in writable:
                sock.send(request)
        except OSError:
            socks.remove(sock)
            sock.close()
            try:
                socks.append(connect())
            except OSError:
                pass
'''


def control(daemon: Daemon) -> tuple[str, int]:
    host, _, port = str(daemon.event("control")["url"]).removeprefix("http://").rpartition(":")
    return host, int(port)


def cpu_seconds(pid: int) -> float:
    """Used by the process so far (proc_pid_stat(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def log_lines(daemon: Daemon) -> int:
    return len(daemon.log.read_text().splitlines())


@contextlib.contextmanager
def idle_connections(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    held: list[socket.socket] = []
    try:
        # While the daemon is busy its backlog may be full.
        held.extend(until(lambda: _connected(address), "a connection") for _ in range(count))
        yield held
    finally:
        for sock in held:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _connected(address: tuple[str, int]) -> socket.socket | None:
    try:
        return socket.create_connection(address, timeout=5)
    except OSError:
        return None


@contextlib.contextmanager
def flooder(
    before: Sequence[str], address: str, request: str, connections: int, hold: bool = False
) -> Iterator[list[str]]:
    """A process that sends a request over and over; gives the statuses of the first answers."""
    # It prints only statuses; it may also print an error when it is ended.
    command = [*before, sys.executable, "-c", FLOODER, address, request, str(connections)]
    with subprocess.Popen(
        [*command, "hold"] if hold else command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()
        finally:
            process.kill()


@pytest.mark.thorough
@each_class
def test_idle_connections(hostile_place: Place, words: tuple[str, ...]) -> None:
    """1,000 connections to --control-bind, 256 descriptors: the oldest are closed, workers are replaced."""
    few = ("prlimit", "--nofile=256:256", *OSTLER)
    daemon = hostile_place.start("--preload", *TCP, *words, argv=few)
    address = control(daemon)
    with idle_connections(address, FLOOD):
        daemon.until(lambda: len(client_ports(daemon.pid, address[1])) <= 40, "connections made room")
        assert_unharmed(daemon, rounds=3)
        assert daemon.ctl("status").code == 0
        assert ask(f"http://127.0.0.1:{address[1]}", "/healthz").status == 200
    assert log_lines(daemon) < MOST_LINES
    assert daemon.stop() == 0


def test_slow_heads_and_bodies(hostile_place: Place) -> None:
    """Endless heads and bodies are closed in time, even if bytes continue to arrive."""
    daemon = hostile_place.start("--preload", *TCP, *CLASSES["sync"])
    address = control(daemon)
    head = f"POST /v1/login HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\n"
    body = f"{head}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
    with idle_connections(address, 20) as held:
        left = {sock.fileno(): sock for sock in held}
        for number, sock in enumerate(held):
            sock.sendall((body if number % 2 else f"{head}X: ").encode())

        def all_closed() -> bool:
            for sock in list(left.values()):
                try:
                    sock.send(b" ")
                except OSError:
                    del left[sock.fileno()]
                    continue
                if select.select([sock], [], [], 0)[0]:
                    try:
                        ended = sock.recv(4096) == b""
                    except OSError:
                        ended = True
                    if ended:
                        del left[sock.fileno()]
            return not left

        daemon.until(all_closed, "slow clients closed")
    assert client_ports(daemon.pid, address[1]) == set()
    assert daemon.stop() == 0


def costly(kind: str, port: int) -> bytes:
    start = f"HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n".encode()
    match kind:
        case "gzip":
            bomb = gzip.compress(bytes(60_000_000), 9)
            lines = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
            return b"POST /v1/nothing " + start + lines + bomb
        case "chunks":
            lines = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            return b"POST /v1/login " + start + lines + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
        case _:
            return b"GET " + b"/" * 7_900 + b" " + start + b"\r\n"


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["gzip", "chunks", "slashes"])
def test_costly_requests(hostile_place: Place, kind: str) -> None:
    """A request of an untrusted user costs the supervisor some milliseconds at most, and is refused."""
    daemon = hostile_place.start("--preload", *TCP, *CLASSES["sync"])
    address = control(daemon)
    request = costly(kind, address[1])
    before = cpu_seconds(daemon.pid)
    count = 60
    for _ in range(count):
        with socket.create_connection(address, timeout=PATIENCE) as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(request)
            answer = sock.recv(12)
            assert answer[9:10] == b"4", answer
    assert cpu_seconds(daemon.pid) - before < count * 0.01
    assert_unharmed(daemon, rounds=1)
    assert log_lines(daemon) < MOST_LINES
    assert daemon.stop() == 0


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_without_end(hostile_place: Place, method: str) -> None:
    """Eight connections that send refused requests without pause, by another user if there is one."""
    daemon = hostile_place.start("--preload", *TCP, *CLASSES["sync"])
    host, port = control(daemon)
    request = f"{method} /v1/scale HTTP/1.1\\r\\nHost: {host}:{port}\\r\\n\\r\\n"
    with flooder(as_nobody() if second_account() else (), f"{host}:{port}", request, 8) as statuses:
        assert set(statuses) <= {"401", "405"}
        assert_unharmed(daemon, rounds=3)
    assert log_lines(daemon) < MOST_LINES
    assert daemon.stop() == 0


@pytest.mark.skipif(not second_account(), reason="needs root and a second account")
def test_streams_of_the_apps_user(hostile_place: Place) -> None:
    """The app's user, who may read, opens forty streams and requests /metrics without pause.
    Root still gets its stream.
    """
    for folder in (hostile_place.folder, hostile_place.runtime, hostile_place.app_folder):
        folder.chmod(0o755)
    daemon = hostile_place.start(
        "--preload", "--user", "nobody", "--control-socket-mode", "0666", *CLASSES["sync"]
    )
    path = str(daemon.socket)
    asked = "GET {} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
    with (
        flooder(as_nobody(), path, asked.format("/v1/stream"), 40, hold=True) as streams,
        flooder(as_nobody(), path, asked.format("/metrics"), 4) as metrics,
    ):
        assert 0 < streams.count("200") < 32
        assert set(streams) == {"200", "503"}
        assert set(metrics) == {"200"}
        own = Connection(f"unix:{path}")
        own.request("GET", "/v1/stream")
        response = own.getresponse()
        assert response.status == 200
        assert response.readline() == b"retry: 1000\n"
        assert_unharmed(daemon, rounds=3)
        response.close()
        own.close()
    assert log_lines(daemon) < MOST_LINES
    assert daemon.stop() == 0
