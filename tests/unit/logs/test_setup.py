"""What of the supervisor's events is written as lines, and what others get."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from ostler.logs.setup import get_logger, set_handler, set_up


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    set_handler(None)
    set_up("-", "json", "info")
    structlog.reset_defaults()


def test_shown(tmp_path: Path) -> None:
    """A quiet file holds nothing back from whoever else takes events."""
    taken: list[str] = []
    path = tmp_path / "log"
    set_up(str(path), "console", "info", shown="warning")
    set_handler(lambda _level, name, _fields, _line: taken.append(name) is not None)
    log = get_logger()
    log.debug("unasked")
    log.info("ready")
    log.warning("odd")
    assert taken == ["ready", "odd"]
    assert [word in path.read_text() for word in ("ready", "odd")] == [False, True]


def test_taken(tmp_path: Path) -> None:
    """An event that somebody has taken is not written as well."""
    path = tmp_path / "log"
    set_up(str(path), "console", "info")
    set_handler(lambda _level, name, _fields, _line: name == "ready")
    get_logger().info("ready")
    get_logger().info("odd")
    assert [word in path.read_text() for word in ("ready", "odd")] == [False, True]
