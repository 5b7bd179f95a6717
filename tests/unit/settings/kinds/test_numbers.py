"""Numbers: what a user may write, and the text of a refusal."""

from typing import Any

import pytest

from ostler.settings.kinds import numbers
from ostler.settings.kinds.kind import Kind
from tests.unit.settings.kinds.checks import assert_becomes, assert_refused

FEW = Kind(numbers.whole_number(1, 9), "N")


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (numbers.COUNT, "0", 0),
        (numbers.COUNT, " 7 ", 7),
        (numbers.COUNT, 7, 7),
        (numbers.COUNT, 7.0, 7),
        (numbers.POSITIVE, "1", 1),
        (FEW, "9", 9),
        (numbers.SECONDS, "0", 0.0),
        (numbers.SECONDS, "1.5", 1.5),
        (numbers.SECONDS, 30, 30.0),
        (numbers.WORKERS, "auto", "auto"),
        (numbers.WORKERS, " AUTO ", "auto"),
        (numbers.WORKERS, "512", 512),
        (numbers.WORKERS, "2..16", (2, 16)),
        (numbers.WORKERS, (3, 3), 3),
        (numbers.SURGE, 2, "2"),
        (numbers.SURGE, "050%", "50%"),
        (numbers.SHARE, "5%", 0.05),
        (numbers.PART, 0.7, 0.7),
        (numbers.COUNTS, "50, 100", (50, 100)),
        (numbers.COUNTS, [50, "100"], (50, 100)),
        (numbers.SIZE, 0, 0),
        (numbers.SIZE, 8190, 8190),
        (numbers.SIZE, "8190", 8190),
        (numbers.SIZE, "512K", 512 * 1024),
        (numbers.SIZE, "10m", 10 * 1024**2),
        (numbers.SIZE, "1 GiB", 1024**3),
        (numbers.SIZE, "2TB", 2 * 1024**4),
        (numbers.SIZE, "100B", 100),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    assert_becomes(kind, given, value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (numbers.COUNT, "x", "expected a whole number, got 'x'"),
        (numbers.COUNT, "1.5", "expected a whole number, got '1.5'"),
        (numbers.COUNT, 1.5, "expected a whole number, got 1.5"),
        (numbers.COUNT, float("nan"), "expected a whole number, got nan"),
        (numbers.COUNT, None, "expected a whole number, got None"),
        (numbers.COUNT, "-1", "must be between 0 and 2147483647, got -1"),
        (numbers.POSITIVE, 0, "must be between 1 and"),
        (FEW, "10", "must be between 1 and 9, got 10"),
        (numbers.SECONDS, "soon", "expected a number of seconds, got 'soon'"),
        (numbers.SECONDS, None, "expected a number of seconds, got None"),
        (numbers.SECONDS, "-1", "expected zero or more seconds, got '-1'"),
        (numbers.SECONDS, "nan", "expected zero or more seconds, got 'nan'"),
        (numbers.SECONDS, "inf", "expected zero or more seconds, got 'inf'"),
        (numbers.WORKERS, "4..2", "a range begins with its smaller end, got 4..2"),
        (numbers.WORKERS, "2..", "expected a whole number, got ''"),
        (numbers.WORKERS, "1..513", "must be between 1 and 512, got 513"),
        (numbers.SURGE, "0", "expected a number of workers from 1 on, or a share such as 25%"),
        (numbers.SURGE, "half", "expected a number of workers from 1 on, or a share such as 25%"),
        (numbers.SHARE, "101%", "expected a share from 0 to 1"),
        (numbers.SHARE, True, "expected a share from 0 to 1"),
        (numbers.PART, "0%", "must be more than 0"),
        (numbers.COUNTS, "100,0", "must be between 1"),
        (numbers.WORKERS, "0", "give a number from 1 to 512, a range such as 2..16, or 'auto'"),
        (numbers.WORKERS, "513", "give a number from 1 to 512, a range such as 2..16, or 'auto'"),
        (
            numbers.WORKERS,
            "many",
            "expected a whole number, got 'many'; give a number from 1 to 512, a range",
        ),
        (numbers.SIZE, "10X", "expected a number of bytes such as 8190, 512K or 10M, got '10X'"),
        (numbers.SIZE, "1.5M", "expected a number of bytes"),
        (numbers.SIZE, "-1", "expected a number of bytes"),
        (numbers.SIZE, "", "expected a number of bytes"),
        (numbers.SIZE, "K", "expected a number of bytes"),
        (numbers.SIZE, -1, "must be between 0 and"),
        (numbers.SIZE, "9" * 12 + "T", "must be between 0 and"),
        (numbers.SIZE, None, "expected a whole number, got None"),
        (numbers.SIZE, True, "expected a whole number, got True"),
        (numbers.THREADS, -1, "must be between 0 and"),
        (numbers.THREADS, None, "expected a whole number"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    assert_refused(kind, given, problem)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (8190, "8190"), (512 * 1024, "512K"), (1024**2, "1M"), (1536 * 1024**2, "1536M")],
)
def test_sizes_are_shown_as_they_are_read(size: int, text: str) -> None:
    """--help shows a size with the unit that fits, and that text means the same."""
    assert numbers.show_size(size) == text
    assert numbers.SIZE.parse(text) == size


def test_times_out_of_range() -> None:
    """What the system's calls don't take as a time is refused, in text and as an object."""
    for value in ("1e300", 1e300, 2**40, 10**400, "1e400"):
        with pytest.raises(ValueError, match="seconds"):
            numbers.SECONDS.parse(value)


def test_long_values_are_shown_short() -> None:
    """A message is one line that can be read, whatever was given."""
    with pytest.raises(ValueError, match=r"^expected a whole number, got ") as caught:
        numbers.COUNT.parse("9" * 100_000)
    assert len(str(caught.value)) < 200
