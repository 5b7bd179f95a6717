"""`use = egg:ostler#main` in the `[server:main]` of a PasteDeploy file, for pserve and other commands.

Such a command has already loaded the app. The supervisor never runs user code, so this process executes
`ostler --paste` instead, whose fork server loads the app again.
"""

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from ostler.cli.main import fail
from ostler.errors import SettingError
from ostler.settings.pastefile import bind_to_host
from ostler.settings.table import Setting, rows

_ALWAYS = ("here", "__file__")


def serve(app: object, global_conf: Mapping[str, str] | None, **settings: str) -> None:
    """Serve a PasteDeploy file's app; does not return.

    Args:
        app: made by the command; not used.
        global_conf: the file's variables, its own name among them.
        settings: the keys of the section but `use`.
    """
    del app
    try:
        argv = command(global_conf or {}, settings)
    except SettingError as error:
        fail(error)
    become(argv)


def become(argv: list[str]) -> NoReturn:
    sys.stdout.flush()
    # -P: a package `ostler` in the current folder is not ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "ostler", *argv])  # noqa: S606


def command(global_conf: Mapping[str, str], settings: Mapping[str, str]) -> list[str]:
    """The same as arguments of `ostler`.

    Raises:
        SettingError: the file is not named, or a setting has no flag.
    """
    file = global_conf.get("__file__")
    if not file:
        raise SettingError("paste", "the caller of egg:ostler#main must name the file (__file__)")
    argv = ["--paste", file]
    argv += [f"--paste-global={name}={value}" for name, value in global_conf.items() if name not in _ALWAYS]
    given = dict(settings)
    bind_to_host(given)
    config = given.pop("config", None)
    argv += [f"--config={config}"] if config else []
    for name, value in given.items():
        row = rows().get(name)
        if row is None or not row.flags:
            raise SettingError(name, "is no setting that [server:main] can have")
        if row.kind.metavar:
            argv.append(f"{row.flags[-1]}={value}")
        elif _parsed(row, value) != row.default:
            argv.append(row.flags[-1])
    return argv


def _parsed(row: Setting, value: str) -> object:
    try:
        return row.kind.parse(value)
    except ValueError as error:
        raise SettingError(row.name, str(error), "[server:main]") from None
