"""With whose rights the supervisor and a fork server open what the settings name.

A fork server gives up root's rights later, in `forkserver/preparation.py` (`_give_up_rights`).
"""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ostler.osapi import trust
from ostler.osapi.account import Account, files_as, find_account
from ostler.settings.load import Loaded


def account_for(loaded: Loaded, setting: str) -> Account | None:
    """The account with whose rights the file that a setting names is reached; None: with our own."""
    return _workers_account(loaded) if setting in loaded.confined else None


def account_for_pidfile(loaded: Loaded) -> Account | None:
    """As `account_for`; also if others than root decide where its folder is, which may be a link.

    In a folder of others that root alone can put there, root makes its own file.
    """
    settings = loaded.settings
    if settings.pidfile is None or os.geteuid() != 0 or "pidfile" in loaded.confined:
        return account_for(loaded, "pidfile")
    folder = Path(settings.pidfile).absolute().parent
    place = folder.resolve()
    others = [writer for writer in trust.writers(str(folder)) if Path(writer.path) != place]
    if not others and not (trust.writers(str(place)) and trust.writers(str(place.parent))):
        return None
    return _workers_account(loaded)


def _workers_account(loaded: Loaded) -> Account | None:
    settings = loaded.settings
    return find_account(settings.user, settings.group, settings.initgroups)


def others_logs(loaded: Loaded) -> list[str]:
    """Paths of logs that root does not make where the workers' account can't: others have named them."""
    logs = {name: getattr(loaded.settings, name) for name in ("errorlog", "accesslog")}
    return [path for name, path in logs.items() if path and name in loaded.confined]


def rights_for(loaded: Loaded, setting: str) -> AbstractContextManager[None]:
    """To reach it in. For the time it takes no other file is to be reached, and nothing awaited."""
    account = account_for(loaded, setting)
    return nullcontext() if account is None else files_as(account)
