"""Priming an engine: requests of its own through the parts that serve plain HTTP in one thread.

This happens before the first client comes: the first requests of a fresh process are several times slower
than the rest, because the interpreter has not yet specialised the code, and every page that is written to for
the first time after a fork is copied. The fork server primes with many requests, so that workers inherit
specialised code; each worker with a few, so that its pages are its own before it reports that it is ready.
The app is not called; `warmup` does that.
"""

import mmap
import socket
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ostler.logs.worker_log import Log
from ostler.osapi import original
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.memory import size
from ostler.settings.table import Settings
from ostler.workers.base import Context
from ostler.workers.thread_engine import Engine
from ostler.wsgi.environ import Environ

FORK_SERVER_REQUESTS, WORKER_REQUESTS = 64, 4

_REQUEST = (
    b"GET /priming?of=ostler HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: ostler\r\n"
    b"Cookie: priming=1\r\n\r\n"
)
_HEADERS = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "2")]


def _app(_environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", _HEADERS)
    return [b"ok"]


def prime(settings: Settings, log: Log, times: int) -> None:
    """Accept a connection and answer `times` requests on it, with counters and sockets of its own."""
    try:
        _prime(msgspec.structs.replace(settings, threads=1, keepalive=2.0), log, times)
    except OSError:
        pass  # what it needs is not available; that is no reason to fail to boot


def _prime(settings: Settings, log: Log, times: int) -> None:
    accounting = Accounting(mmap.mmap(-1, size(2)), 2)
    with original.Socket(socket.AF_UNIX) as listener, original.Socket(socket.AF_UNIX) as client:
        listener.bind("")  # autobind: a name in the abstract name space (unix(7))
        listener.listen(1)
        listener.setblocking(False)
        client.settimeout(1.0)
        engine = Engine(Context(_app, [listener], settings, accounting, log))
        try:
            client.connect(listener.getsockname())
            for _ in range(times):
                client.sendall(_REQUEST)
                engine.run_once()
                engine.run_once()
                client.recv(4096)
        finally:
            engine.close()
