"""Settings from their sources: command line, configuration file, environment, default, in this order.

What a platform puts into the environment (WEB_CONCURRENCY) is a default to gunicorn, and so it is to us: a
file that sets the number knows better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from supervisor.errors import SettingError
from supervisor.settings.configfile import ConfigFile
from supervisor.settings.table import Settings, rows

COMMAND_LINE = "command line"


class Loaded(msgspec.Struct, frozen=True):
    """Settings and, by name, where each value came from."""

    settings: Settings
    origins: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    origin: str


def load(
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    file: ConfigFile | None,
    usable_cpus: Callable[[], int],
) -> Loaded:
    """Check and merge what was given.

    Args:
        command_line: raw values by setting name; only what was really given.
        environment: the process's environment.
        file: an evaluated configuration file.
        usable_cpus: asked if a setting depends on it.

    Raises:
        SettingError: for the first value that can't be used.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, row in rows().items():
        given = _given(name, row.env, command_line, environment, file)
        if given is None:
            values[name], origins[name] = row.default, "default"
            continue
        origins[name] = given.origin
        try:
            values[name] = row.kind.parse(given.value)
        except ValueError as error:
            raise SettingError(name, str(error), given.origin) from None
    if values["workers"] == "auto":
        values["workers"] = 2 * usable_cpus() + 1
    if values["threads"] > 1 and values["worker_class"] == "sync":
        values["worker_class"] = "gthread"
        origins["worker_class"] = f"threads = {values['threads']}"
    if not values["bind"]:
        raise SettingError("bind", "give at least one address", origins["bind"])
    return Loaded(Settings(**values), origins)


def _given(
    name: str,
    env: str | None,
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    file: ConfigFile | None,
) -> _Given | None:
    if name in command_line:
        return _Given(command_line[name], COMMAND_LINE)
    if file is not None and name in file.values:
        return _Given(file.values[name], file.origin(name))
    if env is not None and environment.get(env):
        return _Given(environment[env], f"environment {env}")
    return None
