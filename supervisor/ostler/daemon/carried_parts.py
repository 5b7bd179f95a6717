"""What an upgrade in place carries, taken by the old program and restored by the new one."""

from ostler.daemon.control_plane import ControlPlane
from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.own_settings import OwnSettings
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.shell import Shell
from ostler.daemon.upgrade_state import Carried
from ostler.daemon.views.observer import Observer
from ostler.scoreboard.reader import Scoreboard
from ostler.settings.load import Loaded


class CarriedParts:
    """Called only by the event loop's thread.

    Args:
        command: with which the daemon was started; the others are its parts.
    """

    def __init__(
        self,
        shell: Shell,
        listeners: Listeners,
        scoreboard: Scoreboard,
        journal: Journal,
        ledger: Ledger,
        observer: Observer,
        control: ControlPlane,
        own_settings: OwnSettings,
        command: TypedCommand | None,
    ) -> None:
        self._shell = shell
        self._listeners = listeners
        self._scoreboard = scoreboard
        self._journal = journal
        self._ledger = ledger
        self._observer = observer
        self._control = control
        self._own_settings = own_settings
        self._command = command

    def take(self) -> Carried:
        """What the new program is to continue with; its descriptors stay this program's."""
        shell, control = self._shell.snapshot(), self._control.snapshot()
        listeners, scoreboard = self._listeners.snapshot(), self._scoreboard.snapshot()
        pidfile = self._own_settings.snapshot()
        descriptors = [
            *shell.descriptors(),
            *(cell.fd for cell in scoreboard.cells),
            *listeners.sockets.values(),
            *control.descriptors(),
            *([pidfile[1]] if pidfile else []),
        ]
        return Carried(
            descriptors=descriptors,
            shell=shell,
            listeners=listeners,
            scoreboard=scoreboard,
            journal=self._journal.snapshot(),
            ledger=self._ledger.snapshot(),
            observer=self._observer.snapshot(),
            control=control,
            pidfile=pidfile,
            command=self._command,
        )

    def restore(self, carried: Carried) -> Loaded:
        """Continue with it; the scoreboard and the control server were made with theirs.

        Returns the configuration in effect.
        """
        self._journal.restore(carried.journal)
        self._ledger.restore(carried.ledger)
        self._listeners.restore(carried.listeners)
        self._shell.restore(carried.shell)
        self._observer.restore(carried.observer)
        loaded = self._shell.configurations.in_effect
        assert loaded is not None, "a daemon that serves has a configuration"
        self._own_settings.restore(loaded, carried.pidfile)
        return loaded
