"""Evaluating the configuration, and what root does before its rights are given up."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from ostler.errors import InvalidValue
from ostler.forkserver.config_source import (
    Decision,
    override,
)
from ostler.ipc import messages
from ostler.logs.access import renderer
from ostler.logs.access_format import unknown_atoms
from ostler.logs.opening import make_for_sharer, share_with
from ostler.osapi import imports, trust
from ostler.osapi.account import Account
from ostler.osapi.cpus import usable_cpus
from ostler.osapi.files import read_file
from ostler.osapi.memfile import memory_file
from ostler.settings import configfile
from ostler.settings.classes import canonical
from ostler.settings.load import Loaded, load


def read_configuration(
    ask: messages.Configure, folder: Path, decision: Decision, before: Callable[[str], object]
) -> tuple[Loaded, list[str], configfile.ConfigFile | None]:
    """The settings, warnings, and the configuration file.

    before: called with the name of the worker class before the file is evaluated, if that is known by then.

    With `ask.known` the file is evaluated only for what else it does: workers of a generation have one
    configuration, whatever was written into its file meanwhile.
    """
    warnings = list(ask.remarks)
    name = decision.config
    file = None
    # As in gunicorn, a configuration file may import what is in its folder.
    beside = name is not None and imports.may_come_from(str(folder))
    if beside:
        sys.path.insert(0, str(folder))
    imports.offer_stand_ins()
    if (kind := _worker_class(ask, folder, decision)) is not None:
        before(kind)
    if name is not None and not decision.skipped:
        if (path := configfile.path_of(name, folder)) is not None:
            os.environ[configfile.FILE_VARIABLE] = str(path)
        file = configfile.evaluate(name, folder, decision.source)
        if file.unrecognised:
            warnings.append(f"{file.name}: no settings, and without effect: {'; '.join(file.unrecognised)}")
    if ask.known is not None:
        return ask.known, [], file
    given, variables = override(ask, decision)
    loaded = load(given, os.environ, file, usable_cpus, variables)
    if loaded.settings.paste:
        # Imported only if it is used: few have such a file.
        from ostler.forkserver.paste_settings import read_paste

        loaded, file = read_paste(loaded, given, variables, file, folder, warnings)
    elif not loaded.settings.wsgi_app:
        raise InvalidValue("wsgi_app", "no app given; write ostler MODULE:APP, or try ostler --demo")
    warnings += loaded.warnings
    if loaded.settings.spew:
        warnings.append(
            "spew: each line that the app runs is logged, which is slow; use it for debugging only"
        )
    try:
        renderer(loaded.settings.access_log_format)
    except InvalidValue as error:
        where = loaded.origins["access_log_format"]
        raise InvalidValue(error.setting, error.problem, where) from None
    if unknown := unknown_atoms(loaded.settings.access_log_format):
        warnings.append(f"access_log_format: there is no {', '.join(unknown)}; it is always -")
    return msgspec.structs.replace(loaded, config=name), warnings, file


def _worker_class(ask: messages.Configure, folder: Path, decision: Decision) -> str | None:
    """The name of the worker class, if it is known before the file is evaluated."""
    given = ask.command_line.get("worker_class")
    if given is None and decision.config is not None and not decision.skipped:
        given = configfile.literal(decision.config, folder, "worker_class", decision.source)
    try:
        return canonical(given) if given is not None else None
    except ValueError:
        return None  # an error that is reported when the settings are parsed


def others_name_certificates(loaded: Loaded) -> bool:
    """Whether others than root have named one of these files, or can write it."""
    paths = {name: getattr(loaded.settings, name) for name in ("certfile", "keyfile", "ca_certs")}
    named = {name: path for name, path in paths.items() if path}
    return os.geteuid() == 0 and any(
        name in loaded.confined or trust.writers(path) for name, path in named.items()
    )


def make_logs(ask: messages.Configure, folder: Path, account: Account) -> None:
    """Make logs that the command line names where only root can: later this process has no right to."""
    share_with(account)
    for name in ("errorlog", "accesslog"):
        path = ask.command_line.get(name)
        if isinstance(path, str) and path != "-":
            make_for_sharer(str(folder / (ask.command_line.get("chdir") or "") / path))


def copy_certificates(ask: messages.Configure, account: Account) -> dict[str, int]:
    """Copies, in memory, of the files with certificates and keys that only root can read and write.

    The command line names them; the configuration, which decides how they are used, is evaluated when this
    process has no right to read them any more. By their paths; what can't be read is reported when it is
    used.
    """
    copies: dict[str, int] = {}
    for name in ("certfile", "keyfile", "ca_certs"):
        path = ask.command_line.get(name)
        # A relative one counts from a folder that the configuration may choose.
        if not isinstance(path, str) or not path.startswith("/") or path in copies or trust.writers(path):
            continue
        with suppress(OSError):
            content = read_file(path)
            fd = memory_file("ostler-certificate")
            copies[path] = fd
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(content)
            os.fchown(fd, -1 if account.uid is None else account.uid, -1)
    return copies
