"""Which file is the configuration, and with the rights of which account it is evaluated.

It is code, and root runs only code that root alone can write. A configuration that others can write, or a
folder on the path to it, is evaluated after this process has given up its rights:

- with the rights of the account that the command line names (`--user`), if it names one;
- else with those of the account that can write it, if that is only one; the workers run as it, too;
- else it is refused: several accounts can write it, and none of them is to get another one's rights.

The settings `user` and `group` in such a file come too late, and are refused if they are something else. With
`--user root` the administrator allows that all of it runs as root.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from ostler.errors import ConfigFileError, SettingError
from ostler.ipc import messages
from ostler.osapi import imports, trust
from ostler.osapi.account import Account, find_account
from ostler.osapi.files import read_opened
from ostler.settings import configfile
from ostler.settings.configfile import ConfigFile
from ostler.settings.load import COMMAND_LINE
from ostler.settings.table import rows


class Decision(NamedTuple):
    """What is to be evaluated, and how.

    Attributes:
        config: as in `messages.Configure`; None if there is none.
        source: the file's content, if it was read with this process's own rights; None if it is read later.
        user, group, initgroups: these settings, if others can write the file.
        account: the account whose rights this process takes before the file is evaluated.
        warnings: for the log.
        skipped: it is not evaluated: a file that was evaluated with root's rights can be written by others
        now.
    """

    config: str | None
    source: bytes | None = None
    user: str | None = None
    group: str | None = None
    initgroups: bool = False
    account: Account | None = None
    warnings: tuple[str, ...] = ()
    skipped: bool = False


def decide(ask: messages.Configure, folder: Path) -> Decision:
    """Find the configuration, unless that was done for this generation, and the accounts that can write it.

    Raises:
        ConfigFileError: it can't be read, or must not be evaluated.
        SettingError: there is no such user or group.
    """
    config = ask.known.config if ask.known is not None else configfile.find(ask.config, folder)
    if os.geteuid() != 0:
        return Decision(config)
    others, source = _writers(config, folder)
    if not others and ask.known is None:
        others = _paste_writers(ask, folder)
        if others:
            source = None
    if not others:
        return Decision(config, source)
    assert config is not None or ask.known is None
    return _with_fewer_rights(ask, config, others)


def _writers(config: str | None, folder: Path) -> tuple[list[trust.Writer], bytes | None]:
    """The others that can write the configuration, and its content, from the same file that was checked."""
    if config is None:
        return [], None
    path = configfile.path_of(config, folder)
    if path is None:
        spec = imports.top_level(config.removeprefix("python:"), str(folder))
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if spec is not None and spec.has_location and spec.origin is not None:
            places.append(spec.origin)
        return [other for place in places for other in imports.writers(place)], None
    try:
        found = trust.open_to_read(str(path))
        if found.writers:
            return found.writers, None
        try:
            return [], read_opened(found.fd, str(path))
        finally:
            os.close(found.fd)
    except OSError as error:
        raise configfile.cant_read(config, error) from None


def _paste_writers(ask: messages.Configure, folder: Path) -> list[trust.Writer]:
    """The same for the PasteDeploy file that the command line names, which has settings as well."""
    spec = ask.command_line.get("paste")
    if not spec:
        return []
    # Imported only if it is used: few have such a file.
    from ostler.settings.pastefile import file_name

    return trust.writers(str(folder / (ask.command_line.get("chdir") or "") / file_name(str(spec))))


def _with_fewer_rights(ask: messages.Configure, config: str | None, others: list[trust.Writer]) -> Decision:
    name = (config or str(ask.command_line.get("paste"))).removeprefix("file:")
    why = trust.shown(others)
    given = ask.command_line
    if ask.known is not None:
        known = ask.known.settings
        user, group, initgroups = known.user, known.group, known.initgroups
    elif given.get("user") is not None:
        user, group = _text("user", given), _text("group", given)
        initgroups = bool(given.get("initgroups", False))
    else:
        user, group, initgroups = *_sole_writer(name, others, why), False
        group = _text("group", given) or group
    try:
        account = find_account(user, group, initgroups)
    except SettingError as error:
        where = ask.variables.get(error.setting, COMMAND_LINE)
        raise SettingError(error.setting, error.problem, where) from None
    if account is None or account.uid in (None, 0):
        if ask.known is not None:
            text = f"config: {name} is not evaluated again, and its hooks are without effect: {why}"
            return Decision(config, None, user, group, initgroups, warnings=(text,), skipped=True)
        text = f"config: {name} is evaluated with root's rights, as user says, though {why}"
        return Decision(config, None, user, group, initgroups, warnings=(text,))
    text = f"config: {name} is evaluated with the rights of {user!r}, not of root, because {why}"
    if given.get("user") is None:
        text += f"; the app runs as {user!r}, too (--user says otherwise)"
    return Decision(config, None, user, group, initgroups, account, () if ask.known is not None else (text,))


def _sole_writer(name: str, others: list[trust.Writer], why: str) -> tuple[str, str | None]:
    found = trust.sole(others)
    if found is None:
        raise ConfigFileError(
            f"config: root does not evaluate {name}, because {why}; let only root write it and its folders, "
            "or say with --user whose rights it is to have (--user root: all of root's)"
        )
    uid, gid = found
    # Imported only if it is used.
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name, None
    except KeyError:
        return str(uid), str(gid)


def _text(setting: str, given: dict[str, Any]) -> str | None:
    value: str | None = rows()[setting].kind.parse(given[setting]) if setting in given else None
    return value


def refuse_other_account(decision: Decision, file: ConfigFile | None) -> None:
    """After the rights were given up: the file must not name another account.

    Raises:
        SettingError: it does.
    """
    if decision.account is None or file is None:
        return
    for name in ("user", "group"):
        wanted = file.values.get(name)
        if wanted is None:
            continue
        user, group = (str(wanted), None) if name == "user" else (None, str(wanted))
        account = find_account(user, group, initgroups=False)
        mine = decision.account
        same = account is None or (account.uid == mine.uid if name == "user" else account.gid == mine.gid)
        if not same:
            problem = (
                f"can't become {wanted!r}: others than root can write the file, so it was evaluated with the "
                f"rights of {decision.user!r}; give --{name} on the command line, or let only root write it"
            )
            raise SettingError(name, problem, file.origin(name))


def override(ask: messages.Configure, decision: Decision) -> tuple[dict[str, Any], dict[str, str]]:
    """The command line, and where its values are from, with the account that was decided on."""
    values, variables = dict(ask.command_line), dict(ask.variables)
    if decision.account is not None:
        for name, value in (
            ("user", decision.user),
            ("group", decision.group),
            ("initgroups", decision.initgroups or None),
        ):
            if value is not None and name not in values:
                values[name], variables[name] = value, "the account that can write the configuration"
    return values, variables


def installation_warning(account: Account) -> list[str]:
    """A warning if the account that the app runs as can write what root executes."""
    for path in imports.installation():
        for other in trust.writers(path):
            groups = {account.gid, *(account.groups or ())}
            every_user = other.uid is None and other.gid is None
            if every_user or other.uid == account.uid or (other.gid is not None and other.gid in groups):
                problem = f"{trust.shown([other])}, which root executes: the app can become root"
                return [f"user: {problem}; let only root write Python, its environment and Ostler"]
    if paths := imports.withheld():
        problem = f"{trust.shown(trust.writers(paths[0]))}, and Python looks there before Ostler begins"
        return [f"PYTHONPATH: {problem}; do not give it to root"]
    return []


def folder_warning() -> list[str]:
    """A warning if the app runs as root, and others can write the current folder."""
    if os.geteuid() != 0 or not (others := trust.writers(os.getcwd())):  # noqa: PTH109
        return []
    return [f"user: the app runs as root, though {trust.shown(others)}; --user gives it fewer rights"]
