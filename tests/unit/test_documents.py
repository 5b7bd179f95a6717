"""Documents name only things that exist: files, functions, tests, links.

In documents a name of the code is written in backticks as `folder/file.py`, as `folder/file.py:Name` or
`folder/file.py:Class.method`, or as `module.Name`. Paths are relative to the root, the package, or the
document's own folder.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from ostler.cli.arguments import command
from ostler.cli.ctl import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "supervisor/ostler"
SECURITY = ROOT / "contrib/docs/security.md"
# Only the links of the changelog are checked: it also names things of the past.
CHANGELOG = ROOT / "CHANGELOG.md"
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        CHANGELOG,
        ROOT / "CONTRIBUTING.md",
        ROOT / "web/README.md",
        *ROOT.glob("contrib/**/*.md"),
    ]
)
NAMING = [document for document in DOCUMENTS if document != CHANGELOG]
OF_USERS = sorted([ROOT / "README.md", *ROOT.glob("contrib/docs/*.md"), *ROOT.glob("contrib/systemd/*.md")])
# The first folders of paths in documents that are paths of this repository.
FOLDERS = {
    *(folder.name for folder in PACKAGE.iterdir() if folder.is_dir()),
    *("supervisor", "tests", "contrib", "web", "src"),
}
_MODULE_NAME = re.compile(r"([a-z_0-9]+)\.([A-Za-z_]\w*(?:\.\w+)?)(?:\(\))?")
_PATH = re.compile(r"((?:[\w.-]+/)+[\w.-]*)(?::([A-Za-z_][\w.]*))?(?:\(\))?")


def _relative(document: Path) -> str:
    return str(document.relative_to(ROOT))


def test_security_names_tests_that_exist() -> None:
    """Each row of the attack table names tests, and all of them exist."""
    rows = re.findall(r"^\| .* \| (.*test_.*) \|$", SECURITY.read_text(), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        source = ""
        for name in re.findall(r"`([^`]+)`", row):
            if name.endswith(".py"):
                path = ROOT / (name if "/" in name else f"tests/system/hostile/{name}")
                source = path.read_text()
            else:
                assert f"def {name}(" in source, f"{name} in: {row}"


@pytest.mark.parametrize("document", NAMING, ids=_relative)
def test_names_of_the_code_exist(document: Path) -> None:
    """Each file, class and function that a document names exists."""
    missing = [name for name in _quoted(document) if not _exists(document, name)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=_relative)
def test_links_lead_somewhere(document: Path) -> None:
    """Links between documents name existing files, and existing headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", _prose(document))):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        if heading:
            assert heading in _headings(found), target


@pytest.mark.parametrize("document", OF_USERS, ids=_relative)
def test_flags_exist(document: Path) -> None:
    """Each flag in a document for users is a flag of `ostler` or `ctl`."""
    named = [re.split(r"[ =]", text)[0] for text in _quoted(document) if text.startswith("--")]
    assert [flag for flag in named if flag not in _flags()] == []


def test_each_document_is_in_the_index() -> None:
    """contrib/docs/README.md lists all documents in its folder."""
    folder = ROOT / "contrib/docs"
    index = (folder / "README.md").read_text()
    assert [
        path.name for path in folder.glob("*.md") if f"({path.name})" not in index and path.stem != "README"
    ] == []


@pytest.mark.parametrize("unit", sorted(ROOT.glob("contrib/systemd/*.service")), ids=_relative)
def test_units_of_systemd(unit: Path) -> None:
    """`systemctl reload` works, and a start that fails again and again is given up."""
    section, found = "", {}
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif not line.startswith("#") and "=" in line:
            name, _, value = line.partition("=")
            found[section, name] = value
    assert int(found["[Unit]", "StartLimitIntervalSec"]) > 0
    assert int(found["[Unit]", "StartLimitBurst"]) > 0
    assert found["[Service]", "Restart"] == "on-failure"
    assert " reload" in found["[Service]", "ExecReload"]


def test_the_readme_is_short() -> None:
    """Longer texts belong in contrib/docs."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("workers/boot.py", True),
        ("workers/no_such.py", False),
        ("tests/kit/", True),
        ("ipc/messages.py:Spawn", True),
        ("ipc/messages.py:Spawn.slot", True),
        ("fleet/machine.py:Fleet.handle", True),
        ("fleet/machine.py:Fleet.no_such", False),
        ("messages.Spawn", True),
        ("messages.NoSuch", False),
        # Not checked: configuration files, paths of a machine, names of other programs, code.
        *(
            ("gunicorn.conf.py", True),
            ("/run/ostler/NAME.sock", True),
            ("uvicorn.workers.UvicornWorker", True),
        ),
        *(("wsgi.errors", True), ("GET /v1/status", True), ('environ["ostler.extend_deadline"](60)', True)),
    ],
)
def test_the_check_itself(name: str, exists: bool) -> None:
    """It finds missing names, and ignores texts that are not names of this repository."""
    assert _exists(ROOT / "README.md", name) is exists


@cache
def _flags() -> set[str]:
    commands = [command(lambda _given: None), cli, *cli.commands.values()]
    return {flag for found in commands for param in found.params for flag in param.opts} | {"--help"}


def _prose(document: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def _quoted(document: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", _prose(document))


def _exists(document: Path, name: str) -> bool:
    """Whether the thing exists that a text in backticks names;
    also True if the text is not a name of this repository.
    """
    if (found := _PATH.fullmatch(name)) is not None:
        path, inner = found.groups()
        places = [base / path for base in (ROOT, PACKAGE, document.parent)]
        if path.partition("/")[0] not in FOLDERS:
            return True
        return any(place.exists() and (not inner or inner in _definitions(place)) for place in places)
    if (found := _MODULE_NAME.fullmatch(name)) is not None:
        module, inner = found.groups()
        modules = _modules().get(module, [])
        return not modules or inner == "py" or any(inner in _definitions(path) for path in modules)
    return True


@cache
def _modules() -> dict[str, list[Path]]:
    modules: dict[str, list[Path]] = {}
    for path in set(PACKAGE.rglob("*.py")) - set(PACKAGE.glob("stand_ins/**/*.py")):
        modules.setdefault(path.stem, []).append(path)
    return modules


@cache
def _definitions(path: Path) -> set[str]:
    """The names that a module defines, and `Class.name` for attributes of its classes and their instances."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names |= _names(node)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner}" for part in node.body for inner in _names(part)}
            names |= {
                f"{node.name}.{target.attr}"
                for target in ast.walk(node)
                if isinstance(target, ast.Attribute)
                and isinstance(target.ctx, ast.Store)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
    return names


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.If | ast.Try):
        found = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
        return {inner.id for inner in found if isinstance(inner.ctx, ast.Store)}
    return set()


def _headings(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    texts = re.findall(r"^#+ (.*)$", _prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in texts}
