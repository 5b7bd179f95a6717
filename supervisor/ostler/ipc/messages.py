"""The messages between the supervisor and its children: small msgpack structs, tagged by their name.

Fields of messages from children have bounds, which are in their types; a message beyond them is not accepted.
Senders keep within them
(`channel.line`, `channel.lines`, `channel.shorten`).

Both ends are of one version of Ostler, which a fork server compares at its start (`daemon.children.handles`).
`VERSION` guards what that does not: a package that is changed under its version, and programs that an upgrade
in place brings together. A fork server of another one refuses its configuration.
"""

from typing import Annotated, Any, Literal

import msgspec

from ostler.ipc.channel import LINE_LIMIT, TRACEBACK_LIMIT
from ostler.settings.load import Loaded

VERSION = 12

MOST_LINES = 100
MOST_NAMES = 2000
MOST_PATHS = 250
Line = Annotated[str, msgspec.Meta(max_length=LINE_LIMIT)]
Lines = Annotated[list[Line], msgspec.Meta(max_length=MOST_LINES)]
Trace = Annotated[str, msgspec.Meta(max_length=TRACEBACK_LIMIT)]
Name = Annotated[str, msgspec.Meta(max_length=200)]
Names = Annotated[list[Name], msgspec.Meta(max_length=MOST_NAMES)]
# PATH_MAX (linux/limits.h) with the NUL at the end.
# Surrogates that stand for bytes are part of names (PEP 383), others can't be.
Path = Annotated[str, msgspec.Meta(max_length=4095, pattern="^/[^\0\ud800-\udc7f\udd00-\udfff]*\\Z")]
Paths = Annotated[list[Path], msgspec.Meta(max_length=MOST_PATHS)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Pid = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Signum = Annotated[int, msgspec.Meta(ge=1, le=64)]
Time = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


# -- supervisor -> fork server ---------------------------------------------------------------------------


class Configure(_Message, frozen=True):
    """Evaluate the configuration.

    command_line: raw values by setting name; folder: where the daemon was started; known: the generation's
    settings if it is not new: then the file that they are from is evaluated for what else it does, no other
    is looked for, and these apply; cause: why there is a new generation, which decides what hooks are called;
    detached: with `daemon`, close the standard descriptors; variables: which environment variable each value
    in `command_line` is from, if it is from one; workers_before: at a reload the number of workers that was
    wanted, for a hook; remarks: warnings about the command line.
    """

    version: int
    generation: int
    command_line: dict[str, Any]
    config: str | None
    folder: str
    known: Loaded | None = None
    cause: Literal["start", "reload", "upgrade", "restart", "check"] = "start"
    detached: bool = False
    variables: dict[str, str] = {}
    workers_before: int | None = None
    remarks: list[str] = []


class Load(_Message, frozen=True):
    """Get ready to spawn.

    Descriptors: the hand-off's two ends, then the listeners in the order of `addresses`, then those that this
    generation does not name any more. Its workers accept from these, too, until the supervisor shuts them
    down.
    """

    addresses: list[str]
    name: str


class Spawn(_Message, frozen=True):
    """Fork a worker. Descriptors: its channel, the pipe that takes its stack dumps, its scoreboard cell.

    urgent: it boots at normal priority, because no worker serves in its slot.
    """

    worker_id: int
    slot: int
    urgent: bool = False


class ImportModules(_Message, frozen=True):
    """Import these standard modules, so that the next workers find them and share their memory."""

    modules: list[str]


class HookDue(_Message, frozen=True):
    """Call a hook of the configuration file, if it has it; the answer is `HookDone`.

    name: child_exit, nworkers_changed, pre_exec or on_exit, or retire: close all that is shared, and end
    unless hooks have started something that runs; worker id, slot, pid: of the worker that child_exit
    is about; exitcode: its exit code, -N for signal N, None if it is not known; old, new: the numbers of
    workers for nworkers_changed, the same if the hook is not to be called.
    """

    name: str
    worker_id: int = 0
    slot: int = 0
    pid: int = 0
    exitcode: int | None = None
    old: int | None = None
    new: int = 0


class LogLine(_Message, frozen=True):
    """An event of the supervisor's own log, for the loggers that the configuration or the app has set up.

    pid: the supervisor's; number: for `LogTaken`; until: CLOCK_MONOTONIC, seconds; the supervisor itself
    writes what was not taken by then.
    """

    level: str
    name: str
    fields: dict[str, Any]
    pid: int
    number: int
    until: float


class ReopenLogs(_Message, frozen=True):
    """To workers as well."""


ToForkServer = Configure | Load | Spawn | ImportModules | HookDue | LogLine | ReopenLogs

# -- fork server -> supervisor ---------------------------------------------------------------------------


class Decided(_Message, frozen=True):
    """Which file is the configuration. Sent once, before any code runs that the app's user can write.

    config: as in `Configure`, None if there is none; loaded: the settings, if they were read with the
    supervisor's own rights; else user, group and initgroups name the account with whose rights the file is
    evaluated, because others can write it, and are these settings for the whole generation; warnings: for the
    log; prefix, python: the environment's folder (sys.prefix) and Python's version, for reports.
    """

    config: str | None
    loaded: Loaded | None = None
    user: str | None = None
    group: str | None = None
    initgroups: bool = False
    warnings: list[str] = []
    prefix: str = ""
    python: str = ""


class Configured(_Message, frozen=True):
    """The configuration can be used.

    warnings: for the log; hooks: names of those that the configuration file defines; problem: what would
    prevent the start, only if the cause is a check; invalid: as in `LoadFailed`; loggers: as in `AppLoaded`.
    """

    loaded: Loaded
    warnings: Lines
    hooks: Names = []
    problem: Line = ""
    invalid: bool = False
    loggers: bool = False


class AppLoaded(_Message, frozen=True):
    """Ready to spawn; with `preload_app` the app is loaded.

    loggers: it wants `LogLine`s; remark: for the log, about the app that was loaded; replaces: what hooks of
    earlier fork servers have started is not needed.
    """

    loggers: bool = False
    remark: Line = ""
    replaces: bool = False


class LoadFailed(_Message, frozen=True):
    """The configuration or the app can't be used.

    traceback: only for what is the app's own fault; invalid: a setting's value is wrong in itself.
    """

    reason: Line
    traceback: Trace | None
    invalid: bool = False


class LogTaken(_Message, frozen=True):
    """The loggers have the `LogLine` of this number."""

    number: Number


class Forked(_Message, frozen=True):
    worker_id: Number
    pid: Pid


class ForkFailed(_Message, frozen=True):
    worker_id: Number
    reason: Line


class HookBegun(_Message, frozen=True):
    """The first pending hook is being called: if the fork server dies of it, it is not called again."""


class HookDone(_Message, frozen=True):
    """A hook that was due has been called. Also if there is none, or it failed, which is in the log."""

    name: Name


# -- of both, with `reload` ------------------------------------------------------------------------------


class Watch(_Message, frozen=True):
    """Reload when one of these changes: what was loaded, or could not be.

    files: absolute paths; folders: where the app's templates may be; since: when they began to be read
    (time.time()): what was written later may be newer than what was loaded; 0 for files that were not there;
    written: files that the process
    writes itself, which do not reload.
    """

    files: Paths
    folders: Paths = []
    since: Time = 0.0
    written: Paths = []


class AppBroken(_Message, frozen=True):
    """The app can't be loaded; an error page stands in for it until the next edit."""

    reason: Line
    traceback: Trace | None


FromForkServer = (
    Decided
    | Configured
    | AppLoaded
    | LoadFailed
    | LogTaken
    | Forked
    | ForkFailed
    | HookBegun
    | HookDone
    | Watch
    | AppBroken
)

# -- supervisor -> worker --------------------------------------------------------------------------------


class Boot(_Message, frozen=True):
    """The supervisor knows the process: the worker may load the app and serve."""


class Drain(_Message, frozen=True):
    """Stop accepting connections, finish requests, end.

    hand_over: idle connections go to other workers; zygote: do not end, but answer `ZygoteReady` and be a
    fork server from then on, with the same channel; seconds: graceful_timeout as it is now, which a reload
    may have changed since the worker was started; None: the worker's own setting; empty_queue: the listeners
    that the daemon has bound take no new connections: accept those that wait, until the supervisor has shut
    these listeners.
    """

    hand_over: bool = False
    zygote: bool = False
    seconds: Time | None = None
    empty_queue: bool = False


class AuditZygote(_Message, frozen=True):
    """Check whether this process could be forked from. force: it will be, whatever is found."""

    force: bool = False


ToWorker = Boot | Drain | AuditZygote | ReopenLogs

# -- worker -> supervisor --------------------------------------------------------------------------------


class Ready(_Message, frozen=True):
    """The app is loaded and connections are accepted.

    modules: standard modules that it imported; remark: as in `AppLoaded`.
    """

    modules: Names
    remark: Line = ""


class BootFailed(_Message, frozen=True):
    reason: Line
    traceback: Trace | None


class RecycleDue(_Message, frozen=True):
    requests: Number


class Signalled(_Message, frozen=True):
    """It ends because of a signal, from the supervisor or another process."""

    signum: Signum


class ZygoteAudited(_Message, frozen=True):
    """problems: why this process can't be forked from; warnings: for the log.

    The answer to `AuditZygote`; and sent once more when it has drained to become a zygote, if it can't.
    """

    problems: Lines
    warnings: Lines


class ZygoteReady(_Message, frozen=True):
    """The last message as a worker: what follows is a fork server's. `loggers`: as for `AppLoaded`."""

    loggers: bool = False


FromWorker = Ready | BootFailed | RecycleDue | Signalled | ZygoteAudited | ZygoteReady | Watch | AppBroken
