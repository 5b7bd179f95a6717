"""Processes that are harmed: from outside, or by themselves, which they write down first."""

import contextlib
import json
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

from soak.account import Account, Harm
from tests.kit.processes import Process, client_ports, freeze, kill_holding


class HarmedProcesses:
    """Harms processes of the daemon that serves `port`, and keeps the account's harms up to date.

    Args:
        notes: the folder in which processes write that they are about to crash or to block.
    """

    def __init__(self, account: Account, port: int, notes: Path) -> None:
        self._account = account
        self._port = port
        self._notes = notes
        # What neither serves nor has ended, and when it is to go on.
        self._stopped: list[tuple[Process, Harm, float]] = []
        self._noted: set[Path] = set()

    def kill(self, pid: int) -> None:
        """Kill a process; nothing if it is gone already."""
        if killed := kill_holding(pid, self._port):
            self._account.harms.append(Harm("killed", pid, killed.at, killed.at, killed.ports))

    def stop(self, pid: int, seconds: float) -> None:
        """SIGSTOP; it goes on after so long, unless the supervisor finds it before."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            process = Process(pid)
            freeze(process)
            since, ports = time.monotonic(), frozenset(client_ports(pid, self._port))
            harm = Harm("stopped", pid, since, math.inf, ports)
            self._account.harms.append(harm)
            self._stopped.append((process, harm, since + seconds))

    def read_notes(self) -> None:
        """What crashing and blocking processes have written down."""
        for path in set(self._notes.glob("*.json")) - self._noted:
            text = path.read_text()
            if not text.endswith("}"):
                continue  # it is being written
            self._noted.add(path)
            note = json.loads(text)
            pid, blocks = note["pid"], note["kind"] == "block"
            harm = Harm(note["kind"], pid, note["at"], note["at"], frozenset(note["ports"]))
            if blocks:
                try:
                    process = Process(pid)
                except ProcessLookupError:
                    # The supervisor has ended it already, we don't know when.
                    harm = replace(harm, until=time.monotonic())
                else:
                    harm = replace(harm, until=math.inf)
                    self._stopped.append((process, harm, math.inf))
            self._account.harms.append(harm)

    def look_after(self, *, now: bool = False) -> None:
        """Let go on what is due, or all that may (`now`), and note what has ended."""
        for entry in list(self._stopped):
            process, harm, resume = entry
            at = time.monotonic()
            if process.gone:
                ended = at
            elif at >= resume or (now and resume < math.inf):
                with contextlib.suppress(ProcessLookupError):
                    process.send(signal.SIGCONT)
                ended = at
            else:
                continue
            self._stopped.remove(entry)
            harms = self._account.harms
            harms[harms.index(harm)] = replace(harm, until=ended)
