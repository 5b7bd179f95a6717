"""What a child may say when. In there an app runs, which can write anything into its channel.

Each child is in a phase, and a table says which messages may come in it and what phase they lead to. What
depends on more than that is looked at by `check_worker`, `check_fork_server` and, for what names other
processes, by the shell.
"""

import enum
from typing import TYPE_CHECKING

import msgspec

from ostler.ipc import messages
from ostler.ipc.channel import BadMessage
from ostler.settings.load import Loaded
from ostler.settings.table import rows

if TYPE_CHECKING:
    from ostler.daemon.children.handles import ForkServerHandle, WorkerHandle


class Phase(enum.Enum):
    """The first four are a worker's, the next five a fork server's; both can fail."""

    UNKNOWN = "not forked yet"
    BOOTING = "booting"
    SERVING = "serving"
    LEFT = "a zygote that is not in use yet"
    CONFIGURING = "reading the configuration"
    DECIDED = "reading the configuration that it has decided on"
    CONFIGURED = "configured"
    LOADING = "loading the app"
    FORKING = "forking"
    FAILED = "failed"


_Table = dict[Phase, dict[type, Phase]]

WORKER: _Table = {
    # It waits for `Boot`. A signal that all processes of the daemon got may be what ends it.
    Phase.UNKNOWN: {messages.Signalled: Phase.UNKNOWN},
    Phase.BOOTING: {
        messages.Ready: Phase.SERVING,
        messages.BootFailed: Phase.FAILED,
        messages.Signalled: Phase.BOOTING,
        messages.RecycleDue: Phase.BOOTING,
        messages.Watch: Phase.BOOTING,
        messages.AppBroken: Phase.BOOTING,
    },
    Phase.SERVING: {
        messages.Signalled: Phase.SERVING,
        messages.RecycleDue: Phase.SERVING,
        messages.ZygoteAudited: Phase.SERVING,
        messages.ZygoteReady: Phase.LEFT,
        messages.Watch: Phase.SERVING,
        messages.AppBroken: Phase.SERVING,
    },
    Phase.LEFT: {},
    Phase.FAILED: {messages.Signalled: Phase.FAILED, messages.Watch: Phase.FAILED},
}
FORK_SERVER: _Table = {
    Phase.CONFIGURING: {
        messages.Decided: Phase.DECIDED,
        # After an upgrade in place the program before us may have read `Decided`.
        messages.Configured: Phase.CONFIGURED,
        messages.LoadFailed: Phase.FAILED,
    },
    Phase.DECIDED: {messages.Configured: Phase.CONFIGURED, messages.LoadFailed: Phase.FAILED},
    Phase.CONFIGURED: {messages.Watch: Phase.CONFIGURED},
    Phase.LOADING: {
        messages.AppLoaded: Phase.FORKING,
        messages.LoadFailed: Phase.FAILED,
        messages.Watch: Phase.LOADING,
        messages.AppBroken: Phase.LOADING,
    },
    Phase.FORKING: {
        messages.Forked: Phase.FORKING,
        messages.ForkFailed: Phase.FORKING,
        messages.HookBegun: Phase.FORKING,
        messages.HookDone: Phase.FORKING,
        messages.LogTaken: Phase.FORKING,
        messages.Watch: Phase.FORKING,
        messages.AppBroken: Phase.FORKING,
    },
    Phase.FAILED: {},
}


def check_worker(handle: "WorkerHandle", message: messages.FromWorker, loaded: Loaded | None) -> None:
    """Raises BadMessage if a worker may not say that now, else takes note. `loaded`: of its generation."""
    phase = _next(WORKER, handle.phase, message)
    if isinstance(message, messages.ZygoteAudited):
        if not handle.audits:
            raise BadMessage("ZygoteAudited without having been asked")
        handle.audits -= 1
    elif isinstance(message, messages.ZygoteReady):
        if not handle.zygote_asked:
            raise BadMessage("ZygoteReady without having been asked")
    elif isinstance(message, messages.Watch | messages.AppBroken):
        _check_reload(message, loaded)
    handle.phase = phase


def check_fork_server(
    handle: "ForkServerHandle", message: messages.FromForkServer, loaded: Loaded | None
) -> None:
    """The same of a fork server."""
    phase = _next(FORK_SERVER, handle.phase, message)
    if isinstance(message, messages.HookBegun):
        if handle.begun or not handle.due:
            raise BadMessage("HookBegun, but no hook is due")
    elif isinstance(message, messages.HookDone):
        if not handle.due or handle.due[0].name != message.name:
            raise BadMessage(f"HookDone of {message.name!a}, which is not the next that is due")
    elif isinstance(message, messages.Configured):
        _check_settings(message.loaded)
    elif isinstance(message, messages.Watch | messages.AppBroken):
        _check_reload(message, loaded)
    handle.phase = phase


def _next(table: _Table, phase: Phase, message: object) -> Phase:
    kind = type(message)
    if kind not in table[phase]:
        raise BadMessage(f"{kind.__name__} while it is {phase.value}")
    return table[phase][kind]


def _check_reload(message: object, loaded: Loaded | None) -> None:
    # Without settings the generation has failed before its files counted.
    if loaded is not None and not loaded.settings.reload:
        raise BadMessage(f"{type(message).__name__} without --reload")


def _check_settings(loaded: Loaded) -> None:
    """The values must be such as come out of our own loading of settings."""
    for name, row in rows().items():
        try:
            row.kind.parse(msgspec.to_builtins(getattr(loaded.settings, name)))
        except ValueError as error:
            raise BadMessage(f"settings that can't be: {name}: {ascii(str(error))[1:-1][:200]}") from None
