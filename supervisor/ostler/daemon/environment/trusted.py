"""Keeps root from starting an interpreter that more accounts can write than the one that runs already.

An account that can write a file which root executes can become root. If that is so for the interpreter or the
environment with which the daemon was started, there is a warning (`installation_warning`): the administrator
has chosen them. A reload or an upgrade may find others, because the app's user may own the link that leads to
them. These must not be writable by further accounts.
"""

import os
from collections.abc import Iterable

from ostler.daemon.environment.finding import Environment, pth_files
from ostler.errors import OstlerError
from ostler.osapi import imports, trust

_Account = tuple[int | None, int | None]


class KnownWriters:
    """The accounts that can write what root executes already.

    They are looked up once, at the start: the paths may lead elsewhere later, or nowhere.
    """

    def __init__(self) -> None:
        paths = imports.installation() if os.geteuid() == 0 else []
        self._accounts = {_account(writer) for path in paths for writer in trust.writers(path)}

    def refuse_others(self, paths: Iterable[str]) -> None:
        """Raises OstlerError if another account can write one of these paths, and we are root."""
        if os.geteuid() != 0 or (None, None) in self._accounts:
            return
        for path in paths:
            for writer in trust.writers(path):
                if _account(writer) not in self._accounts:
                    why = trust.shown([writer])
                    raise OstlerError(
                        f"root does not execute {path}, because {why}; let only root write it and its folders"
                    )


def interpreter_files(python: str, prefix: str) -> list[str]:
    """What an interpreter reads before it looks for installed packages."""
    base = os.path.realpath(python).rsplit("/", 2)[0]
    return [python, *_existing(f"{prefix}/pyvenv.cfg", f"{base}/lib")]


def executed_files(found: Environment, folders: Iterable[str]) -> list[str]:
    """What it executes before our own checks of imports begin (`imports.guard`). folders: of its packages."""
    files = [*folders, found.root]
    for folder in folders:
        files += _existing(f"{folder}/sitecustomize.py", *pth_files(folder))
    package = f"{found.root}/ostler"
    files += [f"{package}/__init__.py", f"{package}/osapi/imports.py", f"{package}/osapi/trust.py"]
    return files


def _existing(*paths: str) -> list[str]:
    return [path for path in paths if os.path.lexists(path)]


def _account(writer: trust.Writer) -> _Account:
    return writer.uid, writer.gid
