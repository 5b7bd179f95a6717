"""Log lines in a fork server: the supervisor's, and what must be written before a fork and before the end."""

import logging
import sys
import time
from typing import Any

from ostler.ipc import messages
from ostler.ipc.channel import Channel
from ostler.logs import bridge


def pass_on(channel: Channel[Any], line: messages.LogLine) -> None:
    """Pass an event of the supervisor to the loggers, and confirm it, unless it is too old by now."""
    in_time = time.monotonic() < line.until
    if in_time and bridge.take_event(line.level, line.name, line.fields, line.pid):
        channel.send(messages.LogTaken(line.number))


def flush_all() -> None:
    """Write what streams and handlers have buffered; raises nothing.

    Before a fork, because the child would write it again, and before an end without Python's clean-up.
    """
    for handler in [found for ref in logging._handlerList if (found := ref()) is not None]:  # type: ignore[attr-defined]
        _flush(handler)
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)


def _flush(what: Any) -> None:
    try:
        what.flush()
    except Exception:  # noqa: BLE001, S110 - closed, full, not there at all, or in the middle of a write
        pass
