"""Which messages a child may send when. The app that runs in it can write anything into its channel.

Each child is in a phase. A table says which messages are legal in a phase, and which phase each leads to.
Checks that need more than the phase are in `check_worker`, `check_fork_server` and, for messages that name
other processes, in `WorkerManager`. The states of workers and generations in the fleet are separate from
these phases: see `fleet/lifecycle.py`.
"""

import msgspec

from ostler.daemon.children.records import ChildPhase, ForkServerRecord, WorkerRecord
from ostler.ipc import messages
from ostler.ipc.channel import BadMessage
from ostler.settings.load import Loaded
from ostler.settings.table import rows

_Table = dict[ChildPhase, dict[type, ChildPhase]]

WORKER: _Table = {
    # It waits for `Boot`. A signal that all processes of the daemon got may be what ends it.
    ChildPhase.UNREPORTED: {messages.Signalled: ChildPhase.UNREPORTED},
    ChildPhase.BOOTING: {
        messages.Ready: ChildPhase.SERVING,
        messages.BootFailed: ChildPhase.FAILED,
        messages.Signalled: ChildPhase.BOOTING,
        messages.RecycleDue: ChildPhase.BOOTING,
        messages.Watch: ChildPhase.BOOTING,
        messages.AppBroken: ChildPhase.BOOTING,
    },
    ChildPhase.SERVING: {
        messages.Signalled: ChildPhase.SERVING,
        messages.RecycleDue: ChildPhase.SERVING,
        messages.ZygoteAudited: ChildPhase.SERVING,
        messages.ZygoteReady: ChildPhase.ZYGOTE_READY,
        messages.Watch: ChildPhase.SERVING,
        messages.AppBroken: ChildPhase.SERVING,
    },
    ChildPhase.ZYGOTE_READY: {},
    ChildPhase.FAILED: {messages.Signalled: ChildPhase.FAILED, messages.Watch: ChildPhase.FAILED},
}
FORK_SERVER: _Table = {
    ChildPhase.CONFIGURING: {messages.Decided: ChildPhase.DECIDED, messages.LoadFailed: ChildPhase.FAILED},
    ChildPhase.DECIDED: {messages.Configured: ChildPhase.CONFIGURED, messages.LoadFailed: ChildPhase.FAILED},
    ChildPhase.CONFIGURED: {
        messages.Watch: ChildPhase.CONFIGURED,
        messages.LogTaken: ChildPhase.CONFIGURED,
    },
    ChildPhase.LOADING: {
        messages.AppLoaded: ChildPhase.FORKING,
        messages.LoadFailed: ChildPhase.FAILED,
        messages.Watch: ChildPhase.LOADING,
        messages.AppBroken: ChildPhase.LOADING,
        messages.LogTaken: ChildPhase.LOADING,
    },
    ChildPhase.FORKING: {
        messages.Forked: ChildPhase.FORKING,
        messages.ForkFailed: ChildPhase.FORKING,
        messages.HookBegun: ChildPhase.FORKING,
        messages.HookDone: ChildPhase.FORKING,
        messages.LogTaken: ChildPhase.FORKING,
        messages.Watch: ChildPhase.FORKING,
        messages.AppBroken: ChildPhase.FORKING,
    },
    # The app's own functions may write files until the end of the process.
    ChildPhase.FAILED: {messages.Watch: ChildPhase.FAILED},
}


def check_worker(record: WorkerRecord, message: messages.FromWorker, loaded: Loaded | None) -> None:
    """Enter the phase that a worker's message leads to.

    loaded: the settings of its generation.

    Raises:
        BadMessage: it may not send that now.
    """
    phase = _next(WORKER, record.phase, message)
    if isinstance(message, messages.ZygoteAudited):
        if record.audits_pending:
            record.audits_pending -= 1
        elif record.zygote_asked and message.problems:
            record.zygote_asked = False  # it was audited again when it had drained, and can't be one
        else:
            raise BadMessage("ZygoteAudited without having been asked")
    elif isinstance(message, messages.ZygoteReady):
        if not record.zygote_asked:
            raise BadMessage("ZygoteReady without having been asked")
    elif isinstance(message, messages.Watch | messages.AppBroken):
        _check_reload(message, loaded)
    record.phase = phase


def check_fork_server(
    record: ForkServerRecord, message: messages.FromForkServer, loaded: Loaded | None
) -> None:
    """The same for a fork server."""
    phase = _next(FORK_SERVER, record.phase, message)
    if isinstance(message, messages.HookBegun):
        if record.hook_running or not record.pending_hooks:
            raise BadMessage("HookBegun, but no hook is due")
    elif isinstance(message, messages.HookDone):
        if not record.pending_hooks or record.pending_hooks[0].name != message.name:
            raise BadMessage(f"HookDone of {message.name!a}, which is not the next that is due")
    elif isinstance(message, messages.Configured):
        _check_settings(message.loaded)
    elif isinstance(message, messages.Watch | messages.AppBroken):
        _check_reload(message, loaded)
    record.phase = phase


def _next(table: _Table, phase: ChildPhase, message: object) -> ChildPhase:
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
