"""Builds the C extension `ostler._native` as a part of `pip install`.

It is built among the Python sources, so that an editable installation finds it; each Python has a file of its
own. Without a C compiler or Python's headers that is a warning, not a failure: Ostler works without it. Set
OSTLER_REQUIRE_NATIVE=1 to make it a failure, e.g. for a release.
"""

import fcntl
import os
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

NAME = "ostler._native"
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers"]


def build(root: Path, warn: Callable[[str], object]) -> Path | None:
    """Build it, unless it is newer than its sources.

    root: the project's folder. Returns the shared library; None if it could not be built.

    Raises:
        SystemExit: so it is, and OSTLER_REQUIRE_NATIVE is 1.
    """
    folder = root / "supervisor" / "native"
    library = root / "supervisor" / "ostler" / ("_native" + str(sysconfig.get_config_var("EXT_SUFFIX")))
    inputs = sorted(folder.iterdir())
    # Another build may go on at the same time.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if library.exists() and all(path.stat().st_mtime <= library.stat().st_mtime for path in inputs):
            return library
        _compile([str(path) for path in inputs if path.suffix == ".c"], library)
    except (BaseError, CCompilerError, OSError) as error:
        # Not its text, a command line of a thousand characters: the compiler has written what is wrong.
        problem = f"The C extension was not built: {type(error).__name__}"
        if os.environ.get("OSTLER_REQUIRE_NATIVE") == "1":
            raise SystemExit(problem) from None
        library.unlink(missing_ok=True)  # of older sources
        warn(f"{problem}. Ostler works without it; it needs a C compiler and Python's headers.")
        return None
    finally:
        os.close(descriptor)
    return library


def _compile(sources: list[str], library: Path) -> None:
    """Raises OSError, BaseError, CCompilerError."""
    extension = Extension(NAME, sources, extra_compile_args=FLAGS)
    command = build_ext(Distribution({"name": "ostler", "ext_modules": [extension]}))
    with tempfile.TemporaryDirectory(dir=library.parent.parent) as folder:
        command.build_lib = command.build_temp = folder
        command.ensure_finalized()
        command.run()
        # At once: a process that runs may have the old file mapped.
        Path(folder, command.get_ext_filename(NAME)).replace(library)
