"""The app's handler of SIGTERM beside the worker's."""

import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from ostler.workers import app_signals
from ostler.workers.app_signals import AppSignalHandler


class NotedLog:
    """Stands for a worker's log."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, name: str, **_: Any) -> None:
        self.errors.append(name)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    app_signals._inherited = None


def own(_signum: int, _frame: FrameType | None) -> None:
    """Stands for the worker's."""


@pytest.mark.parametrize("end", [SystemExit(1), KeyboardInterrupt()])
def test_it_is_called_once(end: BaseException) -> None:
    """By the signal that `call_soon` sends; by what it raises it can't end the worker."""
    log, calls = NotedLog(), []

    def of_app(signum: int, _frame: FrameType | None) -> None:
        calls.append(signum)
        raise end

    signal.signal(signal.SIGTERM, of_app)
    handler = AppSignalHandler(log)  # type: ignore[arg-type]
    assert handler.take(own)
    signal.signal(signal.SIGTERM, handler.call)
    handler.call_soon(signal.SIGTERM)
    handler.call_soon(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (calls, log.errors, handler.is_due) == ([signal.SIGTERM], [], False)


def test_a_handler_that_raises() -> None:
    """It is logged."""
    log = NotedLog()
    signal.signal(signal.SIGTERM, lambda _s, _f: 1 / 0)
    handler = AppSignalHandler(log)  # type: ignore[arg-type]
    assert handler.take(own)
    handler.call(signal.SIGTERM, None)
    assert log.errors == ["signal_handler_failed"]


def test_without_one() -> None:
    """The default and the worker's own are no handlers of the app; nothing is signalled then."""
    handler = AppSignalHandler(NotedLog())  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert not handler.take(own)
    signal.signal(signal.SIGTERM, own)
    assert not handler.take(own)
    handler.call_soon(signal.SIGTERM)
    assert not handler.is_due


def test_workers_of_a_zygote_have_it() -> None:
    """The app is not imported again in them."""
    signal.signal(signal.SIGTERM, lambda _s, _f: calls.append(1))
    calls: list[int] = []
    assert AppSignalHandler(NotedLog()).take(own)  # type: ignore[arg-type]
    AppSignalHandler(NotedLog()).call(signal.SIGTERM, None)  # type: ignore[arg-type]
    assert calls == [1]
