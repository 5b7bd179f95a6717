"""The app's own handler of SIGTERM, which gunicorn's workers let replace theirs.

With gunicorn a worker gets SIGTERM when it is to end, and an app that has installed a handler gets it instead
of the worker. Here the worker keeps its own handler, and calls the app's when it begins to drain, whatever
has asked for that: a message of the supervisor (stop, reload, recycling) or SIGTERM. So such a handler can
end what the app does by itself, but not the requests: `sys.exit()` in it has no effect, nor has raising
KeyboardInterrupt.

Only a handler counts that was installed before the worker is ready: by the app's import, a hook, or the
startup of an ASGI app. One that is installed later replaces the worker's.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from ostler.logs.worker_log import Log
from ostler.osapi.process import signal_main_thread
from ostler.text import trace_of

_OURS = __name__.partition(".")[0] + "."
# Workers that are forked from a worker have its app, and so its handler.
_inherited: Callable[[int, FrameType | None], Any] | None = None


class AppSignalHandler:
    """Calls the app's handler once. Called only by the main thread, but for `call_soon`.

    Attributes:
        is_due: `call_soon` was called, and `call` was not.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._function = _inherited
        self.is_due = False

    def take(self, own: Callable[..., Any]) -> bool:
        """Keep the present handler if it is the app's; whether it is. own: the worker's."""
        found = signal.getsignal(signal.SIGTERM)
        if not callable(found) or found == own or (getattr(found, "__module__", "") or "").startswith(_OURS):
            return False
        global _inherited
        self._function = _inherited = found
        return True

    def call_soon(self, signum: int) -> None:
        """Have the main thread call it, by the signal whose handler checks `is_due`."""
        if self._function is not None:
            self.is_due = True
            signal_main_thread(os.getpid(), signum)

    def call(self, signum: int, frame: FrameType | None) -> None:
        """Call it if there is one and it was not called before."""
        self.is_due = False
        function, self._function = self._function, None
        if function is None:
            return
        try:
            function(signum, frame)
        except (SystemExit, KeyboardInterrupt):
            pass  # the worker ends anyway, when its requests are answered
        except Exception as error:  # noqa: BLE001 - the app's defect must not cut requests
            self._log.error("signal_handler_failed", signal=signum, traceback=trace_of(error))
