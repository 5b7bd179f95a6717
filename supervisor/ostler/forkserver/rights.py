"""With which rights the app runs, and on which terminal: `user`, `group`, `initgroups`, `umask`, `daemon`.

The fork server gives up its rights once the configuration was evaluated and certificates were read, before
the app is imported (or even before the configuration: see `config_source`); workers inherit that. The
supervisor keeps its rights, so that it can bind ports, reopen logs, and start the next fork server.
"""

import os
import sys
from typing import Any

from ostler.errors import SettingError
from ostler.logs.opening import share_with
from ostler.logs.standard_streams import write_at_once
from ostler.osapi.account import Account, become, has_account
from ostler.osapi.login import leave_login
from ostler.osapi.process import silence
from ostler.settings.table import Settings


def set_umask(settings: Settings) -> None:
    """Set it unless it is 0, gunicorn's default, which is about sockets only: files that every user may write
    to are not wanted."""
    if umask := int(settings.umask, 8):
        os.umask(umask)


def become_account(account: Account, user: str | None, group: str | None, trial: bool = False) -> list[str]:
    """Exchange this process's rights for those of `account`; returns warnings.

    user, group: the settings that name it; trial: the configuration is only checked, perhaps by an account
    that has fewer rights than the one that will start it.

    Raises:
        SettingError: this process has no right to.
    """
    share_with(None)
    name = "group" if user is None else "user"
    try:
        if os.geteuid() == 0 and account.uid not in (None, 0):
            leave_login()
        become(account)
    except OSError as error:
        wanted = group if user is None else user
        if trial and isinstance(error, PermissionError):
            return [f"{name}: only root can become {wanted!r}; the rest was checked without"]
        problem = f"can't become {wanted!r} ({error.strerror or error}); that needs root's rights"
        raise SettingError(name, problem) from None
    _forget_temporary_folder()
    if account.uid not in (None, 0) and 0 in (os.getegid(), *os.getgroups()):
        return [f"{name}: the app is in root's group (0), which may be able to write what root executes"]
    if group is None and user is not None and not has_account(user):
        return [f"user: {user} has no account and so no group; it gets group {os.getegid()} (--group)"]
    return []


def _forget_temporary_folder() -> None:
    """Python finds the folder for temporary files once; this account may have no right to that one."""
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None and tempfile.tempdir and not os.access(tempfile.tempdir, os.W_OK | os.X_OK):
        tempfile.tempdir = None


def leave_terminal(settings: Settings) -> None:
    """Close standard descriptors as `daemon` demands; what is kept is written line by line."""
    kept = settings.enable_stdio_inheritance
    if kept:
        write_at_once()
    silence(outputs=not kept)
