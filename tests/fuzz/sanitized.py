"""The C extension, built with AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.

Their libraries must be the first that a process loads, so Python is started again with LD_PRELOAD. What
Python allocates has to come from malloc(3), whose blocks they watch.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "supervisor" / "native"
NAME = "ostler._native"
FLAGS = [
    *(
        "-std=c11",
        "-g",
        "-O1",
        "-fno-omit-frame-pointer",
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
    ),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-shared", "-fPIC"),
]
_LIBRARIES = ("libasan.so", "libubsan.so")


class Unavailable(Exception):
    """This machine can't do it; the text says why."""


def build(folder: Path) -> tuple[Path, dict[str, str]]:
    """Build it in a folder.

    Returns the library, and the environment of a process that loads it.

    Raises:
        Unavailable: the compiler, Python's headers or a sanitizer are missing.
        subprocess.CalledProcessError: the sources can't be compiled.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        raise Unavailable("Python's headers are missing")
    try:
        preload = [_library(compiler, name) for name in _LIBRARIES]
    except (OSError, subprocess.CalledProcessError):
        raise Unavailable(f"the compiler {compiler[0]!r} does not work") from None
    library = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    subprocess.run([*compiler, *FLAGS, f"-I{include}", *sources, "-o", str(library)], check=True)
    # Python itself frees little of what it has allocated when it ends.
    settings = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return library, {"LD_PRELOAD": " ".join(preload), "PYTHONMALLOC": "malloc", **settings}


def _library(compiler: list[str], name: str) -> str:
    """Raises OSError, subprocess.CalledProcessError, Unavailable."""
    command = [*compiler, f"-print-file-name={name}"]
    path = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    # The bare name if there is none; on some systems a linker script.
    if not path.is_absolute() or path.read_bytes()[:4] != b"\x7fELF":
        raise Unavailable(f"the compiler has no {name}")
    return str(path)


def load(library: Path) -> None:
    """Let `import ostler._native` find this library; to be called before Ostler is imported."""
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
