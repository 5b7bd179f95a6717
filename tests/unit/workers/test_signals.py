"""Signals from outside end a worker: whichever of its threads gets them, and together with messages."""

import ctypes
import os
import signal
import socket
from pathlib import Path

import pytest

from ostler.ipc import messages
from tests.unit.workers.keeper import WORKERS, Keeper, settings_of

APP = """\
import asyncio, time
from ostler.osapi import original

held = original.Lock()
held.acquire()
original.thread(held.acquire, "of the app").start()

def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        time.sleep(1000)
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    if scope["path"] == "/hang":
        await asyncio.sleep(1000)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
"""


def send_to_thread(pid: int, tid: int, signum: int) -> None:
    """tgkill(2): of all threads this one gets the signal."""
    if ctypes.CDLL(None, use_errno=True).tgkill(pid, tid, signum):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize("kind", WORKERS)
def test_signal_for_another_thread(kind: str, tmp_path: Path) -> None:
    """Python runs handlers in the main thread only, which may be waiting for something else.

    The same happens when a signal arrives just before the main thread begins to wait.
    """
    (tmp_path / "app.py").write_text(APP)
    with Keeper(tmp_path, **settings_of(kind)) as keeper:
        worker = keeper.spawn(keeper.server())
        for _ in range(8):  # in a worker with threads, the main thread becomes a follower
            assert keeper.get()[0] == "200 OK"
        other = max(int(task) for task in worker.thread_ids)
        assert other != worker.pid
        send_to_thread(worker.pid, other, signal.SIGTERM)
        worker.wait_until_ended()


@pytest.mark.parametrize("kind", ["threads", "gevent", "eventlet", "asgi"])
def test_time_for_draining_after_a_signal(kind: str, tmp_path: Path) -> None:
    """SIGTERM allows the worker's own graceful_timeout; what the supervisor says afterwards replaces that."""
    (tmp_path / "app.py").write_text(APP)
    settings = settings_of(kind) | {"graceful_timeout": 1000}
    with Keeper(tmp_path, **settings) as keeper, socket.socket() as client:
        worker = keeper.spawn(keeper.server())
        client.connect(keeper.address)
        client.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        keeper.wait_for_request(worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.receive(messages.Signalled).signum == signal.SIGTERM
        assert not worker.wait_for_end(0.5)
        worker.send_message(messages.Drain(seconds=0.1))
        worker.wait_until_ended()
