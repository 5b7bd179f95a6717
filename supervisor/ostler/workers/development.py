"""Loading the app while it is being written (`reload`): one that can't be loaded gets an error page.

The process does not end: it tells which files it would take to mend the app, and serves the page until the
supervisor, which watches them, begins the next generation.
"""

import os
from collections.abc import Callable
from typing import cast

from ostler.ipc import messages
from ostler.ipc.channel import line, shorten
from ostler.settings.pastefile import file_name
from ostler.settings.table import Settings
from ostler.workers.base import BaseWorker
from ostler.workers.error_page import AsgiErrorPage, ErrorPage, Failure
from ostler.workers.loader import AppLoadError, load
from ostler.workers.watched import Telling, of_failure
from ostler.wsgi.exchange import App


class Development:
    """What `reload` adds to a process that loads the app.

    Args:
        say: sends a message to the supervisor; called in a thread of its own, too.
    """

    def __init__(self, say: Callable[[messages.Watch | messages.AppBroken], None]) -> None:
        self._say = say
        self._telling = Telling(say)

    def tell_configuration(self, name: str | None, ask: messages.Configure, settings: Settings) -> None:
        """Tell where the configuration `name` is, with what it has imported."""
        files = [] if name is None or name.startswith("python:") else [name.removeprefix("file:")]
        files = [os.path.join(ask.folder, file) for file in files]  # noqa: PTH118 - may be absolute
        if settings.paste:
            files.append(file_name(settings.paste))
        self._telling.tell(os.path.abspath(file) for file in files)  # noqa: PTH100

    def load(self, settings: Settings, worker_class: type[BaseWorker], generation: int) -> App:
        """The app, or an error page in its place; tells what has been loaded, or what could not be."""
        try:
            app = load(settings, worker_class.interface)
        except AppLoadError as error:
            trace = shorten(error.trace) if error.trace else None
            self._say(messages.AppBroken(line(error.reason), trace))
            self._telling.tell(of_failure(error))
            page = AsgiErrorPage if worker_class.interface == "asgi" else ErrorPage
            return cast("App", page(Failure.of(error), generation))
        self._telling.tell()
        return app

    def explains(self, app: App) -> bool:
        """Whether it is the error page."""
        return isinstance(app, ErrorPage)

    def keep_telling(self) -> None:
        """In a worker: tell what requests make the app import, too."""
        self._telling.tell()
        self._telling.keep_telling()

    def stop(self) -> None:
        """Tell no more."""
        self._telling.stop()
