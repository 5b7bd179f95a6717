"""Settings of the PasteDeploy file that a configuration names (`paste`)."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ostler.errors import SettingError
from ostler.osapi import trust
from ostler.osapi.account import files_as, find_account
from ostler.osapi.cpus import usable_cpus
from ostler.settings.configfile import ConfigFile
from ostler.settings.confine import confine
from ostler.settings.load import Loaded, load
from ostler.settings.pastefile import file_name, with_paste

_RIGHTS = ("user", "group", "initgroups")


def read_paste(
    loaded: Loaded,
    given: Mapping[str, Any],
    variables: Mapping[str, str],
    file: ConfigFile | None,
    folder: Path,
    warnings: list[str],
) -> tuple[Loaded, ConfigFile]:
    """The settings with those of the file beneath them.

    If others than root can write it, it is read with the rights of the workers' account, and its settings are
    confined.

    Raises:
        SettingError: it can't be read or used.
    """
    settings = loaded.settings
    path = folder / (settings.chdir or "") / file_name(settings.paste or "")
    others = trust.writers(str(path)) if os.geteuid() == 0 else []
    account = find_account(settings.user, settings.group, settings.initgroups) if others else None
    with files_as(account) if account is not None else nullcontext():
        merged = with_paste(file, settings, folder, warnings)
    found = load(given, os.environ, merged, usable_cpus, variables)
    if not others:
        return found, merged
    for name in _RIGHTS:
        if name in merged.beneath:
            problem = f"{trust.shown(others)}; give it on the command line"
            raise SettingError(name, problem, merged.beneath[name])
    found, more = confine(found, lambda name: name not in merged.beneath, given, f"{trust.shown(others)}")
    warnings += more
    return found, merged
