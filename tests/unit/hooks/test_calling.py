"""Exceptions of hooks, and hooks that do not end."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ostler.hooks import calling
from ostler.hooks.calling import HookFailed, HookFunctions
from ostler.wsgi.interruption import QuitWorker


class Recorder:
    """Records what is logged."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def __call__(self, level: str, name: str, **fields: Any) -> None:
        self.found.append({"level": level, "event": name, **fields})


def calls(hook: Callable[..., Any]) -> tuple[HookFunctions, Recorder]:
    recorded = Recorder()
    return HookFunctions({"hook": hook}, recorded), recorded


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Afterwards SIGALRM must be as before."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "HOOK_TIME", 0.05)
    monkeypatch.setattr(calling, "_AGAIN", 0.02)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_a_hook_raises_is_logged(error: type[BaseException]) -> None:
    """Any exception, with the hook's name, file and line, and the traceback from the hook on."""

    def hook(_server: str) -> None:
        raise error(4)

    for how in ("call", "call_in_time"):
        given, recorded = calls(hook)
        getattr(given, how)("hook", "server")
        (line,) = recorded.found
        assert (line["level"], line["event"], line["hook"]) == ("error", "hook_failed", "hook")
        assert line["problem"].startswith(f"hook: {error.__name__}: 4 (")
        assert f"({__file__} line " in line["problem"]
        assert "/ostler/hooks" not in line["traceback"]
        assert "raise error" in line["traceback"]


def test_hooks_that_may_fail_a_start() -> None:
    """An exception of these hooks fails the start: one line, and the traceback separately."""
    given, recorded = calls(lambda: 1 / 0)
    with pytest.raises(HookFailed) as caught:
        given.require("hook")
    assert caught.value.reason.startswith("hook: ZeroDivisionError: division by zero (")
    assert caught.value.trace.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert recorded.found == []


def test_no_hook() -> None:
    """A hook that the file does not define is not called."""
    given, recorded = calls(print)
    for how in (given.require, given.call, given.call_in_time):
        how("other", 1)
    assert recorded.found == []


def test_the_end_of_a_worker_during_a_hook() -> None:
    """A signal that ends the worker during a hook ends it without an error."""

    def hook() -> None:
        raise QuitWorker

    given, recorded = calls(hook)
    with pytest.raises(QuitWorker):
        given.call("hook")
    assert recorded.found == []


def test_a_wrong_number_of_arguments_is_the_callers_line() -> None:
    """An exception before the first line of the hook has a place and a traceback as well."""
    given, recorded = calls(lambda: None)
    given.call("hook", 1)
    assert "TypeError" in recorded.found[0]["traceback"]


@pytest.mark.usefixtures("quick")
def test_a_hook_that_hangs() -> None:
    """It is interrupted where it hangs, which is logged, and it is not called again."""
    seen: list[int] = []

    def hook() -> None:
        seen.append(1)
        while True:
            time.sleep(10)

    given, recorded = calls(hook)
    given.call_in_time("hook")
    given.call_in_time("hook")
    assert seen == [1]
    (line,) = recorded.found
    assert line["problem"].startswith("hook: HookTimeout: ")
    assert line["problem"].endswith("it is not called again")
    assert "time.sleep(10)" in line["traceback"]


@pytest.mark.usefixtures("quick")
def test_a_hook_that_swallows_the_exception() -> None:
    """A hook that catches everything gets the exception again."""
    caught: list[BaseException] = []

    def hook() -> None:
        while len(caught) < 3:
            try:
                time.sleep(10)
            except BaseException as error:
                caught.append(error)
        time.sleep(10)

    given, recorded = calls(hook)
    given.call_in_time("hook")
    assert len(caught) == 3
    assert len(recorded.found) == 1


@pytest.mark.usefixtures("quick")
def test_an_alarm_of_the_apps_own() -> None:
    """The app's own handler and timer are restored afterwards, also if the hook was interrupted."""
    rung: list[int] = []

    def ring(*_: object) -> None:
        rung.append(1)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 600, 7)
    for hook in (lambda: None, lambda: time.sleep(10)):
        calls(hook)[0].call_in_time("hook")
        assert signal.getsignal(signal.SIGALRM) is ring
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert left > 500
        assert interval == 7
    assert rung == []


def test_an_alarm_that_the_hook_sets() -> None:
    """A timer that the hook itself sets stays."""

    def ring(*_: object) -> None: ...

    def hook() -> None:
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 600)

    calls(hook)[0].call_in_time("hook")
    assert signal.getsignal(signal.SIGALRM) is ring
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 500


def test_no_alarm_is_left() -> None:
    """After a hook no timer runs that would interrupt other code."""
    calls(lambda: None)[0].call_in_time("hook")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
