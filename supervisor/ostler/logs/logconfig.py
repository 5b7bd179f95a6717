"""The settings `logconfig_dict`, `logconfig_json` and `logconfig`: the first of them that is set counts.

They are applied in the fork server, once, before the app is imported; workers inherit the result.
"""

import copy
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ostler.errors import SettingError
from ostler.logs.bridge import ACCESS, ERROR
from ostler.osapi.files import check_file, read_file
from ostler.settings.plain_data import plain_data
from ostler.settings.table import Settings
from ostler.text import name_of, text_of

# gunicorn's defaults for parts that a dictionary omits (gunicorn.glogging.CONFIG_DEFAULTS).
_PARTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {
        ERROR: {"level": "INFO", "handlers": ["error_console"], "propagate": True, "qualname": ERROR},
        ACCESS: {"level": "INFO", "handlers": ["console"], "propagate": True, "qualname": ACCESS},
    },
}
# Defaults by name, which parts of a dictionary may refer to. gunicorn has them only if the dictionary has no
# such part of its own, and fails if it has: its root logger needs `console`.
_NAMED: dict[str, dict[str, Any]] = {
    "formatters": {
        "generic": {
            "class": "logging.Formatter",
            "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
            "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
        }
    },
    "handlers": {
        "console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stdout",
        },
        "error_console": {
            "class": "logging.StreamHandler",
            "formatter": "generic",
            "stream": "ext://sys.stderr",
        },
    },
}


# In a chain of causes of an exception, which may be circular.
_MOST_REASONS = 10


def gunicorn_defaults() -> dict[str, Any]:
    """What gunicorn calls CONFIG_DEFAULTS: a dictionary of its own, which the caller may change."""
    return copy.deepcopy({**_PARTS, **_NAMED})


def is_given(settings: Settings) -> bool:
    return bool(settings.logconfig_dict or settings.logconfig_json or settings.logconfig)


def apply(settings: Settings, given: Mapping[str, Any] | None) -> None:
    """Apply the settings.

    Args:
        given: the original `logconfig_dict`, with objects that settings can't hold. Ignored if the settings
            were not made of it.

    Raises:
        SettingError: with the reason in one line.
    """
    if settings.logconfig_dict:
        if given is None or plain_data(given) != settings.logconfig_dict:
            given = settings.logconfig_dict
        _apply_dict("logconfig_dict", given)
    elif settings.logconfig_json:
        path = settings.logconfig_json
        try:
            found = json.loads(read_file(path).decode("utf-8"))
        except (OSError, ValueError) as error:
            raise SettingError("logconfig_json", f"can't read {path!r}: {_reason(error)}") from None
        if not isinstance(found, dict):
            raise SettingError("logconfig_json", f"{path!r} holds no dictionary")
        _apply_dict("logconfig_json", found)
    elif settings.logconfig:
        _apply_file(settings.logconfig)


@contextmanager
def noting_files() -> Iterator[list[Path]]:
    """Yields a list of the files that logging's handlers create in the context."""
    made: list[Path] = []
    open_file = logging.FileHandler._open

    def note(handler: logging.FileHandler) -> Any:
        path = Path(handler.baseFilename).resolve()
        if not path.exists():
            made.append(path)
        return open_file(handler)

    logging.FileHandler._open = note  # type: ignore[method-assign, assignment]
    try:
        yield made
    finally:
        logging.FileHandler._open = open_file  # type: ignore[method-assign]


def _apply_dict(setting: str, given: Mapping[str, Any]) -> None:
    config = {**_PARTS, **given}
    for part, defaults in _NAMED.items():
        config[part] = {**defaults, **(config.get(part) or {})}
    from logging.config import dictConfig  # it imports pickle and more, which most apps do not need

    try:
        dictConfig(config)
    except Exception as error:
        raise SettingError(setting, _reason(error)) from error


def _apply_file(path: str) -> None:
    # fileConfig would take a missing file for an empty configuration, and wait for the writer of a FIFO.
    if not os.path.exists(path):  # noqa: PTH110 - no pathlib needed for that
        raise SettingError("logconfig", f"there is no {path!r}")
    try:
        check_file(path)
    except OSError as error:
        raise SettingError("logconfig", f"can't read {path!r}: {error.strerror}") from None
    defaults = {"__file__": path, "here": os.path.dirname(path)}  # noqa: PTH120 - as above
    from logging.config import fileConfig  # as above

    try:
        fileConfig(path, defaults=defaults, disable_existing_loggers=False)
    except Exception as error:
        raise SettingError("logconfig", f"{path!r}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line: `logging.config` only says which part failed; the cause of its exception has the reason."""
    reasons: list[str] = []
    found: BaseException | None = error
    while found is not None and len(reasons) < _MOST_REASONS:
        text = found.strerror if isinstance(found, OSError) and found.strerror else text_of(found)
        name = "" if isinstance(found, ValueError | OSError) else f"{name_of(found)}: "
        if isinstance(found, OSError) and found.filename:
            text = f"{found.filename!r}: {text}"
        reasons.append(" ".join(f"{name}{text}".split()))
        found = found.__cause__ or found.__context__
    return ": ".join(dict.fromkeys(reasons))
