"""The access log as JSON: `access_log_format = json`, one object per line.

Names and types do not change between requests: what is missing is null. Text is what the client sent, as
UTF-8; bytes that are none are written out. The line itself is ASCII.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from ostler.logs.access_format import Answered, user_of

FORMAT = "json"
# Optional fields, which are there if a proxy has sent the header.
_OF_PROXIES = (("HTTP_X_FORWARDED_FOR", "x_forwarded_for"), ("HTTP_X_REQUEST_ID", "request_id"))


def is_json(format: str) -> bool:  # noqa: A002
    """Whether a value of `access_log_format` asks for JSON."""
    return format.strip().lower() == FORMAT


def json_answered(use: Callable[[bytes], Any] = bytes) -> Answered:
    """A function that renders the line of a request, with its line end, and passes it to `use`."""

    def answered(*request: Any) -> Any:
        return use((json_of(*request) + "\n").encode("ascii"))

    return cast("Answered", answered)


def json_of(
    method: str,
    target: str,
    protocol: str,
    environ: dict[str, Any],
    status: str,
    _headers: Sequence[tuple[str, str]],
    sent: int,
    nanoseconds: int,
    request_line: str | None = None,
) -> str:
    """The object of a request; the arguments are those of `Answered`."""
    path, question_mark, query = target.partition("?")
    stamp = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    code = status[:3]
    fields: dict[str, Any] = {
        "timestamp": stamp.replace("+00:00", "Z"),
        "level": "info",
        "event": "access",
        "remote_addr": _text(environ.get("REMOTE_ADDR")),
        "remote_user": _text(user_of(environ)),
        "method": _text(method),
        "scheme": _text(environ.get("wsgi.url_scheme")),
        "host": _text(environ.get("HTTP_HOST")),
        "path": _text(path),
        "query": _text(query) if question_mark else None,
        "protocol": _text(protocol),
        "status": int(code) if code.isascii() and code.isdigit() else None,
        "bytes_sent": sent,
        "duration": nanoseconds // 1_000 / 1_000_000,
        "referer": _text(environ.get("HTTP_REFERER")),
        "user_agent": _text(environ.get("HTTP_USER_AGENT")),
        "pid": os.getpid(),
    }
    for variable, name in _OF_PROXIES:
        if variable in environ:
            fields[name] = _text(environ[variable])
    if request_line is not None:
        fields["request"] = _text(request_line)  # it was refused, and may be anything
    # ASCII: nothing in it can control a terminal but DEL, which JSON leaves as it is.
    return json.dumps(fields).replace("\x7f", "\\u007f")


def _text(value: Any) -> str | None:
    """A text of the request: `-` and nothing are None; bytes (as latin-1, see PEP 3333) are read as UTF-8."""
    if value is None or value in ("", "-"):
        return None
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - in a class of the app's; the request was answered
        return None
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text  # the app has put it there
