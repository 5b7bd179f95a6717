"""Configuration in TOML: `ostler.toml` has the settings at its top, `pyproject.toml` in its [tool.ostler]."""

import re
from pathlib import Path
from typing import Any

from ostler.errors import ConfigFileError
from ostler.osapi.files import read_file

PROJECT = "pyproject.toml"
_TABLE = ("tool", "ostler")

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?")
_KEY = re.compile(
    r"\s*((?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'))*)\s*="
)
# tomllib gives the position only in the text of the error.
_PLACE = re.compile(r"(.*) \(at line (\d+), column \d+\)", re.DOTALL)
# Bytes of a project's file that may have our table: root looks for it, and others may have written the file.
_LARGEST = 1024 * 1024
_QUOTES = ('"""', "'''")


def is_project_with_settings(path: Path) -> bool:
    """Whether a pyproject.toml has our table. Other mistakes in it are not reported."""
    try:
        source = read_file(path, _LARGEST)
    except OSError:
        return False
    if b"ostler" not in source:
        return False
    import tomllib  # here and below: a fork server without such a file must not load it

    try:
        tool = tomllib.loads(source.decode()).get("tool")
        return isinstance(tool, dict) and "ostler" in tool
    except (ValueError, RecursionError):
        return b"[tool.ostler" in source


def parse(source: bytes, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The settings of a file as they are written there, and the line of each as far as it can be found.

    Names may be written with hyphens.

    Args:
        name: the file's, for messages; a pyproject.toml is known by it.

    Raises:
        ConfigFileError: it is no TOML, or a pyproject.toml without our table.
    """
    import tomllib

    try:
        text = source.decode()
        table: Any = tomllib.loads(text)
    except RecursionError:
        raise ConfigFileError(f"config: {name}: it is nested too deep") from None
    except ValueError as error:
        match = _PLACE.fullmatch(str(error))
        place, problem = (f"{name} line {match[2]}", match[1]) if match else (name, str(error))
        raise ConfigFileError(f"config: {place}: {problem}") from None
    prefix = _TABLE if Path(name).name == PROJECT else ()
    for key in prefix:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ConfigFileError(f"config: {name}: there is no table [{'.'.join(prefix)}]")
    settings = {_setting(key): value for key, value in table.items()}
    return settings, _lines(text, prefix)


def _setting(key: str) -> str:
    return key.replace("-", "_")


def _lines(text: str, prefix: tuple[str, ...]) -> dict[str, int]:
    """Where each key below `prefix` stands first; what looks like a key in a long text is none."""
    lines: dict[str, int] = {}
    table: tuple[str, ...] = ()
    quote = ""
    for number, line in enumerate(text.splitlines(), 1):
        if quote:
            quote = "" if line.count(quote) % 2 else quote
            continue
        if header := _HEADER.fullmatch(line):
            table = _parts(header[1])
            path = table
        elif key := _KEY.match(line):
            path = (*table, *_parts(key[1]))
        else:
            path = ()
        if path[: len(prefix)] == prefix and len(path) > len(prefix):
            lines.setdefault(_setting(path[len(prefix)]), number)
        quote = next((mark for mark in _QUOTES if line.count(mark) % 2), "")
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
