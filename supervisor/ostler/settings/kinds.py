"""Kinds of values: each parses what a user wrote (text or a Python object) into the typed value.

Text comes from the command line and the environment, Python objects from a configuration file. A parser
raises ValueError whose text completes the sentence "SETTING: ...", e.g. "expected a whole number, got 'x'".
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ostler.settings.address import host_and_port, parse_address
from ostler.settings.networks import normalized
from ostler.settings.plain_data import plain_data


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read and shown.

    Args:
        parse: from text or object to the typed value; raises ValueError.
        metavar: how `--help` names the value; empty for a switch.
        several: the flag may be given more than once; the value is a tuple.
        bare: what the flag means when no value follows it; empty if it needs one.
        shown: how `--help` writes a default.
        blank: an empty text is a value too, also in the environment, where it is usually no value at all.
    """

    parse: Callable[[Any], Any]
    metavar: str
    several: bool = False
    bare: str = ""
    shown: Callable[[Any], str] = str
    blank: bool = False


_LONGEST_SHOWN = 80
_MOST_DIGITS = 100  # more than any number that we take


def shown(value: Any) -> str:
    """A value as a message shows it, which is one line and not long, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a number of thousands of digits, or an object of the file's own
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Parser of an integer within [least, most]."""

    def parse(value: Any) -> int:
        try:
            number = int(value, 10) if isinstance(value, str) else int(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected a whole number, got {shown(value)}") from None
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(f"expected a whole number, got {shown(value)}")
        if not least <= number <= most:
            raise ValueError(f"must be between {least} and {most}, got {shown(number)}")
        return number

    return parse


_SIZE = re.compile(r"([0-9]+)\s*(?:([KMGT])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(value: Any) -> int:
    """Bytes: a number, or text with a unit (1K is 1024)."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"expected a number of bytes such as 8190, 512K or 10M, got {shown(value)}")
        value = _int(match[1]) * _UNITS[(match[2] or "").upper()]
    return whole_number(0, 2**63 - 1)(value)


def show_size(size: int) -> str:
    """A size as one would write it: 512K rather than 524288."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def _int(digits: str) -> int:
    """The number of any quantity of decimal digits: int() refuses more than some thousands."""
    return int(digits[:_MOST_DIGITS]) if len(digits) > _MOST_DIGITS else int(digits)


# What the system's calls take as a time at the least: 68 years.
_LONGEST_TIME = 2**31 - 1


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected a number of seconds, got {shown(value)}") from None
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"expected zero or more seconds, got {shown(value)}")
    if seconds > _LONGEST_TIME:
        raise ValueError(f"must be {_LONGEST_TIME} seconds at most, got {shown(value)}")
    return seconds


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value.strip()


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value) or None


_YES = {"1", "true", "yes", "on", "y"}
_NO = {"0", "false", "no", "off", "n", ""}


def _switch(value: Any) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _YES | _NO:
        return value.strip().lower() in _YES
    raise ValueError(f"expected true or false, got {shown(value)}")


def _several(one: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    """Parser of a list of texts; a lone text may separate its parts by commas, as gunicorn's do."""

    def parse(value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, Iterable):
            raise ValueError(f"expected a list of texts, got {shown(value)}")
        return tuple(one(part) for part in value if _text(part))

    return parse


def _paths(value: Any) -> tuple[str, ...]:
    """Folders separated by commas, also within each of several."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return tuple(path for part in parts for path in _several(_text)(part))


def _workers(value: Any) -> int | str | tuple[int, int]:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    parts = tuple(value.split("..")) if isinstance(value, str) and ".." in value else value
    try:
        if not isinstance(parts, tuple):
            return whole_number(1, 512)(parts)
        least, most = map(whole_number(1, 512), parts)
    except ValueError as error:
        raise ValueError(f"{error}; give a number from 1 to 512, a range such as 2..16, or 'auto'") from None
    if least > most:
        raise ValueError(f"a range begins with its smaller end, got {least}..{most}")
    return (least, most) if least < most else least


def show_workers(workers: int | tuple[int, int]) -> str:
    """A number, or a range as one would write it: 2..16."""
    return "..".join(map(str, workers)) if isinstance(workers, tuple) else str(workers)


def _surge(value: Any) -> str:
    text = str(value).strip()
    digits = text.removesuffix("%")
    count = _int(digits) if digits.isascii() and digits.isdigit() else 0
    if isinstance(value, bool) or not 1 <= count < 2**31:
        raise ValueError(
            f"expected a number of workers from 1 on, or a share such as 25%, got {shown(value)}"
        )
    return f"{count}%" if text.endswith("%") else str(count)


class WarmupRequest(msgspec.Struct, frozen=True):
    """A request that a worker sends to itself before it is ready."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = {}


def _warmup(value: Any) -> WarmupRequest:
    if isinstance(value, Mapping):
        if unknown := set(value) - {"path", "method", "headers"}:
            raise ValueError(f"knows path, method and headers, got {min(map(str, unknown))!r}")
        method, path = _text(value.get("method", "GET")), _text(value.get("path", "/"))
        headers = value.get("headers") or {}
    else:
        method, _, path = _text(value).rpartition(" ")
        headers = {}
    method = method.strip() or "GET"
    if not _TOKEN.fullmatch(method) or not re.fullmatch(r"/[!-~]*", path):
        raise ValueError(f"expected a path such as /health or 'HEAD /health', got {shown(value)}")
    return WarmupRequest(path, method, _header_lines(headers))


def _header_lines(headers: Any) -> dict[str, str]:
    found = _header_values(headers)
    for name, text in found.items():
        if not re.fullmatch(r"[\t -~]*", text):
            raise ValueError(f"the header {name} can't be {shown(text)}")
    return found


def _warmups(value: Any) -> tuple[WarmupRequest, ...]:
    if value is None:
        return ()
    several = value if isinstance(value, list | tuple) else (value,)
    return tuple(_warmup(one) for one in several)


def _counts(value: Any) -> tuple[int, ...]:
    """Whole numbers from 1 on, in a list or separated by commas."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif not isinstance(value, list | tuple):
        value = (value,)
    parts = [part for one in value for part in (one.split(",") if isinstance(one, str) else (one,))]
    return tuple(map(whole_number(1), parts))


def _share(value: Any) -> float:
    """A part of the whole: 0.25 or 25%."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1, or from 0% to 100%, got {shown(value)}")
    return share


def _address(value: Any) -> str:
    return str(parse_address(_text(value)))


def _environment(value: Any) -> tuple[str, ...]:
    """Pairs NAME=VALUE; a lone text is one pair, whose value may have commas."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = [f"{_text(name)}={text}" for name, text in value.items()]
    pairs = [value] if isinstance(value, str) else value
    if not isinstance(pairs, Iterable):
        raise ValueError(f"expected a list of NAME=VALUE, got {shown(value)}")
    return tuple(_environment_pair(pair) for pair in pairs)


def _environment_pair(value: Any) -> str:
    pair = _text(value)
    name, equals, _ = pair.partition("=")
    if not equals or not name:
        raise ValueError(f"expected NAME=VALUE, got {shown(pair)}")
    return pair


def _sendfile(value: Any) -> bool:
    # None is gunicorn's own default and means yes.
    return True if value is None else _switch(value)


def _networks(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return normalized(value if isinstance(value, str) else [_text(part) for part in value])
    raise ValueError(f"expected a list of addresses and networks, got {shown(value)}")


# RFC 9110 section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


def _header_name(value: Any) -> str:
    name = _text(value)
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"expected the name of a header, got {shown(name)}")
    return name.upper()


def _header_values(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dictionary of header names and values, got {shown(value)}")
    return {_header_name(name): _text(text) for name, text in value.items()}


# What ssl.CERT_NONE and its siblings are called here; they are whole numbers, also in gunicorn's files.
_VERIFICATION = ("none", "optional", "required")


def _verification(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_VERIFICATION):
        return _VERIFICATION[value]
    text = "none" if value is None else str(value).strip().lower()
    text = text.removeprefix("ssl.").removeprefix("cert_")
    if text in ("0", "1", "2"):
        return _VERIFICATION[int(text)]
    if text not in _VERIFICATION:
        raise ValueError(f"expected one of {', '.join(_VERIFICATION)} (or 0, 1, 2), got {shown(value)}")
    return text


# The wire's numbers, which are ssl.TLSVersion's values as well.
_TLS_VERSIONS = {"1.2": "TLSv1.2", "771": "TLSv1.2", "1.3": "TLSv1.3", "772": "TLSv1.3"}


def _tls_version(value: Any) -> str:
    text = str(int(value)) if isinstance(value, int) else _text(value).lower()
    for prefix in ("ssl.", "tlsversion.", "tlsv", "tls"):
        text = text.removeprefix(prefix)
    version = _TLS_VERSIONS.get(text.replace("_", "."))
    if version is None:
        raise ValueError(f"expected TLSv1.2 or TLSv1.3, got {shown(value)}")
    return version


def _mode(value: Any) -> str | None:
    """A file's mode as four octal digits: of text in octal digits, or of the number itself."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip().lower().removeprefix("0o")
        if not text:
            return None
        try:
            number = int(text, 8)
        except ValueError:
            number = -1
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= number <= 0o777:
        # 660 in a Python file is a slip for 0o660; as a number it is 0o1224.
        raise ValueError(
            f"expected a mode in octal such as 0660 (in a file '0660' or 0o660), got {shown(value)}"
        )
    return f"{number:04o}"


def _owner(value: Any) -> str | None:
    text = _optional_text(value)
    if text is None:
        return None
    user, colon, group = text.partition(":")
    if not (user or group) or (colon and not group) or ":" in group:
        raise ValueError(f"expected USER, USER:GROUP or :GROUP, got {shown(text)}")
    return text


def choice(*allowed: str, aliases: dict[str, str] | None = None) -> Kind:
    """One of a few words, in any case; `aliases` maps other spellings to them."""
    spellings = {word: word for word in allowed} | (aliases or {})

    def parse(value: Any) -> str:
        word = _text(value).lower()
        if word not in spellings:
            raise ValueError(f"expected one of {', '.join(allowed)}, got {shown(value)}")
        return spellings[word]

    return Kind(parse, "|".join(allowed))


_PROXY_WORDS = choice(
    "off",
    "v1",
    "v2",
    "auto",
    aliases={"false": "off", "0": "off", "none": "off", "true": "auto", "1": "auto"},
)


def _proxy_mode(value: Any) -> str:
    # Until gunicorn 24 it was a switch, which knew both versions or neither.
    word: str = _PROXY_WORDS.parse("off" if value is None else str(value))
    return word


COUNT = Kind(whole_number(0), "N")
POSITIVE = Kind(whole_number(1), "N")
SECONDS = Kind(_seconds, "SECONDS")
TEXT = Kind(_text, "TEXT")
OPTIONAL_TEXT = Kind(_optional_text, "TEXT")
PATH = Kind(_optional_text, "PATH")
SWITCH = Kind(_switch, "")


def _part(value: Any) -> float:
    share = _share(value)
    if share == 0:
        raise ValueError("must be more than 0")
    return share


PART = Kind(_part, "SHARE")
WORKERS = Kind(_workers, "N|N..M|auto", shown=show_workers)
SURGE = Kind(_surge, "N|N%")
WARMUP = Kind(_warmups, "REQUEST", several=True)
COUNTS = Kind(_counts, "N,N...", shown=lambda counts: ",".join(map(str, counts)))
SHARE = Kind(_share, "SHARE")
ADDRESSES = Kind(_several(_address), "ADDRESS", several=True)
PATHS = Kind(_paths, "PATHS", several=True)
ENVIRONMENT = Kind(_environment, "NAME=VALUE", several=True)
SENDFILE = Kind(_sendfile, "")
SIZE = Kind(_size, "BYTES", shown=show_size)
NETWORKS = Kind(_networks, "NETWORKS", shown=",".join, blank=True)
HEADER_NAMES = Kind(_several(_header_name), "NAMES", shown=",".join)
HEADER_VALUES = Kind(_header_values, "DICT")
PROXY_MODE = Kind(_proxy_mode, "off|v1|v2|auto", bare="auto")
VERIFICATION = Kind(_verification, "|".join(_VERIFICATION))
TLS_VERSION = Kind(_tls_version, "TLSv1.2|TLSv1.3")
MODE = Kind(_mode, "MODE")
OWNER = Kind(_owner, "USER:GROUP")


# What is larger by one means "none" to the kernel (setresuid(2)).
_LARGEST_ID = 2**32 - 2


def _account(value: Any) -> str | None:
    """A user's or a group's name or number; files for gunicorn give None, a number or a text."""
    if isinstance(value, int) and not isinstance(value, bool):
        number: int | None = value
    else:
        value = _optional_text(value)
        digits = value.removeprefix("-") if value is not None else ""
        number = _int(digits) * (-1 if digits != value else 1) if digits.isdecimal() else None
    if number is not None and not 0 <= number <= _LARGEST_ID:
        raise ValueError(f"a user's or group's number is from 0 to {_LARGEST_ID}, got {shown(value)}")
    return None if value is None else str(value)


def _threads(value: Any) -> int:
    # gunicorn takes 0, which its only worker without threads does not look at.
    return whole_number(0)(value) or 1


def _umask(value: Any) -> str:
    """Four octal digits. As in gunicorn text is decimal unless it begins with 0, 0o or 0x."""
    number = value
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            number = int(text, 8) if text.isdecimal() and text.startswith("0") else int(text, 0)
        except ValueError:
            number = -1
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"expected a mask in octal such as 022 (in a file 0o022), got {shown(value)}")
    return f"{number & 0o777:04o}"  # the kernel takes no other bits, umask(2)


def _socket_mode(value: Any) -> str:
    # gunicorn's --help shows its default as a decimal number, which as octal digits is none.
    if isinstance(value, str) and value.strip().isdecimal() and not value.strip().startswith("0"):
        value = int(value) if {"8", "9"} & set(value) else value
    return _mode(value) or "0600"


def _log_file(value: Any) -> str:
    # For None gunicorn writes no log at all. A variable that is unset must not have that effect.
    return _optional_text(value) or "-"


def _plain_dict(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dictionary, got {shown(value)}")
    copy: dict[str, Any] = plain_data(value)
    return copy


def _remote(schemes: tuple[str, ...], example: str) -> Callable[[Any], str | None]:
    """Parser of where to send something: SCHEME://HOST:PORT or unix://PATH."""

    def parse(value: Any) -> str | None:
        text = _optional_text(value)
        if text is None:
            return None
        scheme, found, rest = text.rpartition("://")
        if (found and scheme not in schemes) or not rest:
            raise ValueError(f"expected an address such as {example}, got {shown(text)}")
        if scheme != "unix":
            host_and_port(rest, 0)
        return text

    return parse


def _syslog_address(value: Any) -> str:
    # None is gunicorn's own default in some files.
    return _remote(("unix", "udp", "tcp"), "udp://localhost:514")(value) or "udp://localhost:514"


ACCOUNT = Kind(_account, "NAME")
THREADS = Kind(_threads, "N")
UMASK = Kind(_umask, "MODE")
SOCKET_MODE = Kind(_socket_mode, "MODE")
LOG_FILE = Kind(_log_file, "FILE")
PLAIN_DICT = Kind(_plain_dict, "DICT")
SYSLOG_ADDRESS = Kind(_syslog_address, "ADDRESS")
STATSD_ADDRESS = Kind(_remote(("unix", "udp"), "127.0.0.1:8125"), "ADDRESS")
