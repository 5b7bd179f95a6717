"""With whose rights the supervisor and a fork server open what the settings name."""

from contextlib import AbstractContextManager, nullcontext

from supervisor.osapi.account import Account, files_as, find_account
from supervisor.settings.load import Loaded


def account_for(loaded: Loaded, setting: str) -> Account | None:
    """The account with whose rights the file that a setting names is reached; None: with our own."""
    if setting not in loaded.confined:
        return None
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
