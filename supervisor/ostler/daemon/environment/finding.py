"""Finds the interpreter that a command starts, and the Ostler that is installed for it. Runs nothing.

What is found is named without the symbolic links on the way to its environment: a process that is started so
keeps its release when a link is made to lead to the next one.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ostler.daemon.environment.command import TypedCommand, absolute
from ostler.errors import OstlerError
from ostler.osapi.files import open_file, read_file

OLDEST = (3, 11)
"""The oldest Python that Ostler supports."""

_HEAD = 8192  # bytes of a script in which its interpreter is named
_LONGEST = 64 * 1024  # bytes of pyvenv.cfg and of a .pth file
_MOST_PTH = 1000
# How pip, uv and others write a script whose interpreter has a path that is too long for `#!`, or has spaces
# (execve(2)): a shell executes it. Where the path is computed, the interpreter is beside the script.
_SHELLS = ("sh", "bash", "dash")
_EXECUTED = re.compile(r"""^'{3}exec' (?:"(/[^"\n]+)"|'(/[^'\n]+)'|(/\S+)) "\$0" "\$@"$""", re.MULTILINE)
_VERSION = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Environment:
    """What a process is started in.

    python: the interpreter; prefix: the environment's folder; root: the folder with the package `ostler`.
    """

    python: str
    prefix: str
    root: str


# -- the interpreter -------------------------------------------------------------------------------------


def interpreter(command: TypedCommand) -> str:
    """The interpreter that a command would start now.

    Raises:
        OstlerError: there is none.
    """
    if command.script is not None:
        return pinned(_of_script(command.script, command.folder))
    python = typed_path(command)
    if problem := _problem_with(python):
        raise OstlerError(f"{python}, with which Ostler was started: {problem}")
    return pinned(python)


def typed_path(command: TypedCommand) -> str:
    """The file that was typed, links included. Raises OstlerError as `interpreter`."""
    if command.script is not None:
        return command.script
    return command.python if "/" in command.python else _on_path(command.python, command.folder)


def pinned(python: str) -> str:
    """An interpreter's path without symbolic links on the way to its environment.

    Links of the interpreter itself, and of its folder, stay: Python finds a virtual environment by its own
    path.
    """
    if python.count("/") < 2:
        return python
    prefix, folder, name = python.rsplit("/", 2)
    return f"{os.path.realpath(prefix or '/').rstrip('/')}/{folder}/{name}"


def _of_script(script: str, folder: str) -> str:
    named = ""
    try:
        named = _named(_head(script), folder)
        problem = _problem_with(named) if named else "it names no interpreter"
        if named and not problem:
            return named
    except OSError as error:
        problem = f"Ostler was started with it: {error.strerror}"
    for place in dict.fromkeys((os.path.dirname(script), os.path.dirname(os.path.realpath(script)))):  # noqa: PTH120
        for name in ("python", "python3"):
            if not _problem_with(beside := f"{place}/{name}"):
                return beside
    raise OstlerError(f"{named}, the interpreter of {script}: {problem}" if named else f"{script}: {problem}")


def _head(script: str) -> str:
    """Raises OSError."""
    fd = open_file(script)
    try:
        return os.read(fd, _HEAD).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def _named(text: str, folder: str) -> str:
    """The interpreter that a script's first lines name; an empty text if that is none, or not found."""
    first, _, rest = text.partition("\n")
    words = first.removeprefix("#!").split()
    if not first.startswith("#!") or not words:
        return ""
    name = words[0].rpartition("/")[2]
    if name in _SHELLS:
        found = _EXECUTED.search(rest)
        return next(filter(None, found.groups())) if found else ""
    if name == "env":
        # Options, and variables that it sets, come before the command.
        wanted = next((word for word in words[1:] if not word.startswith("-") and "=" not in word), "")
        if "/" in wanted:
            return wanted if wanted.startswith("/") else ""
        try:
            return _on_path(wanted, folder) if wanted else ""
        except OstlerError:
            return ""
    return words[0] if words[0].startswith("/") else ""


def _on_path(name: str, folder: str) -> str:
    """Raises OstlerError if no folder of PATH has it."""
    path = os.environ.get("PATH") or os.defpath
    for entry in path.split(os.pathsep):
        found = absolute(f"{entry}/{name}" if entry else name, folder)
        if not _problem_with(found):
            return found
    raise OstlerError(f"{name}, with which Ostler was started, is in no folder of PATH ({path})")


def _problem_with(python: str) -> str:
    """Why it can't be executed, or an empty text."""
    try:
        mode = os.stat(python).st_mode  # noqa: PTH116 - many are tried
    except OSError as error:
        return error.strerror or str(error)
    if not os.path.isfile(python):  # noqa: PTH113
        return "it is no file"
    return "" if mode & 0o111 and os.access(python, os.X_OK) else "it is not executable"


# -- the environment ---------------------------------------------------------------------------------------


def prefix_of(python: str) -> str:
    """The folder of an interpreter's environment: the virtual one, or else the installation's."""
    outer = python.rsplit("/", 2)[0] or "/"
    if os.path.isfile(f"{outer}/pyvenv.cfg"):  # noqa: PTH113
        return outer
    return os.path.realpath(python).rsplit("/", 2)[0] or "/"


def site_folders(python: str, prefix: str) -> list[str]:
    """The folders of installed packages that there are, in the order in which Python searches them.

    Raises:
        OstlerError: it is a Python that Ostler does not support.
    """
    config = _venv_config(prefix)
    stated = config.get("version_info") or config.get("version") or ""
    version = _VERSION.match(stated) or _VERSION.search(os.path.realpath(python).rpartition("/")[2])
    if version is not None and (int(version[1]), int(version[2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise OstlerError(f"{prefix} has Python {version[0]}, and Ostler needs {needed} or newer")
    found = list(_site_folders(Path(prefix), version[0] if version is not None else ""))
    if config.get("include-system-site-packages", "").lower() == "true" and (home := config.get("home")):
        base = os.path.realpath(python)
        found += _site_folders(Path(home).parent, version[0] if version is not None else "")
        found += _site_folders(Path(base).parent.parent, version[0] if version is not None else "")
    return list(dict.fromkeys(found))


def _site_folders(prefix: Path, version: str) -> Iterator[str]:
    pattern = f"python{version or '3.*'}"
    for lib in ("lib", "lib64"):
        yield from (str(path) for path in sorted(prefix.glob(f"{lib}/{pattern}/site-packages")))
    # Debian's own Python: what pip has installed, and what is from packages of Debian.
    yield from (str(path) for path in sorted(prefix.glob(f"local/lib/{pattern}/dist-packages")))
    if (debian := prefix / "lib/python3/dist-packages").is_dir():
        yield str(debian)


def _venv_config(prefix: str) -> dict[str, str]:
    """The values of pyvenv.cfg; none if there is no such file."""
    try:
        text = read_file(f"{prefix}/pyvenv.cfg", _LONGEST).decode("utf-8", "replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def installed(folders: Iterable[str]) -> str | None:
    """The folder with the package `ostler` that these folders of installed packages lead to, without links;
    None if none does."""
    for folder in folders:
        for place in (folder, *listed(folder)):
            if os.path.isfile(f"{place}/ostler/__init__.py"):  # noqa: PTH113
                return os.path.realpath(place)
    return None


def pth_files(folder: str) -> list[str]:
    """The .pth files of a folder of installed packages (module site)."""
    return [str(path) for path in sorted(Path(folder).glob("*.pth"))[:_MOST_PTH]]


def listed(folder: str) -> Iterator[str]:
    """The folders that the .pth files of a folder add to the module search path."""
    for path in pth_files(folder):
        try:
            text = read_file(path, _LONGEST).decode("utf-8", "surrogateescape")
        except OSError:
            continue
        for line in text.splitlines():
            if line.strip() and not line.startswith(("#", "import ", "import\t")):
                yield absolute(line.rstrip(), folder)
