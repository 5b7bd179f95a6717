"""Calls hooks and handles their exceptions.

Some hooks are part of a start (`require`): their exceptions make it fail, as in gunicorn; that is the start
of the daemon, a reload or one worker. The other hooks are notifications (`call`): their exceptions are
logged.

A notification that runs in the fork server delays forks, so it has `HOOK_TIME` (`call_in_time`): after that
SIGALRM raises an exception in it, and this process does not call it again. A hook that hangs in C code is not
interrupted by that; the fleet replaces a fork server that does not fork.

Hooks run with the usual priority, also where this process has a lower one: what they start keeps it.
"""

import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from ostler.hooks.objects import Emit
from ostler.osapi.priority import usual_priority
from ostler.text import frames_of, name_and_text, trace_of
from ostler.wsgi.interruption import QuitWorker

HOOK_TIME = 4.0
"""Seconds. Twice as much is less than the time that the fleet allows a fork server for a fork."""
# Seconds between further exceptions, for a hook that catches the first one.
_AGAIN = 0.5


class HookFailed(Exception):
    """A hook has raised an exception.

    Args:
        reason: one line with the hook, the exception and where it was raised.
        trace: the traceback from the hook on.
    """

    def __init__(self, reason: str, trace: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trace = trace


class HookTimeout(BaseException):
    """Raised in a hook that takes longer than HOOK_TIME.

    Not a subclass of Exception, so that few hooks catch it.
    """

    def __str__(self) -> str:
        return f"a hook may take {HOOK_TIME:g} s in the fork server"


class HookFunctions:
    """Calls the hooks of a configuration file; in the main thread, but for those about requests.

    Args:
        functions: hooks by name.
        emit: writes an event to the error log.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], emit: Emit) -> None:
        self.functions = dict(functions)
        self.emit = emit

    def require(self, name: str, *args: Any) -> None:
        """Call the hook if there is one.

        Raises:
            HookFailed: it has raised.
            QuitWorker: a signal ends this worker.
        """
        function = self.functions.get(name)
        if function is None:
            return
        try:
            with usual_priority():
                function(*args)
        except QuitWorker:
            raise
        except BaseException as error:
            raise failure(name, error) from error
        finally:
            _flush()

    def call(self, name: str, *args: Any) -> None:
        """Call the hook if there is one; an exception is only logged."""
        try:
            self.require(name, *args)
        except HookFailed as failed:
            self.log_failure(name, failed)

    def log_failure(self, name: str, failed: HookFailed, level: str = "error") -> None:
        """Log the exception of a hook."""
        self.emit(level, "hook_failed", hook=name, problem=failed.reason, traceback=failed.trace)

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
            self.log_failure(name, failed)
        except HookTimeout:
            pass  # the hook had ended already

    def _in_time(self, name: str, args: tuple[Any, ...]) -> None:
        """An alarm of user code is suspended meanwhile, and an alarm that the hook sets stays."""
        running = True

        def ring(_signum: int, _frame: FrameType | None) -> None:
            if running:
                raise HookTimeout

        before = signal.signal(signal.SIGALRM, ring)
        left, interval = signal.setitimer(signal.ITIMER_REAL, HOOK_TIME, _AGAIN)
        try:
            self.require(name, *args)
        finally:
            running = False
            if signal.getsignal(signal.SIGALRM) is ring:
                signal.setitimer(signal.ITIMER_REAL, left, interval)
                signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
            elif signal.getitimer(signal.ITIMER_REAL)[1] == _AGAIN:
                signal.setitimer(signal.ITIMER_REAL, left, interval)  # our timer, with the hook's handler


def failure(name: str, error: BaseException) -> HookFailed:
    """The failure for an exception that the hook `name` has raised."""
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
    """Write what a hook has printed, so that it is not written again by a forked process."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # closed, full, or None
