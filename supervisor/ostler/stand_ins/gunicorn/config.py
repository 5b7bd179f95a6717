"""The basics of gunicorn's configuration: settings by name, and the functions that check values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ostler.settings.ignored import IGNORED
from ostler.settings.table import Settings

_DEFAULTS: dict[str, Any] = {
    name: ignored.silent[0] if ignored.silent else None for name, ignored in IGNORED.items()
}
_DEFAULTS |= {name: getattr(Settings(), name) for name in Settings.__struct_fields__}


class Config:
    """Settings by name, with their defaults; `set` changes one, and each is an attribute."""

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.usage = usage
        self.prog = prog
        self.settings: dict[str, Any] = dict(_DEFAULTS)

    def __getattr__(self, name: str) -> Any:
        if name == "settings" or name not in self.settings:
            raise AttributeError(f"No configuration setting for: {name}")
        return self.settings[name]

    def set(self, name: str, value: Any) -> None:
        self.settings[name] = value


def validate_bool(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    folded = value.strip().lower() if isinstance(value, str) else ""
    if folded not in ("true", "false"):
        raise ValueError(f"expected true or false, got {value!r}")
    return folded == "true"


def validate_pos_int(value: Any) -> int:
    number = int(value, 0) if isinstance(value, str) else int(value)
    if number < 0:
        raise ValueError(f"expected a number that is not negative, got {value!r}")
    return number


def validate_string(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {value!r}")
    return value.strip()


def validate_callable(arity: int) -> Callable[[Any], Any]:
    """A function that checks that a value can be called; `arity` is not checked."""

    def check(value: Any) -> Any:
        if not callable(value):
            raise TypeError(f"expected a function of {arity} arguments, got {value!r}")
        return value

    return check


def get_default_config_file() -> str | None:
    path = Path.cwd() / "gunicorn.conf.py"
    return str(path) if path.exists() else None
