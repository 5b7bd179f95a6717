"""Metrics to statsd or DogStatsD, under gunicorn's names.

Counters are summed up and durations collected; they are sent together, in datagrams that no network splits,
when there are enough or after `_DELAY`. So a request costs a fraction of a sendto(2); one for each metric
would cost more than the request itself. Nothing waits for statsd, and lost metrics are not reported.
"""

import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from ostler.osapi import original
from ostler.settings.address import host_and_port
from ostler.settings.table import Settings

# Bytes that fit an Ethernet frame with any IP header (statsd's documentation recommends 1432).
_LARGEST = 1400
# Seconds that metrics may wait for others; statsd itself aggregates over ten by default.
_DELAY = 0.5
# Durations that fill about one datagram.
_MANY = 24


class Statsd:
    """Collects and sends metrics.

    Args:
        address: as `statsd_host`; prefix, tags: as the settings `statsd_prefix` and `dogstatsd_tags`.
        clock: seconds.
    """

    def __init__(
        self, address: str, prefix: str, tags: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._prefix = re.sub(r"([^.])\.*$", r"\1.", prefix)
        self._tags = f"|#{tags}" if tags else ""
        self._clock = clock
        self._durations: list[int] = []
        self._others: list[str] = []
        self._due = 0.0
        self._flushing = original.Lock()
        self._address = address
        self._sock: socket.socket | None = None
        self._target: Any = None
        self._open()

    # -- metrics -----------------------------------------------------------------------------------------

    def answered(
        self,
        _method: str,
        _target: str,
        _protocol: str,
        _environ: dict[str, Any],
        status: str,
        _headers: Sequence[tuple[str, str]],
        _sent: int,
        nanoseconds: int,
        _request_line: str | None = None,
        /,
    ) -> None:
        """Count a request; as `access.Answered`."""
        # One object per request: threads append while another thread removes.
        self._durations.append(nanoseconds // 1000 * 1000 + int(status[:3]))
        if len(self._durations) >= _MANY:
            self.flush()

    def event(self, level: str, _name: str, fields: dict[str, Any]) -> None:
        """Count a line of the log. gunicorn calls an error with a traceback an exception."""
        if level in ("warning", "error", "critical"):
            kind = "exception" if level == "error" and fields.get("traceback") else level
            self._others.append(f"gunicorn.log.{kind}:1|c|@1.0")

    def gauge(self, name: str, value: int, kind: str = "g") -> None:
        """Record a value; `name` without the prefix."""
        self._others.append(f"gunicorn.{name}:{value}|{kind}")

    # -- sending -----------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what is due. To be called when there is nothing else to do, and about once per second."""
        if not (self._durations or self._others):
            return
        now = self._clock()
        if len(self._durations) >= _MANY or now >= self._due:
            self._due = now + _DELAY
            self.flush_all()

    def flush_all(self) -> None:
        """Send all collected metrics."""
        if not self._flushing.acquire(False):
            return  # another thread is sending
        try:
            lines = self._take()
            datagram = ""
            for metric in lines:
                line = f"{self._prefix}{metric}{self._tags}"
                if datagram and len(datagram) + 1 + len(line) > _LARGEST:
                    self._send(datagram)
                    datagram = line
                else:
                    datagram = f"{datagram}\n{line}" if datagram else line
            if datagram:
                self._send(datagram)
        finally:
            self._flushing.release()

    def drop(self) -> None:
        """Drop all collected metrics."""
        self._durations.clear()
        self._others.clear()

    def close(self) -> None:
        """Send all collected metrics and close the socket."""
        self.flush_all()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _take(self) -> list[str]:
        durations = self._durations[:]
        del self._durations[: len(durations)]
        others = self._others[:]
        del self._others[: len(others)]
        lines = [f"gunicorn.request.duration:{one // 1000 / 1000}|ms" for one in durations]
        if durations:
            statuses: dict[int, int] = {}
            for one in durations:
                status = one % 1000
                statuses[status] = statuses.get(status, 0) + 1
            lines.append(f"gunicorn.requests:{len(durations)}|c|@1.0")
            lines += [f"gunicorn.request.status.{code}:{n}|c|@1.0" for code, n in statuses.items()]
        return lines + others

    def _send(self, datagram: str) -> None:
        if self._sock is None:
            return
        try:
            self._sock.sendto(datagram.encode("utf-8", "backslashreplace"), self._target)
        except OSError:
            pass  # statsd is gone or the buffer full: lost metrics are not reported

    def _open(self) -> None:
        rest = self._address.rpartition("://")[2]
        try:
            if self._address.startswith("unix://"):
                family, self._target = socket.AF_UNIX, rest
            else:
                host, port = host_and_port(rest, 8125)
                found = original.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
                # localhost resolves to ::1 first, where many statsd servers do not listen.
                family, _, _, _, self._target = min(found, key=lambda one: one[0] != socket.AF_INET)
            self._sock = original.Socket(family, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        except (OSError, UnicodeError):  # UnicodeError: not a possible host name
            self._sock = None  # unknown host: treated like a statsd that does not run


def statsd_of(settings: Settings) -> Statsd | None:
    """The statsd of the settings; None without `statsd_host`."""
    if not settings.statsd_host:
        return None
    return Statsd(settings.statsd_host, settings.statsd_prefix, settings.dogstatsd_tags)
