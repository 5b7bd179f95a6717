"""Starts, measures and ends the servers under test; shared by the benchmarks.

Each server leads a process group of its own. It is asked to end with SIGTERM. What is left of its group is
killed while the leader is still a zombie, so that no other group can have its number by then.
"""

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
READY_WITHIN, READY_PAUSE = 20.0, 0.01  # seconds
END_WITHIN = 15.0


class BenchError(Exception):
    """The measurement can't continue; `str()` is one line for the user."""


@dataclass(frozen=True)
class Server:
    """A running server; `pid` is the process that was started, the leader of the group."""

    pid: int
    port: int
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)


def run(main: Callable[[], int], *errors: type[Exception]) -> NoReturn:
    """Run a benchmark and exit with its status. A BenchError, or one of `errors`, is one line for the user.

    SIGTERM unwinds the stack as Ctrl-C does, so that no server outlives its benchmark.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except (BenchError, *errors) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def missing(module: str) -> bool:
    """Whether this Python lacks a package."""
    return importlib.util.find_spec(module) is None


def missing_command(command: str) -> bool:
    return shutil.which(command) is None


def ostler(*arguments: str) -> list[str]:
    """A command line of the checkout this file is in."""
    return [sys.executable, "-m", "ostler", *arguments]


def gunicorn(*arguments: str) -> list[str]:
    # Without --no-control-socket, newer versions start a control thread and leave a socket in $HOME; older
    # ones don't know the flag.
    quiet = ["--no-control-socket"] if gunicorn_has_control() else []
    return [sys.executable, "-m", "gunicorn", "--log-level", "warning", *quiet, *arguments]


def gunicorn_has_control() -> bool:
    spec = importlib.util.find_spec("gunicorn")
    return bool(spec and spec.origin and (Path(spec.origin).parent / "ctl").is_dir())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    pause: float = READY_PAUSE,
) -> Iterator[Server]:
    """Run a server for the length of a block; it answers on `port` when the block begins.

    Args:
        command: what to start; it must stay in the foreground.
        port: where it will listen on 127.0.0.1.
        folder: its working directory and the place of its log.
        environment: additions to this process's environment.
        pass_fds: descriptors that it inherits.
        pause: seconds between two attempts to get an answer.

    Raises:
        BenchError: it ended or did not answer in time; the message has the end of its log.
    """
    path = folder / f"server-{port}.log"
    paths = [str(folder), str(HERE), str(ROOT / "supervisor"), os.environ.get("PYTHONPATH", "")]
    with path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={
                **inherited_environment(),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    try:
        wait_ready(process.pid, port, path, pause)
        yield Server(process.pid, port, path)
    finally:
        end(process)


def inherited_environment() -> dict[str, str]:
    """This process's environment for servers and commands under test.

    Without PYTHONDONTWRITEBYTECODE: with it each start would compile all modules, which is more CPU time, and
    other memory than code that is loaded.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def answers(port: int) -> bool:
    """Whether a request gets a 200: a listening socket alone does not show that workers run."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=READY_WITHIN) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            # Some servers answer with their own HTTP version instead of the request's.
            return sock.recv(12)[8:] == b" 200"
    except OSError:
        return False


def wait_ready(pid: int, port: int, log: Path, pause: float = READY_PAUSE) -> None:
    """Return when `port` answers requests; a server that ends meanwhile is noticed."""
    deadline = time.monotonic() + READY_WITHIN
    gone = os.pidfd_open(pid)
    try:
        while True:
            if answers(port):
                return
            # The pause between two attempts waits for the end of the process.
            if select.select([gone], [], [], pause)[0]:
                raise BenchError(f"the server ended at once: {last_line(log)}")
            if time.monotonic() > deadline:
                raise BenchError(f"the server did not answer within {READY_WITHIN:g} s: {last_line(log)}")
    finally:
        os.close(gone)


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(its log is empty)"


def wait_exit(pidfds: Sequence[int], within: float) -> bool:
    """Wait until all processes behind these pidfds have ended; False when the time was not enough."""
    deadline = time.monotonic() + within
    left = set(pidfds)
    while left:
        ready, _, _ = select.select(list(left), [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        left.difference_update(ready)
    return True


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all processes of its group."""
    gone = os.pidfd_open(process.pid)
    try:
        process.terminate()
        wait_exit([gone], END_WITHIN)
    finally:
        os.close(gone)
        # The leader has not been reaped yet: its pid, and so its group's number, is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(END_WITHIN)


def parents() -> dict[int, int]:
    """Parent by pid, for all processes (proc(5), stat)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = int(stat_fields(entry)[1])
    return found


def stat_fields(process: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the second, the name, may contain anything."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parent_of = parents()
    members = [pid]
    for member in members:  # grows while it is read
        members += [child for child, parent in parent_of.items() if parent == member]
    return members


def cpu_seconds(pid: int) -> float:
    """User and system time of a process tree, children that have been reaped included."""
    ticks = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            fields = stat_fields(Path(f"/proc/{member}"))
            ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> set[int]:
    """The direct children of a process, in all its threads."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found.update(map(int, (task / "children").read_text().split()))
    return found


def read_line(pipe: IO[bytes], deadline: float) -> bytes:
    """One line from an unbuffered pipe.

    Raises:
        BenchError: none came before `deadline` (on the monotonic clock).
    """
    if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise BenchError("a worker did not report in time")
    return pipe.readline()
