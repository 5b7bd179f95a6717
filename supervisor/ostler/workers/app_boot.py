"""Gets the app of a worker: loads it unless it is preloaded, calls hooks, sends warm-up requests."""

import gc
import random
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from ostler.errors import SettingError
from ostler.hooks.calling import HookFailed
from ostler.hooks.worker import WorkerHooks
from ostler.ipc import messages
from ostler.ipc.channel import line, shorten
from ostler.logs.worker_log import Log
from ostler.osapi.needed import LIMITS
from ostler.workers.inheritance import WorkerGeneration
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loader import load, standard_modules
from ostler.workers.warmup import WarmupError, warm_up
from ostler.wsgi.exchange import App

if TYPE_CHECKING:
    from ostler.workers.development import Development


class AppBoot:
    """Loads the app of one worker; called only by its main thread.

    Args:
        generation: the worker's.
        hooks: the worker's.
        log: the worker's.
        send: sends a message to the supervisor.
        quit_if_asked: raises QuitWorker if a signal has asked for the end.

    Attributes:
        standard_modules: names of modules of the standard library that the app has imported.
        remark: about the app that was loaded; empty if there is none.
    """

    def __init__(
        self,
        generation: WorkerGeneration,
        hooks: WorkerHooks,
        log: Log,
        send: Callable[[messages.FromWorker], None],
        quit_if_asked: Callable[[], None],
    ) -> None:
        self._generation = generation
        self._settings = generation.settings
        self._hooks = hooks
        self._log = log
        self._send = send
        self._quit_if_asked = quit_if_asked
        self._development: Development | None = None
        self.standard_modules: list[str] = []
        self.remark = ""

    def run(self) -> App | None:
        """The app; None if it can't be loaded, which is reported to the supervisor."""
        random.seed()  # workers of one fork server must not draw the same numbers
        before = set(sys.modules)
        self._development = self._make_development() if self._settings.reload else None
        try:
            app = self._load()
        except (AppLoadError, WarmupError, HookFailed) as error:
            self.report_failure(error)
            return None
        except SettingError as error:
            self._send(messages.BootFailed(line(str(error)), None))
            return None
        if self._development is not None:
            try:
                self._development.keep_reporting()
            except RuntimeError as error:
                self._send(messages.BootFailed(f"can't make a thread: {error}; {LIMITS}", None))
                return None
        self._generation.app = app
        self.standard_modules = standard_modules(before)
        # The app's code and data live as long as the worker: the garbage collector need not scan them again.
        gc.freeze()
        return app

    def report_failure(self, error: AppLoadError | WarmupError | HookFailed) -> None:
        """Report a failure to the supervisor; raises QuitWorker if a signal has caused it."""
        self._quit_if_asked()
        self._send(messages.BootFailed(line(error.reason), shorten(error.trace) if error.trace else None))

    def stop_reporting(self) -> None:
        """Stop the thread that reports imported files, if there is one."""
        if self._development is not None:
            self._development.stop()

    def _load(self) -> App:
        generation, settings, development = self._generation, self._settings, self._development
        interface = generation.worker_class.interface
        self._hooks.forked()
        app = generation.app
        if app is None:
            app = self._hooks.app.callable  # a hook may have loaded it, here or in the fork server
        if app is None:
            generation.worker_class.prepare(settings)
            self._quit_if_asked()  # the app can't be loaded with a half-patched library
        if settings.spew:
            self._spew()
        if app is None:
            app = (
                development.load(settings, generation.worker_class, generation.number, self._remember)
                if development is not None
                else load(settings, interface, self._remember)
            )
        broken = development is not None and development.is_error_page(app)
        app = cast("App", self._hooks.loaded(app))
        if interface == "wsgi" and not broken:
            listener = generation.listeners[0].getsockname() if generation.listeners else None
            warm_up(app, settings, self._log, generation.tls, listener)
        return app

    def _remember(self, remark: str) -> None:
        self.remark = line(remark)

    def _make_development(self) -> "Development":
        # Imported only here, as below: without the setting its module takes no memory.
        from ostler.workers.development import Development

        development = Development(self._send, self._settings)
        development.report_writes()
        return development

    def _spew(self) -> None:
        from ostler.workers.spew import spew

        spew(self._log, self._settings)
