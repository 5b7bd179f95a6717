"""Texts, switches, choices, and lists and dictionaries of texts."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ostler.settings.kinds.kind import Kind, shown
from ostler.settings.plain_data import plain_data


def text(value: Any) -> str:
    """Parser of a text or path, which is stripped of blanks around it."""
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value.strip()


def optional_text(value: Any) -> str | None:
    """Parser of a text or path; None and a blank text are None."""
    return None if value is None else text(value) or None


TEXT = Kind(text, "TEXT")
OPTIONAL_TEXT = Kind(optional_text, "TEXT")
PATH = Kind(optional_text, "PATH")


def _log_file(value: Any) -> str:
    # For None gunicorn writes no log at all. A variable that is unset must not have that effect.
    return optional_text(value) or "-"


LOG_FILE = Kind(_log_file, "FILE")


def _app(value: Any) -> str | None:
    """MODULE:NAME; the name is read where the app is loaded."""
    spec = optional_text(value)
    module, colon, name = (spec or "").partition(":")
    if "/" not in module and "\\" not in module and module[:1] != ".":
        return spec
    # A path. What is below the working folder can be written as a module.
    path = module.replace("\\", "/").removesuffix(".py")
    while path.startswith("./"):
        path = path[2:]
    parts = [part for part in path.split("/") if part]
    name = name if colon and name else "NAME"
    folder = "/".join(parts[:-1])
    if path[:1] == "/" or ".." in parts:
        folder = f"/{folder}" if path[:1] == "/" else folder
        instead = f"--chdir {folder} {parts[-1]}:{name}" if parts else f"MODULE:{name}"
    elif "." in path or not parts:
        instead = f"MODULE:{name}"
    else:
        instead = f"{'.'.join(parts)}:{name}"
        instead += f", or --chdir {folder} {parts[-1]}:{name}" if folder else ""
    raise ValueError(f"expected MODULE:NAME, which is imported, got the path {shown(spec)}; write {instead}")


APP = Kind(_app, "MODULE:APP")


# -- switches and choices ------------------------------------------------------------------------------------

_YES = {"1", "true", "yes", "on", "y"}
_NO = {"0", "false", "no", "off", "n", ""}


def _switch(value: Any) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _YES | _NO:
        return value.strip().lower() in _YES
    raise ValueError(f"expected true or false, got {shown(value)}")


def _sendfile(value: Any) -> bool:
    # None is gunicorn's own default and means yes.
    return True if value is None else _switch(value)


SWITCH = Kind(_switch, "")
SENDFILE = Kind(_sendfile, "")


def choice(*allowed: str, aliases: dict[str, str] | None = None) -> Kind:
    """One of a few texts, in upper or lower case; `aliases` maps other spellings to them."""
    spellings = {name: name for name in allowed} | (aliases or {})

    def parse(value: Any) -> str:
        name = text(value).lower()
        if name not in spellings:
            raise ValueError(f"expected one of {', '.join(allowed)}, got {shown(value)}")
        return spellings[name]

    return Kind(parse, "|".join(allowed))


# -- lists and dictionaries ----------------------------------------------------------------------------------


def list_of(one: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    """Parser of a list of texts, each parsed by `one`; a single text is split at commas, as in gunicorn."""

    def parse(value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if isinstance(value, str):
            value = value.split(",")
        if not isinstance(value, Iterable):
            raise ValueError(f"expected a list of texts, got {shown(value)}")
        return tuple(one(part) for part in value if text(part))

    return parse


def _paths(value: Any) -> tuple[str, ...]:
    """Folders separated by commas, also within each of several."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return tuple(path for part in parts for path in list_of(text)(part))


PATHS = Kind(_paths, "PATHS", several=True)


def _environment(value: Any) -> tuple[str, ...]:
    """Pairs NAME=VALUE; a single text is one pair, whose value may have commas."""
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = [f"{text(name)}={content}" for name, content in value.items()]
    pairs = [value] if isinstance(value, str) else value
    if not isinstance(pairs, Iterable):
        raise ValueError(f"expected a list of NAME=VALUE, got {shown(value)}")
    return tuple(_environment_pair(pair) for pair in pairs)


def _environment_pair(value: Any) -> str:
    pair = text(value)
    name, equals, _ = pair.partition("=")
    if not equals or not name:
        raise ValueError(f"expected NAME=VALUE, got {shown(pair)}")
    return pair


ENVIRONMENT = Kind(_environment, "NAME=VALUE", several=True)


def _plain_dict(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dictionary, got {shown(value)}")
    copy: dict[str, Any] = plain_data(value)
    return copy


PLAIN_DICT = Kind(_plain_dict, "DICT")
