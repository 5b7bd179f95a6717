"""Starts the process of the first fork server at once: it and the supervisor then import side by side.

Imported before most of the supervisor, so little is imported here.
"""

import os
from collections.abc import Mapping
from typing import Any

from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.environment.environments import Environments
from ostler.daemon.process.detach import is_wanted
from ostler.daemon.process.fork_server_process import ForkServerProcess
from ostler.daemon.successor import is_successor
from ostler.errors import OstlerError


def start_first(command_line: Mapping[str, Any], command: TypedCommand | None) -> ForkServerProcess | None:
    """The process of the first fork server; None if it has to be started later, or can't be.

    What prevents it is reported when it is tried again.

    Args:
        command_line: raw settings given on the command line.
        command: how the daemon was started.
    """
    # It has to be a child of the process that supervises, and must not inherit the service manager's sockets.
    if is_successor() or is_wanted(command_line) or os.environ.get("LISTEN_FDS"):
        return None
    environments = Environments(command)
    try:
        found = environments.find()
        variables = environments.variables(found)
        variables.pop("NOTIFY_SOCKET", None)  # for the supervisor only, which removes it as well
        return ForkServerProcess.start(found, variables)
    except (OSError, OstlerError):
        return None
