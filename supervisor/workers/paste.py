"""PasteDeploy files (`paste`): the app, its variables, and what else such a file says about a server.

As with gunicorn the file is there for the app. Its `[loggers]` are our `logconfig` unless another is given.
Its `[server:main]` counts if it is meant for us (`use = egg:ostler#main`); what is meant for another server
does not, as with `gunicorn --paste`.
"""

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from supervisor.errors import SettingError
from supervisor.settings.configfile import ConfigFile
from supervisor.settings.table import Settings, rows
from supervisor.workers.loader import AppLoadError, raised
from supervisor.wsgi.exchange import App, QuitWorker

_SERVER = "server:main"
_OURS = ("egg:ostler", "egg:ostler#main")
_LOGGING = ("logconfig", "logconfig_dict", "logconfig_json")


@dataclass(frozen=True, slots=True)
class WithPaste(ConfigFile):
    """A configuration file, and beneath it what a PasteDeploy file sets.

    Args:
        beneath: where each of the latter comes from, by setting.
    """

    beneath: Mapping[str, str] = field(default_factory=dict)

    def origin(self, setting: str) -> str:
        return self.beneath.get(setting) or ConfigFile.origin(self, setting)


def load_paste(settings: Settings) -> App:
    """The app of the file that `paste` names.

    Raises:
        AppLoadError: with the traceback if it is the app's code, or the file's, that raised.
    """
    from paste.deploy import loadapp

    uri, _, name = (settings.paste or "").removeprefix("config:").partition("#")
    variables = global_conf(settings)
    try:
        app = loadapp(f"config:{uri}", name or None, relative_to=os.getcwd(), global_conf=variables)  # noqa: PTH109
    except QuitWorker:
        raise
    except BaseException as error:
        raise raised(settings.paste or "", error) from error
    if not callable(app):
        raise AppLoadError(f"paste: {settings.paste!r} makes no callable but {type(app).__name__}")
    return cast("App", app)


def global_conf(settings: Settings) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in settings.raw_paste_global_conf)
    return {name: value for name, _, value in pairs}


def with_paste(file: ConfigFile | None, settings: Settings, folder: Path, warnings: list[str]) -> ConfigFile:
    """What the PasteDeploy file says about the server, beneath what the configuration file says.

    Args:
        settings: as they are without it.
        folder: what its name counts from, unless `chdir` says another.
        warnings: takes what deserves one.

    Raises:
        SettingError: PasteDeploy is missing, or the file can't be read.
    """
    if find_spec("paste") is None or find_spec("paste.deploy") is None:
        raise SettingError("paste", "needs PasteDeploy; install ostler[paste]")
    shown = (settings.paste or "").removeprefix("config:").partition("#")[0]
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
        host, port = section.pop("host", ""), section.pop("port", "")
        if (host or port) and "bind" not in section:
            section["bind"] = f"{f'[{host}]' if ':' in host else host or '127.0.0.1'}:{port or 8000}"
        known = {name: value for name, value in section.items() if name in rows()}
        values |= known
        beneath |= dict.fromkeys(known, f"{shown} [{_SERVER}]")
        if unknown := sorted(section.keys() - known.keys()):
            warnings.append(f"{shown} [{_SERVER}]: unknown and without effect: {', '.join(unknown)}")
    elif section:
        meant = f"is meant for {use}" if use else "says not what server it is meant for"
        warnings.append(
            f"{shown} [{_SERVER}]: without effect, because it {meant}; use = egg:ostler#main makes it count"
        )
    if file is None:
        return WithPaste(shown, values, beneath=beneath)
    mine = {name: origin for name, origin in beneath.items() if name not in file.values}
    return WithPaste(
        file.name, {**values, **file.values}, file.lines, file.unsupported, file.hooks, beneath=mine
    )


def _parsed(path: Path, shown: str, settings: Settings) -> configparser.ConfigParser:
    variables = {"here": str(path.parent), "__file__": str(path), **global_conf(settings)}
    parser = configparser.ConfigParser(
        {name: value.replace("%", "%%") for name, value in variables.items()}, strict=False
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(path.read_text("utf-8"), str(path))
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
