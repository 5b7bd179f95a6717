"""Texts, switches, choices and lists: what a user may write, and the text of a refusal."""

from pathlib import Path
from typing import Any

import pytest

from ostler.settings.kinds import texts
from ostler.settings.kinds.kind import Kind
from tests.unit.settings.kinds.checks import assert_becomes, assert_refused

LEVEL = texts.choice("info", "warning", aliases={"warn": "warning"})


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (texts.TEXT, " a b ", "a b"),
        (texts.TEXT, Path("/tmp/x"), "/tmp/x"),
        (texts.OPTIONAL_TEXT, "", None),
        (texts.OPTIONAL_TEXT, None, None),
        (texts.PATH, Path("x"), "x"),
        (texts.SWITCH, True, True),
        (texts.SWITCH, "Yes", True),
        (texts.SWITCH, "1", True),
        (texts.SWITCH, "off", False),
        (texts.SWITCH, "", False),
        (texts.PATHS, "a,b", ("a", "b")),
        (texts.PATHS, ["a,b", "c"], ("a", "b", "c")),
        (texts.PATHS, None, ()),
        (texts.ENVIRONMENT, "A=1", ("A=1",)),
        (texts.ENVIRONMENT, ["A=1,2", "B="], ("A=1,2", "B=")),
        (texts.APP, " shop:app ", "shop:app"),
        (texts.APP, "shop:make('/etc/shop')", "shop:make('/etc/shop')"),
        (texts.APP, "shop.py", "shop.py"),  # perhaps the module py of a package
        (texts.APP, "", None),
        (texts.APP, None, None),
        (LEVEL, "INFO", "info"),
        (LEVEL, "warn", "warning"),
        (texts.SWITCH, "y", True),
        (texts.SWITCH, "n", False),
        (texts.SENDFILE, None, True),
        (texts.SENDFILE, False, False),
        (texts.SENDFILE, "0", False),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    assert_becomes(kind, given, value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (texts.TEXT, 5, "expected text, got 5"),
        (texts.TEXT, "a\0b", "must not contain a NUL character"),
        (texts.SWITCH, "maybe", "expected true or false, got 'maybe'"),
        (texts.SWITCH, 2, "expected true or false, got 2"),
        (texts.ENVIRONMENT, "A", "expected NAME=VALUE, got 'A'"),
        (texts.ENVIRONMENT, ["=1"], "expected NAME=VALUE, got '=1'"),
        (LEVEL, "loud", "expected one of info, warning, got 'loud'"),
        (LEVEL, 3, "expected text, got 3"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    assert_refused(kind, given, problem)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (texts.LOG_FILE, None, "-"),
        (texts.LOG_FILE, " ", "-"),
        (texts.LOG_FILE, Path("a/b"), "a/b"),
        (texts.ENVIRONMENT, "A=1,B=2", ("A=1,B=2",)),
        (texts.ENVIRONMENT, ["A=1,2", "B="], ("A=1,2", "B=")),
        (texts.ENVIRONMENT, {"A": 1, "B": "x"}, ("A=1", "B=x")),
        (texts.SWITCH, 1, True),
        (texts.SWITCH, 0, False),
    ],
)
def test_values_as_gunicorn_takes_them(kind: Kind, given: Any, value: Any) -> None:
    """Forms that its files and command lines have, with the meaning that they have there."""
    assert kind.parse(given) == value


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ("./shop.py:app", "shop:app"),
        ("./shop:app", "shop:app"),
        ("./shop.py", "shop:NAME"),
        ("shop/app:app", "shop.app:app, or --chdir shop app:app"),
        ("src/shop/app.py:make()", "src.shop.app:make(), or --chdir src/shop app:make()"),
        ("shop\\app:app", "shop.app:app, or --chdir shop app:app"),
        ("/srv/shop/app.py:app", "--chdir /srv/shop app:app"),
        ("../shop/app:app", "--chdir ../shop app:app"),
        (".shop:app", "MODULE:app"),
        ("./", "MODULE:NAME"),
    ],
)
def test_a_path_in_the_place_of_a_module(given: str, instead: str) -> None:
    """The refusal says what to write for this path."""
    problem = f"expected MODULE:NAME, which is imported, got the path {given!r}; write {instead}"
    assert_refused(texts.APP, given, problem)
