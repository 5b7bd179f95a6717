"""Exceptions that signals raise in user code, and the functions in which one of them may be raised."""

from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

# The code of the functions that call user code for a request.
_interruptible: set[CodeType] = set()
Function = TypeVar("Function", bound=Callable[..., Any])


class QuitWorker(BaseException):
    """Raised in the main thread to end the worker at once; apps should not catch it."""


class DeadlineExceeded(BaseException):
    """Raised in the app, in the thread that serves the request, when the request is overdue.

    Not a subclass of Exception, so that error handlers of apps and frameworks do not catch it.
    """

    def __str__(self) -> str:
        return "the request takes longer than `timeout`, or `limit_request_time`, allows"


def interruptible(function: Function) -> Function:
    """Mark a function that calls the app or a hook: DeadlineExceeded may be raised anywhere in it."""
    _interruptible.add(function.__code__)
    return function


def is_interruptible(frame: FrameType) -> bool:
    """Whether a frame is that of a function which is marked `interruptible`."""
    return frame.f_code in _interruptible
