"""The control plane: its socket, its address, its token; what load balancers ask."""

from typing import Annotated

from ostler.settings.kinds import addresses, permissions, texts
from ostler.settings.table.logs import LogRows
from ostler.settings.table.row import RESTART, Setting


class ControlRows(LogRows, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    control_socket: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "Path of the control socket; by default NAME.sock in the runtime directory.",
            flags=("--control-socket",),
            takes_effect=RESTART,
        ),
    ] = None
    control_socket_disable: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Do not open a control socket.",
            flags=("--no-control-socket",),
            takes_effect=RESTART,
        ),
    ] = False
    control_socket_mode: Annotated[
        str,
        Setting(
            permissions.SOCKET_MODE,
            "Mode of the control socket in octal. Users that it admits may read and operate, the app's user "
            "may only read; administration is for the daemon's own user and root.",
            flags=("--control-socket-mode",),
            takes_effect=RESTART,
        ),
    ] = "0600"
    control_bind: Annotated[
        str | None,
        Setting(
            texts.OPTIONAL_TEXT,
            "Also serve the control API and the dashboard on this loopback address, e.g. 127.0.0.1:8001.",
            flags=("--control-bind",),
            takes_effect=RESTART,
            gunicorn=None,
        ),
    ] = None
    control_token_file: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "File with the bearer token for control_bind; by default a new token is written beside the "
            "control socket.",
            flags=("--control-token-file",),
            takes_effect=RESTART,
            gunicorn=None,
        ),
    ] = None
    agent_check: Annotated[
        str | None,
        Setting(
            addresses.OWN_ADDRESS,
            "Answer HAProxy's agent-check on this address, e.g. 127.0.0.1:9000: `drain` after ctl drain and "
            "SIGTERM, `down` without a ready worker, else `ready up`.",
            flags=("--agent-check",),
            takes_effect=RESTART,
            gunicorn=None,
        ),
    ] = None
