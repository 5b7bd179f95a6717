"""Which events of the supervisor are written as lines, and which the handler gets."""

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
    """The level of the log file does not limit the events that the handler gets."""
    taken: list[str] = []
    path = tmp_path / "log"
    set_up(str(path), "console", "info", shown="warning")
    set_handler(lambda _level, name, _fields, _line: taken.append(name) is not None)
    log = get_logger()
    log.debug("unasked")
    log.info("ready")
    log.warning("other")
    assert taken == ["ready", "other"]
    assert [word in path.read_text() for word in ("ready", "other")] == [False, True]


def test_taken(tmp_path: Path) -> None:
    """An event that the handler has accepted is not written."""
    path = tmp_path / "log"
    set_up(str(path), "console", "info")
    set_handler(lambda _level, name, _fields, _line: name == "ready")
    get_logger().info("ready")
    get_logger().info("other")
    assert [word in path.read_text() for word in ("ready", "other")] == [False, True]
