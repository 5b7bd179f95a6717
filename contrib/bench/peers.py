"""The servers under test and how each is configured; one table for all benchmarks.

A `Shape` is what a benchmark asks for (workers, threads, connections). Each server's row turns it into a
command line. Keep-alive is on for every server that has it. All other settings are the server's defaults,
except logs (none per request) and limits that would end the measurement (listen queues, connections).
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import servers

FIND = """\
import importlib.util, json, sys

def present(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False

print(json.dumps([sys.prefix, [name for name in sys.argv[1:] if present(name)]]))
"""


@dataclass(frozen=True)
class Shape:
    """What a benchmark asks of a server."""

    app: str = "hello"
    """A name in apps.py."""
    workers: int = 1
    threads: int = 1
    keep_alive: int = 75
    """Seconds."""
    connections: int = 1000
    """How many a worker must be able to hold."""
    access_log: bool = False
    """To a file; Ostler only."""

    @property
    def suffix(self) -> str:
        """What distinguishes rows of one server."""
        size = f" {self.workers}x{self.threads}" if self.workers > 1 or self.threads > 1 else ""
        return size + " +log" * self.access_log


@dataclass(frozen=True)
class Candidate:
    """A server that can be started here."""

    name: str
    arguments: Sequence[str]
    """Its command line; PORT and LOG stand for what is not known before it starts."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, port: int, folder: Path) -> list[str]:
        log = str(folder / f"access-{port}.log")
        return [part.replace("PORT", str(port)).replace("LOG", log) for part in self.arguments]


@dataclass(frozen=True)
class Python:
    """The interpreter that runs the servers, with what is installed there."""

    path: str
    prefix: str
    modules: frozenset[str]

    @classmethod
    def at(cls, path: str) -> "Python":
        """Ask an interpreter; `BenchError` if it can't be started."""
        # Only versions with the control package have the flag that turns it off.
        wanted = {peer.module for peer in PEERS.values()} | {"flask", "gunicorn.ctl"}
        try:
            run = subprocess.run([path, "-c", FIND, *sorted(wanted)], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise servers.BenchError(f"{path}: {error}") from None
        prefix, found = json.loads(run.stdout)
        return cls(path, prefix, frozenset(found))

    def script(self, name: str) -> str | None:
        """A command that was installed beside it."""
        return shutil.which(name, path=str(Path(self.path).parent))

    def has(self, peer: "Peer") -> bool:
        return bool(self.script("uwsgi")) if peer.module == "uwsgidecorators" else peer.module in self.modules


@dataclass(frozen=True)
class Peer:
    """A server other than Ostler."""

    module: str
    """What must be importable."""
    build: Callable[[Python, Shape], list[str]]


def _gunicorn(worker_class: str) -> Peer:
    def build(python: Python, shape: Shape) -> list[str]:
        threads = ["--threads", str(shape.threads)] if worker_class == "gthread" else []
        # A control thread and a socket in $HOME are not part of serving.
        quiet = ["--no-control-socket"] if "gunicorn.ctl" in python.modules else []
        return [
            python.path, "-m", "gunicorn", "--log-level", "warning", *quiet,
            "-k", worker_class, "-w", str(shape.workers), *threads,
            "--keep-alive", str(shape.keep_alive),
            "--worker-connections", str(shape.connections),
            "-b", "127.0.0.1:PORT", f"apps:{shape.app}",
        ]  # fmt: skip

    return Peer("gunicorn" if worker_class != "gevent" else "gevent", build)


def _uwsgi(option: str) -> Peer:
    def build(python: Python, shape: Shape) -> list[str]:
        threads = ["--threads", str(shape.threads)] if shape.threads > 1 else []
        # It closes without `Connection: close`, which clients of HTTP/1.1 must treat as an error.
        closing = ["--add-header", "Connection: close"] if option == "--http-socket" else []
        return [
            python.script("uwsgi") or "uwsgi",
            option, "127.0.0.1:PORT", "--listen", "1024", "--home", python.prefix,
            "--pythonpath", str(servers.HERE), "--wsgi", f"apps:{shape.app}",
            "--master", "--processes", str(shape.workers), *threads,
            "--need-app", "--die-on-term", "--disable-logging", *closing,
        ]  # fmt: skip

    return Peer("uwsgidecorators", build)


def _granian(python: Python, shape: Shape) -> list[str]:
    return [
        python.path, "-m", "granian", "--interface", "wsgi", "--http", "1", "--no-ws",
        "--host", "127.0.0.1", "--port", "PORT", "--workers", str(shape.workers),
        "--blocking-threads", str(shape.threads), "--log-level", "warning",
        # It also closes idle connections after this time; a minute is its maximum.
        "--http1-header-read-timeout", "60000",
        "--backlog", "2048", "--backpressure", str(max(1024, shape.connections)),
        f"apps:{shape.app}",
    ]  # fmt: skip


def _waitress(python: Python, shape: Shape) -> list[str]:
    # By default 100 connections, on a select() that ends at 1024 descriptors; its poll() costs far more CPU.
    poll = ["--asyncore-use-poll"] if shape.connections > 1000 else []
    return [
        python.path, "-m", "waitress", "--listen", "127.0.0.1:PORT", "--threads", str(shape.threads),
        "--channel-timeout", str(max(120, shape.keep_alive)), "--backlog", "2048",
        "--connection-limit", str(shape.connections if poll else min(shape.connections, 900)), *poll,
        f"apps:{shape.app}",
    ]  # fmt: skip


def _launched(name: str) -> Peer:
    def build(python: Python, shape: Shape) -> list[str]:
        numbers = map(str, (shape.threads, shape.connections, shape.keep_alive))
        return [python.path, str(servers.HERE / "launch.py"), name, shape.app, "PORT", *numbers]

    return Peer(name, build)


PEERS = {
    "gunicorn sync": _gunicorn("sync"),
    "gunicorn gthread": _gunicorn("gthread"),
    "gunicorn gevent": _gunicorn("gevent"),
    "uwsgi http-socket": _uwsgi("--http-socket"),
    "uwsgi http11-socket": _uwsgi("--http11-socket"),
    "granian": Peer("granian", _granian),
    "waitress": Peer("waitress", _waitress),
    "bjoern": _launched("bjoern"),
    "fastwsgi": _launched("fastwsgi"),
    "meinheld": _launched("meinheld"),
    "cheroot": _launched("cheroot"),
}


class Field:
    """The servers that take part: Ostler from one or more checkouts, and the peers that are installed.

    Raises:
        BenchError: the interpreter can't be started.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._only: str | None = options.only
        self.python = Python.at(options.python)
        self._checkouts = {"": servers.ROOT}
        for checkout in options.also:
            self._checkouts[f" @{checkout.resolve().name}"] = checkout.resolve()
        self._said: set[str] = set()
        self._help: dict[Path, str] = {}

    def pick(self, names: Sequence[str], shape: Shape) -> list[Candidate]:
        """The named servers that are installed; "ostler sync" and the like are the rows of Ostler."""
        found = []
        for name in names:
            if name.startswith("ostler "):
                found += self._ostler(name, shape)
            elif self._wanted(name + shape.suffix):
                peer = PEERS[name]
                if self.python.has(peer):
                    found.append(Candidate(name + shape.suffix, peer.build(self.python, shape)))
                elif name not in self._said:
                    self._said.add(name)
                    print(f"{name}: skipped, it is not installed", file=sys.stderr)
        return found

    def _ostler(self, name: str, shape: Shape) -> list[Candidate]:
        arguments = [
            self.python.path, "-m", "ostler", "--no-control-socket", "--log-level", "warning",
            "-k", name.removeprefix("ostler "), "-w", str(shape.workers),
            "--threads", str(shape.threads), "--keep-alive", str(shape.keep_alive),
            *["--access-logfile", "LOG"] * shape.access_log,
            "-b", "127.0.0.1:PORT", f"apps:{shape.app}",
        ]  # fmt: skip
        found = []
        for suffix, checkout in self._checkouts.items():
            label = name + shape.suffix + suffix
            if self._wanted(label):
                limit = ["--worker-connections", str(shape.connections)] if self._has_limit(checkout) else []
                # The checkout comes before the installed package on the path; the app's folder is needed as
                # well.
                path = {"PYTHONPATH": f"{checkout}:{servers.HERE}"}
                found.append(Candidate(label, [*arguments[:4], *limit, *arguments[4:]], path))
        return found

    def _has_limit(self, checkout: Path) -> bool:
        """Whether Ostler limits the connections of a worker; older revisions may not."""
        if checkout not in self._help:
            run = subprocess.run(
                [self.python.path, "-m", "ostler", "--help"],
                cwd=checkout,
                capture_output=True,
                text=True,
                check=False,
            )
            self._help[checkout] = run.stdout
        return "--worker-connections" in self._help[checkout]

    def _wanted(self, name: str) -> bool:
        return not self._only or self._only in name


def add_options(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """The options that all of these benchmarks have."""
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each run (default: %(default)s)")
    parser.add_argument("--only", metavar="WORD", help="only servers with WORD in their names")
    parser.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="the interpreter that runs the servers"
    )
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="measure the Ostler of another checkout, too (rows end in @NAME); may be given several times",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures in full")
