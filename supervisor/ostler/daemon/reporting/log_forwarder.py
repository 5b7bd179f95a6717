"""Where the supervisor's lines go besides its own log, and its metrics.

What the configuration or the app makes of the logger `gunicorn.error` is user code, so the supervisor does
not run it. It sends its events to the current generation's fork server, which says when the logger has each.
An event of which that is not said in time stands in the supervisor's own log instead, because a fork server
may be dead, or hang in a hook. It does not take what has become too old, so that nothing is told twice.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from ostler.ipc import messages
from ostler.logs.lean import LogFile
from ostler.logs.setup import get_logger
from ostler.logs.statsd import Statsd, statsd_of
from ostler.logs.syslog import Syslog, syslog_of
from ostler.osapi.backlog import accept_queue
from ostler.settings.table import Settings

if TYPE_CHECKING:
    from ostler.daemon.children.handles import ForkServerHandle
    from ostler.daemon.shell import Shell

# Seconds in which a fork server takes an event, and after which it counts as not taken.
_TAKEN_WITHIN, _OVERDUE = 1.0, 1.5
# Seconds that a fork server may take for what it has when it is to leave.
_LAST_LINES = 0.1


@dataclass(frozen=True, slots=True)
class _Sent:
    """An event on its way. at: CLOCK_MONOTONIC, seconds; line: as the supervisor's own log would have it."""

    number: int
    at: float
    line: str


class Outlets:
    """Takes each event of the supervisor's log; see `logs.setup.tap`."""

    def __init__(self, shell: "Shell", clock: Callable[[], float] = time.monotonic) -> None:
        self._shell = shell
        self._clock = clock
        self._file: LogFile | None = None
        self._sent: deque[_Sent] = deque()
        self._number = 0
        self._syslog: Syslog | None = None
        self._statsd: Statsd | None = None
        self._measured_for: tuple[str | None, str, str] = None, "", ""
        self._backlog = False
        self._waiting: list[Callable[[], None]] = []

    def settle(self, settings: Settings, file: LogFile) -> None:
        """Know the settings, of the first generation; `file`: the supervisor's own log."""
        self._file = file
        if self._syslog is None:
            self._syslog = syslog_of(settings, get_logger().warning)
        self.follow(settings)

    def follow(self, settings: Settings) -> None:
        """Know the settings of the generation that is the current one now."""
        wanted = settings.statsd_host, settings.statsd_prefix, settings.dogstatsd_tags
        if wanted != self._measured_for:
            self._measured_for = wanted
            if self._statsd is not None:
                self._statsd.close()
            # Not without need: it may ask a name server, and nobody looks after the fleet meanwhile.
            self._statsd = statsd_of(settings)
        self._backlog = settings.enable_backlog_metric

    # -- lines -------------------------------------------------------------------------------------------

    def take(self, level: str, name: str, fields: dict[str, Any], line: str) -> bool:
        """Take an event; True if it need not be written as a line."""
        for outlet in (self._syslog, self._statsd):
            if outlet is not None:
                outlet.event(level, name, fields)
        server = self._taker()
        if server is None:
            return False
        now = self._clock()
        number = self._number + 1
        text = {key: _sendable(value) for key, value in fields.items()}
        try:
            server.channel.send(messages.LogLine(level, name, text, os.getpid(), number, now + _TAKEN_WITHIN))
        except (OSError, ValueError, msgspec.MsgspecError):
            return False  # gone, or it reads nothing
        self._number = number
        self._sent.append(_Sent(number, now, line))
        return True

    def taken(self, number: int) -> None:
        """A fork server has handed on the event of this number; one that is silent may have older ones."""
        for sent in self._sent:
            if sent.number == number:
                self._sent.remove(sent)
                break
        if not self._sent:
            self._go_on()

    def when_taken(self, callback: Callable[[], None]) -> None:
        """Call back when all that was sent is taken, or soon: before its fork server is told to leave."""
        self._waiting.append(callback)
        if self._sent:
            self._shell.loop.call_later(_LAST_LINES, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def _taker(self) -> "ForkServerHandle | None":
        """The fork server to send to, unless it has left others untaken for too long."""
        server = self._shell.fork_servers.get(self._shell.fleet.current)
        if server is None or not server.takes_lines or server.channel.fileno() < 0:
            return None
        late = self._sent and self._clock() - self._sent[0].at > _OVERDUE
        return None if late else server

    def look(self) -> None:
        """Write what was not taken in time; to be called about once a second."""
        while self._sent and self._clock() - self._sent[0].at > _OVERDUE:
            self._write(self._sent.popleft())

    def give_up_waiting(self) -> None:
        """Write what was not taken so far."""
        while self._sent:
            self._write(self._sent.popleft())

    def close(self) -> None:
        """The same, and let go."""
        self.give_up_waiting()
        for outlet in (self._syslog, self._statsd):
            if outlet is not None:
                outlet.close()
        self._syslog = self._statsd = None

    def _write(self, sent: _Sent) -> None:
        if self._file is not None:
            self._file.write(sent.line)

    # -- metrics -----------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Send the metrics that are the supervisor's to know; to be called about once a second."""
        statsd, shell = self._statsd, self._shell
        if statsd is None:
            return
        statsd.gauge("workers", shell.fleet.ready)
        server = shell.fork_servers.get(shell.fleet.current)
        if self._backlog and server is not None:
            queues = [accept_queue(sock) for sock in shell.listeners.sockets(server.listener_keys)]
            # A histogram, as gunicorn has it.
            statsd.gauge("backlog", sum(queue[0] for queue in queues if queue is not None), "h")
        statsd.flush_all()


def _sendable(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)
