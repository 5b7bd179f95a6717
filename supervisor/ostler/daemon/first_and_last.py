"""The first line of a daemon that loads an app, and the last of one that ends as asked: each once."""

import os

from ostler.daemon.reporting.journal import Journal
from ostler.daemon.shell import Shell
from ostler.daemon.views.observer import Observer


class FirstAndLast:
    """Reports that the app is being loaded, and that the daemon has stopped.

    Called only by the loop's thread.
    """

    def __init__(self, shell: Shell, observer: Observer, journal: Journal) -> None:
        self._shell = shell
        self._observer = observer
        self._journal = journal
        self._loading = self._stopped = False

    def loading(self, generation: int) -> None:
        """The listeners of a generation are bound.

        Loading the app may take long, and nothing is answered meanwhile. Later generations report a reload.
        """
        loaded = self._shell.configurations.get(generation)
        if self._loading or loaded is None or self._shell.state.ever_ready:
            return
        self._loading = True
        fields = {
            "app": loaded.settings.wsgi_app or loaded.settings.paste,
            "listeners": " ".join(self._observer.status().listeners),
            "worker_class": loaded.settings.worker_class,
            "pid": os.getpid(),
        }
        self._journal.record("info", "loading", fields)

    def stopped(self) -> None:
        """The daemon ends. As long as a fork server is there, its loggers get the line, too."""
        if not (self._stopped or self._shell.state.finish.failed):
            self._stopped = True
            uptime = round(self._observer.status().uptime, 1)
            self._journal.record("info", "stopped", {"uptime": uptime})
