"""The tiers of the tests, which contrib/run knows: quick, usual, thorough.

- quick: `tests/unit` and `tests/property`, which start no daemon;
- usual: with real daemons, each behaviour once; with two worker classes where they have code of their own for
  it;
- thorough: marked `thorough`. Endurance (storms of connections, memory after thousands of requests);
  strange environments (refused system calls, a read-only disk, no /proc, hostile modules and sockets at a
  start); rare orders of events (a signal during an upgrade); and further combinations of what the usual
  tests have: the same attack on the other worker classes, the same mistake in another setting. CI runs them
  in a step of their own.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def thorough(*values: Any) -> list[ParameterSet]:
    """Values of `parametrize` that only the thorough tests use; a tuple has one value for each name."""
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.thorough)
        for value in values
    ]


def tiers(values: Iterable[tuple[str, Any]], usual: Collection[str]) -> list[ParameterSet]:
    """Values of `parametrize` by their ids; those that are not in `usual` are thorough."""
    return [
        pytest.param(value, id=name, marks=() if name in usual else pytest.mark.thorough)
        for name, value in values
    ]
