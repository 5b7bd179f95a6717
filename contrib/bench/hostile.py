#!/usr/bin/env python3
"""How fast a daemon reacts while it is attacked: by its app, by local users at the control port, by slow
clients.

For each worker class and each attack a new daemon is started, with 1,024 descriptors at most. While the
attack runs, workers are killed with SIGKILL and the status is requested over the Unix socket, in turn. Median
and longest time are printed of each:

- replaced: from the kill of the worker that answers to an answer of its successor;
- status: one `GET /v1/status`, on a connection of its own;
- log: lines that the daemon wrote per second;
- cpu: what the supervisor used of one processor, in percent.

The attacks of slow clients are about other clients, so there the time of a new client's request is printed
instead of `replaced`, and no worker is killed.

Exit status: 1 if a limit is exceeded: a median of 0.1 s to replace a worker and of 0.5 s for the status, 1 s
for each new client.
"""

import argparse
import contextlib
import gzip
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path

import servers

sys.path.insert(0, str(servers.ROOT))
from ostler.errors import OstlerError
from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.hostile import APP, CLASSES, REPLACED_WITHIN, STATUS_WITHIN, client_time, health, status_time
from tests.kit.waiting import PATIENCE, until

NEW_CLIENT_WITHIN = 1.0
IDLE, SLOW = 1_100, 3_000  # connections
BETWEEN = 0.1  # seconds between two requests of a new client

# What the app does; runs as attack.py in each worker.
FLOOD = """\
import msgspec, os, socket, threading
from ostler.ipc import messages

def channels():
    for name in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
            yield sock
        else:
            sock.close()

def flood():
    found, data = list(channels()), msgspec.msgpack.encode(messages.RecycleDue(1))
    while True:
        for sock in found:
            try:
                sock.send(data)
            except OSError:
                pass

def request(path):
    if path == "/attack":
        threading.Thread(target=flood, daemon=True).start()
"""
STAMP = """\
import ctypes, os, random
usleep, stamper = ctypes.CDLL(None).usleep, None

def stamp():
    maps = [line.split() for line in open("/proc/self/maps") if "ostler-scoreboard" in line]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps if "w" in line[1]]
    worker = os.getpid()
    # A child has the memory in common with the worker, and keeps no loop of the worker's from its turn.
    if os.fork():
        return
    while os.getppid() == worker:
        for begin, end in spans:
            for _ in range(64):
                ctypes.memmove(begin + 8 * random.randrange((end - begin) // 8), os.urandom(8), 8)
        usleep(200)  # time.sleep would be the hub's
    os._exit(0)

def request(path):
    global stamper
    if path == "/attack" and stamper != os.getpid():
        stamper = os.getpid()
        stamp()
"""


@dataclass(frozen=True)
class Figures:
    """Seconds, one figure a round; lines per second; percent of a processor."""

    worker_class: str
    attack: str
    replaced: list[float]
    client: list[float]
    status: list[float]
    log_lines: float
    cpu: float

    @property
    def good(self) -> bool:
        return (
            (not self.replaced or statistics.median(self.replaced) <= REPLACED_WITHIN)
            and (not self.client or max(self.client) <= NEW_CLIENT_WITHIN)
            and statistics.median(self.status) <= STATUS_WITHIN
        )

    def row(self) -> str:
        def times(name: str, found: list[float]) -> str:
            if not found:
                return f"{name} {'-':>17}"
            return f"{name} {statistics.median(found) * 1e3:7.1f} {max(found) * 1e3:8.1f} ms"

        return "  ".join(
            [
                f"{self.worker_class:8} {self.attack:14}",
                times("replaced", self.replaced),
                times("client", self.client),
                times("status", self.status),
                f"log {self.log_lines:7.1f}/s  cpu {self.cpu:5.1f} %",
                "" if self.good else "MISSED",
            ]
        )


# -- attacks -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _repeating(work: Callable[[], None], threads: int = 4) -> Iterator[None]:
    """Run `work` again and again in a process of its own,
    so that its CPU time is not counted with that of the measurement.
    """
    pid = os.fork()
    if not pid:
        try:
            for _ in range(threads):
                threading.Thread(target=_forever, args=(work,), daemon=True).start()
            threading.Event().wait()
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _forever(work: Callable[[], None]) -> None:
    while True:
        try:
            work()
        except (OSError, HTTPException):
            time.sleep(0.01)  # refused: wait, because this attacker does not spin


def _holding(address: tuple[str, int], count: int, first: bytes, drip: bytes = b"") -> Callable[[], None]:
    """Keep `count` connections open, each with `first` sent, and send `drip` on each once a second."""

    def work() -> None:
        held: list[socket.socket] = []
        while True:
            began = time.monotonic()
            alive = []
            for sock in held:
                try:
                    if drip:
                        sock.send(drip)
                    elif not sock.recv(1, socket.MSG_DONTWAIT):
                        raise ConnectionResetError
                    alive.append(sock)
                except BlockingIOError:
                    alive.append(sock)
                except OSError:
                    sock.close()
            held = alive
            while len(held) < count and time.monotonic() - began < 0.9:
                try:
                    sock = socket.create_connection(address, 0.2)
                    sock.setblocking(False)
                    if first:
                        sock.send(first)
                    held.append(sock)
                except OSError:
                    break
            time.sleep(max(0.0, 1 - (time.monotonic() - began)))

    return work


def _posting(address: tuple[str, int], path: str, body: bytes) -> Callable[[], None]:
    request = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{address[1]}\r\nContent-Type: application/json\r\n"
        f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body

    def work() -> None:
        with socket.create_connection(address, 5) as sock:
            sock.sendall(request)
            sock.recv(65536)

    return work


def _control(daemon: Daemon) -> tuple[str, int]:
    port = daemon.argv[daemon.argv.index("--control-bind") + 1].rpartition(":")[2]
    return "127.0.0.1", int(port)


def nothing(_daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def from_the_app(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    """Each new worker attacks from its first request on."""
    return _repeating(lambda: _ask(daemon, "/attack"), threads=1)


def _ask(daemon: Daemon, path: str) -> None:
    daemon.get(path)
    time.sleep(0.05)


def control_idle(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    return _repeating(_holding(_control(daemon), IDLE, b""), threads=1)


def control_heads(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    return _repeating(_holding(_control(daemon), IDLE, b"GET / HTTP/1.1\r\n", b"A: b\r\n"), threads=1)


def control_gzip(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    return _repeating(_posting(_control(daemon), "/v1/scale", gzip.compress(bytes(60_000_000), 9)))


def control_garbage(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    def work() -> None:
        with socket.create_connection(_control(daemon), 5) as sock:
            sock.sendall(b"\x16\x03\x01" + os.urandom(200) + b"\r\n\r\n")
            sock.recv(65536)

    return _repeating(work)


def slow_heads(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    first = b"GET / HTTP/1.1\r\nHost: a\r\n"
    return _repeating(_holding(daemon.address, SLOW, first, b"A: b\r\n"), threads=1)


def slow_bodies(daemon: Daemon) -> contextlib.AbstractContextManager[None]:
    first = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    return _repeating(_holding(daemon.address, SLOW, first, b"x"), threads=1)


@dataclass(frozen=True)
class Attack:
    """killing: whether workers are killed during the attack; code: of attack.py; tls:
    whether it is also run over TLS.
    """

    run: Callable[[Daemon], contextlib.AbstractContextManager[None]]
    killing: bool = True
    code: str = ""


ATTACKS = {
    "none": Attack(nothing),
    "channel flood": Attack(from_the_app, code=FLOOD),
    "scoreboard": Attack(from_the_app, code=STAMP),
    "control idle": Attack(control_idle),
    "control heads": Attack(control_heads),
    "control gzip": Attack(control_gzip),
    "control noise": Attack(control_garbage),
    "slow heads": Attack(slow_heads, killing=False),
    "slow bodies": Attack(slow_bodies, killing=False),
}


# -- measuring ---------------------------------------------------------------------------------------------


def measure(worker_class: str, name: str, options: argparse.Namespace) -> Figures:
    attack = ATTACKS[name]
    with Place() as place:
        place.add("attacked.py", APP)
        if attack.code:
            place.add("attack.py", attack.code)
        words = ["--preload", "--control-bind", f"127.0.0.1:{servers.free_port()}"]
        words += [] if attack.killing else ["-w", "2"]
        if worker_class == "tls":
            authority = Authority(place.folder)
            server = authority.issue("127.0.0.1")
            words += ["--certfile", server.cert, "--keyfile", server.key]
        daemon = place.start(
            *words, *CLASSES.get(worker_class, CLASSES["sync"]), popen={"preexec_fn": _limit_descriptors}
        )
        before, cpu, began = len(daemon.log.read_bytes().splitlines()), _cpu(daemon.pid), time.monotonic()
        with attack.run(daemon):
            time.sleep(options.lead)  # the attacker needs this time to reach its full rate
            replaced: list[float] = []
            client: list[float] = []
            if attack.killing:
                found = health(daemon, options.rounds)
                replaced, status = found.replaced, found.status
            else:
                status = []
                for _ in range(4 * options.rounds):
                    status.append(status_time(daemon))
                    client.append(_client_time(daemon))
                    time.sleep(BETWEEN)
            seconds = time.monotonic() - began
            lines = len(daemon.log.read_bytes().splitlines()) - before
            used = _cpu(daemon.pid) - cpu
        until(lambda: daemon.process.poll() is None, "the daemon lives")
        return Figures(worker_class, name, replaced, client, status, lines / seconds, 100 * used / seconds)


def _client_time(daemon: Daemon) -> float:
    try:
        return client_time(daemon)
    except OSError:
        return PATIENCE  # not within that time


def _limit_descriptors() -> None:
    """The limit that systemd and most shells set."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))


def _cpu(pid: int) -> float:
    """CPU seconds of one process (proc_pid_stat(5): utime, stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="attacks whose name has this in it")
    parser.add_argument(
        "--classes", default=",".join([*CLASSES, "tls"]), metavar="NAMES", help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--lead", type=float, default=2.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, too")
    options = parser.parse_args()
    found = []
    for worker_class in options.classes.split(","):
        for name in ATTACKS:
            if options.only not in name:
                continue
            try:
                figures = measure(worker_class, name, options)
            except (AssertionError, OSError, OstlerError, subprocess.CalledProcessError) as error:
                print(f"{worker_class:8} {name:14}  FAILED: {str(error).splitlines()[0]}", flush=True)
                continue
            print(figures.row(), flush=True)
            found.append(figures)
    if options.json:
        options.json.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")
    return 0 if found and all(figures.good for figures in found) else 1


if __name__ == "__main__":
    servers.run(main)
