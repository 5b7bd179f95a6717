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


def frames_of(task: "asyncio.Task[Any] | None") -> list[FrameSummary]:
    """Where a task waits, innermost last: the frames of the app's coroutines, and of tasks that it awaits."""
    frames = []
    seen: set[asyncio.Task[Any]] = set()  # they may wait for each other, for ever
    while task is not None and task not in seen:
        seen.add(task)
        awaited: Any = task.get_coro()
        while (frame := _first(awaited, "cr_frame", "ag_frame", "gi_frame")) is not None:
            if _package(frame) not in ("uvicorn", "ostler"):
                frames.append(_summary(frame))
            awaited = _first(awaited, "cr_await", "ag_await", "gi_yieldfrom")
        waits_for = getattr(task, "_fut_waiter", None)
        task = waits_for if isinstance(waits_for, asyncio.Task) else None
    return frames


def stack_of(task: "asyncio.Task[Any] | None") -> str:
    """The same as text."""
    return "".join(traceback.format_list(frames_of(task))).rstrip()


def stack_under(frame: FrameType | None) -> str:
    """The app's frames under a signal, innermost last."""
    frames = []
    while frame is not None and _package(frame) not in _NOT_THE_APPS:
        frames.append(_summary(frame))
        frame = frame.f_back
    return "".join(traceback.format_list(reversed(frames))).rstrip()


def by_request(loop: asyncio.AbstractEventLoop) -> "dict[int, list[asyncio.Task[Any]]]":
    """The tasks of requests, by when these began: those that serve them, and those that they have started,
    such as those that some middlewares run the app in.
    """
    found: dict[int, list[asyncio.Task[Any]]] = {}
    for task in asyncio.all_tasks(loop):
        # Before Python 3.12 the context of a task can't be had.
        if hasattr(task, "get_context") and (started := task.get_context().get(current)):
            found.setdefault(started, []).append(task)
    return found


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
