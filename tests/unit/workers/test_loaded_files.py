"""Which files a process reports as loaded."""

import importlib
import os
import time
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from ostler.ipc.messages import Watch
from ostler.workers.load_errors import AppLoadError
from ostler.workers.loaded_files import WatchReporter, of_failure, remove_bytecode, sources
from ostler.workers.loader import load_app


def module(name: str, file: str | None) -> tuple[str, ModuleType]:
    made = ModuleType(name)
    made.__dict__["__file__"] = file
    return name, made


def test_files_of_modules() -> None:
    """Files of the app and of installed packages, not of the standard library or Ostler;
    sources, not bytecode.
    """
    found = sources(
        [
            module("shop", "/srv/shop/__init__.py"),
            module("shop.models", "/srv/shop/models.pyc"),
            module("fast", "/srv/fast.cpython-311-x86_64-linux-gnu.so"),
            module("flask", "/venv/lib/python3.11/site-packages/flask/__init__.py"),
            module("built_in", None),
            module("frozen", "<frozen something>"),
            ("none", None),
            ("json", importlib.import_module("json")),
            ("ostler.errors", importlib.import_module("ostler.errors")),
        ]
    )
    assert found.files == [
        "/srv/shop/__init__.py",
        "/srv/shop/models.py",
        "/srv/fast.cpython-311-x86_64-linux-gnu.so",
        "/venv/lib/python3.11/site-packages/flask/__init__.py",
    ]
    assert found.folders == ["/srv/shop", "/srv/templates"]


def test_modules_that_load_when_looked_at() -> None:
    """Attributes of a lazy module are not accessed."""

    class Lazy(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise AssertionError(name)

    assert sources([("lazy", Lazy("lazy"))]).files == []


def failure(spec: str) -> AppLoadError:
    with pytest.raises(AppLoadError) as caught:
        load_app(spec)
    return caught.value


def test_files_of_a_syntax_error(here: Path) -> None:
    """The file that can't be parsed, and those that import it."""
    (here / "outer_page.py").write_text("import inner_page\n")
    (here / "inner_page.py").write_text("def (\n")
    found = of_failure(failure("outer_page:app"))
    assert {str(here / "outer_page.py"), str(here / "inner_page.py")} <= set(found)


def test_files_of_an_error_in_an_error(here: Path) -> None:
    """Also those of the exception that was being handled, or that is given as the cause."""
    (here / "third_page.py").write_text("def f():\n    1 / 0\n")
    (here / "chain_page.py").write_text(
        "import third_page\ntry:\n    third_page.f()\nexcept ZeroDivisionError:\n    raise RuntimeError\n"
    )
    assert str(here / "third_page.py") in of_failure(failure("chain_page:app"))


@pytest.mark.parametrize("spec", ["nowhere_page:app", "asks_page:app"])
def test_files_of_a_missing_module(here: Path, spec: str) -> None:
    """The places where the module would be found."""
    (here / "asks_page.py").write_text("import nowhere_page\n")
    found = of_failure(failure(spec))
    assert {str(here / "nowhere_page.py"), str(here / "nowhere_page/__init__.py")} <= set(found)


def test_reports_each_once(here: Path) -> None:
    """All files at first, in messages that fit the channel;
    then only new ones, with the time of the previous look.
    """
    reported: list[Watch] = []
    reporter = WatchReporter(reported.append)
    more = [f"/srv/part{number}/{'x' * 100}.py" for number in range(2000)]
    began = time.time()
    reporter.report(more)
    assert max(len(msgspec.msgpack.encode(message)) for message in reported) < 100_000
    assert [file for message in reported for file in message.files][-2000:] == more
    assert all(message.since <= began for message in reported)
    missing = [message for message in reported if message.files and message.files[-1] in more]
    assert {message.since for message in missing} == {0.0}
    reported.clear()
    reporter.report(more)
    assert reported == []
    (here / "late_page.py").write_text("")
    importlib.import_module("late_page")
    reporter.report()
    (message,) = reported
    assert message.files == [str(here / "late_page.py")]
    assert message.folders == [str(here / "templates")]
    assert began <= message.since <= time.time()


def test_bytecode_of_a_file_just_written(here: Path) -> None:
    """It could be taken for that of the next edit, so it is removed; that of an older file stays."""
    since = 1_700_000_000.9
    for name, age, kept in (("young", 1_700_000_000.1, False), ("old", 1_699_999_999.9, True)):
        source = here / f"{name}.py"
        source.write_text("")
        os.utime(source, (age, age))
        cached = Path(cache_from_source(str(source)))
        cached.parent.mkdir(exist_ok=True)
        cached.write_bytes(b"")
        remove_bytecode([str(source), str(here / "none.py")], since)
        assert cached.exists() is kept


class Lazy(ModuleType):
    """A module that fails when an attribute is accessed."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("dict")

    @property
    def __class__(self) -> Any:
        raise RuntimeError("class")


def test_strange_entries_of_sys_modules(tmp_path: Path) -> None:
    """`sys.modules` may contain anything; modules with files are still found."""
    good, lazy = ModuleType("good"), Lazy("lazy")
    good.__file__ = str(tmp_path / "good.py")
    broken = []
    for path in ("a\0b", 7, "", "x" * 10_000, "<text>", None):
        module = ModuleType("broken")
        module.__file__ = path  # type: ignore[assignment]
        broken.append(("broken", module))
    found = sources([("lazy", lazy), ("object", object()), (5, good), *broken, ("good", good)])  # type: ignore[list-item]
    assert found.files == [str(tmp_path / "good.py")]


def test_failures_of_an_apps_own_making() -> None:
    """Circular causes, and names that are not strings."""
    one, other = ValueError("one"), SyntaxError("other")
    one.__cause__, other.__cause__ = other, one
    other.filename = 5  # type: ignore[assignment]
    missing = ModuleNotFoundError("missing")
    missing.name = 7  # type: ignore[assignment]
    one.__context__ = missing
    assert of_failure(one) == []


def test_many_long_paths(tmp_path: Path) -> None:
    """Messages keep their maximum size, however long the paths are."""
    sent: list[Watch] = []
    reporter = WatchReporter(sent.append)
    reporter.report()
    sent.clear()
    files = [f"/{'x' * 4000}/{number}" for number in range(50)]
    reporter.report(files)
    assert [path for message in sent for path in message.files] == files
    assert all(len(msgspec.msgpack.encode(message)) < 64 * 1024 for message in sent)
