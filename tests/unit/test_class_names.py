"""A class name is used once in the package, so that a search for it finds one thing.

The modules of messages, events and actions are namespaces: other modules import them as modules and write
`messages.Spawn` or `actions.Spawn`. Their names may therefore coincide with others.
"""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "supervisor/ostler"
NAMESPACES = frozenset({"ipc/messages.py", "fleet/events.py", "fleet/actions.py"})


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_a_class_name_is_used_once() -> None:
    """No two classes of the package have the same name, except in the namespaces and in what stands in for
    gunicorn.
    """
    names = Counter(
        node.name
        for path, module in modules().items()
        if path not in NAMESPACES and not path.startswith("stand_ins/")
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    )
    assert len(names) > 100
    duplicates = {name for name, count in names.items() if count > 1}
    assert not duplicates


def test_namespaces_are_imported_as_modules() -> None:
    """`from ostler.fleet import events`, never `from ostler.fleet.events import AppLoaded`.

    `Event`, the type of them all, may be imported by name: ports are typed with it.
    """
    namespaces = {f"ostler.{path.removesuffix('.py').replace('/', '.')}" for path in NAMESPACES}
    found = {
        path
        for path, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and node.module in namespaces
        if {alias.name for alias in node.names} != {"Event"}
    }
    assert not found
