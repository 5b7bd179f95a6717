"""The access log, in gunicorn's format language.

A format is compiled once into a template and the functions that fill it, so a request costs only the atoms
that are really in the format. Whatever a client sent is escaped: a line can't be forged.
"""

import base64
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor.errors import SettingError
from supervisor.logs.lean import LogFile

_ATOM = re.compile(r"%(?:%|\((?:\{(?P<key>[^}]*)\}(?P<kind>[ioe])|(?P<atom>[a-zA-Z]))\)s)")


@dataclass(slots=True)
class Served:
    """What there is to say of a request that was answered.

    method, target, protocol: as the client sent them. environ: the request's. status: e.g. `200 OK`.
    headers: the response's. sent: body bytes. nanoseconds: time in the app and for sending.
    """

    method: str
    target: str
    protocol: str
    environ: dict[str, Any]
    status: str
    headers: list[tuple[str, str]]
    sent: int
    nanoseconds: int


def escape(text: str) -> str:
    """Control characters, quotes and backslashes as \\xNN or with a backslash, as Apache writes them."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def _environ_text(served: Served, key: str) -> str:
    value = served.environ.get(key)
    return escape(str(value)) if value not in (None, "") else "-"


def _user(served: Served) -> str:
    """Whom the app says it was, else the user of basic authentication (RFC 7617)."""
    user = served.environ.get("REMOTE_USER")
    if not user:
        scheme, _, credentials = str(served.environ.get("HTTP_AUTHORIZATION")).partition(" ")
        if scheme.lower() != "basic":
            return "-"
        try:
            user = base64.b64decode(credentials).decode().partition(":")[0]
        except ValueError:
            return "-"
    return escape(str(user)) or "-"


def _response_header(served: Served, name: str) -> str:
    return next((escape(value) for key, value in served.headers if key.lower() == name), "-")


def _url(served: Served) -> str:
    return escape(f"{served.method} {served.target} {served.protocol}")


def _referrer(served: Served) -> str:
    return _environ_text(served, "HTTP_REFERER")


_ATOMS: dict[str, Callable[[Served], str]] = {
    "h": lambda served: _environ_text(served, "REMOTE_ADDR"),
    "l": lambda _: "-",
    "u": _user,
    "t": lambda _: _clf_time(int(time.time())),
    "r": _url,
    "m": lambda served: escape(served.method),
    "U": lambda served: escape(served.target.partition("?")[0]),
    "q": lambda served: escape(served.target.partition("?")[2]),
    "H": lambda served: served.protocol,
    "s": lambda served: served.status[:3],
    "B": lambda served: str(served.sent),
    "b": lambda served: str(served.sent) if served.sent else "-",
    "f": _referrer,
    "a": lambda served: _environ_text(served, "HTTP_USER_AGENT"),
    "T": lambda served: str(served.nanoseconds // 1_000_000_000),
    "M": lambda served: str(served.nanoseconds // 1_000_000),
    "D": lambda served: str(served.nanoseconds // 1_000),
    "L": lambda served: f"{served.nanoseconds / 1e9:.6f}",
    "p": lambda _: f"<{os.getpid()}>",
}

_clf: tuple[int, str] = (0, "")


def _clf_time(second: int) -> str:
    """`[21/Nov/2026:09:00:00 +0000]`, made once a second; its month names know no locale."""
    global _clf
    if _clf[0] != second:
        now = time.localtime(second)
        month = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()[now.tm_mon - 1]
        offset = now.tm_gmtoff // 60
        sign = "-" if offset < 0 else "+"
        zone = f"{sign}{abs(offset) // 60:02}{abs(offset) % 60:02}"
        date, clock = f"{now.tm_mday:02}/{month}/{now.tm_year}", time.strftime("%H:%M:%S", now)
        _clf = (second, f"[{date}:{clock} {zone}]")
    return _clf[1]


def compile_format(text: str) -> Callable[[Served], str]:
    """A function that renders a request.

    Raises:
        SettingError: an atom that does not exist.
    """
    pieces: list[str] = []
    fills: list[Callable[[Served], str]] = []
    end = 0
    for match in _ATOM.finditer(text):
        pieces.append(_literal(text, end, match.start()))
        end = match.end()
        if match.group() == "%%":
            pieces.append("%%")
            continue
        pieces.append("%s")
        fills.append(_fill(match["atom"], match["key"], match["kind"]))
    template = "".join(pieces) + _literal(text, end, len(text))
    return lambda served: template % tuple([fill(served) for fill in fills])


def _literal(text: str, start: int, end: int) -> str:
    """What stands between two atoms, as part of a template."""
    literal = text[start:end]
    if "%(" in literal:
        raise SettingError(
            "access_log_format", f"can't read {text!r}; atoms look like %(h)s or %({{host}}i)s"
        )
    return literal.replace("%", "%%")


def _fill(atom: str | None, key: str | None, kind: str | None) -> Callable[[Served], str]:
    if atom is not None:
        if atom not in _ATOMS:
            known = " ".join(_ATOMS)
            raise SettingError("access_log_format", f"unknown atom %({atom})s; there are: {known}")
        return _ATOMS[atom]
    name = (key or "").lower()
    if kind == "i":
        variable = name.upper().replace("-", "_")
        if variable not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            variable = f"HTTP_{variable}"
        return lambda served: _environ_text(served, variable)
    if kind == "o":
        return lambda served: _response_header(served, name)
    return lambda served: _environ_text(served, key or "")


class AccessLog:
    """Appends a line per request."""

    def __init__(self, file: LogFile, format: str) -> None:  # noqa: A002
        self._file = file
        self._render = compile_format(format)

    def write(self, served: Served) -> None:
        self._file.write(self._render(served))

    def reopen(self) -> None:
        self._file.reopen()
