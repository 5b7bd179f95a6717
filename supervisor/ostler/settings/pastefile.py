"""Settings in a PasteDeploy file (`paste`).

As with gunicorn the file is there for the app. Its `[loggers]` are our `logconfig` unless another is given.
Its `[server:main]` counts if it is meant for us (`use = egg:ostler#main`); what is meant for another server
does not, as with `gunicorn --paste`.
"""

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ostler.errors import SettingError
from ostler.osapi.files import read_file
from ostler.settings.configfile import ConfigFile
from ostler.settings.table import Settings, rows

_SERVER = "server:main"
_OURS = ("egg:ostler", "egg:ostler#main")
_LOGGING = ("logconfig", "logconfig_dict", "logconfig_json")


@dataclass(frozen=True, slots=True)
class WithPaste(ConfigFile):
    """A configuration file, and below it the settings of a PasteDeploy file.

    Args:
        beneath: where each of the latter comes from, by setting.
    """

    beneath: Mapping[str, str] = field(default_factory=dict)

    def origin(self, setting: str) -> str:
        return self.beneath.get(setting) or ConfigFile.origin(self, setting)


def global_conf(settings: Settings) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in settings.raw_paste_global_conf)
    return {name: value for name, _, value in pairs}


def file_name(spec: str) -> str:
    """The file that `paste` names: without `config:`, and without the app's name."""
    return spec.removeprefix("config:").partition("#")[0]


def bind_to_host(section: dict[str, str]) -> None:
    """Turn a server's `host` and `port` into `bind`, unless that is there as well."""
    host, port = section.pop("host", ""), section.pop("port", "")
    if (host or port) and "bind" not in section:
        section["bind"] = f"{f'[{host}]' if ':' in host else host or '127.0.0.1'}:{port or 8000}"


def with_paste(file: ConfigFile | None, settings: Settings, folder: Path, warnings: list[str]) -> WithPaste:
    """The configuration file, with settings of the PasteDeploy file below it.

    Args:
        settings: as they are without it.
        folder: relative paths count from it, unless `chdir` is set.
        warnings: warnings are appended to it.

    Raises:
        SettingError: PasteDeploy is missing, or the file can't be read.
    """
    if find_spec("paste") is None or find_spec("paste.deploy") is None:
        raise SettingError("paste", "needs PasteDeploy; install ostler[paste]")
    shown = file_name(settings.paste or "")
    path = (folder / (settings.chdir or "") / shown).absolute()
    parser = _parsed(path, shown, settings)
    values: dict[str, object] = {}
    beneath: dict[str, str] = {}
    if parser.has_section("loggers") and not any(getattr(settings, name) for name in _LOGGING):
        values["logconfig"], beneath["logconfig"] = str(path), f"{shown} [loggers]"
    try:
        section = _section(parser)
    except configparser.InterpolationError as error:
        raise SettingError("paste", f"{shown} [{_SERVER}]: {' '.join(str(error).split())}") from None
    use = section.pop("use", "")
    if use in _OURS:
        bind_to_host(section)
        known = {name: value for name, value in section.items() if name in rows()}
        values |= known
        beneath |= dict.fromkeys(known, f"{shown} [{_SERVER}]")
        if unknown := sorted(section.keys() - known.keys()):
            warnings.append(f"{shown} [{_SERVER}]: unknown and without effect: {', '.join(unknown)}")
    elif section:
        meant = f"is meant for {use}" if use else "does not name the server that it is meant for"
        warnings.append(
            f"{shown} [{_SERVER}]: without effect, because it {meant}; use = egg:ostler#main makes it count"
        )
    if file is None:
        return WithPaste(shown, values, beneath=beneath)
    mine = {name: origin for name, origin in beneath.items() if name not in file.values}
    return WithPaste(
        file.name, {**values, **file.values}, file.lines, file.hooks, helpers=file.helpers, beneath=mine
    )


def _parsed(path: Path, shown: str, settings: Settings) -> configparser.ConfigParser:
    variables = {"here": str(path.parent), "__file__": str(path), **global_conf(settings)}
    parser = configparser.ConfigParser(
        {name: value.replace("%", "%%") for name, value in variables.items()}, strict=False
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(read_file(path).decode("utf-8"), str(path))
    except OSError as error:
        raise SettingError("paste", f"can't read {shown!r}: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise SettingError("paste", f"{shown}: {' '.join(str(error).split())}") from None
    return parser


def _section(parser: configparser.ConfigParser) -> dict[str, str]:
    """The server's keys, without those that it only has from [DEFAULT]."""
    if not parser.has_section(_SERVER):
        return {}
    inherited = parser.defaults()
    return {
        name: parser.get(_SERVER, name)
        for name, raw in parser.items(_SERVER, raw=True)
        if raw != inherited.get(name)
    }
