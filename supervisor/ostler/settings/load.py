"""Settings from their sources: command line, configuration file, environment, default, in this order.

The arguments in GUNICORN_CMD_ARGS and OSTLER_CMD_ARGS were read with the command line and come with it. The
variables that platforms set (WEB_CONCURRENCY, PORT) are defaults, as in gunicorn: a configuration file takes
precedence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from ostler.errors import InvalidValue, SettingError
from ostler.settings import ignored
from ostler.settings.classes import MOST_THREADS, Core
from ostler.settings.configfile import ConfigFile
from ostler.settings.kinds.kind import shown
from ostler.settings.kinds.tls import TLS_VERSION
from ostler.settings.table import Setting, Settings, rows
from ostler.text import name_of

COMMAND_LINE = "command line"

# ssl.PROTOCOL_TLSv1_2, which files of gunicorn's that pinned a version mostly have: then the newest one.
_PROTOCOL_TLS_1_2 = ("5", "protocol_tlsv1_2")


class Loaded(msgspec.Struct, frozen=True):
    """Settings and, by name, where each value came from.

    ignored: what was given without effect here, with its value as text; warnings: lines for the log; hooks:
    where each of the file's is defined, by name; one_loop, core: as `BaseWorker` of the worker class, once
    that was found; tls: clients are served TLS, by `certfile` or by the file's `ssl_context`; config: the
    file's name, as in `messages.Configure`, None if there is none; confined: of the settings that name what
    the supervisor or a fork server opens (`confine.OPENED`), those that count with the rights of the workers'
    account alone, because others than root can write where they are from.
    """

    settings: Settings
    origins: dict[str, str]
    ignored: dict[str, str] = {}
    warnings: list[str] = []
    hooks: dict[str, str] = {}
    one_loop: bool = False
    core: Core = "own"
    tls: bool = False
    config: str | None = None
    confined: list[str] = []


@dataclass(frozen=True, slots=True)
class _RawValue:
    value: Any
    origin: str


class _Sources:
    """The sources, in the order in which they count."""

    def __init__(
        self,
        command_line: Mapping[str, Any],
        variables: Mapping[str, str],
        environment: Mapping[str, str],
        file: ConfigFile | None,
    ) -> None:
        self._command_line = command_line
        self._variables = variables
        self._environment = environment
        self._file = file

    def of(self, name: str) -> _RawValue | None:
        """The value under the name of a row or of another setting of gunicorn's, without the environment."""
        if name in self._command_line:
            return _RawValue(self._command_line[name], self._variables.get(name, COMMAND_LINE))
        if self._file is not None and name in self._file.values:
            return _RawValue(self._file.values[name], self._file.origin(name))
        return None

    def is_helper(self, name: str) -> bool:
        """Whether the value is from a file for gunicorn that calls a variable of its own so."""
        return name not in self._command_line and self._file is not None and name in self._file.helpers

    def of_row(self, row: Setting) -> _RawValue | None:
        given = self.of(row.name)
        if given is not None or row.env is None:
            return given
        text = self._environment.get(row.env)
        if text or (text is not None and row.kind.blank):
            # Platforms give a port only, and connect from outside.
            value = f"0.0.0.0:{text}" if row.env == "PORT" else text
            return _RawValue(value, f"environment {row.env}")
        return None


def load(
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    file: ConfigFile | None,
    usable_cpus: Callable[[], int],
    variables: Mapping[str, str] | None = None,
) -> Loaded:
    """Check and merge what was given.

    Args:
        command_line: raw values by setting name; only what was really given.
        environment: the process's environment.
        file: an evaluated configuration file.
        usable_cpus: asked if a setting depends on it.
        variables: of what in `command_line` is from a variable with arguments, where it is from.

    Raises:
        SettingError: for the first value that can't be used.
    """
    sources = _Sources(command_line, variables or {}, environment, file)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    warnings: list[str] = []
    for name, row in rows().items():
        given = sources.of_row(row)
        values[name], origins[name] = row.default, "default"
        if given is None:
            continue
        try:
            values[name], origins[name] = _parsed(row, given), given.origin
        except SettingError as error:
            if not sources.is_helper(name):
                raise
            warnings.append(f"{error}; without effect")
    without_effect = _other_names(sources, values, origins)
    if without_effect:
        warnings.append(ignored.warning(without_effect, origins))
    if values["workers"] == "auto":
        values["workers"] = 2 * usable_cpus() + 1
    if values["threads"] > MOST_THREADS:
        asked = f"threads ({origins['threads']})"
        warnings.append(f"{asked}: {MOST_THREADS} is the most, not {values['threads']}")
        values["threads"] = MOST_THREADS
    if values["threads"] > 1 and values["worker_class"] == "sync":
        values["worker_class"] = "gthread"
        origins["worker_class"] = f"threads = {values['threads']}"
    if not values["bind"]:
        raise InvalidValue("bind", "give at least one address", origins["bind"])
    settings = Settings(**values)
    _check_tls(settings, origins)
    hooks = {name: file.origin(name) for name in file.hooks} if file else {}
    return Loaded(settings, origins, without_effect, warnings, hooks)


def _parsed(row: Setting, given: _RawValue) -> Any:
    try:
        return row.kind.parse(given.value)
    except ValueError as error:
        if given.value is None:
            return row.default  # in files None means that nothing is set
        raise InvalidValue(row.name, str(error), given.origin) from None
    except Exception as error:  # noqa: BLE001 - an object of the file's own, whose methods fail
        problem = f"{shown(given.value)} can't be read ({name_of(error)})"
        raise InvalidValue(row.name, problem, given.origin) from None


def _other_names(sources: _Sources, values: dict[str, Any], origins: dict[str, str]) -> dict[str, str]:
    """Put values under names that only gunicorn has into `values`; returns those without effect, as text."""
    given = {name: found for name in ignored.IGNORED if (found := sources.of(name)) is not None}
    name = sources.of("default_proc_name")
    if name is not None and values["proc_name"] is None:
        values["proc_name"] = _parsed(rows()["proc_name"], name)
        origins["proc_name"] = f"default_proc_name, {name.origin}"
    version = given.get("ssl_version")
    if version is not None and (least := _least_tls(version.value)) is not None:
        del given["ssl_version"]
        if origins["ssl_minimum_version"] == "default":
            values["ssl_minimum_version"] = least
            origins["ssl_minimum_version"] = f"ssl_version, {version.origin}"
    places = {name: found.origin for name, found in given.items()}
    without_effect = ignored.find({name: found.value for name, found in given.items()}, places)
    origins.update({name: places[name] for name in without_effect})
    return without_effect


def _least_tls(value: Any) -> str | None:
    """The oldest version that an `ssl_version` allows, if that is one we speak."""
    try:
        if str(value).strip().lower() in _PROTOCOL_TLS_1_2:
            return "TLSv1.2"
        least: str = TLS_VERSION.parse(value)
    except Exception:  # noqa: BLE001 - no version, or an object of the file's own
        return None
    return least


def _check_tls(settings: Settings, origins: Mapping[str, str]) -> None:
    """Refuse settings that have no effect without another one: users would rely on them."""
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
    raise InvalidValue(name, problem, origins[name])
