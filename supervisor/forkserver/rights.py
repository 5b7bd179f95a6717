"""With which rights the app runs, and on which terminal: `user`, `group`, `initgroups`, `umask`, `daemon`.

The fork server gives up what it has once the configuration was evaluated and certificates were read, before
the app is imported; workers inherit that. The supervisor keeps its rights, so that it can bind ports, make
logs anew, and start the next fork server.
"""

import os

from supervisor.errors import SettingError
from supervisor.logs.opening import share_with
from supervisor.logs.streams import write_at_once
from supervisor.osapi.account import Account, become
from supervisor.osapi.process import silence
from supervisor.settings.table import Settings


def take_rights(settings: Settings, account: Account | None, trial: bool = False) -> list[str]:
    """Become `account`, if it is not None, and set the umask; returns what to warn of.

    trial: the configuration is only checked, perhaps by somebody who may do less than who will start it.

    Raises:
        SettingError: we may not.
    """
    # 0 is gunicorn's default, which there is about sockets alone: files that everybody may write to are
    # nobody's wish.
    if umask := int(settings.umask, 8):
        os.umask(umask)
    if account is None:
        return []
    share_with(None)
    name = "group" if settings.user is None else "user"
    try:
        become(account)
    except OSError as error:
        wanted = settings.group if settings.user is None else settings.user
        if trial and isinstance(error, PermissionError):
            return [f"{name}: only root can become {wanted!r}; the rest was checked without"]
        problem = f"can't become {wanted!r} ({error.strerror or error}); that needs root's rights"
        raise SettingError(name, problem) from None
    if account.gid is None and settings.user is not None:
        return [f"user: {settings.user} has no account and so no group; it stays in group {os.getegid()}"]
    return []


def leave_terminal(settings: Settings) -> None:
    """Let go of standard descriptors as `daemon` says; what is kept is written line by line."""
    kept = settings.enable_stdio_inheritance
    if kept:
        write_at_once()
    silence(outputs=not kept)
