"""Signals end a worker whichever of its threads the kernel gives them to."""

import ctypes
import os
import signal
from pathlib import Path

import pytest

from tests.unit.workers.keeper import WORKERS, Keeper, settings_of

APP = """\
from ostler.osapi import original

held = original.Lock()
held.acquire()
original.thread(held.acquire, "of the app").start()

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
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
