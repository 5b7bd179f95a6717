"""Real daemons for system tests, each in a folder of its own; none is left behind.

A `Place` is a temporary folder with an app folder, a runtime directory and an environment of its own, so that
tests can run side by side. It starts daemons (`python -m ostler`) and runs `ctl` against them. At its end it
stops them and looks for processes that are left: those with the place's marker in their environment, or with
a file in its folder open. It kills what it finds, and the test fails. If the tests themselves are killed,
their daemons get SIGTERM.

    with Place() as place:
        place.add("app.py", SOURCE)
        daemon = place.start("-w", "2", "app:app")
        assert daemon.get("/").text == "hello"
        daemon.send(signal.SIGTTIN)
        daemon.settled(3)

A number that the daemon updates a moment after the client has its answer (totals, log lines, states) is never
compared at once: `Daemon.until`, `event`, `settled` and `counted` wait for it, and fail at once if the daemon
ends meanwhile.
"""

import ctypes
import functools
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from ostler.control.client import Client, UnreachableError
from ostler.control.routes import STATUS, WORKERS
from ostler.control.views import RequestView, StatusView, WorkerView
from tests.kit.http_client import Answer, Connection, ask
from tests.kit.processes import Process, children, descriptors, processes, title
from tests.kit.waiting import PATIENCE, until

T = TypeVar("T")

OSTLER = (sys.executable, "-m", "ostler")
_MARK = "OSTLER_TEST_PLACE"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_NEWNS = 0x20000  # linux/sched.h
# Seconds; a reload that is waited for takes more than ten on a slow and busy machine.
_ANSWER_WITHIN = 60.0
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18  # linux/mount.h
# Variables of the machine's own environment that would change what a daemon does.
_UNWANTED = (
    "OSTLER_",
    "GUNICORN_",
    "LISTEN_",
    "WEB_CONCURRENCY",
    "PORT",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    # Container images set it. Each process would compile all of its modules, which is a quarter of its start.
    "PYTHONDONTWRITEBYTECODE",
)


def fork_server(daemon: "Daemon") -> Process:
    """Wait until there is exactly one fork server. A new worker has its title for a moment."""

    def look() -> Process | None:
        named = [pid for pid in children(daemon.pid) if title(pid).startswith("ostler: fork server")]
        return Process(named[0]) if len(named) == 1 else None

    return until(look, "one fork server")


# -- the daemon ------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """stderr, which must be one line."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"expected one line on stderr, got:\n{self.err}"
        return lines[0]


_libc = ctypes.CDLL(None)


def end_with_parent() -> None:
    """Run in the child before it becomes a daemon: it gets SIGTERM when its parent thread ends (prctl(2)).

    SIGINT gets its default action back: a shell ignores it in what it runs in the background.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _strange_folders(system: bool) -> list[bytes]:
    """Folders in which `ctl` looks, whatever its environment is, and finds other daemons; hidden in tests.

    These are those of other accounts and, with `system`, the system's.
    """
    places = [path for place in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(place).glob("ostler-*")]
    folders = [path for path in places if path.is_dir() and path.stat().st_uid != os.geteuid()]
    if system and (run := Path("/run/ostler")).is_dir():
        folders.append(run)
    return [os.fsencode(path) for path in folders]


def _hide(folders: Sequence[bytes]) -> None:
    """Run as root in the child before it executes a command: each of these folders appears empty to it
    (mount(2)).

    In a container where root may not mount, they stay as they are.
    """
    if _libc.unshare(_CLONE_NEWNS) == 0 == _libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None):
        for folder in folders:
            _libc.mount(b"tmpfs", folder, b"tmpfs", 0, b"mode=755")


class Daemon:
    """A running daemon; made by `Place.start`.

    Attributes:
        process: what was started; out and log: the files with its stdout and stderr.
    """

    def __init__(self, place: "Place", argv: Sequence[str], number: int, **popen: Any) -> None:
        self.place = place
        self.argv = argv
        self.out = place.folder / f"{number}.out"
        self.log = place.folder / f"{number}.log"
        self._connections: list[Connection] = []
        self._client: Client | None = None
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                **{"preexec_fn": end_with_parent, "cwd": place.app_folder, "env": place.environ, **popen},
            )
        self.pid = self.process.pid

    # -- waiting --------------------------------------------------------------------------------

    def until(self, condition: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
        """As the function `until`; fails at once if the daemon ends."""

        def look() -> T | None:
            found = condition()
            if not found:
                assert self.process.poll() is None, f"exit code {self.process.returncode} before: {what}"
            return found

        return until(look, what, within)

    def events(self, name: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The events of the log so far, those with these fields; lines that are no JSON are left out."""
        found = []
        for line in self.log.read_text(errors="replace").split("\n")[:-1]:
            if line.startswith("{"):
                event = json.loads(line)
                if name in ("", event["event"]) and fields.items() <= event.items():
                    found.append(event)
        return found

    def event(self, name: str, within: float = PATIENCE, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for an event in the log; return the first one after `after` others of its kind."""
        what = f"event {name} {fields or ''}"
        return self.until(lambda: self.events(name, **fields)[after:], what, within)[0]

    def settled(self, workers: int, within: float = PATIENCE, **more: Any) -> list[WorkerView]:
        """Wait until exactly `workers` workers exist and all are ready; return them by slot.

        Args:
            more: attributes of the status, which must have these values, too.
        """

        def look() -> tuple[list[WorkerView]] | None:
            status, found = self.status(), self.workers()
            states = {worker.state for worker in found}
            fits = all(getattr(status, name) == value for name, value in more.items())
            return (
                (found,) if fits and len(found) == workers == status.ready and states <= {"ready"} else None
            )

        return self.until(look, f"{workers} workers and all ready {more or ''}", within)[0]

    def counted(self, **totals: int) -> None:
        """Wait until the status has these totals: a worker counts a request after its answer."""

        def look() -> bool:
            found = self.status().totals
            return all(getattr(found, name) == value for name, value in totals.items())

        self.until(look, f"totals {totals}")

    def in_app(self, path: str, within: float = PATIENCE) -> RequestView:
        """Wait until a request for `path` is in the app; return it."""

        def look() -> RequestView | None:
            found = [r for worker in self.workers() for r in worker.in_flight if r.path == path]
            return found[0] if found else None

        return self.until(look, f"{path} in the app", within)

    # -- the control API ------------------------------------------------------------------------------------

    @functools.cached_property
    def socket(self) -> Path:
        """The control socket, found in the runtime directory."""

        def look() -> Path | None:
            for path in sorted(self.place.runtime.glob("ostler/*.sock")):
                if _listener_pid(path) == self.pid:
                    return path
            return None

        return self.until(look, "the control socket")

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client.unix(self.socket, _ANSWER_WITHIN)
        return self._client

    def status(self) -> StatusView:
        return self.client.call(STATUS)

    def workers(self) -> list[WorkerView]:
        return self.client.call(WORKERS)

    def pids(self) -> list[int]:
        """Wait until each wanted worker has a process; return the pids by slot."""

        def look() -> tuple[list[int]] | None:
            found = [worker.pid for worker in self.workers() if worker.pid is not None]
            return (found,) if len(found) >= self.status().wanted else None

        return self.until(look, "a process for each worker")[0]

    def ctl(self, *args: str, within: float = PATIENCE) -> Done:
        return self.place.run("ctl", *args, within=within, OSTLER_SOCKET=str(self.socket))

    # -- the app ------------------------------------------------------------------------------------------

    @functools.cached_property
    def urls(self) -> list[str]:
        """Listening addresses, from the log event of the first ready worker."""
        return str(self.event("serving")["listeners"]).split()

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        """For `tests.kit.load`."""
        return "127.0.0.1", self.port

    def get(self, target: str = "/", **options: Any) -> Answer:
        return ask(self.url, target, **options)

    def connect(self, seconds: float = PATIENCE) -> Connection:
        """A new connection, which is closed at the daemon's end if not before."""
        connection = Connection(self.url, seconds)
        self._connections.append(connection)
        return connection

    def close_connections(self) -> None:
        """Close all connections made by `connect`: a graceful end waits for them."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    # -- its end ------------------------------------------------------------------------------------------

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        """Send SIGKILL and wait. The place waits for the rest of the fleet, which ends by itself."""
        self.process.kill()
        self.process.wait()

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for its end; return the exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {within:g} s") from None

    def stop(self, signum: int = signal.SIGTERM, within: float = PATIENCE) -> int:
        """Signal it, wait for its end, check that no process is left; return the exit code."""
        self.send(signum)
        code = self.wait(within)
        assert self.place.leftovers() == []
        return code

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.close_connections()
        if self._client is not None:
            self._client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("SIGTERM did not end the daemon") from None


def _listener_pid(path: Path) -> int:
    """Pid of the process that listens on a Unix socket, or 0 (SO_PEERCRED, unix(7))."""
    client = Client.unix(path)
    try:
        client.call(STATUS)
        return client.server_pid() or 0
    except UnreachableError:
        return 0
    finally:
        client.close()


@dataclass(frozen=True)
class Leftover:
    pid: int
    title: str


class Place:
    """A folder and an environment for the daemons of one test or one module. A context manager.

    Attributes:
        folder: holds all the others.
        app_folder: the daemons' working directory.
        runtime: their XDG_RUNTIME_DIR.
        environ: their environment.
        keep: set when a test fails; the folder is then kept.
    """

    live: ClassVar[list["Place"]] = []

    def __init__(self) -> None:
        # Not pytest's tmp_path: a Unix socket's path has 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix="ost-", dir="/tmp"))
        self.app_folder = self.folder / "app"
        self.runtime = self.folder / "run"
        for folder in (self.app_folder, self.runtime):
            folder.mkdir(mode=0o700)
        self.keep = False
        self.daemons: list[Daemon] = []
        self._mark = secrets.token_hex(8)
        self._began = _boot_ticks()
        self._clock = itertools.count(1_000_000_000)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name == "OSTLER_NATIVE" or not name.startswith(_UNWANTED)
        }
        self.environ = kept | {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.folder),
            "NO_COLOR": "1",
            _MARK: self._mark,
            # aiohttp reads the machine's certificates when it is imported, 40 ms; no test needs them.
            "SSL_CERT_FILE": os.devnull,
            "SSL_CERT_DIR": os.devnull,
            # setproctitle does not overwrite the environment, so that the marker stays visible in /proc.
            "SPT_NOENV": "1",
        }

    def __enter__(self) -> Self:
        Place.live.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Place.live.remove(self)
        self.keep |= kind is not None
        problems = []
        for daemon in self.daemons:
            try:
                daemon.close()
            except AssertionError as problem:
                problems.append(str(problem))
        if any(daemon.process.returncode == -signal.SIGKILL for daemon in self.daemons):
            with suppress(AssertionError):  # they are reported below
                until(lambda: not self.leftovers(), "the end of a killed daemon's fleet")
        for left in self.leftovers():
            problems.append(f"left behind: {left.pid} {left.title}")
            try:
                os.kill(left.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not self.keep and not problems:
            shutil.rmtree(self.folder)
        assert not problems, f"{'; '.join(problems)} (see {self.folder})"

    # -- files --------------------------------------------------------------------------------------------

    def open_to_others(self) -> None:
        """Let other accounts enter and read the folders."""
        for folder in (self.folder, self.app_folder):
            folder.chmod(0o755)

    def add(self, name: str, source: str) -> Path:
        """Write a file into the app folder; each version is newer to Python's bytecode cache."""
        path = self.app_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(source)
        # A .pyc is matched by size and by time in whole seconds, so versions within one second may look the
        # same.
        at = next(self._clock)
        os.utime(draft, (at, at))
        draft.replace(path)
        return path

    # -- daemons ------------------------------------------------------------------------------------------

    def start(
        self,
        *args: str,
        argv: Sequence[str] = OSTLER,
        bind: str | None = "127.0.0.1:0",
        serving: bool = True,
        popen: Mapping[str, Any] | None = None,
        **environ: str,
    ) -> Daemon:
        """Start a daemon.

        Args:
            args: its command line.
            argv: the program.
            bind: given as `-b`; None if `args` or a file has the address.
            serving: wait until its first worker is ready.
            popen: more arguments for Popen.
            environ: more environment variables.
        """
        command = [*argv, *(("-b", bind) if bind else ()), *args]
        more = {"env": self.environ | environ, **(popen or {})}
        daemon = Daemon(self, command, len(self.daemons) + 1, **more)
        self.daemons.append(daemon)
        if serving:
            daemon.event("serving")
        return daemon

    def run(
        self, *args: str, argv: Sequence[str] = OSTLER, cwd: Path | None = None, within: float = PATIENCE,
        hide_system: bool = True, **environ: str,
    ) -> Done:  # fmt: skip
        """Run a command to its end.

        As root, the folders in which `ctl` would find other daemons are hidden from it.

        Args:
            hide_system: /run/ostler is one of them; False if a daemon of the place uses it.
        """
        strange = _strange_folders(hide_system) if os.geteuid() == 0 else []
        with subprocess.Popen(
            [*argv, *args],
            cwd=cwd or self.app_folder,
            env=self.environ | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=functools.partial(_hide, strange) if strange else None,
        ) as process:
            try:
                out, err = process.communicate(timeout=within)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                raise AssertionError(f"{args} did not end within {within:g} s:\n{out}{err}") from None
        return Done(process.returncode, out, err)

    # -- what is left -------------------------------------------------------------------------------------

    def leftovers(self) -> list[Leftover]:
        """Live processes of this place, without daemons that were not stopped and their fleets."""
        running = {daemon.pid for daemon in self.daemons if daemon.process.poll() is None}
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for pid, stat in processes():
            if stat.state in "ZX" or stat.session in running or stat.started < self._began:
                continue
            # The session id alone proves nothing: the kernel may use it again after its end. The open files
            # find what an app has started with another environment.
            if mark in _environ(pid) or self._uses_folder(pid):
                found.append(Leftover(pid, title(pid)))
        return found

    def _uses_folder(self, pid: int) -> bool:
        try:
            used = [str(Path(f"/proc/{pid}/cwd").readlink()), *descriptors(pid)]
        except OSError:
            return False
        return pid != os.getpid() and any(path.startswith(f"{self.folder}/") for path in used)

    def logs(self) -> str:
        """The daemons' command lines and logs, for the report of a failed test."""
        parts = [f"folder {self.folder}"]
        for daemon in self.daemons:
            code = daemon.process.poll()
            parts.append(f"$ {' '.join(daemon.argv)}")
            parts.append("(running)" if code is None else f"(exit code {code})")
            written = ((path, path.read_text(errors="replace")) for path in (daemon.out, daemon.log))
            parts += [f"{path.name}:\n{text[-6000:]}" for path, text in written if text]
        for path in sorted(set(self.folder.glob("*.log")) - {daemon.log for daemon in self.daemons}):
            parts.append(f"{path.name}:\n{path.read_text(errors='replace')[-6000:]}")
        return "\n".join(parts)


def _boot_ticks() -> int:
    """The time now in clock ticks since boot, rounded down, as a process's start in proc_pid_stat(5)."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
