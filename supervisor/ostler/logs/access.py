"""The access log, in gunicorn's format language.

A format is compiled once into one function, so that a request costs only the atoms that are really in the
format. That function renders the line as if clients were honest, and then looks at all of it at once: if
there is anything but plain ASCII beyond what the format itself contains, it renders the line again with
every value escaped. So a line can't be forged, and honest ones pay for one scan in C. It costs as much as a
memory of escaped values that always hits, but needs none and has no misses.

Lines are gathered; whoever serves calls `flush` before it waits for more, so they are never late.
"""

import base64
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast
from urllib.parse import unquote

from ostler.errors import SettingError
from ostler.logs.lean import Log, LogFile

_ATOM = re.compile(
    r"%(?:%|\((?:\{(?P<key>[^}]*)\}(?P<kind>[ioeIOE])|(?P<atom>[^()]*))\)"
    r"(?P<how>[-#0 +]*[0-9]*(?:\.[0-9]+)?[diouxXeEfFgGs]))"
)
# What needs no second look, wherever it stands. The quotes around a value are in the format.
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_MOST_OF_A_REFUSED_LINE = 4096


class Answered(Protocol):
    """What there is to say of a request that was answered.

    Args:
        method, target, protocol: as the client sent them (latin-1).
        environ: the request's.
        status: e.g. `200 OK`.
        headers: the app's answer's.
        sent: body bytes.
        nanoseconds: time in the app and for sending.
        request_line: given if it does not consist of method, target and protocol.
    """

    def __call__(
        self,
        method: str,
        target: str,
        protocol: str,
        environ: dict[str, Any],
        status: str,
        headers: Sequence[tuple[str, str]],
        sent: int,
        nanoseconds: int,
        request_line: str | None = None,
        /,
    ) -> Any: ...


def escape(text: str) -> str:
    """Control characters, quotes and backslashes as \\xNN or with a backslash, as Apache writes them."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


# -- what the compiled functions call -------------------------------------------------------------------


class _Stamp:
    """`[21/Nov/2026:09:00:00 +0000]`, made once a second; its month names know no locale."""

    __slots__ = ("since", "text", "until")

    def __init__(self) -> None:
        self.since = self.until = 0
        self.text = ""

    def renew(self) -> str:
        second = int(time.time())
        now = time.localtime(second)
        month = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()[now.tm_mon - 1]
        offset = now.tm_gmtoff // 60
        sign = "-" if offset < 0 else "+"
        zone = f"{sign}{abs(offset) // 60:02}{abs(offset) % 60:02}"
        date, clock = f"{now.tm_mday:02}/{month}/{now.tm_year}", time.strftime("%H:%M:%S", now)
        text = f"[{date}:{clock} {zone}]"
        # The text first: a thread that finds the new second must not find the old one's text.
        self.text = text
        self.since, self.until = second, second + 1
        return text


def _text(value: Any) -> str:
    """What an app put into environ, as text."""
    if value is None or value == "":
        return "-"
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the app's own __str__; the request was answered all the same
        return "-"


def _user(environ: dict[str, Any]) -> str:
    """Whom the app says it was, else the user of basic authentication (RFC 7617)."""
    if user := environ.get("REMOTE_USER"):
        return _text(user)
    scheme, _, credentials = str(environ.get("HTTP_AUTHORIZATION")).partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        return base64.b64decode(credentials).decode().partition(":")[0] or "-"
    except ValueError:
        return "-"


def _path(target: str) -> str:
    """The path as the app gets it, but with the part that SCRIPT_NAME may have taken."""
    path = target.partition("?")[0]
    if path[:1] != "/" and "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path, "latin-1") if "%" in path else path


def _response_header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """The last of that name, as in gunicorn."""
    return next((value for key, value in reversed(headers) if key.lower() == name), "-")


def _variable(environ: dict[str, Any], name: str) -> str:
    """In any case of letters: gunicorn's documentation asks for lower case."""
    value = environ.get(name)
    if value is None:
        name = name.lower()
        value = next((environ[key] for key in environ if key.lower() == name), None)
    return _text(value)


_NAMES: dict[str, Any] = {
    "escape": escape,
    "getpid": os.getpid,
    "path": _path,
    "response_header": _response_header,
    "stamp": _Stamp(),
    "time": time.time,
    "user": _user,
    "variable": _variable,
    "PLAIN": _PLAIN,
}

# -- the atoms ------------------------------------------------------------------------------------------

# Those that hold nothing of a client's or an app's making, and so are never escaped.
_OURS: dict[str, str] = {
    "l": "'-'",
    "t": "stamp.text if stamp.since <= time() < stamp.until else stamp.renew()",
    "b": "str(sent)",
    "L": "'%d.%06d' % divmod(nanoseconds // 1_000, 1_000_000)",
    "p": "f'<{getpid()}>'",
}
_NUMBERS: dict[str, str] = {
    "B": "sent",
    "T": "nanoseconds // 1_000_000_000",
    "M": "nanoseconds // 1_000_000",
    "D": "nanoseconds // 1_000",
}
_THEIRS: dict[str, str] = {
    "h": "environ.get('REMOTE_ADDR') or '-'",
    "u": "user(environ) if 'HTTP_AUTHORIZATION' in environ or 'REMOTE_USER' in environ else '-'",
    "r": "request_line or f'{method} {target} {protocol}'",
    "m": "method",
    "U": "path(target)",
    "q": "target.partition('?')[2]",
    "H": "protocol",
    "s": "status[:3]",
    "f": "environ.get('HTTP_REFERER') or '-'",
    "a": "environ.get('HTTP_USER_AGENT') or '-'",
}

_FUNCTION = """
def answered(
    method, target, protocol, environ, status, headers, sent, nanoseconds, request_line=None, /
):
    line = ({template} % ({values})).encode("utf-8", "backslashreplace")
    if line.translate(None, PLAIN) != LITERAL:
        line = ({template} % ({escaped})).encode("utf-8", "backslashreplace")
    return use(line)
"""


def compile_format(text: str, use: Callable[[bytes], Any] = bytes) -> Answered:
    """A function that renders a request's line, with its end, and gives it to `use`.

    An atom that there is not is `-`, as in gunicorn; see `unknown_atoms`.

    Raises:
        SettingError: an atom that can't be written that way, or a text that is no format.
    """
    template, literal = "", ""
    values: list[str] = []
    escaped: list[str] = []
    end = 0
    for match in _ATOM.finditer(text):
        between = _literal(text, end, match.start())
        end = match.end()
        if match.group() == "%%":
            between += "%"
        else:
            value, theirs = _value(match)
            values.append(value)
            escaped.append(f"escape(str({value}))" if theirs else value)
        template += between.replace("%", "%%") + ("%s" if match.group() != "%%" else "")
        literal += between
    rest = _literal(text, end, len(text)) + "\n"
    # Python makes an f-string of `'...' % (...)`. All that comes from the setting stands there as a repr.
    source = _FUNCTION.format(
        template=repr(template + rest.replace("%", "%%")),
        values="".join(f"({value}), " for value in values),
        escaped="".join(f"({value}), " for value in escaped),
    )
    literal_bytes = (literal + rest).encode("utf-8", "backslashreplace")
    names = _NAMES | {"use": use, "LITERAL": literal_bytes.translate(None, _PLAIN)}
    exec(compile(source, "<access_log_format>", "exec"), names)  # noqa: S102 - see the comment above
    return cast("Answered", names["answered"])


def unknown_atoms(text: str) -> list[str]:
    """What stands in a format like an atom, but is none."""
    known = _OURS.keys() | _NUMBERS.keys() | _THEIRS.keys()
    return [
        match.group()
        for match in _ATOM.finditer(text)
        if match.group() != "%%" and match["kind"] is None and match["atom"] not in known
    ]


def _literal(text: str, start: int, end: int) -> str:
    """What stands between two atoms."""
    literal = text[start:end]
    if "%(" in literal:
        raise SettingError(
            "access_log_format", f"can't read {text!r}; atoms look like %(h)s or %({{host}}i)s"
        )
    return literal


def _value(match: re.Match[str]) -> tuple[str, bool]:
    """An atom as a Python expression, and whether what it gives must be escaped."""
    atom, key, how = match["atom"], match["key"], match["how"]
    theirs = True
    if match["kind"] is not None:
        value = _named(key, match["kind"].lower())
    elif atom in _THEIRS:
        value = _THEIRS[atom]
    elif atom in _OURS or atom in _NUMBERS:
        value, theirs = _OURS.get(atom) or _NUMBERS[atom], False
    else:
        value, theirs = "'-'", False
    if how == "s":
        return value, theirs
    # %(D)d, %(h)-15s: gunicorn's formats are Python's. Done before it is escaped, so as not to cut an escape.
    try:
        f"%{how}" % (0 if atom in _NUMBERS else "")
    except (TypeError, ValueError):
        raise SettingError("access_log_format", f"{match.group()} is no number; write s") from None
    return f"'%{how}' % (({value}),)", theirs


def _named(key: str, kind: str) -> str:
    """The expression of a header or an environ variable."""
    if kind == "o":
        return f"response_header(headers, {key.lower()!r})"
    if kind == "e":
        return f"variable(environ, {key!r})"
    name = key.upper().replace("-", "_")
    if name not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        name = f"HTTP_{name}"
    return f"environ.get({name!r}) or '-'"


# -- all atoms at once, for the loggers of `logging` ------------------------------------------------------


class Atoms(dict[str, Any]):
    """What a line may be made of, by name: `h`, `{user-agent}i`. Any other name is `-`, as in gunicorn.

    Texts are escaped: whoever makes a line of them can't make two.
    """

    def __missing__(self, name: str) -> Any:
        lower = name.lower()
        return self.get(lower, "-") if name.startswith("{") and lower in self else "-"


_ATOMS_FUNCTION = """
def atoms(
    method, target, protocol, environ, status, headers, sent, nanoseconds, request_line=None, /
):
    return {{{items}}}
"""


def _compile_atoms() -> Callable[..., dict[str, Any]]:
    items = [f"{name!r}: {value}" for name, value in (_OURS | _NUMBERS).items()]
    items += [f"{name!r}: escape(str({value}))" for name, value in _THEIRS.items()]
    names = dict(_NAMES)
    exec(_ATOMS_FUNCTION.format(items=", ".join(items)), names)  # noqa: S102 - all of it stands above
    return cast("Callable[..., dict[str, Any]]", names["atoms"])


_simple_atoms = _compile_atoms()


def all_atoms(*answered: Any) -> Atoms:
    """All atoms of a request; arguments as for `Answered`."""
    atoms = Atoms(_simple_atoms(*answered))
    environ, headers = answered[3], answered[5]
    for name, value in environ.items():
        lower = name.lower()
        safe = escape(value) if type(value) is str else value
        if name.startswith("HTTP_"):
            atoms[f"{{{lower[5:].replace('_', '-')}}}i"] = safe
        elif name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            atoms[f"{{{lower.replace('_', '-')}}}i"] = safe
        atoms[f"{{{lower}}}e"] = safe
    for name, value in headers:
        atoms[f"{{{name.lower()}}}o"] = escape(value)
    return atoms


# -- the log ---------------------------------------------------------------------------------------------


class AccessLog:
    """Tells of each request that was answered, wherever that is wanted.

    answered: takes a request.
    flush: writes what was gathered. To be called when there is nothing else to do, and about once a second;
    any thread may call both at any time (see `LogFile`).
    close: writes what is left and lets go of the file.

    Args:
        file: takes lines, in `format`.
        log: hears of lines that are lost.
        lines: more that take lines, each with its end.
        requests: what takes requests themselves.
        flushes: called by `flush`; may come again and again.
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
        takers = [*([file.gather] if file is not None else []), *lines]
        told = [*([compile_format(format, _all(takers))] if takers else []), *requests]
        self.answered: Answered = _all(told)
        self.flush: Callable[[], object] = _all([*([file.flush] if file is not None else []), *flushes])
        if log is not None and file is not None:
            file.trouble = lambda lines, reason: _say_lost(log, file.name, lines, reason)

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()

    def refused(
        self, environ: dict[str, Any], received: bytes, status: str, sent: int, nanoseconds: int = 0
    ) -> None:
        """Gather the line of a request that the parser refused.

        Args:
            environ: the connection's.
            received: what came of the request, from its beginning; only its first line counts.
            status, sent, nanoseconds: as for `answered`.
        """
        received = received[:_MOST_OF_A_REFUSED_LINE].lstrip(b"\r\n")
        line = received.partition(b"\n")[0].removesuffix(b"\r").decode("latin-1") or "-"
        words = line.split(" ")
        method, target, protocol = words if len(words) == 3 else ("-", "", "-")
        self.answered(method, target, protocol, environ, status, (), sent, nanoseconds, line)


def _all(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """One function that calls all of them with what it is given."""
    if len(functions) == 1:
        return functions[0]

    def each(*args: Any) -> None:
        for function in functions:
            function(*args)

    return each


def _say_lost(log: Log, name: str, lines: int, reason: str) -> None:
    if lines:
        log.warning("access_log_lines_lost", file=name, lines=lines, reason=reason)
    else:
        log.error("access_log_unwritable", file=name, reason=reason)
