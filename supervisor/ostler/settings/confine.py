"""Settings from files that other accounts than root can write: root must do nothing with them that the writer
may not do.

Such a file, and the process that evaluated it and so has run its code, are not trusted by the supervisor:

- settings of the control plane, and Unix sockets to log to, have no effect: they belong to the administrator;
- files and Unix sockets that it names are opened with the rights of the workers' account (`Loaded.confined`),
  and variables that it sets are set when root's rights are given up: some control libraries (OPENSSL_CONF);
- descriptors of the supervisor can't be used (`bind = "fd://3"`).

Values of the command line are read from the command line itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import structs

from ostler.errors import SettingError
from ostler.settings.load import COMMAND_LINE, Loaded
from ostler.settings.table import rows

ADMINISTRATORS = (
    "control_socket",
    "control_socket_disable",
    "control_socket_mode",
    "control_bind",
    "control_token_file",
    "agent_check",
)
# Paths that the supervisor, or a fork server with its rights, uses; and variables, which control libraries.
OPENED = (
    *("chdir", "bind", "pidfile", "errorlog", "accesslog"),
    *("certfile", "keyfile", "ca_certs", "raw_env", "env_file"),
)
# These too, if they are Unix sockets.
_PLACES = ("syslog_addr", "statsd_host")
# Its type is checked when it is decoded, so it is not parsed again.
_TYPED = "warmup_request"
_NO_DESCRIPTORS = "a file that others can write must not name descriptors; give them on the command line"


def confine(
    loaded: Loaded, trusted: Callable[[str], bool], command_line: Mapping[str, Any], why: str
) -> tuple[Loaded, list[str]]:
    """The settings without what is not trusted, and warnings.

    Args:
        trusted: whether a setting, by name, is from where only root can write.
        command_line: raw values by name; they count in any case.
        why: the reason why others have no effect, for the log.

    Raises:
        SettingError: a value can't be used at all.
    """
    table = rows()
    origins = dict(loaded.origins)
    changes: dict[str, Any] = {}
    warnings = []
    for name, row in table.items():
        value = getattr(loaded.settings, name)
        origin = origins.get(name, "?")
        if name in command_line:
            changes[name] = row.kind.parse(command_line[name])
            origins.setdefault(name, COMMAND_LINE)
        elif trusted(name):
            continue
        elif value != row.default and (
            name in ADMINISTRATORS or (name in _PLACES and str(value).startswith("unix:"))
        ):
            changes[name], origins[name] = row.default, "default"
            warnings.append(f"{name} ({origin}): without effect, because {why}; give it on the command line")
        elif value != row.default and name != _TYPED:
            try:
                changes[name] = row.kind.parse(value)  # only its type was checked so far
            except ValueError as error:
                raise SettingError(name, str(error), origin) from None
    settings = structs.replace(loaded.settings, **changes)
    given = [name for name in OPENED if name not in command_line and not trusted(name)]
    if "bind" in given and any(address.startswith("fd://") for address in settings.bind):
        raise SettingError("bind", _NO_DESCRIPTORS, origins.get("bind", ""))
    if "chdir" in given and settings.chdir is not None:
        given = list(OPENED)  # relative paths count from a folder that the file has chosen
    return structs.replace(loaded, settings=settings, origins=origins, confined=given), warnings
