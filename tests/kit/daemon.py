"""Real daemons for system tests: each in a folder of its own, none left behind.

A `Place` is a temporary folder with an app folder, a runtime directory and an environment that nobody else
shares, so that tests can run side by side. It starts daemons (`python -m ostler`), runs `ctl` against
them, and at its end stops them and looks for what is left: anything with the place's mark in its environment,
or with its folder open. What it finds is killed, and the test fails.
Should the tests be killed themselves, their daemons get SIGTERM.

Nothing sleeps to let time pass. `until` looks for a fact again and again up to a deadline, and gives up at
once if the daemon it asks about is dead.

    with Place() as place:
        place.add("app.py", SOURCE)
        daemon = place.start("-w", "2", "app:app")
        assert daemon.get("/").text == "hello"
        daemon.send(signal.SIGTTIN)
        daemon.settled(3)
"""

import ctypes
import functools
import http.client
import itertools
import json
import os
import secrets
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from ostler.control.client import Client, UnreachableError
from ostler.control.routes import STATUS, WORKERS
from ostler.control.views import RequestView, StatusView, WorkerView

T = TypeVar("T")

OSTLER = (sys.executable, "-m", "ostler")
PATIENCE = 30.0
"""Seconds for what usually takes some milliseconds; machines that run tests are busy."""
_LOOK = 0.01
_LONGEST_LOOK = 0.05
_MARK = "OSTLER_TEST_PLACE"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_NEWNS = 0x20000  # linux/sched.h
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18  # linux/mount.h
# What the machine's own environment must not tell the daemon.
_UNWANTED = (
    "OSTLER_",
    "GUNICORN_",
    "LISTEN_",
    "WEB_CONCURRENCY",
    "PORT",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    # Images of containers set it. Each process would compile all of its modules, a quarter of its start.
    "PYTHONDONTWRITEBYTECODE",
)


def until(condition: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
    """Look until `condition` gives something true.

    Raises:
        AssertionError: it has not, `within` seconds; the text names `what`.
    """
    began = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        waited = time.monotonic() - began
        assert waited < within, f"not within {within:g} s: {what}"
        # A look costs the daemon something, too: it is less frequent the longer the wait has been.
        time.sleep(min(max(_LOOK, waited / 10), _LONGEST_LOOK))


# -- asking over HTTP ------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Connection(http.client.HTTPConnection):
    """To `http://HOST:PORT`, `https://HOST:PORT` (the certificate is not checked) or `unix:PATH`, keep-alive.

    `asked` and `answer` may lie apart in time.
    """

    def __init__(self, url: str, seconds: float = PATIENCE) -> None:
        self._path = url.removeprefix("unix:") if url.startswith("unix:") else None
        parts = urllib.parse.urlsplit(url)
        self._tls = parts.scheme == "https"
        super().__init__(parts.hostname or "localhost", parts.port, timeout=seconds)

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            if self._tls:
                self.sock = _trusting().wrap_socket(self.sock)
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def asked(self, target: str, method: str = "GET", **options: Any) -> Self:
        self.request(method, target, **options)
        return self

    def answer(self) -> Answer:
        """The answer to what was asked; the connection stays open if the server lets it."""
        response = self.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def ended_by_server(self) -> None:
        """Wait until the server closes without having answered."""
        assert self.sock is not None
        try:
            data = self.sock.recv(1)
        except ConnectionResetError:
            data = b""
        assert data == b"", f"expected the end, got {data!r}"


@functools.cache
def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(url: str, target: str = "/", method: str = "GET", **options: Any) -> Answer:
    """One request on a connection of its own."""
    connection = Connection(url)
    try:
        return connection.asked(target, method, **options).answer()
    finally:
        connection.close()


# -- processes -------------------------------------------------------------------------------------------


class Process:
    """A process that is not our child, held by a pidfd: a number that is used again can't mislead."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = -1
        self._fd = os.pidfd_open(pid)

    def send(self, signum: int) -> None:
        signal.pidfd_send_signal(self._fd, signum)

    @property
    def gone(self) -> bool:
        return self.ended(0)

    def ended(self, within: float = PATIENCE) -> bool:
        """Wait for its end (a pidfd becomes readable then, pidfd_open(2))."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(within * 1000))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close


def title(pid: int) -> str:
    """What ps shows; nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """Children of all threads, zombies included."""
    return [found for found, stat in _processes() if stat.parent == pid]


def zombies(pid: int) -> list[int]:
    return [found for found, stat in _processes() if stat.parent == pid and stat.state == "Z"]


def descriptors(pid: int) -> list[str]:
    """What the process has open, e.g. `socket:[123]`, sorted."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # closed while we looked
    return sorted(found)


def client_ports(pid: int, port: int) -> set[int]:
    """The clients' ports of the TCP connections to `port` that the process holds, idle ones included."""
    held = set(descriptors(pid))
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        # proc_net(5) and the kernel's proc_net_tcp.rst: sl, local, remote, state, ..., and the tenth is the
        # socket's inode; addresses are in hexadecimal.
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in held:
            found.add(int(fields[2].rpartition(":")[2], 16))
    return found - {0}  # the listener's


def freeze(process: Process) -> None:
    """SIGSTOP, and wait until none of its threads runs: what it holds changes no more."""
    process.send(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    until(
        lambda: all("T" in (task / "stat").read_text().rpartition(")")[2][:3] for task in tasks.iterdir()),
        "stopped",
    )


class Killed(NamedTuple):
    """A process that a test has killed, and whom that may have hurt."""

    pid: int
    at: float
    """CLOCK_MONOTONIC."""
    ports: frozenset[int]
    """The clients' ends of the connections that it held."""


def kill_holding(pid: int, port: int, signum: int = signal.SIGKILL) -> Killed | None:
    """Kill a worker so that one knows what it held when it died; None if it was gone already.

    It is stopped first. Connections travel between workers, so that who answered last on one is no proof of
    who had it in hand.
    """
    try:
        process = Process(pid)
        freeze(process)
        ports = client_ports(pid, port)
        at = time.monotonic()
        process.send(signum)
        if signum != signal.SIGKILL:
            process.send(signal.SIGCONT)  # what else is sent to a stopped process waits, and comes first now
    except (ProcessLookupError, FileNotFoundError):
        return None
    return Killed(pid, at, frozenset(ports))


class _Stat(NamedTuple):
    state: str
    parent: int
    session: int
    started: int
    """Clock ticks since the machine's start."""


def _processes() -> Iterable[tuple[int, _Stat]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            # proc_pid_stat(5): the command's name may hold anything, so from its last bracket on.
            fields = stat.rpartition(")")[2].split()
            yield int(folder.name), _Stat(fields[0], int(fields[1]), int(fields[3]), int(fields[19]))


def fork_server(daemon: "Daemon") -> Process:
    """The only fork server, once it is: a worker bears its title from the fork until it has its own."""

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
        """stderr, which is one line; fails if it is more, or none."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"expected one line on stderr, got:\n{self.err}"
        return lines[0]


_libc = ctypes.CDLL(None)


def end_with_us() -> None:
    """In what is to become a daemon: be told to end if the thread that has started it does (prctl(2)).

    SIGINT is not ignored, as a shell has it for what it runs in the background, the tests for instance.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _strange_folders() -> list[bytes]:
    """Folders of other accounts where `ctl` looks whatever its environment says."""
    places = [path for place in ("/tmp", "/var/tmp", "/dev/shm") for path in Path(place).glob("ostler-*")]
    folders = [path for path in (*places, Path("/run/ostler")) if path.is_dir()]
    return [os.fsencode(path) for path in folders if path.stat().st_uid != os.geteuid()]


def _hide(folders: Sequence[bytes]) -> None:
    """In what is to become a command, as root: each of these folders is an empty one to it (mount(2)).

    They stay as they are in a container whose root may not mount.
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
        self._clean = True
        with self.out.open("wb") as out, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
                **{"preexec_fn": end_with_us, "cwd": place.app_folder, "env": place.environ, **popen},
            )
        self.pid = self.process.pid

    # -- waiting for facts --------------------------------------------------------------------------------

    def until(self, condition: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
        """As the function `until`, but not longer than the daemon lives."""

        def look() -> T | None:
            found = condition()
            if not found:
                assert self.process.poll() is None, f"exit code {self.process.returncode} before: {what}"
            return found

        return until(look, what, within)

    def events(self, name: str = "", **fields: Any) -> list[dict[str, Any]]:
        """What the log says, as far as it is JSON; `fields` must be equal."""
        found = []
        for line in self.log.read_text(errors="replace").split("\n")[:-1]:
            if line.startswith("{"):
                event = json.loads(line)
                if name in ("", event["event"]) and fields.items() <= event.items():
                    found.append(event)
        return found

    def event(self, name: str, within: float = PATIENCE, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for the log to tell an event; the first one after `after` others of its kind."""
        what = f"event {name} {fields or ''}"
        return self.until(lambda: self.events(name, **fields)[after:], what, within)[0]

    def settled(self, workers: int, within: float = PATIENCE, **more: Any) -> list[WorkerView]:
        """Wait until exactly `workers` workers exist and all are ready; returns them by slot.

        Args:
            more: attributes of the status that must be so, too.
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
        """Wait until the totals of the status are these: a worker counts a request once it is answered."""

        def look() -> bool:
            found = self.status().totals
            return all(getattr(found, name) == value for name, value in totals.items())

        self.until(look, f"totals {totals}")

    def in_app(self, path: str, within: float = PATIENCE) -> RequestView:
        """Wait until a request for `path` is in the app."""

        def look() -> RequestView | None:
            found = [r for worker in self.workers() for r in worker.in_flight if r.path == path]
            return found[0] if found else None

        return self.until(look, f"{path} in the app", within)

    # -- the control API ------------------------------------------------------------------------------------

    @functools.cached_property
    def socket(self) -> Path:
        """The control socket, wherever in the runtime directory it is."""

        def look() -> Path | None:
            for path in sorted(self.place.runtime.glob("ostler/*.sock")):
                if _listener_pid(path) == self.pid:
                    return path
            return None

        return self.until(look, "the control socket")

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client.unix(self.socket)
        return self._client

    def status(self) -> StatusView:
        return self.client.call(STATUS)

    def workers(self) -> list[WorkerView]:
        return self.client.call(WORKERS)

    def pids(self) -> list[int]:
        """Of all workers, by slot, once every one that is wanted has its process."""

        def look() -> tuple[list[int]] | None:
            found = [worker.pid for worker in self.workers() if worker.pid is not None]
            return (found,) if len(found) >= self.status().wanted else None

        return self.until(look, "a process for each worker")[0]

    def ctl(self, *args: str, within: float = 30.0) -> Done:
        return self.place.run("ctl", *args, within=within, OSTLER_SOCKET=str(self.socket))

    # -- the app ------------------------------------------------------------------------------------------

    @functools.cached_property
    def urls(self) -> list[str]:
        """Listening addresses, as the log told when the first worker was ready."""
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
        """A connection that ends with the daemon at the latest."""
        connection = Connection(self.url, seconds)
        self._connections.append(connection)
        return connection

    def hang_up(self) -> None:
        """Close all connections made by `connect`; a graceful end would wait a while for them."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    # -- its end ------------------------------------------------------------------------------------------

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL, as a test's own wish; what is left of the fleet is the test's business."""
        self.process.kill()
        self.process.wait()

    def wait(self, within: float = PATIENCE) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {within:g} s") from None

    def stop(self, signum: int = signal.SIGTERM, within: float = PATIENCE) -> int:
        """Signal it, wait, and make sure it left nothing; the exit code."""
        self.send(signum)
        code = self.wait(within)
        assert self.place.leftovers() == []
        return code

    def close(self) -> None:
        """End it whatever its state."""
        self.hang_up()
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
    """Who listens on a Unix socket, 0 if nobody does (SO_PEERCRED, unix(7))."""
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
    """Where daemons of one test, or of one module, live. A context manager.

    Attributes:
        folder: everything; app_folder: where they are started; runtime: XDG_RUNTIME_DIR; environ: theirs.
        keep: set when a test fails; the folder then stays.
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
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_UNWANTED)}
        self.environ = kept | {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "TMPDIR": str(self.folder),
            "NO_COLOR": "1",
            _MARK: self._mark,
            # The memory of the environment is not used for titles, so the mark stays to be seen in /proc.
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

    def let_others_in(self) -> None:
        """Other accounts may enter and read the folders."""
        for folder in (self.folder, self.app_folder):
            folder.chmod(0o755)

    def add(self, name: str, source: str) -> Path:
        """Write a file into the app folder; a newer version is seen as newer by Python's bytecode cache."""
        path = self.app_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.draft")
        draft.write_text(source)
        # A .pyc is valid for a time in whole seconds and a size; two versions within a second look alike.
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
            bind: given as `-b`; None if `args` or a file say it.
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
        self, *args: str, argv: Sequence[str] = OSTLER, cwd: Path | None = None, within: float = 30.0,
        **environ: str,
    ) -> Done:  # fmt: skip
        """Run a command to its end; it must leave nothing behind.

        What other accounts have left where `ctl` looks is hidden from it, if we are root.
        """
        strange = _strange_folders() if os.geteuid() == 0 else []
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
        """Live processes of ours, apart from daemons that have not been stopped and their fleets."""
        running = {daemon.pid for daemon in self.daemons if daemon.process.poll() is None}
        mark = f"{_MARK}={self._mark}".encode()
        found = []
        for pid, stat in _processes():
            if stat.state in "ZX" or stat.session in running or stat.started < self._began:
                continue
            # Not by the number of the session: once all of it has ended, the kernel gives it to a stranger.
            # The folder is for what an app has started with another environment.
            if mark in _environ(pid) or self._uses_folder(pid):
                found.append(Leftover(pid, title(pid)))
        return found

    def _uses_folder(self, pid: int) -> bool:
        try:
            used = [str(Path(f"/proc/{pid}/cwd").readlink()), *descriptors(pid)]
        except OSError:
            return False
        return pid != os.getpid() and any(path.startswith(f"{self.folder}/") for path in used)

    def story(self) -> str:
        """The logs, for whoever looks at a failed test."""
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
    """Now, as proc_pid_stat(5) has a process's start: clock ticks since the machine's start, rounded down."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
