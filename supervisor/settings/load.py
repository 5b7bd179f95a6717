"""Settings from their sources: command line, configuration file, environment, default, in this order.

What a platform puts into the environment (WEB_CONCURRENCY) is a default to gunicorn, and so it is to us: a
file that sets the number knows better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from supervisor.errors import SettingError
from supervisor.settings.configfile import ConfigFile
from supervisor.settings.table import Setting, Settings, rows

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
        given = _given(row, command_line, environment, file)
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
    settings = Settings(**values)
    _check_tls(settings, origins)
    return Loaded(settings, origins)


def _check_tls(settings: Settings, origins: Mapping[str, str]) -> None:
    """What only makes sense together with something else: nobody shall believe that it is in force."""
    if settings.certfile is None:
        if settings.keyfile is not None:
            _refuse("keyfile", "needs certfile as well, the certificate that the key is for", origins)
        if settings.cert_reqs != "none":
            _refuse(
                "cert_reqs", "needs certfile as well: without https no client shows a certificate", origins
            )
        if settings.ca_certs is not None:
            _refuse(
                "ca_certs", "needs certfile as well: without https no client shows a certificate", origins
            )
    elif settings.cert_reqs == "required" and settings.ca_certs is None:
        _refuse("cert_reqs", "needs ca_certs as well, the authorities to check certificates with", origins)


def _refuse(name: str, problem: str, origins: Mapping[str, str]) -> NoReturn:
    raise SettingError(name, problem, origins[name])


def _given(
    row: Setting,
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    file: ConfigFile | None,
) -> _Given | None:
    name, env, blank = row.name, row.env, row.kind.blank
    if name in command_line:
        return _Given(command_line[name], COMMAND_LINE)
    if file is not None and name in file.values:
        return _Given(file.values[name], file.origin(name))
    if env is not None and (environment.get(env) or (blank and env in environment)):
        return _Given(environment[env], f"environment {env}")
    return None
