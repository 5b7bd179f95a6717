"""Kinds of values: what a user may write, and what the refusal says."""

from pathlib import Path
from typing import Any

import pytest

from supervisor.settings import kinds
from supervisor.settings.kinds import Kind

LEVEL = kinds.choice("info", "warning", aliases={"warn": "warning"})
FEW = Kind(kinds.whole_number(1, 9), "N")


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (kinds.COUNT, "0", 0),
        (kinds.COUNT, " 7 ", 7),
        (kinds.COUNT, 7, 7),
        (kinds.COUNT, 7.0, 7),
        (kinds.POSITIVE, "1", 1),
        (FEW, "9", 9),
        (kinds.SECONDS, "0", 0.0),
        (kinds.SECONDS, "1.5", 1.5),
        (kinds.SECONDS, 30, 30.0),
        (kinds.TEXT, " a b ", "a b"),
        (kinds.TEXT, Path("/tmp/x"), "/tmp/x"),
        (kinds.OPTIONAL_TEXT, "", None),
        (kinds.OPTIONAL_TEXT, None, None),
        (kinds.PATH, Path("x"), "x"),
        (kinds.SWITCH, True, True),
        (kinds.SWITCH, "Yes", True),
        (kinds.SWITCH, "1", True),
        (kinds.SWITCH, "off", False),
        (kinds.SWITCH, "", False),
        (kinds.WORKERS, "auto", "auto"),
        (kinds.WORKERS, " AUTO ", "auto"),
        (kinds.WORKERS, "512", 512),
        (kinds.ADDRESSES, "a:1,b:2", ("a:1", "b:2")),
        (kinds.ADDRESSES, ["a:1", "unix:/x,y"], ("a:1", "unix:/x,y")),
        (kinds.ADDRESSES, "localhost", ("localhost:8000",)),
        (kinds.ADDRESSES, None, ()),
        (kinds.ADDRESSES, "", ()),
        (kinds.PATHS, "a,b", ("a", "b")),
        (kinds.PATHS, ["a,b", "c"], ("a", "b", "c")),
        (kinds.PATHS, None, ()),
        (kinds.ENVIRONMENT, "A=1", ("A=1",)),
        (kinds.ENVIRONMENT, ["A=1,2", "B="], ("A=1,2", "B=")),
        (LEVEL, "INFO", "info"),
        (LEVEL, "warn", "warning"),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    parsed = kind.parse(given)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (kinds.COUNT, "x", "expected a whole number, got 'x'"),
        (kinds.COUNT, "1.5", "expected a whole number, got '1.5'"),
        (kinds.COUNT, 1.5, "expected a whole number, got 1.5"),
        (kinds.COUNT, float("nan"), "expected a whole number, got nan"),
        (kinds.COUNT, None, "expected a whole number, got None"),
        (kinds.COUNT, "-1", "must be between 0 and 2147483647, got -1"),
        (kinds.POSITIVE, 0, "must be between 1 and"),
        (FEW, "10", "must be between 1 and 9, got 10"),
        (kinds.SECONDS, "soon", "expected a number of seconds, got 'soon'"),
        (kinds.SECONDS, None, "expected a number of seconds, got None"),
        (kinds.SECONDS, "-1", "expected zero or more seconds, got '-1'"),
        (kinds.SECONDS, "nan", "expected zero or more seconds, got 'nan'"),
        (kinds.SECONDS, "inf", "expected zero or more seconds, got 'inf'"),
        (kinds.TEXT, 5, "expected text, got 5"),
        (kinds.TEXT, "a\0b", "must not contain a NUL character"),
        (kinds.SWITCH, "maybe", "expected true or false, got 'maybe'"),
        (kinds.SWITCH, 2, "expected true or false, got 2"),
        (kinds.WORKERS, "0", "give a number from 1 to 512, or 'auto'"),
        (kinds.WORKERS, "513", "give a number from 1 to 512, or 'auto'"),
        (
            kinds.WORKERS,
            "many",
            "expected a whole number, got 'many'; give a number from 1 to 512, or 'auto'",
        ),
        (kinds.ADDRESSES, 5, "expected a list of texts, got 5"),
        (kinds.ADDRESSES, [5], "expected text, got 5"),
        (kinds.ADDRESSES, "a:1,b:x", "expected a port from 0 to 65535 in 'b:x'"),
        (kinds.ENVIRONMENT, "A", "expected NAME=VALUE, got 'A'"),
        (kinds.ENVIRONMENT, ["=1"], "expected NAME=VALUE, got '=1'"),
        (LEVEL, "loud", "expected one of info, warning, got 'loud'"),
        (LEVEL, 3, "expected text, got 3"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that says what was expected."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        kind.parse(given)
    assert problem in str(caught.value)
