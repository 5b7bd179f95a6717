"""Places for daemons; a failed test keeps its place and shows the daemons' logs."""

import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.kit.daemon import Daemon, Place

APPS = Path(__file__).parent / "apps"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for place in Place.live:
            place.keep = True
            # Names that are not UTF-8 could not be sent between the processes of pytest-xdist.
            text = place.logs().encode(errors="backslashreplace").decode()
            report.sections.append(("daemons", text))
    return report


def furnished() -> Place:
    """A place with the example apps in its app folder."""
    place = Place()
    for path in APPS.glob("*.py"):
        shutil.copy(path, place.app_folder)
    return place


@pytest.fixture
def place() -> Iterator[Place]:
    with furnished() as place:
        yield place


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Place]:
    with furnished() as place:
        yield place


@pytest.fixture
def start(place: Place) -> Callable[..., Daemon]:
    return place.start
