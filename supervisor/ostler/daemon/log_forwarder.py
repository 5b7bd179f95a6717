"""Forwards the supervisor's log events to the app's loggers, syslog and statsd, and sends its metrics.

Handlers that the configuration or the app adds to the logger `gunicorn.error` are user code, which the
supervisor never runs. So it sends each event to the current generation's fork server, which passes it to the
logger and confirms it. An event that is not confirmed in time is written to the supervisor's own log instead:
the fork server may be dead, or hang in a hook. The fork server ignores events that have become too old, so
that none is logged twice.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from ostler.daemon.children.handles import ForkServerHandle
from ostler.daemon.children.ports import Ports
from ostler.daemon.listening.listeners import Listeners
from ostler.ipc import messages
from ostler.logs.logfile import LogFile
from ostler.logs.setup import get_logger
from ostler.logs.statsd import Statsd, statsd_of
from ostler.logs.syslog import Syslog, syslog_of
from ostler.osapi.backlog import accept_queue
from ostler.settings.table import Settings

# Seconds in which a fork server takes an event, and after which an event counts as not taken.
_TAKEN_WITHIN, _OVERDUE = 1.0, 1.5
_SOON = 0.01


@dataclass(frozen=True, slots=True)
class _Sent:
    """An event without confirmation. at: CLOCK_MONOTONIC, seconds; line: as the supervisor would log it."""

    number: int
    at: float
    line: str


class LogForwarder:
    """Takes each event of the supervisor's log; see `logs.setup.set_handler`.

    Called only by the loop's thread.

    Args:
        ports, listeners: what it works with.
        clock: CLOCK_MONOTONIC, seconds.
    """

    def __init__(
        self, ports: Ports, listeners: Listeners, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ports = ports
        self._listeners = listeners
        self._clock = clock
        self._file: LogFile | None = None
        self._sent: deque[_Sent] = deque()
        self._number = 0
        self._syslog: Syslog | None = None
        self._statsd: Statsd | None = None
        self._statsd_settings: tuple[str | None, str, str] = None, "", ""
        self._backlog = False
        self._waiting: list[Callable[[], None]] = []

    def settle(self, settings: Settings, file: LogFile) -> None:
        """Apply the settings of the first generation. file: the supervisor's own log."""
        self._file = file
        if self._syslog is None:
            self._syslog = syslog_of(settings, get_logger().warning)
        self.follow(settings)

    def follow(self, settings: Settings) -> None:
        """Apply the settings of the generation that is the current one now."""
        wanted = settings.statsd_host, settings.statsd_prefix, settings.dogstatsd_tags
        if wanted != self._statsd_settings:
            self._statsd_settings = wanted
            if self._statsd is not None:
                self._statsd.close()
            # Only if need be: it may ask a name server, and the supervisor does nothing else meanwhile.
            self._statsd = statsd_of(settings)
        self._backlog = settings.enable_backlog_metric

    # -- lines -------------------------------------------------------------------------------------------

    def take(self, level: str, name: str, fields: dict[str, Any], line: str) -> bool:
        """Take an event; True if it need not be written as a line."""
        for sink in (self._syslog, self._statsd):
            if sink is not None:
                sink.event(level, name, fields)
        server = self._receiver()
        if server is None:
            return False
        now = self._clock()
        number = self._number + 1
        text = {key: _sendable(value) for key, value in fields.items()}
        try:
            server.channel.send(messages.LogLine(level, name, text, os.getpid(), number, now + _TAKEN_WITHIN))
        except (OSError, ValueError, msgspec.MsgspecError):
            return False  # it has ended, or does not read
        self._number = number
        if not self._sent:
            # The chores do it too, but not before the daemon serves.
            self._ports.loop.call_later(_OVERDUE + _SOON, self.write_overdue)
        self._sent.append(_Sent(number, now, line))
        return True

    def taken(self, number: int) -> None:
        """A fork server has logged the event of this number. Older ones may be with one that hangs."""
        for sent in self._sent:
            if sent.number == number:
                self._sent.remove(sent)
                break
        if not self._sent:
            self._call_back()

    def when_taken(self, callback: Callable[[], None]) -> None:
        """Call back when all that was sent is taken, or after a short time."""
        self._waiting.append(callback)
        if self._sent:
            # Then they are logged by the fork server or here, but not by both.
            self._ports.loop.call_later(_OVERDUE, self._call_back)
        else:
            self._call_back()

    def _call_back(self) -> None:
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def _receiver(self) -> ForkServerHandle | None:
        """The fork server to send to, unless it has not taken others for too long."""
        server = self._ports.children.fork_servers.get(self._ports.state().current)
        if server is None or not server.record.wants_log_lines or server.channel.fileno() < 0:
            return None
        late = self._sent and self._clock() - self._sent[0].at > _OVERDUE
        return None if late else server

    def write_overdue(self) -> None:
        """Write what was not taken in time; to be called about once a second."""
        while self._sent and self._clock() - self._sent[0].at > _OVERDUE:
            self._write(self._sent.popleft())

    def write_all(self) -> None:
        """Write what was not taken so far."""
        while self._sent:
            self._write(self._sent.popleft())

    def close(self) -> None:
        """The same, and close the sinks."""
        self.write_all()
        for sink in (self._syslog, self._statsd):
            if sink is not None:
                sink.close()
        self._syslog = self._statsd = None

    def _write(self, sent: _Sent) -> None:
        if self._file is not None:
            self._file.write(sent.line)

    # -- metrics -----------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Send the metrics that only the supervisor knows; to be called about once a second."""
        statsd, state = self._statsd, self._ports.state()
        if statsd is None:
            return
        statsd.gauge("workers", state.ready)
        server = self._ports.children.fork_servers.get(state.current)
        if self._backlog and server is not None:
            queues = [accept_queue(sock) for sock in self._listeners.sockets(server.record.listener_keys)]
            # A histogram, as gunicorn has it.
            statsd.gauge("backlog", sum(queue[0] for queue in queues if queue is not None), "h")
        statsd.flush_all()


def _sendable(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)
