"""Formats of the access log, in gunicorn's format language.

A format is compiled once into one function, so that a request costs only the atoms that the format contains.
That function renders the line without escaping and then scans it: if it contains anything but plain ASCII,
apart from the format's own text, the line is rendered again with every value escaped. So a client can't forge
a line, and ordinary requests cost one scan in C. That is as fast as a cache of escaped values that always
hits.
"""

import base64
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast
from urllib.parse import unquote

from ostler.errors import InvalidValue

_ATOM = re.compile(
    r"%(?:%|\((?:\{(?P<key>[^}]*)\}(?P<kind>[ioeIOE])|(?P<atom>[^()]*))\)"
    r"(?P<how>[-#0 +]*[0-9]*(?:\.[0-9]+)?[diouxXeEfFgGs]))"
)
# Bytes that never need escaping. The quotes around a value belong to the format.
_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')


class Answered(Protocol):
    """A function that records an answered request.

    Args:
        method, target, protocol: as the client sent them (latin-1).
        environ: the request's.
        status: e.g. `200 OK`.
        headers: of the app's answer.
        sent: bytes of the body.
        nanoseconds: time in the app and for sending.
        request_line: set if it does not consist of method, target and protocol.
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


# -- called by the compiled functions -------------------------------------------------------------------


class _Stamp:
    """`[21/Nov/2026:09:00:00 +0000]`, made once per second; month names do not depend on the locale."""

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
        # The text is set first: a thread that sees the new second must not see the old text.
        self.text = text
        self.since, self.until = second, second + 1
        return text


def _text(value: Any) -> str:
    """A value that the app has put into environ, as text."""
    if value is None or value == "":
        return "-"
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - in the app's own __str__; the request was answered
        return "-"


def user_of(environ: dict[str, Any]) -> str:
    """The user that the app has set, else the one of basic authentication (RFC 7617)."""
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
    """The path as the app gets it, including the part that is in SCRIPT_NAME."""
    path = target.partition("?")[0]
    if path[:1] != "/" and "://" in path:
        path = "/" + path.partition("://")[2].partition("/")[2]
    return unquote(path, "latin-1") if "%" in path else path


def _response_header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """The value of the last header of that name, as in gunicorn."""
    return next((value for key, value in reversed(headers) if key.lower() == name), "-")


def _variable(environ: dict[str, Any], name: str) -> str:
    """A variable, whatever the case of `name`: gunicorn's documentation uses lower case."""
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
    "user": user_of,
    "variable": _variable,
    "PLAIN": _PLAIN,
}

# -- the atoms ------------------------------------------------------------------------------------------

# Values that neither client nor app can influence, so they are never escaped.
_SERVER_ATOMS: dict[str, str] = {
    "l": "'-'",
    "t": "stamp.text if stamp.since <= time() < stamp.until else stamp.renew()",
    "b": "str(sent)",
    "L": "'%d.%06d' % divmod(nanoseconds // 1_000, 1_000_000)",
    "p": "f'<{getpid()}>'",
}
_NUMBER_ATOMS: dict[str, str] = {
    "B": "sent",
    "T": "nanoseconds // 1_000_000_000",
    "M": "nanoseconds // 1_000_000",
    "D": "nanoseconds // 1_000",
}
_CLIENT_ATOMS: dict[str, str] = {
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
    """A function that renders the line of a request, with its line end, and passes it to `use`.

    An unknown atom is `-`, as in gunicorn; see `unknown_atoms`.

    Raises:
        InvalidValue: an atom with an impossible conversion, or a text that is no format.
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
            value, unsafe = _value(match)
            values.append(value)
            escaped.append(f"escape(str({value}))" if unsafe else value)
        template += between.replace("%", "%%") + ("%s" if match.group() != "%%" else "")
        literal += between
    rest = _literal(text, end, len(text)) + "\n"
    # Python optimises `'...' % (...)` into an f-string. All text of the setting is inserted as a repr.
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
    """Parts of a format that look like atoms but are unknown."""
    known = _SERVER_ATOMS.keys() | _NUMBER_ATOMS.keys() | _CLIENT_ATOMS.keys()
    return [
        match.group()
        for match in _ATOM.finditer(text)
        if match.group() != "%%" and match["kind"] is None and match["atom"] not in known
    ]


def _literal(text: str, start: int, end: int) -> str:
    """The text between two atoms."""
    literal = text[start:end]
    if "%(" in literal:
        raise InvalidValue(
            "access_log_format", f"can't read {text!r}; atoms look like %(h)s or %({{host}}i)s"
        )
    return literal


def _value(match: re.Match[str]) -> tuple[str, bool]:
    """An atom as a Python expression, and whether its value must be escaped."""
    atom, key, how = match["atom"], match["key"], match["how"]
    unsafe = True
    if match["kind"] is not None:
        value = _named(key, match["kind"].lower())
    elif atom in _CLIENT_ATOMS:
        value = _CLIENT_ATOMS[atom]
    elif atom in _SERVER_ATOMS or atom in _NUMBER_ATOMS:
        value, unsafe = _SERVER_ATOMS.get(atom) or _NUMBER_ATOMS[atom], False
    else:
        value, unsafe = "'-'", False
    if how == "s":
        return value, unsafe
    # %(D)d, %(h)-15s: gunicorn uses Python's formats. Applied before escaping, so as not to cut an escape.
    try:
        f"%{how}" % (0 if atom in _NUMBER_ATOMS else "")
    except (TypeError, ValueError):
        raise InvalidValue("access_log_format", f"{match.group()} is no number; use s") from None
    return f"'%{how}' % (({value}),)", unsafe


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
    """Values by the name of their atom: `h`, `{user-agent}i`. Any other name is `-`, as in gunicorn.

    Texts are escaped, so a line made of them is one line.
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
    items = [f"{name!r}: {value}" for name, value in (_SERVER_ATOMS | _NUMBER_ATOMS).items()]
    items += [f"{name!r}: escape(str({value}))" for name, value in _CLIENT_ATOMS.items()]
    names = dict(_NAMES)
    exec(_ATOMS_FUNCTION.format(items=", ".join(items)), names)  # noqa: S102 - all of it is defined above
    return cast("Callable[..., dict[str, Any]]", names["atoms"])


_simple_atoms = _compile_atoms()


def all_atoms(*answered: Any) -> Atoms:
    """All atoms of a request; the arguments are those of `Answered`."""
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
