"""The access log of a worker.

Lines are collected. The code that serves calls `flush` before it waits for events, so they are never late.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ostler.logs.access_format import Answered, compile_format
from ostler.logs.access_json import is_json, json_answered
from ostler.logs.logfile import LogFile
from ostler.logs.worker_log import Log

# Bytes of the request line of a refused request.
_MOST_OF_A_REFUSED_LINE = 4096


def renderer(format: str, use: Callable[[bytes], Any] = bytes) -> Answered:  # noqa: A002
    """A function that renders a request as `access_log_format` says, with its line end, for `use`.

    Raises:
        InvalidValue: that is no format.
    """
    return json_answered(use) if is_json(format) else compile_format(format, use)


class AccessLog:
    """Records answered requests in all sinks that the settings ask for.

    answered: records a request.
    flush: writes collected lines. To be called when there is nothing else to do, and about once a second. Any
    thread may call both at any time (see `LogFile`).
    close: writes remaining lines and closes the file.

    Args:
        file: the file for lines in `format`.
        log: where lost lines are reported.
        lines: more functions that take lines, each with its line end.
        requests: functions that take requests themselves.
        flushes: functions that `flush` calls.
    """

    def __init__(
        self,
        file: LogFile | None,
        format: str,  # noqa: A002
        log: Log | None = None,
        lines: Sequence[Callable[[bytes], object]] = (),
        requests: Sequence[Answered] = (),
        flushes: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._file = file
        line_sinks = [*([file.gather] if file is not None else []), *lines]
        sinks = [*([renderer(format, _all(line_sinks))] if line_sinks else []), *requests]
        self.answered: Answered = _all(sinks)
        self.flush: Callable[[], object] = _all([*([file.flush] if file is not None else []), *flushes])
        if log is not None and file is not None:
            file.on_lost = lambda lines, reason: _report_lost(log, file.name, lines, reason)

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def refused(
        self, environ: dict[str, Any], received: bytes, status: str, sent: int, nanoseconds: int = 0
    ) -> None:
        """Record a request that the parser has refused.

        Args:
            environ: of the connection.
            received: the received bytes of the request, from its beginning, as far as they are known; only
                the first line is used.
            status, sent, nanoseconds: as for `answered`.
        """
        received = received[:_MOST_OF_A_REFUSED_LINE].lstrip(b"\r\n")
        line = received.partition(b"\n")[0].removesuffix(b"\r").decode("latin-1") or "-"
        parts = line.split(" ")
        method, target, protocol = parts if len(parts) == 3 else ("-", "", "-")
        self.answered(method, target, protocol, environ, status, (), sent, nanoseconds, line)


def _all(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """One function that calls all of them with its arguments."""
    if len(functions) == 1:
        return functions[0]

    def each(*args: Any) -> None:
        for function in functions:
            function(*args)

    return each


def _report_lost(log: Log, name: str, lines: int, reason: str) -> None:
    if lines:
        log.warning("access_log_lines_lost", file=name, lines=lines, reason=reason)
    else:
        log.error("access_log_unwritable", file=name, reason=reason)
