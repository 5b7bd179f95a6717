"""Which tasks and frames belong to which request, and where they are.

A context variable, which the tasks that a request starts inherit, says to which request code belongs.
"""

import asyncio
import inspect
import traceback
from contextvars import ContextVar
from traceback import FrameSummary
from types import CodeType, FrameType
from typing import Any

# When the request at hand began. Not the request itself: timers of the loop keep contexts alive for seconds.
current: ContextVar[int] = ContextVar("ostler.request", default=0)

# Code that must not be interrupted halfway: what it has begun, it finishes.
_NOT_THE_APPS = ("ostler", "uvicorn", "asyncio", "uvloop", "websockets", "wsproto", "h11", "httptools")
_IS_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


def is_in_app(frame: FrameType | None) -> bool:
    """Whether a signal has interrupted the app's code, of which something asynchronous is below."""
    while frame is not None:
        if _package(frame) in _NOT_THE_APPS:
            return False
        if frame.f_code.co_flags & _IS_ASYNC:
            return True
        frame = frame.f_back
    return False


def local_of(task: "asyncio.Task[Any]", name: str, codes: tuple[CodeType, ...]) -> Any:
    """A local variable of the first coroutine in a task whose code is one of `codes`; None: there is none."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        if getattr(awaited, "cr_code", None) in codes:
            frame = awaited.cr_frame
            return frame.f_locals.get(name) if frame is not None else None
        awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
    return None


def tasks_of(
    loop: asyncio.AbstractEventLoop, started: "dict[int, asyncio.Task[Any] | None]"
) -> "dict[int, list[asyncio.Task[Any]]]":
    """The tasks of requests: last the one that serves it, and those that it awaits, one the other.

    Others that a request has started, such as those that some middlewares run the app in, are found by their
    context. Before Python 3.12 that can't be had.

    Args:
        started: when the requests began, and the tasks that serve them.
    """
    found = {began: _chain(task) for began, task in started.items()}
    for task in asyncio.all_tasks(loop):
        if hasattr(task, "get_context"):
            known = found.get(task.get_context().get(current, 0))
            if known is not None and task not in known:
                known.insert(0, task)
    return found


def _chain(task: "asyncio.Task[Any] | None") -> "list[asyncio.Task[Any]]":
    """A task, the task that it awaits, and so on."""
    found: list[asyncio.Task[Any]] = []
    while isinstance(task, asyncio.Task) and task not in found:  # they may wait for each other
        found.append(task)
        task = getattr(task, "_fut_waiter", None)
    return found


def frames_of(task: "asyncio.Task[Any]") -> list[FrameSummary]:
    """Where a task waits, innermost last: the frames of the app's coroutines."""
    frames = []
    awaited: Any = task.get_coro()
    while (frame := _first(awaited, "cr_frame", "ag_frame", "gi_frame")) is not None:
        if _package(frame) not in ("uvicorn", "ostler"):
            frames.append(_summary(frame))
        awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
    return frames


def stack_of(task: "asyncio.Task[Any]") -> str:
    """The same as text."""
    return "".join(traceback.format_list(frames_of(task))).rstrip()


def stack_under(frame: FrameType | None) -> str:
    """The app's frames under a signal, innermost last."""
    frames = []
    while frame is not None and _package(frame) not in _NOT_THE_APPS:
        frames.append(_summary(frame))
        frame = frame.f_back
    return "".join(traceback.format_list(reversed(frames))).rstrip()


def _summary(frame: FrameType) -> FrameSummary:
    # Without the line's text, which would be read from the file: this also runs in signal handlers.
    code = frame.f_code
    return FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _first(thing: Any, *names: str) -> Any:
    """The first of these attributes that is there and not None."""
    return next((found for name in names if (found := getattr(thing, name, None)) is not None), None)
