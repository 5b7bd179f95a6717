"""Calling hooks: what they raise is told and goes no further, or fails what they were part of.

Some hooks take part in a start (`demand`): what they raise fails it, as in gunicorn, and what fails then is
no more than the start of the daemon, a reload or one worker. The others are only told of things (`call`).

A hook of the second kind that runs in the fork server keeps workers from being forked, so it has `HOOK_TIME`
(`call_in_time`): then an exception is raised in it by SIGALRM, and this process does not call it again. One
that hangs in C hears nothing of that; the fleet replaces a fork server that does not fork.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from ostler.hooks.objects import Emit
from ostler.text import frames_of, name_and_text, trace_of
from ostler.wsgi.exchange import QuitWorker

HOOK_TIME = 4.0
"""Seconds. Twice it is less than what the fleet lets a fork server take for a fork."""
# Should a hook catch what ends it, it gets it again as often.
_AGAIN = 0.5


class HookFailed(Exception):
    """What a hook has raised.

    Args:
        reason: one line with the hook, the exception and its place.
        trace: the traceback from the hook on.
    """

    def __init__(self, reason: str, trace: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trace = trace


class HookTimeout(BaseException):
    """Raised in a hook that takes longer than HOOK_TIME; no Exception, so that few catch it."""

    def __str__(self) -> str:
        return f"a hook may keep the fork server for {HOOK_TIME:g} s"


class Calls:
    """Calls the functions of a configuration file.

    Args:
        functions: hooks by name.
        emit: writes to the error log.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], emit: Emit) -> None:
        self.functions = dict(functions)
        self.emit = emit

    def demand(self, name: str, *args: Any) -> None:
        """Call the hook if there is one.

        Raises:
            HookFailed: it has raised.
            QuitWorker: a signal says that this worker is to end.
        """
        function = self.functions.get(name)
        if function is None:
            return
        try:
            function(*args)
        except QuitWorker:
            raise
        except BaseException as error:
            raise failure(name, error) from error
        finally:
            _flush()

    def call(self, name: str, *args: Any) -> None:
        """As `demand`, but what it raises is only logged."""
        try:
            self.demand(name, *args)
        except HookFailed as failed:
            self.tell(name, failed)

    def tell(self, name: str, failed: HookFailed) -> None:
        """Log what a hook has raised."""
        self.emit("error", "hook_failed", hook=name, problem=failed.reason, traceback=failed.trace)

    def call_in_time(self, name: str, *args: Any) -> None:
        """As `call`, in the main thread, with HOOK_TIME."""
        if name not in self.functions:
            return
        try:
            self._in_time(name, args)
        except HookFailed as failed:
            if isinstance(failed.__cause__, HookTimeout):
                del self.functions[name]
                failed.reason += "; it is not called again"
            self.tell(name, failed)
        except HookTimeout:
            pass  # it was over by then

    def _in_time(self, name: str, args: tuple[Any, ...]) -> None:
        """User code may have an alarm of its own: it is set aside, and one that the hook sets stays."""
        running = True

        def ring(_signum: int, _frame: FrameType | None) -> None:
            if running:
                raise HookTimeout

        before = signal.signal(signal.SIGALRM, ring)
        left, interval = signal.setitimer(signal.ITIMER_REAL, HOOK_TIME, _AGAIN)
        try:
            self.demand(name, *args)
        finally:
            running = False
            if signal.getsignal(signal.SIGALRM) is ring:
                signal.setitimer(signal.ITIMER_REAL, left, interval)
                signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
            elif signal.getitimer(signal.ITIMER_REAL)[1] == _AGAIN:
                signal.setitimer(signal.ITIMER_REAL, left, interval)  # still ours, under its handler


def failure(name: str, error: BaseException) -> HookFailed:
    """An exception that left the hook `name`."""
    frames = frames_of(error)
    while (
        frames is not None and frames.tb_next is not None and frames.tb_frame.f_code.co_filename == __file__
    ):
        frames = frames.tb_next
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(frames)]
    places = [found for found in places if found[0] != __file__]
    place = f" ({places[-1][0]} line {places[-1][1]})" if places else ""
    return HookFailed(f"{name}: {name_and_text(error)}{place}", trace_of(error, frames))


def _flush() -> None:
    """What a hook has printed must be seen, and not be there once more in a fork."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed, full, or not there at all
