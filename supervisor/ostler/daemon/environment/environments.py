"""The environment of the running program, and the one that the command as typed leads to now."""

import os
import sys
from pathlib import Path

import msgspec

import ostler
from ostler.control.views import ChangeView
from ostler.daemon.environment.command import TypedCommand
from ostler.daemon.environment.finding import (
    Environment,
    installed,
    interpreter,
    pinned,
    prefix_of,
    site_folders,
    typed_path,
)
from ostler.daemon.environment.trusted import KnownWriters, executed_files, interpreter_files
from ostler.errors import OstlerError
from ostler.osapi import imports


class GenerationEnvironment(msgspec.Struct, frozen=True):
    """What a generation's fork server runs in: the environment's folder, and versions."""

    prefix: str
    python: str
    ostler: str


class Environments:
    """Finds the environment of new processes. Called only by the event loop's thread, or before there is one.

    Args:
        command: how the daemon was started; None: everything is started with the interpreter that runs.

    Attributes:
        own: what this program runs in.
    """

    def __init__(self, command: TypedCommand | None) -> None:
        self.own = running()
        self._command = command
        self._known = KnownWriters()
        self._is_installed = _is_installed(self.own)

    @property
    def may_move(self) -> bool:
        """Whether a symbolic link leads to what was typed: it may lead elsewhere later."""
        if self._command is None:
            return False
        try:
            place = os.path.dirname(typed_path(self._command))  # noqa: PTH120
        except OstlerError:
            return True
        return os.path.realpath(place) != place

    def find(self) -> Environment:
        """The environment that a fork server, or a new program, is to be started in.

        Raises:
            OstlerError: the command leads nowhere, to an environment without Ostler, or to what root does not
                start.
        """
        if self._command is None:
            return self.own
        python = interpreter(self._command)
        prefix = prefix_of(python)
        if python != self.own.python or prefix != self.own.prefix:
            self._known.refuse_others(interpreter_files(python, prefix))
        if not self._is_installed:
            # It was given to Python by a path of its own, PYTHONPATH for example.
            root, folders = self.own.root, []
            if not os.path.isdir(f"{root}/ostler"):  # noqa: PTH112
                raise OstlerError(f"{root}/ostler, the Ostler that is running, was removed; restart it")
        else:
            folders = site_folders(python, prefix)
            root = installed(folders) or ""
            if not root:
                raise OstlerError(
                    f"no Ostler is installed in {prefix}; install it there: "
                    f"{python} -m pip install ostler=={ostler.__version__}"
                )
        found = Environment(python, prefix, root)
        if found == self.own:
            return self.own
        self._known.refuse_others(executed_files(found, folders))
        return found

    def find_program(self) -> tuple[Environment, str | None]:
        """As `find`, and the script that the next program is to execute; None if it needs no other one."""
        found = self.find()
        if self._command is None or self._command.script is None:
            return found, None
        script = os.path.realpath(self._command.script)
        self._known.refuse_others([script])
        return found, script

    def variables(self, found: Environment, folder: str | None = None) -> dict[str, str]:
        """The environment variables for a program that is started in `found`.

        Those that name the running program's environment name the other one; others stay as they are.
        folder: see `imports.environment`.
        """
        environ = imports.environment(folder)
        old, new = self.own.prefix, found.prefix
        if old == new:
            return environ
        for name in ("VIRTUAL_ENV", "PYTHONHOME", "CONDA_PREFIX"):
            if environ.get(name, "").rstrip("/") == old:
                environ[name] = new
        if path := environ.get("PATH"):
            entries = path.split(os.pathsep)
            environ["PATH"] = os.pathsep.join(
                f"{new}/bin" if entry.rstrip("/") == f"{old}/bin" else entry for entry in entries
            )
        return environ


def changed_environment(
    before: GenerationEnvironment | None, after: GenerationEnvironment | None
) -> list[ChangeView]:
    """What differs between the environments of two generations; nothing if one is not known."""
    if before is None or after is None:
        return []
    names = {"environment": "prefix", "Python": "python", "Ostler": "ostler"}
    return [
        ChangeView(name, old, new, "generation")
        for name, field in names.items()
        if (old := getattr(before, field)) != (new := getattr(after, field))
    ]


def running() -> Environment:
    """What this program runs in, without symbolic links on the way."""
    root = os.path.realpath(Path(ostler.__file__).parents[1])
    return Environment(pinned(sys.executable), os.path.realpath(sys.prefix), root)


def checked(command: TypedCommand | None) -> TypedCommand | None:
    """The command if it leads to what runs now, without its script if only that does not; else None.

    A wrapper may have started us in a way that can't be repeated.
    """
    if command is None:
        return None
    own = running()
    for one in (command, msgspec.structs.replace(command, script=None)):
        try:
            python = interpreter(one)
        except OstlerError:
            continue
        if prefix_of(python) == own.prefix and os.path.realpath(python) == os.path.realpath(own.python):
            return one
    return None


def _is_installed(own: Environment) -> bool:
    """Whether the running Ostler is that of its environment."""
    try:
        root = installed(site_folders(own.python, own.prefix))
    except OstlerError:
        return False
    return root == own.root
