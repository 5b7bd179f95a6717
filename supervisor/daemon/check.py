"""`--check-config` and `--print-config`: asks a fork server, as the daemon would, and serves nothing."""

import os
import socket
import sys
from importlib import import_module
from typing import Any

from supervisor.daemon import upgrade
from supervisor.daemon.children import ForkServerHandle
from supervisor.errors import BootError, ExitCode, OstlerError
from supervisor.ipc import messages
from supervisor.logs.setup import get_logger, set_up
from supervisor.scoreboard import memory
from supervisor.settings.render import print_config


def check(
    command_line: dict[str, Any], config: str | None, folder: str, *, show: bool, load_app: bool
) -> int:
    """Evaluate the configuration, print it if `show`, load the app if `load_app`; returns the exit code.

    Raises:
        OstlerError: something can't be used.
    """
    set_up("-", "auto", "info")
    if upgrade.check_readable():
        # Configuration and app don't need the control plane and its libraries, but the new program does.
        import_module("supervisor.daemon.main")
    server = ForkServerHandle.start(0)
    server.channel.set_blocking(True)
    try:
        if load_app:
            command_line = {**command_line, "preload_app": True}
        server.channel.send(
            messages.Configure(messages.VERSION, 0, command_line, config, folder, cause="check")
        )
        configured = _receive(server)
        assert isinstance(configured, messages.Configured)
        for warning in configured.warnings:
            get_logger().warning("configuration", problem=warning)
        if show:
            print(print_config(configured.loaded))
        if load_app:
            board = memory.create()
            giving, taking = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with giving, taking:
                descriptors = [board, giving.fileno(), taking.fileno()]
                server.channel.send(messages.Load([], "check"), descriptors)
            os.close(board)
            _receive(server, BootError)
    finally:
        server.close()
        os.waitpid(server.pid, 0)
    return ExitCode.OK


def _receive(server: ForkServerHandle, failure: type[OstlerError] = OstlerError) -> messages.FromForkServer:
    received = server.channel.receive()
    if received is None:
        raise BootError("the fork server ended while it loaded the configuration or the app")
    message = received[0]
    if isinstance(message, messages.LoadFailed):
        if message.traceback:
            print(message.traceback, file=sys.stderr)
        raise failure(message.reason)
    return message
