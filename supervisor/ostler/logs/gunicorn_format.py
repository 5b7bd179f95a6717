"""`log_format = gunicorn`: lines as gunicorn 27 writes them, for programs that read its log.

    [2026-11-30 09:00:00 +0000] [4711] [INFO] Listening at: http://127.0.0.1:8000 (4711)

Where gunicorn has a line for what has happened, the line has gunicorn's words; a few events that it has no
line for are left out, since another line of its says the same. All others are the event's name and its
fields.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ostler import __version__
from ostler.logs.render import indented, plain_text, split_message, traceback_of

FORMAT = "gunicorn"

Fields = Mapping[str, Any]


class Text(NamedTuple):
    """A line without its time. pid: of the process that writes it in gunicorn; None: of the event's."""

    level: str
    text: str
    pid: int | None = None


def line(at: float, level: str, event: str, fields: Fields, pid: int | None = None) -> str:
    """The lines of an event, joined by line ends; empty if there are none.

    pid: of the process whose event it is; None: this process.
    """
    writer = os.getpid() if pid is None else pid
    return _lines(at, texts(level, event, fields, writer), fields, writer)


def message_line(at: float, level: str, message: str, fields: Fields) -> str:
    """The lines of a message of an app, which may look like an event's name."""
    return _lines(at, [Text(level, message)], fields, os.getpid())


def _lines(at: float, found: list[Text], fields: Fields, writer: int) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))
    lines = []
    for text in found:
        first, more = split_message(text.text, {})
        who = writer if text.pid is None else text.pid
        lines += [f"[{stamp}] [{who}] [{text.level.upper()}] {first}", *([more] if more else [])]
    if lines and (trace := traceback_of(fields)):
        lines.append(indented(trace))
    return "\n".join(lines)


def texts(level: str, event: str, fields: Fields, writer: int) -> list[Text]:
    """What gunicorn writes for an event. writer: the pid of the process whose event it is."""
    by = str(fields.get("by", ""))
    if by.startswith("signal ") and event in _BY_SIGNAL:
        handled = Text("info", f"Handling signal: {by.removeprefix('signal ').lower()}")
        return [handled, *(Text("info", text) for text in _BY_SIGNAL[event])]
    make = _TEXTS.get(event)
    if make is not None and (made := make(level, fields, writer)) is not None:
        return made
    return [_plain(level, event, fields, writer)]


def _plain(level: str, event: str, fields: Fields, writer: int) -> Text:
    """An event's name and fields. Of a worker's own events the line has the pid."""
    left_out = {"traceback", "stack"}
    if fields.get("pid") == writer:
        left_out |= {"pid", "slot", "generation"}
    shown = {name: value for name, value in fields.items() if name not in left_out}
    return Text(level, f"{event} {plain_text('', shown).strip()}".strip() if shown else event)


# -- events ------------------------------------------------------------------------------------------------

# Of what a signal has asked for, the lines behind "Handling signal".
_BY_SIGNAL: dict[str, tuple[str, ...]] = {
    "stop": (),
    "reload": ("Hang up: Master",),
    "scale": (),
    "pause": ("graceful stop of workers",),
    "upgrade": (),
    "logs_reopened": (),
}


def _loading(_level: str, fields: Fields, _writer: int) -> list[Text]:
    listeners = ",".join(str(fields.get("listeners", "")).split())
    return [
        Text("info", f"Starting gunicorn (ostler {__version__})"),
        Text("info", f"Listening at: {listeners} ({fields.get('pid')})"),
        Text("info", f"Using worker: {fields.get('worker_class')}"),
    ]


def _nothing(_level: str, _fields: Fields, _writer: int) -> list[Text]:
    return []


def _stopped(_level: str, _fields: Fields, _writer: int) -> list[Text]:
    return [Text("info", "Shutting down: Master")]


def _booting(_level: str, _fields: Fields, writer: int) -> list[Text]:
    return [Text("info", f"Booting worker with pid: {writer}")]


def _exiting(_level: str, _fields: Fields, writer: int) -> list[Text]:
    return [Text("info", f"Worker exiting (pid: {writer})")]


def _message(level: str, fields: Fields, _writer: int) -> list[Text]:
    return [Text(level, str(fields.get("message")))]


def _overdue(level: str, fields: Fields, writer: int) -> list[Text]:
    timeout = Text("critical", f"WORKER TIMEOUT (pid:{fields.get('pid')})")
    return [timeout, _plain(level, "request_overdue", fields, writer)]


def _ended(event: str) -> Callable[[str, Fields, int], list[Text]]:
    def made(level: str, fields: Fields, writer: int) -> list[Text]:
        status, pid = str(fields.get("status", "")), fields.get("pid")
        words = status.split()
        found = []
        if words[:1] == ["signal"]:
            name = _signal_name(words[1])
            text = f"Worker (pid:{pid}) was sent {name}!"
            if name == "SIGKILL":
                found = [Text("error", f"{text} Perhaps out of memory?")]
            else:
                found = [Text("info" if name == "SIGTERM" else "warning", text)]
        elif words[:2] == ["exit", "code"]:
            if words[2:] == ["0"] and level == "info":
                return []  # the worker itself has written its line
            if words[2:] != ["0"]:
                found = [Text("error", f"Worker (pid:{pid}) exited with code {words[2]}.")]
        return [*found, _plain(level, event, fields, writer)]

    return made


def _signal_name(number: str) -> str:
    try:
        return signal.Signals(int(number)).name
    except ValueError:
        return f"signal {number}"  # a real-time one


_TEXTS: dict[str, Callable[[str, Fields, int], list[Text] | None]] = {
    "loading": _loading,
    "serving": _nothing,
    "worker_booting": _booting,
    "worker_ready": _nothing,
    "worker_exiting": _exiting,
    "worker_exited": _ended("worker_exited"),
    "worker_died": _ended("worker_died"),
    "request_overdue": _overdue,
    "stopped": _stopped,
    "hook": _message,
}
