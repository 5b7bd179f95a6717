"""Loads an app under development (`reload`): an app that can't be loaded is replaced by an error page.

The process does not end: it reports which files are involved and serves the page until the supervisor, which
watches them, starts the next generation.
"""

import os
from collections.abc import Callable
from typing import cast

from ostler.ipc import messages
from ostler.ipc.channel import line, shorten
from ostler.settings.pastefile import file_name
from ostler.settings.table import Settings
from ostler.workers import written_files
from ostler.workers.base import BaseWorker
from ostler.workers.load_error_page import AsgiErrorPage, ErrorPage, Failure
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loaded_files import WatchReporter, of_failure
from ostler.workers.loader import load
from ostler.workers.written_files import WriteReporter
from ostler.wsgi.exchange import App


class Development:
    """What `reload` adds to a process that loads the app.

    Args:
        send: sends a message to the supervisor; also called in another thread.
    """

    def __init__(
        self, send: Callable[[messages.Watch | messages.AppBroken], None], settings: Settings
    ) -> None:
        self._send = send
        self._reporter = WatchReporter(send)
        extra = settings.reload_extra_files
        self._writes = WriteReporter(self._send_written, extra, self._reporter.reported)

    def report_configuration(self, name: str | None, ask: messages.Configure, settings: Settings) -> None:
        """Report the file of the configuration `name`, what it has imported, and the files of `env_file`."""
        files = [] if name is None or name.startswith("python:") else [name.removeprefix("file:")]
        files = [os.path.join(ask.folder, file) for file in (*files, *settings.env_file)]  # noqa: PTH118 - may be absolute
        if settings.paste:
            files.append(file_name(settings.paste))
        self._reporter.report(os.path.abspath(file) for file in files)  # noqa: PTH100

    def report_writes(self) -> None:
        """From now on report what the app writes, too."""
        self._writes.start()

    def load(
        self,
        settings: Settings,
        worker_class: type[BaseWorker],
        generation: int,
        report: Callable[[str], object],
    ) -> App:
        """The app, or an error page in its place; reports the loaded files, or those of the failure.

        report: as for `loader.load`.
        """
        try:
            app = load(settings, worker_class.interface, report)
        except AppLoadError as error:
            trace = shorten(error.trace) if error.trace else None
            self._send(messages.AppBroken(line(error.reason), trace))
            self._reporter.report(of_failure(error))
            page = AsgiErrorPage if worker_class.interface == "asgi" else ErrorPage
            return cast("App", page(Failure.of(error), generation))
        self._reporter.report()
        return app

    def is_error_page(self, app: App) -> bool:
        """Whether it is the error page."""
        return isinstance(app, ErrorPage)

    def keep_reporting(self) -> None:
        """In a worker: report modules that are imported later, too. Raises RuntimeError without a thread."""
        self._reporter.report()
        self._reporter.keep_reporting()

    def stop(self) -> None:
        """Stop reporting."""
        self._reporter.stop()
        written_files.stop()

    def _send_written(self, paths: list[str]) -> None:
        self._send(messages.Watch([], written=paths))
