"""Places that hold the apps of this folder, and what several of its modules use."""

import shutil
from pathlib import Path

import pytest

from tests.kit.daemon import Place

APPS = Path(__file__).parent / "apps"


def furnish(place: Place) -> Place:
    """Add the apps of this folder to a place."""
    for path in APPS.glob("*.py"):
        shutil.copy(path, place.app_folder)
    return place


@pytest.fixture
def place(place: Place) -> Place:
    return furnish(place)


@pytest.fixture(scope="module")
def shared_place(shared_place: Place) -> Place:
    return furnish(shared_place)
