"""The app of chaos.py: quick answers as a rule; on request it hangs, crashes, blocks or leaks.

A request that is about to end its process first writes which connections the process holds (a file in the
folder UNRULY_NOTES): only the process itself knows at the moment of its crash.
"""

import ctypes
import itertools
import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BIG = b"x" * 1_000_000
LEAK = 12_000_000  # bytes a request

_leaked: list[bytes] = []


# Calls into it keep the interpreter lock.
_LIBC = ctypes.PyDLL(None)


def client_ports() -> set[int]:
    """The clients' ends of this process's TCP connections. Call it while no other thread runs Python code."""
    ports = set()
    address = ctypes.create_string_buffer(128)
    # Twice, because another thread may be in accept(2) at this moment.
    for descriptor in 2 * list(range(1024)):
        size = ctypes.c_uint(len(address))
        if _LIBC.getpeername(descriptor, address, ctypes.byref(size)) == 0:
            # struct sockaddr_in (ip(7)): the family, and the port in network order.
            family, port = struct.unpack("=H", address[:2])[0], struct.unpack("!H", address[2:4])[0]
            if family == socket.AF_INET:
                ports.add(port)
    return ports


def note(kind: str) -> None:
    """Write down the connections that will be lost;
    afterwards no other thread of the process runs Python code.
    """
    path = Path(os.environ["UNRULY_NOTES"]) / f"{os.getpid()}-{time.monotonic_ns()}.json"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    # A waiting thread requests the interpreter lock after this time; earlier requests are granted now.
    sys.setswitchinterval(3600)
    time.sleep(0.01)
    ports = sorted(client_ports())
    line = json.dumps({"kind": kind, "pid": os.getpid(), "at": time.monotonic(), "ports": ports}).encode()
    _LIBC.write(descriptor, line, len(line))


def crash(how: str) -> None:
    """End this process by a signal."""
    note(how)
    if how == "abort":
        os.abort()
    elif how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGBUS)


def block() -> None:
    """Hang in C without releasing the interpreter lock; unlike sleep(3), no signal ends this wait."""
    note("block")
    mutex = ctypes.create_string_buffer(64)  # zeros are an unlocked mutex (PTHREAD_MUTEX_INITIALIZER)
    _LIBC.pthread_mutex_lock(mutex)
    _LIBC.pthread_mutex_lock(mutex)


def make(version: str, crash_after: int = 0) -> Callable[..., Iterable[bytes]]:
    """One release of the app.

    Args:
        version: its answers' text.
        crash_after: for a bad release: each worker aborts in its request of this number.
    """
    requests = itertools.count(1)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, number = environ["PATH_INFO"], next(requests)
        if number == crash_after:
            crash("abort")
        body = version.encode()
        if path == "/":
            if number % 10 == 0:
                time.sleep(0.003)
        elif path == "/big":
            body = BIG
        elif path == "/hang":
            time.sleep(3600)
        elif path == "/block":
            block()
        elif path == "/leak":
            _leaked.append(b"x" * LEAK)
        elif path.startswith("/crash/"):
            crash(path.rpartition("/")[2])
        start_response("200 OK", [("Content-Length", str(len(body))), ("X-Worker", str(os.getpid()))])
        return [body]

    return app
