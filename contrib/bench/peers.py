"""The servers under test and how each is configured; one table for all benchmarks.

A `Shape` is what a benchmark asks for (workers, threads, connections). Each server's row turns it into a
command line. Keep-alive is on for every server that has it. All other settings are the server's defaults,
except logs (none per request) and limits that would end the measurement (listen queues, connections).
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import servers

FIND = """\
import importlib.metadata, importlib.util, json, platform, sys, sysconfig

def present(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False

def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

names = [name for name in sys.argv[1:] if present(name)]
print(json.dumps({
    "prefix": sys.prefix,
    "modules": names,
    "versions": {name: version(name) for name in [*names, "uwsgi"] if version(name)},
    "implementation": platform.python_implementation() + " " + platform.python_version(),
    "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
}))
"""
FRAMEWORKS = ("flask", "django")
PACKAGE = Path("supervisor/ostler")  # in a checkout


@dataclass(frozen=True)
class Shape:
    """What a benchmark asks of a server."""

    app: str = "apps:hello"
    """MODULE:APP."""
    workers: int = 1
    threads: int = 1
    keep_alive: int = 75
    """Seconds."""
    connections: int = 1000
    """How many a worker must be able to hold."""
    access_log: bool = False
    """To a file; Ostler only."""
    native: bool = True
    """With the C extension; Ostler only."""

    @property
    def suffix(self) -> str:
        """What distinguishes rows of one server."""
        size = f" {self.workers}x{self.threads}" if self.workers > 1 or self.threads > 1 else ""
        return size + " +log" * self.access_log + " Python only" * (not self.native)


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
    versions: Mapping[str, str]
    """Of the distributions of these names."""
    implementation: str
    suffix: str
    """Of the file of an extension module."""

    @classmethod
    def at(cls, path: str) -> "Python":
        """Ask an interpreter; `BenchError` if it can't be started."""
        wanted = {module for peer in PEERS.values() for module in peer.modules}
        try:
            run = subprocess.run(
                [path, "-c", FIND, *sorted({*wanted, *FRAMEWORKS, GUNICORN_25})],
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise servers.BenchError(f"{path}: {error}") from None
        found = json.loads(run.stdout)
        return cls(path, **{**found, "modules": frozenset(found["modules"])})

    def describe(self) -> str:
        """The machine and the versions, which belong to any figure that is quoted."""
        models = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        parts = [
            models[0] if models else platform.machine(),
            f"{os.cpu_count()} CPUs",
            f"Linux {platform.release()}",
            self.implementation,
            *(f"{name} {version}" for name, version in sorted(self.versions.items())),
        ]
        return ", ".join(parts)

    def script(self, name: str) -> str | None:
        """A command that was installed beside it."""
        return shutil.which(name, path=str(Path(self.path).parent))

    def has(self, peer: "Peer") -> bool:
        return peer.modules <= self.modules and (peer.script is None or bool(self.script(peer.script)))


@dataclass(frozen=True)
class Peer:
    """A server other than Ostler."""

    modules: frozenset[str]
    """What must be importable."""
    build: Callable[[Python, Shape], list[str]]
    script: str | None = None
    """A command that must be installed beside the interpreter."""


# A module of gunicorn that has the options --no-control-socket and --http-parser.
GUNICORN_25 = "gunicorn.ctl"


def _gunicorn(worker_class: str, *, native: bool = False) -> Peer:
    """native: with the C parser of gunicorn_h1c, which its documentation recommends."""

    def build(python: Python, shape: Shape) -> list[str]:
        threads = ["--threads", str(shape.threads)] if worker_class == "gthread" else []
        recent = []
        if GUNICORN_25 in python.modules:
            # A control thread and a socket in $HOME are not part of serving. Without --http-parser gunicorn
            # uses the C parser if that is installed.
            recent = ["--no-control-socket", "--http-parser", "fast" if native else "python"]
        return [
            python.path, "-m", "gunicorn", "--log-level", "warning", *recent,
            "-k", worker_class, "-w", str(shape.workers), *threads,
            "--keep-alive", str(shape.keep_alive),
            "--worker-connections", str(shape.connections),
            "-b", "127.0.0.1:PORT", shape.app,
        ]  # fmt: skip

    modules = {"gunicorn"}
    if worker_class == "gevent":
        modules.add("gevent")
    if native:
        modules |= {"gunicorn_h1c", GUNICORN_25}
    return Peer(frozenset(modules), build)


def _uwsgi(option: str) -> Peer:
    def build(python: Python, shape: Shape) -> list[str]:
        threads = ["--threads", str(shape.threads)] if shape.threads > 1 else []
        # It closes without `Connection: close`, which clients of HTTP/1.1 must treat as an error.
        closing = ["--add-header", "Connection: close"] if option == "--http-socket" else []
        return [
            python.script("uwsgi") or "uwsgi",
            option, "127.0.0.1:PORT", "--listen", "1024", "--home", python.prefix,
            "--pythonpath", str(servers.HERE), "--wsgi", shape.app,
            "--master", "--processes", str(shape.workers), *threads,
            "--need-app", "--die-on-term", "--disable-logging", *closing,
        ]  # fmt: skip

    return Peer(frozenset({"uwsgidecorators"}), build, "uwsgi")


def _granian(python: Python, shape: Shape) -> list[str]:
    return [
        python.path, "-m", "granian", "--interface", "wsgi", "--http", "1", "--no-ws",
        "--host", "127.0.0.1", "--port", "PORT", "--workers", str(shape.workers),
        "--blocking-threads", str(shape.threads), "--log-level", "warning",
        # It also closes idle connections after this time; a minute is its maximum.
        "--http1-header-read-timeout", "60000",
        "--backlog", "2048", "--backpressure", str(max(1024, shape.connections)),
        shape.app,
    ]  # fmt: skip


def _waitress(python: Python, shape: Shape) -> list[str]:
    # By default 100 connections, on a select() that ends at 1024 descriptors; its poll() costs far more CPU.
    poll = ["--asyncore-use-poll"] if shape.connections > 1000 else []
    return [
        python.path, "-m", "waitress", "--listen", "127.0.0.1:PORT", "--threads", str(shape.threads),
        "--channel-timeout", str(max(120, shape.keep_alive)), "--backlog", "2048",
        "--connection-limit", str(shape.connections if poll else min(shape.connections, 900)), *poll,
        shape.app,
    ]  # fmt: skip


def _launched(name: str) -> Peer:
    def build(python: Python, shape: Shape) -> list[str]:
        numbers = map(str, (shape.threads, shape.connections, shape.keep_alive))
        return [python.path, str(servers.HERE / "launch.py"), name, shape.app, "PORT", *numbers]

    return Peer(frozenset({name}), build)


PEERS = {
    "gunicorn sync": _gunicorn("sync"),
    "gunicorn sync h1c": _gunicorn("sync", native=True),
    "gunicorn gthread": _gunicorn("gthread"),
    "gunicorn gthread h1c": _gunicorn("gthread", native=True),
    "gunicorn gevent": _gunicorn("gevent"),
    "gunicorn gevent h1c": _gunicorn("gevent", native=True),
    "uwsgi http-socket": _uwsgi("--http-socket"),
    "uwsgi http11-socket": _uwsgi("--http11-socket"),
    "granian": Peer(frozenset({"granian"}), _granian),
    "waitress": Peer(frozenset({"waitress"}), _waitress),
    "bjoern": _launched("bjoern"),
    "fastpysgi": _launched("fastpysgi"),
    "fastwsgi": _launched("fastwsgi"),
    "meinheld": _launched("meinheld"),
    "cheroot": _launched("cheroot"),
}


class Field:
    """The servers that take part: Ostler from one or more checkouts, and the peers that are installed.

    Raises:
        BenchError: the interpreter can't be started, or a folder of `--also` is no checkout.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._only: str | None = options.only
        self.python = Python.at(options.python)
        self._checkouts = {"": servers.ROOT}
        for checkout in options.also:
            # Without it there, the installed package would be measured.
            if not (checkout / PACKAGE).is_dir():
                raise servers.BenchError(f"{checkout} is no checkout of Ostler: it has no {PACKAGE}")
            self._checkouts[f" @{checkout.resolve().name}"] = checkout.resolve()
        self._said: set[str] = set()

    def cores(self) -> tuple[bool, ...]:
        """The values of `Shape.native` that can be measured. If the C extension is not built for this
        interpreter in all checkouts, a line says so.
        """
        for checkout in self._checkouts.values():
            if not (checkout / PACKAGE / f"_native{self.python.suffix}").exists():
                print(f"{checkout}: the C extension is not built: Python only", file=sys.stderr)
                return (False,)
        return (True, False)

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
            "--worker-connections", str(shape.connections),
            *["--access-logfile", "LOG"] * shape.access_log,
            "-b", "127.0.0.1:PORT", shape.app,
        ]  # fmt: skip
        found = []
        for suffix, checkout in self._checkouts.items():
            label = name + shape.suffix + suffix
            if self._wanted(label):
                # The checkout comes before the installed package on the path; the app's folder is needed as
                # well.
                environment = {
                    "PYTHONPATH": f"{(checkout / PACKAGE).parent}:{servers.HERE}",
                    "OSTLER_NATIVE": "1" if shape.native else "0",
                }
                found.append(Candidate(label, arguments, environment))
        return found

    def _wanted(self, name: str) -> bool:
        return not self._only or any(word in name for word in self._only.split(","))


def add_options(parser: argparse.ArgumentParser, *, rounds: int, seconds: float) -> None:
    """The options that all of these benchmarks have."""
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=seconds, help="of each run (default: %(default)s)")
    parser.add_argument(
        "--only", metavar="WORD[,WORD]", help="only servers with one of these words in their names"
    )
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
