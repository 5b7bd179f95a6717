"""Kinds of values: each turns what a user wrote (text or a Python object) into the typed value.

Text comes from the command line and the environment, Python objects from a configuration file. A parser
raises ValueError whose text completes the sentence "SETTING: ...", e.g. "expected a whole number, got 'x'".
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.settings.address import parse_address


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read and shown.

    Args:
        parse: from text or object to the typed value; raises ValueError.
        metavar: how `--help` names the value; empty for a switch.
        several: the flag may be given more than once; the value is a tuple.
    """

    parse: Callable[[Any], Any]
    metavar: str
    several: bool = False


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Parser of an integer within [least, most]."""

    def parse(value: Any) -> int:
        try:
            number = int(value, 10) if isinstance(value, str) else int(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected a whole number, got {value!r}") from None
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(f"expected a whole number, got {value!r}")
        if not least <= number <= most:
            raise ValueError(f"must be between {least} and {most}, got {number}")
        return number

    return parse


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a number of seconds, got {value!r}") from None
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"expected zero or more seconds, got {value!r}")
    return seconds


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r}")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value.strip()


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value) or None


_YES = {"1", "true", "yes", "on"}
_NO = {"0", "false", "no", "off", ""}


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _YES | _NO:
        return value.strip().lower() in _YES
    raise ValueError(f"expected true or false, got {value!r}")


def _several(one: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    """Parser of a list of texts; a lone text may separate its parts by commas, as gunicorn's do."""

    def parse(value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, Iterable):
            raise ValueError(f"expected a list of texts, got {value!r}")
        return tuple(one(part) for part in value if _text(part))

    return parse


def _paths(value: Any) -> tuple[str, ...]:
    """Folders separated by commas, also within each of several."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return tuple(path for part in parts for path in _several(_text)(part))


def _workers(value: Any) -> int | str:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return whole_number(1, 512)(value)
    except ValueError as error:
        raise ValueError(f"{error}; give a number from 1 to 512, or 'auto'") from None


def _address(value: Any) -> str:
    return str(parse_address(_text(value)))


def _environment_pair(value: Any) -> str:
    pair = _text(value)
    name, equals, _ = pair.partition("=")
    if not equals or not name:
        raise ValueError(f"expected NAME=VALUE, got {pair!r}")
    return pair


def choice(*allowed: str, aliases: dict[str, str] | None = None) -> Kind:
    """One of a few words, in any case; `aliases` maps other spellings to them."""
    spellings = {word: word for word in allowed} | (aliases or {})

    def parse(value: Any) -> str:
        word = _text(value).lower()
        if word not in spellings:
            raise ValueError(f"expected one of {', '.join(allowed)}, got {value!r}")
        return spellings[word]

    return Kind(parse, "|".join(allowed))


COUNT = Kind(whole_number(0), "N")
POSITIVE = Kind(whole_number(1), "N")
SECONDS = Kind(_seconds, "SECONDS")
TEXT = Kind(_text, "TEXT")
OPTIONAL_TEXT = Kind(_optional_text, "TEXT")
PATH = Kind(_optional_text, "PATH")
SWITCH = Kind(_switch, "")
WORKERS = Kind(_workers, "N|auto")
ADDRESSES = Kind(_several(_address), "ADDRESS", several=True)
PATHS = Kind(_paths, "PATHS", several=True)
ENVIRONMENT = Kind(_several(_environment_pair), "NAME=VALUE", several=True)
