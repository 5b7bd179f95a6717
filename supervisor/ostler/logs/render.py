"""Formats events as lines, both for the supervisor's structlog and for the workers' log."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ostler.terminal import lines, one_line

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_COLOURS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_BOLD, _DIM, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def json_line(at: float, level: str, event: str, fields: Mapping[str, Any]) -> str:
    """One JSON object: `timestamp` (UTC, RFC 3339), `level`, `event`, then the fields."""
    stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"timestamp": stamp, "level": level, "event": event, **fields}
    if record.get("traceback", "") is None:
        del record["traceback"]  # many events have this field only for some of their causes
    line = json.dumps(record, default=str, ensure_ascii=False)
    # JSON does not require escapes for C1 controls and line separators, which control terminals.
    return line if line.isprintable() else json.dumps(record, default=str)


def plain_text(event: str, fields: Mapping[str, Any]) -> str:
    """Event and fields without time and level, for callers that add those.

    A traceback follows on its own lines.
    """
    event, more = split_message(event, fields)
    text = " ".join([event, *(f"{one_line(name)}={_value(value)}" for name, value in _pairs(fields))])
    return f"{text}\n{more}" if more else text


def traceback_of(fields: Mapping[str, Any]) -> str:
    """The field that goes onto lines of its own."""
    return str(fields.get("traceback") or fields.get("stack") or "")


def split_message(event: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """The first line of an event, and the text below it: messages of apps may have several lines."""
    first, _, rest = event.partition("\n")
    more = "\n".join(indented(text) for text in (rest, traceback_of(fields)) if text)
    return one_line(first), more


def _pairs(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (name, value)
        for name, value in fields.items()
        if value is not None and name not in ("traceback", "stack")
    ]


def console_line(at: float, level: str, event: str, fields: Mapping[str, Any], colour: bool) -> str:
    """Local time, level, event, `name=value` pairs; a traceback follows on lines of its own."""
    stamp = datetime.fromtimestamp(at).strftime("%H:%M:%S.%f")[:-3]  # noqa: DTZ006 - people want local time
    event, more = split_message(event, fields)
    pairs = " ".join(
        f"{_DIM if colour else ''}{one_line(name)}={_PLAIN if colour else ''}{_value(value)}"
        for name, value in _pairs(fields)
    )
    if colour:
        tint = _COLOURS.get(level, "")
        line = f"{_DIM}{stamp}{_PLAIN} {tint}{level:<7}{_PLAIN} {_BOLD}{event:<20}{_PLAIN} {pairs}"
    else:
        line = f"{stamp} {level:<7} {event:<20} {pairs}"
    line = line.rstrip()
    return f"{line}\n{more}" if more else line


def _value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    # Quoted when ambiguous, and so that no client can forge a line or control a terminal.
    if not text or not text.isprintable() or any(mark in text for mark in ' "='):
        return json.dumps(text, ensure_ascii=not text.isprintable())
    return text


def indented(text: str) -> str:
    """Lines that can't be mistaken for log lines."""
    return "\n".join(f"    {line}" for line in lines(text).rstrip().split("\n"))
