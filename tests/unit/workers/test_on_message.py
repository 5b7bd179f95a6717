"""A message that arrives while the only thread is in the app is read;
an idle worker needs no additional thread for it.
"""

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
    """A rig with a channel, and a handler of its signal as in a worker."""

    def __init__(self, folder: Path, handoff: HandOff) -> None:
        self.gate = threading.Event()
        self.in_app = threading.Event()
        self.read = 0
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
            self.read += len(os.read(self._channel, 100))
        except BlockingIOError:
            pass  # another thread has read it

    def on_signal(self, *_: object) -> None:
        self.rig.engine.on_message()
        self.handled += 1

    def send(self) -> None:
        """Send a message, and the signal that the kernel sends with it."""
        os.write(self._supervisor, b"m")
        self.signal_it()

    def signal_it(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    def has_read(self, messages: int) -> bool:
        """For tests to wait for; a signal that arrives just before the app begins to wait does not end that
        wait.
        """
        if self.read == messages:
            return True
        self.signal_it()
        return False

    def close(self) -> None:
        os.close(self._channel)
        os.close(self._supervisor)


@pytest.fixture
def worker(tmp_path: Path, handoff: HandOff) -> Iterator[Worker]:
    worker = Worker(tmp_path, handoff)
    before = signal.signal(signal.SIGUSR1, worker.on_signal)
    yield worker
    signal.signal(signal.SIGUSR1, before)
    worker.close()


def test_a_message_in_the_first_request(worker: Worker) -> None:
    """It is read before the request has ended; the request is still answered, and the next ones as well."""

    def play() -> None:
        client = worker.rig.client()
        client.ask("/gate")
        assert worker.in_app.wait(PATIENCE)
        worker.send()
        until(lambda: worker.has_read(1), "it is read")
        worker.send()
        until(lambda: worker.read == 2, "so is the next one")
        worker.gate.set()
        assert client.answer().body == b"/gate"
        assert client.get("/next").body == b"/next"
        assert worker.rig.client().get("/another").body == b"/another"

    worker.rig.run_here(play)
    assert worker.rig.log() == ""


def test_a_message_to_an_idle_worker(worker: Worker) -> None:
    """It reads the message itself, without another thread; also after a request."""

    def play() -> None:
        client = worker.rig.client()
        for count in (1, 2):
            worker.send()
            until(lambda c=count: worker.read == c and worker.handled == c, "it is read")
            assert client.get("/").body == b"/"
            until(lambda c=count: worker.rig.counts().requests == c, "it has ended")
        assert not worker.rig.engine._offered_within

    worker.rig.run_here(play)


def test_messages_at_any_moment(worker: Worker) -> None:
    """At whatever moment of a request they arrive: each request is answered, each message is read."""
    sent = 0

    def play() -> None:
        nonlocal sent
        client = worker.rig.client()
        end = threading.Event()

        def send() -> None:
            nonlocal sent
            while not end.is_set() and sent < 2000:
                worker.send()
                sent += 1
                time.sleep(0.0003)

        sender = threading.Thread(target=send)
        sender.start()
        for number in range(500):
            assert client.get(f"/{number}").body == f"/{number}".encode()
        end.set()
        sender.join()
        until(lambda: worker.read == sent, "all are read")

    worker.rig.run_here(play)
    assert worker.rig.log() == ""
