"""A place whose app is `tests.kit.hostile.APP`."""

from collections.abc import Iterator

import pytest

from tests.kit.daemon import Place
from tests.kit.hostile import APP


@pytest.fixture
def hostile_place() -> Iterator[Place]:
    with Place() as place:
        place.add("attacked.py", APP)
        yield place
