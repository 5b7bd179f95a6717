"""A message that comes while the only thread is in the app is read; who needs no thread for it gets none."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ostler.workers.handoff import HandOff
from ostler.wsgi.environ import Environ
from tests.kit.daemon import until
from tests.unit.workers.rig import PATIENCE, Rig

Start = Callable[..., Any]


class Worker:
    """A rig with a channel, and a handler that attends to it as a worker's does."""

    def __init__(self, folder: Path, handoff: HandOff) -> None:
        self.gate = threading.Event()
        self.in_app = threading.Event()
        self.heard = 0
        self.handled = 0
        self.rig = Rig(folder, self._app, handoff=handoff)
        self._channel, self._supervisor = os.pipe()
        os.set_blocking(self._channel, False)
        self.rig.engine.add_reader(self._channel, self._read)

    def _app(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/gate":
            self.in_app.set()
            assert self.gate.wait(PATIENCE)
        start_response("200 OK", [("Content-Length", str(len(path)))])
        return [path.encode()]

    def _read(self) -> None:
        try:
            self.heard += len(os.read(self._channel, 100))
        except BlockingIOError:
            pass  # another thread has read it

    def attend(self, *_: object) -> None:
        self.rig.engine.attend()
        self.handled += 1

    def tell(self) -> None:
        """Send a message, of which the kernel tells by a signal."""
        os.write(self._supervisor, b"m")
        self.nudge()

    def nudge(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def has_heard(self, messages: int) -> bool:
        """For tests to wait for; a signal that comes just before the app begins to wait does not end that."""
        if self.heard == messages:
            return True
        self.nudge()
        return False

    def close(self) -> None:
        os.close(self._channel)
        os.close(self._supervisor)


@pytest.fixture
def worker(tmp_path: Path, handoff: HandOff) -> Iterator[Worker]:
    worker = Worker(tmp_path, handoff)
    before = signal.signal(signal.SIGUSR1, worker.attend)
    yield worker
    signal.signal(signal.SIGUSR1, before)
    worker.close()


def test_a_message_in_the_first_request(worker: Worker) -> None:
    """It is read before the request has ended, whose answer comes all the same; then all goes on."""

    def play() -> None:
        client = worker.rig.client()
        client.ask("/gate")
        assert worker.in_app.wait(PATIENCE)
        worker.tell()
        until(lambda: worker.has_heard(1), "it is read")
        worker.tell()
        until(lambda: worker.heard == 2, "so is the next one")
        worker.gate.set()
        assert client.answer().body == b"/gate"
        assert client.get("/next").body == b"/next"
        assert worker.rig.client().get("/another").body == b"/another"

    worker.rig.run_here(play)
    assert worker.rig.log() == ""


def test_a_message_to_an_idle_worker(worker: Worker) -> None:
    """It reads it itself, and needs no thread for it; also behind a request."""

    def play() -> None:
        client = worker.rig.client()
        for count in (1, 2):
            worker.tell()
            until(lambda c=count: worker.heard == c and worker.handled == c, "it is read")
            assert client.get("/").body == b"/"
            until(lambda c=count: worker.rig.counts().requests == c, "it has ended")
        assert not worker.rig.engine._offered_by_signal

    worker.rig.run_here(play)


def test_messages_at_any_moment(worker: Worker) -> None:
    """Whatever moment of a request they hit: each request has its answer, each message is read."""
    told = 0

    def play() -> None:
        nonlocal told
        client = worker.rig.client()
        end = threading.Event()

        def tell() -> None:
            nonlocal told
            while not end.is_set() and told < 2000:
                worker.tell()
                told += 1
                time.sleep(0.0003)

        teller = threading.Thread(target=tell)
        teller.start()
        for number in range(500):
            assert client.get(f"/{number}").body == f"/{number}".encode()
        end.set()
        teller.join()
        until(lambda: worker.heard == told, "all are read")

    worker.rig.run_here(play)
    assert worker.rig.log() == ""
