"""Names in a configuration file that are no setting: which were meant as one, and what to write instead.

gunicorn ignores them, so a misspelled setting may not be noticed for years. In Python, however, most names
are helpers of the file. One is reported if it is assigned plain data and nothing in the file reads it, or if
it is a function whose name is nearly that of a hook.
"""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import PurePath
from typing import Any

from ostler.settings.ignored import IGNORED
from ostler.settings.table import rows

# Names that gunicorn had once, and those that many files have because they look like settings.
_INSTEAD = {
    "logfile": "errorlog",
    "debug": "loglevel = 'debug', or reload = True for development",
    "x_forwarded_for_header": "forwarded_allow_ips; the framework finds the address",
    "django_settings": "raw_env = ['DJANGO_SETTINGS_MODULE=...']",
    "worker_memory_limit": "max_memory",
    "max_memory_per_worker": "max_memory",
    "max_worker_memory": "max_memory",
    "disable_access_log": "accesslog = None",
    "app": "wsgi_app",
    "app_module": "wsgi_app",
    "module": "wsgi_app",
    "host": "bind = 'HOST:PORT'",
    "port": "bind = 'HOST:PORT'",
}
_DATA = (str, bytes, int, float, list, tuple, dict, set, frozenset, PurePath, type(None))
_NEAR = 0.8
# Functions by which a file can read its names without naming them.
_READ_ALL = {"globals", "locals", "vars"}


def in_python(
    tree: ast.Module,
    namespace: Mapping[str, Any],
    known: Collection[str],
    hooks: Collection[str],
    imported: bool = False,
) -> list[str]:
    """Reports on a Python file: `NAME (line N)` with advice if there is some, in the file's order.

    Args:
        namespace: the file's names after it ran.
        known: the names that are settings or hooks.
        hooks: of these the hooks.
        imported: it is a module, whose names other modules may read.
    """
    read = names_read(tree)
    settings = set(known) - set(hooks)
    found = []
    for name, line in _assigned(tree).items():
        if name in known or name in read or name.startswith("_"):
            continue
        if not issubclass(type(namespace.get(name, ...)), _DATA):
            continue
        hint = advice(name, settings)
        # Names in capitals are constants of the file, also when nothing uses them any more.
        if hint or not (name.isupper() or imported or read & _READ_ALL):
            found.append((line, _report(name, line, hint)))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not (node.name in known or node.name in read):
            near = _near(node.name, hooks)
            if near and not node.decorator_list:
                found.append((node.lineno, _report(node.name, node.lineno, f"did you mean {near}?")))
    return [text for _, text in sorted(found)]


def in_data(names: Iterable[str], lines: Mapping[str, int], known: Collection[str]) -> list[str]:
    """The same of a file that holds settings alone: every name that is none."""
    return [_report(name, lines.get(name, 0), advice(name, known)) for name in names if name not in known]


def advice(name: str, known: Collection[str]) -> str:
    """What to write instead of `name`; empty if there is no guess."""
    folded = name.lower()
    instead = _INSTEAD.get(folded) or _by_flag().get(folded)
    if instead:
        return f"use {instead}"
    near = _near(folded, known)
    return f"did you mean {near}?" if near else ""


def _near(name: str, known: Collection[str]) -> str:
    import difflib  # here, because most files have no such name

    return next(iter(difflib.get_close_matches(name, sorted(known), 1, _NEAR)), "")


def _report(name: str, line: int, hint: str) -> str:
    place = f"{name} (line {line})" if line else name
    return f"{place}: {hint}" if hint else place


@cache
def _by_flag() -> dict[str, str]:
    """Names of settings by how their flags would be spelled in a file, where that is not the name."""
    flags = [(name, flag) for name, row in rows().items() for flag in row.flags]
    flags += [(name, flag) for name, other in IGNORED.items() for flag in other.flags]
    stems = {flag.removeprefix("--").replace("-", "_"): name for name, flag in flags if flag[:2] == "--"}
    return {stem: name for stem, name in stems.items() if stem != name and not stem.startswith("no_")}


def names_read(tree: ast.Module) -> set[str]:
    """Names that something in the file reads."""
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _assigned(tree: ast.Module) -> dict[str, int]:
    """Names that the module itself assigns by `NAME = ...`, with the line of the last time."""
    lines: dict[str, int] = {}
    for node in own_nodes(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                lines[target.id] = max(target.lineno, lines.get(target.id, 0))
    return lines


def own_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """What the module itself runs; functions and classes are scopes of their own."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
