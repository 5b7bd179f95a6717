"""Configuration files: Python as gunicorn's, evaluated, or TOML. Fork servers only."""

import ast
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ostler.errors import ConfigFileError
from ostler.osapi.files import read_file
from ostler.settings import tomlfile, unrecognised
from ostler.settings.ignored import IGNORED
from ostler.settings.kinds.kind import shown
from ostler.settings.table import not_in_gunicorn, rows
from ostler.text import frames_of, name_and_text, name_of, text_of

MODULE = "__config__"
"""The name of a file's module, which is gunicorn's."""
FILE_VARIABLE = "OSTLER_CONFIG_FILE"
"""The variable by which processes that `multiprocessing` spawns find the file (stand_ins/__config__.py)."""

DEFAULT_FILES = ("ostler.conf.py", "ostler.toml", "gunicorn.conf.py")

# gunicorn's names besides those in the table and the ignored ones: the file's own, and its app's.
_OTHER_NAMES = ("config", "default_proc_name")

# Functions that a file may define, with the number of arguments that each is called with; of several the
# first that fits. What a function does not take is left out.
HOOKS = {
    "on_starting": (1,),
    "on_reload": (1,),
    "when_ready": (1,),
    "pre_fork": (2,),
    "post_fork": (2,),
    "post_worker_init": (1,),
    "worker_int": (1,),
    "worker_abort": (1,),
    "pre_exec": (1,),
    "pre_request": (2,),
    "post_request": (4, 3, 2),
    "child_exit": (2,),
    "worker_exit": (2,),
    "nworkers_changed": (3,),
    "on_exit": (1,),
    "ssl_context": (2,),
}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """An evaluated configuration file.

    Args:
        name: how to call it in messages.
        values: its settings by name, unparsed.
        lines: the line that gives each setting and hook its value, where the source shows it.
        hooks: its functions that we call, by name, or texts `MODULE.NAME`; they stay in this process.
        unrecognised: names that are probably meant as settings, each with its line and advice.
        helpers: variables that the file itself reads and that are called as settings that gunicorn lacks.
    """

    name: str
    values: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    hooks: Mapping[str, Any] = field(default_factory=dict)
    unrecognised: tuple[str, ...] = ()
    helpers: frozenset[str] = frozenset()

    def origin(self, setting: str) -> str:
        """Where a setting's value stands, e.g. `gunicorn.conf.py line 3`."""
        line = self.lines.get(setting)
        return f"{self.name} line {line}" if line else self.name


def find(config: str | None, folder: Path) -> str | None:
    """The configuration to read: the one asked for, else a default file in `folder`, else None."""
    if config:
        return config
    for name in DEFAULT_FILES:
        if (folder / name).is_file():
            return name
    return tomlfile.PROJECT if tomlfile.is_project_with_settings(folder / tomlfile.PROJECT) else None


def path_of(config: str, folder: Path) -> Path | None:
    """The file that a configuration is read from; None if it is a module."""
    return None if config.startswith("python:") else folder / config.removeprefix("file:")


def evaluate(config: str, folder: Path, source: bytes | None = None) -> ConfigFile:
    """Run a configuration file, or read it if it is TOML.

    Hooks that are given as texts are not imported: see `imported_hooks`.

    Args:
        config: a path (relative to `folder`), `file:PATH` or `python:MODULE`; *.toml is TOML.
        source: what the file holds, if that was read.

    Raises:
        ConfigFileError: one line that names the file, the line and the mistake.
    """
    if config.startswith("python:"):
        return _module(config.removeprefix("python:"))
    path = folder / config.removeprefix("file:")
    name = config.removeprefix("file:")
    try:
        source = read_file(path) if source is None else source
    except OSError as error:
        raise cant_read(config, error) from None
    if path.suffix == ".toml":
        return _toml(source, name)
    try:
        tree = ast.parse(source, str(path))
        code = compile(tree, str(path), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        place = f"{name} line {line}" if line else name
        text = getattr(error, "msg", None) or text_of(error) or name_of(error)
        raise ConfigFileError(f"config: {place}: {text}") from None
    namespace = vars(_new_module(str(path)))
    try:
        exec(code, namespace)  # noqa: S102 - this is what the format is
    except BaseException as error:
        del sys.modules[MODULE]
        raise ConfigFileError(_one_line(error, name, str(path))) from error
    return ConfigFile(
        name,
        _settings(namespace),
        _assignment_lines(tree),
        _hooks(namespace, name),
        unrecognised=tuple(unrecognised.in_python(tree, namespace, _known(), set(HOOKS))),
        helpers=not_in_gunicorn() & unrecognised.names_read(tree),
    )


def _new_module(path: str) -> ModuleType:
    """An empty module for the file, which the file finds in sys.modules by its own name, as in gunicorn.

    dataclasses, pickle and logging's configuration look for it there.
    """
    spec = spec_from_file_location(MODULE, path, loader=SourceFileLoader(MODULE, path))
    assert spec is not None
    module = sys.modules[MODULE] = module_from_spec(spec)
    return module


def literal(config: str, folder: Path, name: str, source: bytes | None = None) -> str | None:
    """The text that a Python file gives a setting, if it says so in one plain assignment; evaluates nothing.

    Args:
        config, folder, source: as for `evaluate`.
    """
    path = path_of(config, folder)
    if path is None or path.suffix == ".toml":
        return None
    try:
        source = read_file(path) if source is None else source
        tree = ast.parse(source, str(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # `evaluate` reports it
    stored = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name and not _is_read(n)]
    plain = [node for node in tree.body if isinstance(node, ast.Assign) and node.targets == stored]
    value = plain[0].value if plain else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _is_read(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def cant_read(config: str, error: OSError) -> ConfigFileError:
    return ConfigFileError(f"config: can't read {config.removeprefix('file:')!r}: {error.strerror}")


def _toml(source: bytes, name: str) -> ConfigFile:
    values, lines = tomlfile.parse(source, name)
    return ConfigFile(
        name,
        _settings(values),
        lines,
        _hooks(values, name),
        unrecognised=tuple(unrecognised.in_data(values, lines, _known())),
    )


def _module(name: str) -> ConfigFile:
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        raise ConfigFileError(_one_line(error, f"python:{name}", "")) from error
    namespace = vars(module)
    tree = _source_tree(module)
    return ConfigFile(
        f"python:{name}",
        _settings(namespace),
        _assignment_lines(tree),
        _hooks(namespace, f"python:{name}"),
        unrecognised=tuple(unrecognised.in_python(tree, namespace, _known(), set(HOOKS), imported=True)),
        helpers=not_in_gunicorn() & unrecognised.names_read(tree),
    )


def _source_tree(module: ModuleType) -> ast.Module:
    """The module's source; empty if there is none."""
    try:
        return ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _settings(namespace: Mapping[str, Any]) -> dict[str, Any]:
    names = {*rows(), *IGNORED, *_OTHER_NAMES}
    return {name: value for name, value in namespace.items() if name in names}


def _known() -> set[str]:
    return {*rows(), *IGNORED, *_OTHER_NAMES, *HOOKS}


def _one_line(error: BaseException, name: str, path: str) -> str:
    places = traceback.walk_tb(frames_of(error))
    lines = [line for frame, line in places if frame.f_code.co_filename == path]
    place = f"{name} line {lines[-1]}" if lines else name
    text = name_and_text(error)
    if isinstance(error, ImportError) and str(error.name).partition(".")[0] == "gunicorn":
        text += "; install gunicorn beside Ostler, or remove the import"
    return f"config: {place}: {text}"


def _assignment_lines(tree: ast.Module) -> dict[str, int]:
    """The last line that gives each name a value; functions and classes are scopes of their own."""
    lines: dict[str, int] = {}
    for node in unrecognised.own_nodes(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
        else:
            continue
        lines |= {name: max(node.lineno, lines.get(name, 0)) for name in names}
    return lines


def _hooks(namespace: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The hooks that a file defines: functions, and texts `MODULE.NAME` that name one.

    Raises:
        ConfigFileError: one can't be called as it will be.
    """
    found = {name: hook for name in HOOKS if (hook := namespace.get(name)) is not None}
    return {name: hook if _is_text(hook) else _fitting(hook, name, file) for name, hook in found.items()}


def imported_hooks(file: ConfigFile, names: Collection[str] = tuple(HOOKS)) -> dict[str, Callable[..., Any]]:
    """Those of a file's hooks that are in `names`, as functions; what a text names is imported now.

    Raises:
        ConfigFileError: one can't be imported, or not be called as it will be.
    """
    found = {name: hook for name, hook in file.hooks.items() if name in names}
    for name, hook in found.items():
        if _is_text(hook):
            found[name] = _fitting(_imported(hook, f"config: {file.name}: {name}"), name, file.name)
    return found


def _is_text(hook: Any) -> bool:
    return issubclass(type(hook), str)  # not isinstance, which asks an object of the file's own


def _fitting(hook: Any, name: str, file: str) -> Any:
    """The hook as it will be called. Raises ConfigFileError if it can't be."""
    arguments = HOOKS[name]
    fits = next((number for number in arguments if _takes(hook, number)), None)
    if fits is None:
        raise ConfigFileError(
            f"config: {file}: {name}: expected a function of {arguments[0]} arguments, got {shown(hook)}"
        )
    return hook if fits == arguments[0] else _with_fewer(hook, fits)


def _takes(function: Any, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except Exception:  # noqa: BLE001 - no function, or an object of the file's own whose methods fail
        return False
    return True


def _with_fewer(function: Callable[..., Any], arguments: int) -> Callable[..., Any]:
    return lambda *given: function(*given[:arguments])


def _imported(dotted: str, place: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except BaseException as error:
        text = text_of(error) or name_of(error)
        raise ConfigFileError(f"{place}: can't import {dotted!r}: {text}") from error
