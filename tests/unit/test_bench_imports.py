"""Programs in contrib/bench use existing names: no other test runs most of them."""

import ast
import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "contrib/bench"
IMPORTABLE = {"ostler", "tests", *(path.stem for path in BENCH.iterdir())}


@pytest.mark.parametrize("path", sorted(BENCH.rglob("*.py")), ids=lambda path: str(path.relative_to(BENCH)))
def test_imports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it imports of the package, of the tests' kit or of the benchmarks is there."""
    monkeypatch.syspath_prepend(BENCH)
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in IMPORTABLE:
            continue
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")
