"""The arguments of hooks: objects with those attributes of gunicorn's objects that are in use.

Hooks may set attributes of their own on `server`, `worker` and requests, and read them later: a worker
inherits those that `pre_fork` has set. The error for an unknown attribute names the known ones.
"""

import math
import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ostler.logs.render import LEVELS
from ostler.settings.address import Address, parse_address
from ostler.settings.ignored import IGNORED
from ostler.settings.table import Settings
from ostler.text import trace_of

if TYPE_CHECKING:
    import logging

Emit = Callable[..., None]
"""Writes an event: level, name, then fields as keywords."""

_NUMBERS = {number: name for name, number in LEVELS.items()}


class HookArgument:
    """Base class: the AttributeError for an unknown attribute names the known ones."""

    _called = "it"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = sorted(each for each in {*vars(self), *dir(type(self))} if not each.startswith("_"))
        raise AttributeError(f"{self._called} has no attribute {name!r} here; it has {', '.join(known)}")


class HookLog(HookArgument):
    """`server.log` and `worker.log`: each call is one line of the error log.

    Args:
        emit: writes the line.
    """

    _called = "log"

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def rewire(self, emit: Emit) -> None:
        """Write by `emit` from now on: a hook may have kept this object over a fork."""
        self._emit = emit

    def debug(self, message: object, *args: object, **options: Any) -> None:
        self._write("debug", message, args, options)

    def info(self, message: object, *args: object, **options: Any) -> None:
        self._write("info", message, args, options)

    def warning(self, message: object, *args: object, **options: Any) -> None:
        self._write("warning", message, args, options)

    warn = warning

    def error(self, message: object, *args: object, **options: Any) -> None:
        self._write("error", message, args, options)

    def critical(self, message: object, *args: object, **options: Any) -> None:
        self._write("critical", message, args, options)

    def exception(self, message: object, *args: object, **options: Any) -> None:
        self._write("error", message, args, {"exc_info": True} | options)

    def log(self, level: int | str, message: object, *args: object, **options: Any) -> None:
        """level: a number of logging's, or a name."""
        if isinstance(level, int):
            level = _NUMBERS.get(level // 10 * 10, "debug" if level < 10 else "critical")
        name = level.lower()
        self._write(name if name in LEVELS else "info", message, args, options)

    @property
    def error_log(self) -> "logging.Logger":
        return _logger("gunicorn.error")

    @property
    def access_log(self) -> "logging.Logger":
        return _logger("gunicorn.access")

    def _write(self, level: str, message: object, args: tuple[object, ...], options: dict[str, Any]) -> None:
        self._emit(level, "hook", message=_filled(message, args), traceback=_trace(options.get("exc_info")))


def _filled(message: object, args: tuple[object, ...]) -> str:
    text = str(message)
    if not args:
        return text
    try:
        # As logging does it: a lone mapping is for %(name)s.
        return text % (args[0] if len(args) == 1 and isinstance(args[0], dict) and args[0] else args)
    except (TypeError, ValueError, KeyError):
        return f"{text} {args!r}"  # a mistake in a log call must not make the hook fail


def _trace(exc_info: Any) -> str | None:
    if not exc_info:
        return None
    if isinstance(exc_info, BaseException):
        return trace_of(exc_info)
    found = exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]
    return trace_of(found) if found is not None else None


def _logger(name: str) -> "logging.Logger":
    import logging  # imported only if used: workers do not need it

    return logging.getLogger(name)


class HookSettings(HookArgument):
    """`server.cfg`: the settings by gunicorn's names, with gunicorn's types."""

    _called = "cfg"

    def __init__(self, settings: Settings) -> None:
        vars(self)["_settings"] = settings

    def __getattr__(self, name: str) -> Any:
        if name in Settings.__struct_fields__:
            return _as_gunicorn(getattr(vars(self)["_settings"], name))
        if name in IGNORED:
            return IGNORED[name].silent[0]
        raise AttributeError(f"cfg has no setting {name!r}; ostler --print-config shows all settings")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"cfg.{name} can't be set by a hook: workers and supervisor have read it already"
        )

    def set(self, name: str, value: object) -> None:
        setattr(self, name, value)

    @property
    def address(self) -> list[Any]:
        """Of `bind`: (host, port), a path, or a descriptor's number."""
        return [_address(parse_address(text)) for text in self._settings.bind]

    @property
    def workers(self) -> int:
        """The number of workers; of a range, its beginning."""
        return least(self._settings)

    @property
    def env(self) -> dict[str, str]:
        """Of `raw_env`."""
        pairs = (pair.partition("=") for pair in self._settings.raw_env)
        return {name: value for name, _, value in pairs}

    @property
    def is_ssl(self) -> bool:
        return bool(self._settings.certfile or self._settings.keyfile)

    @property
    def settings(self) -> dict[str, "HookSetting"]:
        """All settings by name."""
        return {name: HookSetting(name, getattr(self, name)) for name in Settings.__struct_fields__}

    @property
    def worker_class_str(self) -> str:
        return str(self._settings.worker_class)


@dataclass(frozen=True, slots=True)
class HookSetting:
    """One of `cfg.settings`."""

    name: str
    value: Any

    def get(self) -> Any:
        return self.value


def _as_gunicorn(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return list(value) if isinstance(value, tuple) else value


def _address(address: Address) -> Any:
    if address.kind == "tcp":
        return address.host, address.port
    return address.path if address.kind == "unix" else address.fd


class HookApp(HookArgument):
    """`server.app` and `worker.app`.

    Args:
        load: loads the app.

    Attributes:
        callable: the app; None as long as it is not loaded in this process.
    """

    _called = "app"

    def __init__(self, load: Callable[[], Any], spec: str) -> None:
        self._load = load
        self.app_uri = spec
        self.callable: Any = None

    def wsgi(self) -> Any:
        """The app; it is loaded now if it has not been."""
        if self.callable is None:
            self.callable = self._load()
        return self.callable


class HookListener:
    """One of `server.LISTENERS`: its text is its address, as in gunicorn; else it is its socket, `sock`."""

    def __init__(self, sock: socket.socket, https: bool) -> None:
        self.sock = sock
        self.FAMILY = sock.family
        self.cfg_addr: Any = sock.getsockname()
        self._scheme = "https" if https else "http"

    def __getattr__(self, name: str) -> Any:
        if name == "sock":  # of an object that was not made by __init__
            raise AttributeError(name)
        return getattr(self.sock, name)

    def __str__(self) -> str:
        address = self.cfg_addr
        if not isinstance(address, tuple):
            return f"unix:{os.fsdecode(address)}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"{self._scheme}://{host}:{address[1]}"


class HookServer(HookArgument):
    """`server`: the fork server, as hooks see it.

    Attributes:
        pid: of the supervisor, to which signals for the fleet are sent.
        address: of the listeners; before they are bound, as configured.
        WORKERS: the workers that this process has forked and that have not ended, by pid.
        LISTENERS: the listeners; none before they are bound.
        worker_age: of the newest worker.
        cause: why this fork server was started: `start`, `reload`, `upgrade`, or `restart` if the one before
            it had died. gunicorn has no such attribute.
    """

    _called = "server"
    WORKER_BOOT_ERROR = 3
    APP_LOAD_ERROR = 4
    cause = "start"

    def __init__(self, settings: Settings, app: HookApp, log: HookLog) -> None:
        self.cfg = HookSettings(settings)
        self.log = log
        self.app = app
        self.pid = os.getppid()
        self.master_name = "Master"
        self.proc_name = settings.proc_name or settings.wsgi_app or ""
        self.address = self.cfg.address
        self.num_workers = least(settings)
        self.timeout = self.cfg.timeout
        self.worker_class = settings.worker_class
        self.worker_age = 0
        self.WORKERS: dict[int, HookWorker] = {}
        self.LISTENERS: list[HookListener] = []

    def kill_worker(self, pid: int, signum: int) -> None:
        """Signal a worker; one that is gone is no error."""
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass

    def kill_workers(self, signum: int) -> None:
        """Signal all of WORKERS."""
        for pid in list(self.WORKERS):
            self.kill_worker(pid, signum)

    def listen(self, listeners: list[socket.socket]) -> None:
        """The listeners are bound."""
        self.LISTENERS = [HookListener(listener, self.cfg.is_ssl) for listener in listeners]
        self.address = [listener.getsockname()[:2] if isinstance(listener.getsockname(), tuple)
                        else listener.getsockname() for listener in listeners]  # fmt: skip


class HookWorker(HookArgument):
    """`worker`: made before the fork; afterwards the worker process and the fork server each have a copy.

    Attributes:
        age: number of the worker, from 1.
        pid: `[booting]` before the fork.
        nr: requests so far, including the current one after its pre_request. May be changed: what is taken
            off does not count towards `max_requests`.
        max_requests: after how many it asks for a successor, with its share of `max_requests_jitter`. May be
            changed: before the worker serves, and in pre_request and post_request.
        alive: if set to False in the worker, it asks for a successor, and ends when that is ready.
        booted: the app is loaded; aborted: SIGABRT was received.
        exitcode: in child_exit: the exit code, or -N for signal N.
        slot: its slot in the fleet.
    """

    _called = "worker"

    def __init__(self, server: HookServer, age: int, slot: int) -> None:
        self.age = age
        self.slot = slot
        self.pid: int | str = "[booting]"
        self.ppid = server.pid
        self.cfg = server.cfg
        self.log = server.log
        self.app = server.app
        self.wsgi: Any = None
        self.timeout = server.timeout
        self.sockets = server.LISTENERS
        self.max_requests = _quota(server.cfg.max_requests, server.cfg.max_requests_jitter)
        self._added = 0
        self.booted = False
        self.aborted = False
        self.exitcode: int | None = None
        self._alive = True
        self.work()

    def work(
        self,
        count: Callable[[], int] = int,
        retire: Callable[[int], object] = int,
        extend: Callable[[float], object] = float,
    ) -> None:
        """Set the functions that count requests, ask for a successor and extend a deadline; default: none."""
        self._count, self._retire, self._extend = count, retire, extend

    @property
    def nr(self) -> int:
        return self._count() + self._added

    @nr.setter
    def nr(self, value: int) -> None:
        self._added = value - self._count()

    @property
    def max_requests(self) -> float:
        return self._max_requests

    @max_requests.setter
    def max_requests(self, value: float) -> None:
        if not isinstance(value, int | float) or math.isnan(value):
            raise TypeError(f"worker.max_requests must be a number, got {value!r}")
        self._max_requests = value

    @property
    def quota(self) -> int | None:
        """After how many requests, as the server counts them, it is to ask for a successor; None: never."""
        never = self._max_requests >= sys.maxsize
        return None if never else math.ceil(self._max_requests) - self._added

    def retire_if_due(self) -> None:
        """After a request: ask for a successor if there were enough."""
        if self.nr >= self._max_requests:
            self.alive = False

    def retire(self, requests: int) -> None:
        """Ask for a successor, after so many requests; only once."""
        if self._alive:
            self._alive = False
            self._retire(requests)

    @property
    def alive(self) -> bool:
        return self._alive

    @alive.setter
    def alive(self, value: bool) -> None:
        if not value:
            self.retire(max(0, self.nr))

    def end(self) -> None:
        """The worker is ending: it need not ask for a successor."""
        self._alive = False

    def notify(self) -> None:
        """Give the request that this thread serves `timeout` seconds more, from now."""
        if self.timeout:
            try:
                self._extend(self.timeout)
            except RuntimeError:
                pass  # this thread serves no request


def _quota(requests: int, jitter: int) -> float:
    """A worker's share of `max_requests` and `max_requests_jitter`."""
    if not requests:
        return sys.maxsize
    return requests + (random.randint(0, jitter) if jitter else 0)  # noqa: S311 - spreads load, no secret


def least(settings: Settings) -> int:
    """The configured number of workers; of a range, its beginning."""
    return settings.workers[0] if isinstance(settings.workers, tuple) else settings.workers
