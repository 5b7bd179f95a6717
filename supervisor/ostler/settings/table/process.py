"""The processes: accounts, names, the pid file, the terminal."""

from typing import Annotated

from ostler.settings.kinds import permissions, texts
from ostler.settings.table.app import AppRows
from ostler.settings.table.row import RESTART, Setting


class ProcessRows(AppRows, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    user: Annotated[
        str | None,
        Setting(
            permissions.ACCOUNT,
            "User that workers and fork server run as (name or number); the supervisor keeps its own.",
            flags=("-u", "--user"),
            takes_effect=RESTART,
        ),
    ] = None
    group: Annotated[
        str | None,
        Setting(
            permissions.ACCOUNT,
            "Group that they run as; by default the user's.",
            flags=("-g", "--group"),
            takes_effect=RESTART,
        ),
    ] = None
    initgroups: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Give workers all groups that the user is in.",
            flags=("--initgroups",),
            takes_effect=RESTART,
        ),
    ] = False
    umask: Annotated[
        str,
        Setting(
            permissions.UMASK,
            "Umask of fork server, workers and Unix sockets: octal if it begins with 0, as in 022, else "
            "decimal. 0 leaves it as it is, but for sockets.",
            flags=("-m", "--umask"),
        ),
    ] = "0000"
    proc_name: Annotated[
        str | None,
        Setting(
            texts.OPTIONAL_TEXT,
            "Name of this instance, for process titles and the control socket; by default the app's.",
            flags=("-n", "--name"),
            takes_effect=RESTART,
        ),
    ] = None
    pidfile: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "Write the supervisor's pid to this file.",
            flags=("-p", "--pid"),
            takes_effect=RESTART,
        ),
    ] = None
    daemon: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Detach from the terminal once it serves; if it can't start, the exit code is not 0.",
            flags=("-D", "--daemon"),
            takes_effect=RESTART,
        ),
    ] = False
    enable_stdio_inheritance: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "With --daemon: keep standard output and error, and write without buffering.",
            flags=("-R", "--enable-stdio-inheritance"),
            takes_effect=RESTART,
        ),
    ] = False
