"""Verifies the measurement: without any attack a daemon keeps within the limits, with every worker class."""

import pytest

from tests.kit.daemon import Place
from tests.kit.hostile import assert_unharmed, each_class

pytestmark = pytest.mark.system


@each_class
def test_without_attack(hostile_place: Place, words: tuple[str, ...]) -> None:
    """Each worker class replaces a killed worker and answers `ctl status` within the limits."""
    daemon = hostile_place.start("--preload", *words)
    assert_unharmed(daemon)
    assert daemon.stop() == 0
