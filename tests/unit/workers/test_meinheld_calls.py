"""What the worker class meinheld does for a request, without meinheld's server."""

import fcntl
import mmap
import os
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("meinheld.server", reason="meinheld is not installed", exc_type=ImportError)

from ostler.scoreboard import layout
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.memory import size
from ostler.workers.base import Context
from ostler.workers.meinheld.answer_parts import SLICE, AnswerParts
from ostler.workers.meinheld.calls import MeinheldCalls, is_in_app
from ostler.workers.soft_interrupt import SoftInterrupts
from ostler.wsgi.interruption import DeadlineExceeded
from tests.kit.waiting import PATIENCE


class Rig:
    """The functions under test; the test plays the server's part."""

    def __init__(self, app: Any, host: str = "127.0.0.1", quota: int = 0) -> None:
        self.accounting = Accounting(mmap.mmap(-1, size(2)), 2)
        self.accounting.thread_slot(0)
        self.words = self.accounting._parts(0)[0]
        self.listener = socket.create_server((host, 0))
        self.client = socket.create_connection(("127.0.0.1", self.listener.getsockname()[1]))
        self.served, _ = self.listener.accept()
        self.served.setblocking(False)
        self.quotas: list[int] = []
        settings: Any = SimpleNamespace(access_log_format="")
        log: Any = SimpleNamespace(error=lambda *_args, **fields: self.errors.append(fields), errors=None)
        self.errors: list[dict[str, Any]] = []
        context = Context(
            *(
                app,
                [self.listener],
                settings,
                self.accounting,
                log,
                None,
                quota,
                self.quotas.append,
                None,
                None,
            )
        )
        self.calls = MeinheldCalls(context, SoftInterrupts(self.accounting, is_in_app), lambda: False)

    def request(self, **more: Any) -> dict[str, Any]:
        """An environ like the server's."""
        own = SimpleNamespace(get_fd=self.served.fileno)
        names = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "REMOTE_ADDR": "9.9.9.9", "REMOTE_PORT": "1"}
        return {**names, "meinheld.client": own, **more}

    def close(self) -> None:
        for sock in (self.listener, self.client, self.served):
            sock.close()


def is_blocking(sock: socket.socket) -> bool:
    return not fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.close()


def test_a_large_answer_waits(rigs: list[Rig]) -> None:
    """An answer that the kernel may not accept at once is written with a blocking socket."""
    rigs.append(rig := Rig(lambda _environ, _start: [b"x" * 10_000]))
    rig.calls.serve(rig.request(), None)
    assert is_blocking(rig.served)


def test_small_answers_wait_when_they_are_many(rigs: list[Rig]) -> None:
    """A client that never reads fills its connection with small answers as well."""
    rigs.append(rig := Rig(lambda _environ, _start: [b"small"]))
    rig.calls.serve(rig.request(), None)
    assert not is_blocking(rig.served)
    for _ in range(8):
        rig.calls.serve(rig.request(), None)
    assert is_blocking(rig.served)


def test_parts_wait(rigs: list[Rig]) -> None:
    """The length of an iterable's answer is not known."""
    rigs.append(rig := Rig(lambda _environ, _start: iter([b"a"])))
    rig.calls.serve(rig.request(), None)
    assert is_blocking(rig.served)


def test_the_address_is_the_connections(rigs: list[Rig]) -> None:
    """For a listener on all interfaces the address is that of the connection."""
    rigs.append(rig := Rig(lambda _environ, _start: [b""], "0.0.0.0"))
    environ = rig.request()
    rig.calls.serve(environ, None)
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["SERVER_PORT"] == str(rig.listener.getsockname()[1])


def test_counting(rigs: list[Rig]) -> None:
    """STARTED while it is in the app; then its class, its bytes and its time, and the quota, once."""
    seen = []

    def app(_environ: Any, _start: Any) -> list[bytes]:
        seen.append(rigs[0].words[layout.STARTED])
        return [b"12345"]

    rigs.append(rig := Rig(app, quota=2))
    for status in (200, 404, 503):
        environ = rig.request()
        rig.calls.serve(environ, None)
        environ |= {"STATUS_CODE": status, "SEND_BYTES": 5, "REQUEST_TIME": 0}
        rig.calls.access(environ)
        assert rig.words[layout.STARTED] == 0
    assert all(seen)
    assert [rig.words[layout.STATUS_CLASSES + kind] for kind in range(6)] == [0, 0, 1, 0, 1, 1]
    assert rig.words[layout.BYTES_SENT] == 15
    assert sum(rig.words[layout.HISTOGRAM : layout.HISTOGRAM + layout.BUCKETS]) == 3
    assert rig.quotas == [2]


def test_a_request_whose_app_lets_others_run(rigs: list[Rig]) -> None:
    """Another one was served meanwhile: both are counted, and none is shown."""
    rigs.append(rig := Rig(lambda _environ, _start: [b""]))
    reported = {"STATUS_CODE": 200, "SEND_BYTES": 7, "REQUEST_TIME": 3}
    slow, quick = rig.request(), rig.request()
    rig.calls.serve(slow, None)
    rig.calls.settle()
    rig.calls.serve(quick, None)
    for environ in (quick, slow):
        environ |= reported
        rig.calls.access(environ)
    assert rig.words[layout.STATUS_CLASSES + 2] == 2
    assert rig.words[layout.BYTES_SENT] == 14
    assert rig.words[layout.STARTED] == 0


def test_too_late(rigs: list[Rig]) -> None:
    """504 unless the app has begun to answer."""

    def app(_environ: Any, _start: Any) -> list[bytes]:
        raise DeadlineExceeded

    def begun(_status: str, _headers: object) -> None:
        raise TypeError("headers already set")

    rigs.append(rig := Rig(app))
    said: list[str] = []
    answer = rig.calls.serve(rig.request(), lambda status, _headers: said.append(status))
    assert (said, list(answer)) == (["504 Gateway Timeout"], [b"Gateway Timeout\n"])
    with pytest.raises(DeadlineExceeded):
        rig.calls.serve(rig.request(), begun)


def test_errors(rigs: list[Rig]) -> None:
    """Errors of the app are logged with their request; a client that has disconnected is not an error."""
    rigs.append(rig := Rig(lambda _environ, _start: [b""]))
    rig.calls.serve(rig.request(PATH_INFO="/path"), None)
    rig.calls.error(BrokenPipeError, BrokenPipeError(32, "Broken pipe"), None)
    rig.calls.error(DeadlineExceeded, DeadlineExceeded(), None)
    assert rig.errors == []
    try:
        raise ValueError("mine")
    except ValueError as error:
        rig.calls.error(ValueError, error, error.__traceback__)
    assert rig.errors[0]["path"] == "/path"
    assert rig.errors[0]["traceback"].endswith("ValueError: mine")


def parts_of(result: Any, rig: Rig, statuses: list[str]) -> AnswerParts:
    slot = rig.accounting.slots[0]
    return AnswerParts(result, slot, rig.served.fileno(), lambda *_: None, lambda *_: None, statuses.append)


def test_parts_are_progress(rigs: list[Rig]) -> None:
    """The first one is not: nothing was sent before it. Empty ones are left out, large ones are sliced."""
    rigs.append(rig := Rig(None))
    statuses: list[str] = []
    parts = parts_of([b"", b"a", b"", b"x" * (2 * SLICE + 1), b"z"], rig, statuses)
    assert next(parts) == b"a"
    assert rig.words[layout.PROGRESSED] == 0
    assert next(parts) == b"x" * SLICE
    assert rig.words[layout.PROGRESSED] > 0
    assert list(parts) == [b"x" * SLICE, b"x", b"z"]
    assert statuses == []


@pytest.mark.parametrize("error", [DeadlineExceeded(), ValueError()])
def test_parts_that_are_cut(rigs: list[Rig], error: BaseException) -> None:
    """Before the first part there is another answer; afterwards the client sees the end of its connection."""

    def app(before: int) -> Iterator[bytes]:
        for _ in range(before):
            yield b"a"
        raise error

    rigs.append(rig := Rig(None))
    status = "504 Gateway Timeout" if isinstance(error, DeadlineExceeded) else "500 Internal Server Error"
    statuses: list[str] = []
    assert list(parts_of(app(0), rig, statuses)) == [f"{status[4:]}\n".encode()]
    assert list(parts_of(app(1), rig, statuses)) == [b"a"]
    assert statuses == [status, status]
    rig.client.settimeout(PATIENCE)
    assert rig.client.recv(1) == b""
