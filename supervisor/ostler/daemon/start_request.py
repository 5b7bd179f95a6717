"""How the daemon was asked to start."""

from dataclasses import dataclass, field
from typing import Any

from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.process.detach import LauncherLink
from ostler.daemon.process.fork_server_process import ForkServerProcess


@dataclass(frozen=True, slots=True)
class StartRequest:
    """How the daemon was asked to start.

    command_line: raw settings given on the command line; config: the configuration file asked for, or None
    for the usual places; folder: the working folder; variables and remarks: see `messages.Configure`;
    detached: as a daemon, if the settings say so; command: how it was typed, if it can be followed again;
    first: the process of the first fork server, if it was started already.
    """

    command_line: dict[str, Any] = field(default_factory=dict)
    config: str | None = None
    folder: str = "."
    variables: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    detached: bool = field(default=False, kw_only=True)
    command: TypedCommand | None = field(default=None, kw_only=True)
    first: ForkServerProcess | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class RunRequest(StartRequest):
    """More on how the daemon was asked to start.

    demo: print where the demo app and the dashboard are; any_control_port: if the one in `control_bind` is
    taken, any other will do; launcher: the process that waits until the daemon serves; stay: why the daemon
    does not detach whatever the settings say.
    """

    demo: bool = False
    any_control_port: bool = False
    launcher: LauncherLink | None = None
    stay: str | None = None
