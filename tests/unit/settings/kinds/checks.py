"""What the tests of all kinds of settings check: a value that is taken, and one that is refused."""

from typing import Any

import pytest

from ostler.settings.kinds.kind import Kind


def assert_becomes(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    parsed = kind.parse(given)
    assert parsed == value
    assert type(parsed) is type(value)


def assert_refused(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        kind.parse(given)
    assert problem in str(caught.value)
