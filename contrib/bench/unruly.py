"""The app of chaos.py: quick answers as a rule, and trouble for whoever asks for it.

Who is about to take its process down says before which connections that process holds (a file in the folder
UNRULY_NOTES): nobody but the process itself can know at the moment of its crash.
"""

import ctypes
import itertools
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BIG = b"x" * 1_000_000
LEAK = 24_000_000  # bytes a request

_leaked: list[bytearray] = []


def client_ports() -> list[int]:
    """The clients' ends of all TCP connections of this process."""
    ports = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if stat.S_ISSOCK(entry.stat().st_mode):
                with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                    if sock.family == socket.AF_INET:
                        ports.append(sock.getpeername()[1])
        except OSError:
            continue  # a listener, or closed meanwhile
    return ports


def note(kind: str) -> None:
    """Write down who will be hurt."""
    path = Path(os.environ["UNRULY_NOTES"]) / f"{os.getpid()}-{time.monotonic_ns()}"
    draft = path.with_suffix(".draft")
    draft.write_text(
        json.dumps({"kind": kind, "pid": os.getpid(), "at": time.monotonic(), "ports": client_ports()})
    )
    draft.rename(path.with_suffix(".json"))


def crash(how: str) -> None:
    """End this process the hard way."""
    note(how)
    if how == "abort":
        os.abort()
    elif how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGBUS)


def block() -> None:
    """Hang in C without letting go of the interpreter lock."""
    note("block")
    ctypes.PyDLL(None).sleep(3600)


def make(version: str, crash_after: int = 0) -> Callable[..., Iterable[bytes]]:
    """One release of the app.

    Args:
        version: its answers' text.
        crash_after: a bad release: each worker aborts in so manieth request.
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
            _leaked.append(bytearray(os.urandom(4096) * (LEAK // 4096)))
        elif path.startswith("/crash/"):
            crash(path.rpartition("/")[2])
        start_response("200 OK", [("Content-Length", str(len(body))), ("X-Worker", str(os.getpid()))])
        return [body]

    return app
