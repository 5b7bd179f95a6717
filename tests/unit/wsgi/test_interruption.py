"""Exceptions that signals raise in user code, and where DeadlineExceeded may be raised."""

import sys
from types import FrameType

import pytest

from ostler.wsgi.exchange import Exchange
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker, interruptible, is_interruptible


@interruptible
def calls_user_code() -> FrameType:
    return own_frame()


def own_frame() -> FrameType:
    return sys._getframe()


def test_only_marked_functions_are_interruptible() -> None:
    """The frame of the marked function counts, and no frame below or above it."""
    inner = calls_user_code()
    assert not is_interruptible(inner)
    assert inner.f_back is not None
    assert is_interruptible(inner.f_back)
    assert inner.f_back.f_back is not None
    assert not is_interruptible(inner.f_back.f_back)


def test_each_call_is_interruptible() -> None:
    """The mark belongs to the function's code, not to one frame."""
    for _ in range(2):
        frame = calls_user_code().f_back
        assert frame is not None
        assert is_interruptible(frame)


def test_a_marked_function_stays_the_same() -> None:
    """It is not wrapped: a request costs no further call."""
    assert calls_user_code.__code__.co_name == "calls_user_code"
    assert Exchange.run.__code__.co_filename == sys.modules[Exchange.__module__].__file__


@pytest.mark.parametrize("error", [QuitWorker, DeadlineExceeded])
def test_handlers_of_apps_do_not_catch_it(error: type[BaseException]) -> None:
    """Apps and frameworks catch Exception."""
    assert not issubclass(error, Exception)


def test_the_text_names_the_setting() -> None:
    """Apps that log every exception show it."""
    assert "`timeout`" in str(DeadlineExceeded())
