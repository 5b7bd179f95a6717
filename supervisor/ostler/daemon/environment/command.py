"""The command that the daemon was started with, as it was typed.

People deploy into `releases/N/.venv` and make a symbolic link `current` lead to the newest release. What was
typed leads through that link; what Python makes of it (`sys.executable`, `sys.prefix`, the current folder)
may not. So the command is noted at the start, and followed again later: see `finding`.
"""

import os
import re
import sys
from pathlib import Path, PurePath

import msgspec

from ostler.errors import OstlerError

_OPTION = re.compile("-[A-Za-z]*[mc]")


class TypedCommand(msgspec.Struct, frozen=True):
    """A command that starts the daemon. Symbolic links in its paths are not resolved.

    folder: where it was typed; python: the interpreter, an absolute path or a name to be looked for in PATH;
    script: the absolute path of the script (`bin/ostler`); None for `python -m ostler`, and if an interpreter
    was typed in front of the script that the script does not name.
    """

    folder: str
    python: str
    script: str | None = None


def as_typed(folder: str) -> TypedCommand | None:
    """The command of this process, None if that is not known. folder: the result of `folder`."""
    given = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    if not sys.executable or not given or not given[0]:
        return None
    python = absolute(given[0], folder) if "/" in given[0] else given[0]
    # `-m ostler`, perhaps with other options in the same word, or `-c` and some code.
    by_option = len(given) < 2 or (len(given) > 2 and _OPTION.fullmatch(given[-2]) is not None)
    return TypedCommand(folder, python, None if by_option else absolute(given[-1], folder))


def folder() -> str:
    """The current folder by the name that was typed: a reload follows a symbolic link in it.

    That is PWD if it is the same folder. Service managers do not set it: then a name that leads through the
    same links as the command.

    Raises:
        OstlerError: the current folder was removed.
    """
    try:
        here = Path.cwd()
    except OSError as error:
        raise OstlerError(
            f"can't find the working folder: {error.strerror}; it was removed, change to another one"
        ) from None
    name = os.environ.get("PWD", "")
    try:
        if Path(name).is_absolute() and here.samefile(name):
            return name
    except OSError:
        pass
    command = as_typed(str(here))
    typed = [] if command is None else [command.script or "", command.python]
    return next((name for path in typed if (name := through_links(str(here), path))), str(here))


def through_links(here: str, path: str) -> str:
    """A name of the folder `here` that leads through symbolic links in the folders of `path`, or an empty
    text. here: without links; path: absolute, else there is none."""
    for parent in PurePath(path).parents if path.startswith("/") else ():
        real = os.path.realpath(parent)
        if real in ("/", str(parent)) or not f"{here}/".startswith(f"{real}/"):
            continue
        name = f"{parent}{here[len(real) :]}"
        try:
            if Path(name).samefile(here):
                return name
        except OSError:
            continue
    return ""


def absolute(path: str, folder: str) -> str:
    """A path as it is seen from `folder`. `..` stays: what it leads to depends on links before it."""
    return path if path.startswith("/") else f"{folder.rstrip('/')}/{path.removeprefix('./')}"
