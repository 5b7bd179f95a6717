"""What in a process does not survive being forked.

Children of a zygote have one thread, a copy of its memory, and the very same open descriptions. So a thread
is gone in them together with the locks that it held, and a connection is one that all of them talk on: each
may get an answer that was for another. Such things are problems. What may or may not harm is a warning.

It looks from outside, at /proc/self: what a C library has made counts as well.
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
_UNSEEN = "what it has open can't be seen, since /proc is not mounted"
_SQLITE = b"SQLite format 3\0"  # https://sqlite.org/fileformat.html, section 1.3
# How long a thread that has ended may still be seen by the kernel.
_ENDING = 0.01
_LOOKS = 20

_ANON = {
    "anon_inode:[eventpoll]": "an epoll, e.g. of an event loop: children would share it: make it anew there",
    "anon_inode:[io_uring]": "an io_uring: children would share its queues",
    "anon_inode:inotify": "an inotify: each of its events would reach one child only",
}


def _cuda(torch: Any) -> bool:
    return bool(torch.cuda.is_initialized())


# Libraries whose own words say that what they made before a fork is of no use after it, and what to do.
_LIBRARIES: dict[str, tuple[str, Callable[[Any], bool] | None]] = {
    # https://github.com/grpc/grpc/blob/master/doc/fork_support.md
    "grpc": ("a channel serves one process: make channels anew in children", None),
    # https://github.com/confluentinc/librdkafka/issues/2374
    "confluent_kafka": ("its clients live by threads of their own: make clients anew in children", None),
    # https://pymongo.readthedocs.io/en/4.12.0/faq.html
    "pymongo": ("a MongoClient may hang in a process that it was not made in: make it anew there", None),
    # https://docs.datastax.com/en/drivers/python/3.1/faq.html
    "cassandra.cluster": ("a session serves one process: make sessions anew in children", None),
    # https://docs.pola.rs/user-guide/misc/multiprocessing/
    "polars": ("its thread pool may be locked for ever in children: use it first in them", None),
    # It warns of a deadlock at each fork itself.
    "jax": ("it runs threads and may hang in children: use it first in them", None),
    # https://docs.pytorch.org/docs/stable/notes/multiprocessing.html
    "torch": ("CUDA is in use, which no child can use any more: use it first in children", _cuda),
    # Its global generator is memory like any other. Python's own `random` is seeded by us.
    "numpy.random": ("all children would draw the same numbers: seed it in each", None),
}

# Packages that notice by themselves that they are in a forked process, and start their threads anew in it.
_RESTARTING = (
    # Compares the pid whenever it is used: sentry_sdk/worker.py and monitor.py in 2.75.
    "sentry_sdk.",
    # os.register_at_fork: opentelemetry/sdk/_shared_internal and sdk/metrics/_internal/export in 1.45.
    "opentelemetry.sdk.",
)


@dataclass(slots=True)
class Audit:
    """problems: why this process can't be forked from; warnings: what deserves a look; a line each."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def forced(self) -> "Audit":
        """The same where it is to be done all the same."""
        return Audit([], self.problems + self.warnings)


def audit_serving(ours: set[int], busy: bool) -> Audit:
    """Look at a worker that serves, as a forecast: what it finds is true once it has been drained, too.

    Args:
        ours: descriptors that are closed, or shared on purpose, when it is a zygote.
        busy: requests are in the app, so connections may be theirs and end with them.
    """
    if not _SELF.exists():
        return Audit([_UNSEEN])
    found = Audit()
    _look_at_threads(found, _is_engines)
    _look_at_descriptors(found, ours, found.warnings if busy else found.problems)
    _look_at_children(found)
    _look_at_libraries(found)
    return found


def audit_drained(ours: set[int]) -> Audit:
    """Look at a worker whose engine has ended: what it finds is there to stay."""
    if not _SELF.exists():
        return Audit([_UNSEEN])
    found = Audit()
    if _unknown_threads() and _has_openblas():
        _try_fork()
    _look_at_threads(found, lambda _thread: False, strict=True)
    _look_at_descriptors(found, ours, found.problems)
    _look_at_children(found)
    _look_at_libraries(found)
    return found


# -- threads ---------------------------------------------------------------------------------------------


def _look_at_threads(found: Audit, is_ours: Callable[[threading.Thread], bool], strict: bool = False) -> None:
    for thread in threading.enumerate():
        # Not by comparison with main_thread(): eventlet puts another object of its own in its place.
        if type(thread).__name__ != "_MainThread" and not is_ours(thread):
            line = f"thread {thread.name!r} runs {(what := _what_runs(thread))}"
            if what.startswith(_RESTARTING):
                found.warnings.append(f"{line}: its library starts it anew in children")
            else:
                found.problems.append(line)
    unknown = _unknown_threads()
    if unknown and not strict and _has_openblas():
        return  # it ends its threads before a fork; whether these are its own is seen then
    found.problems += [f"thread {name!r} was made by a library, not by Python" for name in unknown]


def _is_engines(thread: threading.Thread) -> bool:
    return thread.name.startswith("ostler-")


def _what_runs(thread: threading.Thread) -> str:
    """What a thread was made for, as well as it is known."""
    # Where there is none, run() was overridden, or has taken it away at its end.
    target: Any = getattr(thread, "_target", None) or getattr(thread, "function", None) or type(thread)
    name = getattr(target, "__qualname__", None) or type(target).__qualname__
    return f"{getattr(target, '__module__', None) or '?'}.{name}"


def _unknown_threads() -> list[str]:
    """Names of the kernel's threads of this process that Python's list does not have."""
    unknown: list[str] = []
    for _ in range(_LOOKS):
        tasks = {int(entry.name) for entry in (_SELF / "task").iterdir()}
        # eventlet takes the attribute away.
        known = {getattr(thread, "native_id", None) for thread in threading.enumerate()} | {os.getpid()}
        unknown = [name for task in sorted(tasks - known) if (name := _name_of(task))]
        if not unknown:
            break
        original.sleep(_ENDING)  # a thread leaves Python's list a little before the kernel's
    return unknown


def _name_of(task: int) -> str:
    try:
        return (_SELF / "task" / str(task) / "comm").read_text().strip() or str(task)
    except OSError:
        return ""  # it has just ended


def _has_openblas() -> bool:
    """numpy's usual engine keeps a pool of threads, and ends it before each fork (pthread_atfork(3))."""
    return "openblas" in (_SELF / "maps").read_text(errors="replace")


def _try_fork() -> None:
    """Fork for nothing, so that libraries do what they do before a fork."""
    child = original.fork()
    if child == 0:
        os._exit(0)
    original.waitpid(child, 0)


# -- descriptors -----------------------------------------------------------------------------------------


def _look_at_descriptors(found: Audit, ours: set[int], connections: list[str]) -> None:
    """`connections`: takes what children must not share."""
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
                connections.append(f"SQLite database {target} is open: children can damage it")
        except OSError:
            continue  # closed meanwhile; our look at the folder is one of them


def _connected(fd: int) -> tuple[int, str] | None:
    """Type of a connected socket, and a line that names it; None if it is not connected."""
    with original.Socket(fileno=os.dup(fd)) as sock:
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if sock.family == socket.AF_NETLINK:
            return socket.SOCK_DGRAM, "a netlink socket: children would share it"
        try:
            peer = sock.getpeername()
        except OSError:
            return None
        if sock.family == socket.AF_UNIX and not peer and sock.getsockname():
            peer = sock.getsockname()  # the end that was connected to
    # A message of its own may go from anybody; what is answered to it may reach anybody.
    shared = "children would share it and get each other's answers"
    # A sequence of packets with a connection is no better than a stream.
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


def _look_at_children(found: Audit) -> None:
    for task in (_SELF / "task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:
            continue  # the thread has ended, or the kernel was built without (proc(5))
        found.warnings += [f"process {pid} was started by it: children would share its pipes" for pid in pids]


def _look_at_libraries(found: Audit) -> None:
    for name, (advice, in_use) in _LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None and (in_use is None or in_use(module)):
            found.warnings.append(f"{name}: {advice}")
