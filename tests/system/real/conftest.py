"""Places that hold the apps of this folder, and what several of its modules use."""

import shutil
from pathlib import Path

import pytest

from tests.kit.daemon import Place

APPS = Path(__file__).parent / "apps"


def _furnish(place: Place) -> Place:
    for path in APPS.glob("*.py"):
        shutil.copy(path, place.app_folder)
    return place


@pytest.fixture
def place(place: Place) -> Place:
    return _furnish(place)


@pytest.fixture(scope="module")
def shared_place(shared_place: Place) -> Place:
    return _furnish(shared_place)
