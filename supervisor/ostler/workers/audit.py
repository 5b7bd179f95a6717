"""Finds what in a process does not survive a fork.

Workers forked from a zygote have one thread, a copy of its memory, and share its open file descriptions. So
other threads do not exist in them, but locks that those held stay locked; and a connection is used by all of
them: each may read an answer for another. These are problems. What may or may not do harm is a warning.

The audit reads /proc/self, so it also finds what C libraries have made.
"""

import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostler.osapi import original

_STANDARD = {0, 1, 2}  # a service manager may have made them connected sockets
_SELF = Path("/proc/self")
_UNSEEN = "open descriptors can't be listed, since /proc is not mounted"
_SQLITE = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html, section 1.3
# How often, and with which pause (s), to list threads: the kernel lists one shortly after its end, too.
_ATTEMPTS = 20
_PAUSE = 0.01

_ANON = {
    "anon_inode:[eventpoll]": "an epoll, e.g. of an event loop: workers would share it: make it again there",
    "anon_inode:[io_uring]": "an io_uring: workers would share its queues",
    "anon_inode:inotify": "an inotify: each of its events would reach only one worker",
}


def _cuda(torch: Any) -> bool:
    return bool(torch.cuda.is_initialized())


# Libraries whose documentation says that objects made before a fork can't be used after it, and what to do.
_LIBRARIES: dict[str, tuple[str, Callable[[Any], bool] | None]] = {
    # https://github.com/grpc/grpc/blob/master/doc/fork_support.md
    "grpc": ("a channel works in one process: make channels in each worker", None),
    # https://github.com/confluentinc/librdkafka/issues/2374
    "confluent_kafka": ("its clients have threads of their own: make clients in each worker", None),
    # https://pymongo.readthedocs.io/en/4.12.0/faq.html
    "pymongo": ("a MongoClient may hang in a process that it was not made in: make it in each worker", None),
    # https://docs.datastax.com/en/drivers/python/3.1/faq.html
    "cassandra.cluster": ("a session works in one process: make sessions in each worker", None),
    # https://docs.pola.rs/user-guide/misc/multiprocessing/
    "polars": ("its thread pool may be locked for ever in workers: use it first in them", None),
    # It warns of a deadlock at each fork.
    "jax": ("it runs threads and may hang in workers: use it first in them", None),
    # https://docs.pytorch.org/docs/stable/notes/multiprocessing.html
    "torch": ("CUDA is in use, and can't be used after a fork: use it first in workers", _cuda),
    # A fork copies the state of its global generator. Ostler seeds Python's own `random`.
    "numpy.random": ("all workers would draw the same numbers: seed it in each", None),
}

# Packages that detect that they are in a forked process, and start their threads again.
_RESTARTING = (
    # Compares the pid whenever it is used: sentry_sdk/worker.py and monitor.py in 2.75.
    "sentry_sdk.",
    # os.register_at_fork: opentelemetry/sdk/_shared_internal and sdk/metrics/_internal/export in 1.45.
    "opentelemetry.sdk.",
)


@dataclass(slots=True)
class Audit:
    """problems: reasons not to fork from this process; warnings: possible harm; one line each."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def forced(self) -> "Audit":
        """The result if the fork is to happen anyway: problems become warnings."""
        return Audit([], self.problems + self.warnings)

    def left_to(self, hook: str) -> "Audit":
        """The result if this hook, which is called before the fork, may end what the problems are."""
        return Audit([], [f"{line}; {hook} has to end it" for line in self.problems] + self.warnings)


@dataclass(frozen=True, slots=True)
class Before:
    """What a process had before it loaded the app; not the app's."""

    descriptors: frozenset[int]
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> "Before":
        entries = list((_SELF / "fd").iterdir()) if _SELF.exists() else []
        # One was for reading the folder, and is closed now.
        descriptors = (int(entry.name) for entry in entries if os.path.lexists(entry))
        return cls(frozenset(descriptors), frozenset(threading.enumerate()))


def audit_preloaded(before: Before) -> list[str]:
    """What workers of this fork server, which has loaded the app, would share or lack; one line each.

    Threads that libraries have started without Python are left out: some of these start them again in a
    forked process.
    """
    if not _SELF.exists():
        return []
    found = Audit()
    for thread in threading.enumerate():
        if thread not in before.threads and not (what := _function_of(thread)).startswith(_RESTARTING):
            found.problems.append(f"thread {thread.name!r} runs {what}: workers will not have it")
    _check_descriptors(found, set(before.descriptors), found.problems)
    return found.problems


def audit_serving(ours: set[int], busy: bool) -> Audit:
    """Audit a worker that serves: its problems will also exist when it has been drained.

    Args:
        ours: descriptors that a zygote closes, or shares on purpose.
        busy: requests are in the app, so connections may belong to them and be closed with them.
    """
    if not _SELF.exists():
        return Audit([_UNSEEN])
    found = Audit()
    _check_threads(found, _is_engines)
    _check_descriptors(found, ours, found.warnings if busy else found.problems)
    _check_children(found)
    _check_libraries(found)
    return found


def audit_drained(ours: set[int]) -> Audit:
    """Audit a worker whose engine has ended: everything found is going to stay."""
    if not _SELF.exists():
        return Audit([_UNSEEN])
    found = Audit()
    if _unknown_threads() and _has_openblas():
        _try_fork()
    _check_threads(found, lambda _thread: False, strict=True)
    _check_descriptors(found, ours, found.problems)
    _check_children(found)
    _check_libraries(found)
    return found


# -- threads ---------------------------------------------------------------------------------------------


def _check_threads(found: Audit, is_ours: Callable[[threading.Thread], bool], strict: bool = False) -> None:
    for thread in threading.enumerate():
        # Not compared with main_thread(): eventlet replaces that object.
        if type(thread).__name__ != "_MainThread" and not is_ours(thread):
            line = f"thread {thread.name!r} runs {(what := _function_of(thread))}"
            if what.startswith(_RESTARTING):
                found.warnings.append(f"{line}: its library starts it again in workers")
            else:
                found.problems.append(line)
    unknown = _unknown_threads()
    if unknown and not strict and _has_openblas():
        return  # it ends its threads before a fork; then remaining threads are others
    found.problems += [f"thread {name!r} was started by a library, not by Python" for name in unknown]


def _is_engines(thread: threading.Thread) -> bool:
    return thread.name.startswith("ostler-")


def _function_of(thread: threading.Thread) -> str:
    """The function that a thread runs, as far as it is known."""
    # Without these, run() was overridden, or has deleted them at its end.
    target: Any = getattr(thread, "_target", None) or getattr(thread, "function", None) or type(thread)
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return f"{getattr(target, '__module__', None) or '?'}.{name}"


def _unknown_threads() -> list[str]:
    """Names of threads of this process that are not in Python's list."""
    unknown: list[str] = []
    for _ in range(_ATTEMPTS):
        tasks = {int(entry.name) for entry in (_SELF / "task").iterdir()}
        # eventlet removes the attribute.
        known = {getattr(thread, "native_id", None) for thread in threading.enumerate()} | {os.getpid()}
        unknown = [name for task in sorted(tasks - known) if (name := _name_of(task))]
        if not unknown:
            break
        original.sleep(_PAUSE)  # a thread is removed from Python's list shortly before its end
    return unknown


def _name_of(task: int) -> str:
    try:
        return (_SELF / "task" / str(task) / "comm").read_text().strip() or str(task)
    except OSError:
        return ""  # it has just ended


def _has_openblas() -> bool:
    """Whether OpenBLAS is loaded, which ends its thread pool before each fork (pthread_atfork(3))."""
    return "openblas" in (_SELF / "maps").read_text(errors="replace")


def _try_fork() -> None:
    """Fork once, so that libraries do what they do before a fork."""
    child = original.fork()
    if child == 0:
        os._exit(0)
    original.waitpid(child, 0)


# -- descriptors -----------------------------------------------------------------------------------------


def _check_descriptors(found: Audit, ours: set[int], connections: list[str]) -> None:
    """`connections`: gets the lines about descriptors that workers must not share."""
    for entry in sorted((_SELF / "fd").iterdir(), key=lambda entry: int(entry.name)):
        fd = int(entry.name)
        if fd in ours or fd in _STANDARD:
            continue
        try:
            target = str(entry.readlink())
            if target.startswith("socket:"):
                if line := _connected(fd):
                    (connections if line[0] == socket.SOCK_STREAM else found.warnings).append(line[1])
            elif note := _ANON.get(target):
                found.warnings.append(note)
            elif _is_sqlite(fd):
                # https://sqlite.org/howtocorrupt.html, section 2.6
                connections.append(f"SQLite database {target} is open: workers can damage it")
        except OSError:
            continue  # closed meanwhile, e.g. the descriptor for reading this folder


def _connected(fd: int) -> tuple[int, str] | None:
    """Type of a connected socket, and a line that names it; None if it is not connected."""
    with original.Socket(fileno=os.dup(fd)) as sock:
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if sock.family == socket.AF_NETLINK:
            return socket.SOCK_DGRAM, "a netlink socket: workers would share it"
        try:
            peer = sock.getpeername()
        except OSError:
            return None
        if sock.family == socket.AF_UNIX and not peer and sock.getsockname():
            peer = sock.getsockname()  # the end that was connected to
    # Any process may send on it, and an answer may reach any of them.
    shared = "workers would share it and get each other's answers"
    # SOCK_SEQPACKET is connected like a stream.
    kind = socket.SOCK_DGRAM if kind == socket.SOCK_DGRAM else socket.SOCK_STREAM
    return kind, f"connection to {_address(peer)}: {shared}"


def _address(peer: Any) -> str:
    if isinstance(peer, tuple):
        host, port = peer[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    name = os.fsdecode(peer)
    if not name:
        return "an unnamed socket, e.g. within a pair"
    return f"@{name[1:]}" if name.startswith("\0") else name


def _is_sqlite(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode) and os.pread(fd, len(_SQLITE), 0) == _SQLITE


# -- the rest --------------------------------------------------------------------------------------------


def _check_children(found: Audit) -> None:
    for task in (_SELF / "task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue  # the thread has ended, or the kernel has no such file (proc(5))
        found.warnings += [
            f"process {pid} was started by this worker: workers would share its pipes" for pid in pids
        ]


def _check_libraries(found: Audit) -> None:
    for name, (advice, in_use) in _LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None and (in_use is None or in_use(module)):
            found.warnings.append(f"{name}: {advice}")
