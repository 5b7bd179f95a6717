"""Upgrades in place, the part of the old program: it checks the new program, and executes it."""

import asyncio
import os
import signal
import time
from collections.abc import Callable

from ostler.daemon import upgrade_state
from ostler.daemon.process.notify import SystemdNotifier
from ostler.daemon.shell import Shell
from ostler.daemon.successor import HANDLED
from ostler.daemon.upgrade_state import Carried
from ostler.errors import OstlerError
from ostler.fleet import events
from ostler.fleet.model import ExitStatus
from ostler.logs.setup import get_logger

# Seconds; the limit of a check without boot_timeout.
_NO_LIMIT = 3600.0


class Upgrader:
    """Performs what the fleet wants done about an upgrade. Called only by the event loop's thread.

    Args:
        shell, notifier: what it works with.
        folder: where the daemon was started.
        carry: returns what the new program is to continue with.
        before_exec: called before the program is replaced.
    """

    def __init__(
        self,
        shell: Shell,
        notifier: SystemdNotifier,
        folder: str,
        carry: Callable[[], Carried],
        before_exec: Callable[[], None],
    ) -> None:
        self._shell = shell
        self._notifier = notifier
        self._folder = folder
        self._carry = carry
        self._before_exec = before_exec
        self._checking: int | None = None

    def check(self) -> None:
        """Start a child that tries what the new program would do; the outcome becomes an event."""
        try:
            pid, output = upgrade_state.start_check(self._carry(), self._shell.environments, self._folder)
        except OstlerError as error:
            self._shell.submit(events.UpgradeChecked(str(error)))
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome that is waited for
            self._shell.submit(events.UpgradeChecked(f"can't start a process: {error}"))
            return
        # Configuration and app are loaded one after the other, and each may take its time.
        loaded = self._shell.configurations.current
        limit = 2 * ((loaded.settings.boot_timeout if loaded is not None else 0.0) or _NO_LIMIT)
        self._checking = pid
        timer = asyncio.get_running_loop().call_later(limit, self.end_check)

        def ended(status: ExitStatus) -> None:
            timer.cancel()
            self._checking = None
            problem, text = upgrade_state.outcome_of_check(status, output)
            if problem is not None and self._shell.state.upgrading is not None:
                get_logger().error("upgrade_check_failed", output=text)
            self._shell.submit(events.UpgradeChecked(problem))

        self._shell.reaper.expect(pid, ended)

    def end_check(self) -> None:
        """Kill the child that tries, if there is one. What it has started ends with it."""
        if self._checking is not None:
            os.kill(self._checking, signal.SIGKILL)  # its pid is not free before it was reaped

    async def run(self) -> None:
        """Replace the program, unless the fleet does not want that any more."""
        await self._shell.hooks.pre_exec()
        # A signal whose handler has not run yet would be lost with this program. Those that come from now on
        # wait for the next one, and what those that came before ask for is done within three turns.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            if self._shell.state.upgrading == "replacing":
                self._replace_program()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def _replace_program(self) -> None:
        """Returns only if that failed; then an event reports that."""
        self._before_exec()
        here = -1
        try:
            here = os.open(".", os.O_PATH | os.O_CLOEXEC)
            carried = self._carry()
            self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            upgrade_state.replace_program(
                carried, self._shell.environments, self._folder, self._notifier.path
            )
        except Exception as error:  # noqa: BLE001 - this program continues, whatever it is
            if here >= 0:
                os.fchdir(here)
            self._notifier.send("READY=1")
            self._shell.submit(events.UpgradeChecked(f"can't execute the new program: {_text(error)}"))
        finally:
            if here >= 0:
                os.close(here)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
