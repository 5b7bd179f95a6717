"""All of gunicorn's settings are known, and gunicorn's defaults cause no warning."""

from typing import Any

import pytest

from ostler.settings import load, rows
from ostler.settings.configfile import HOOKS, ConfigFile
from ostler.settings.ignored import IGNORED
from ostler.settings.table import not_in_gunicorn
from tests.unit.settings.gunicorn27 import HOOKS as GUNICORNS_HOOKS
from tests.unit.settings.gunicorn27 import SETTINGS

# Settings whose default differs, and the reason.
_OTHERWISE = {
    "sendfile": True,  # gunicorn's None means the same
    "user": None,  # the user who starts it, in both
    "group": None,
}


def test_every_setting_is_known() -> None:
    """Each setting of gunicorn has a row or is listed as having no effect;
    each row is gunicorn's or Ostler's own.
    """
    names = {name for name, *_ in SETTINGS}
    assert names <= {*rows(), *IGNORED, "config", "default_proc_name"}
    assert set(rows()) - names == not_in_gunicorn()


def test_every_hook_is_known() -> None:
    """The same for functions in a file."""
    assert set(GUNICORNS_HOOKS) <= {*HOOKS, *IGNORED}


@pytest.mark.parametrize(("name", "default"), [(name, default) for name, _, _, default in SETTINGS])
def test_its_default_in_a_file(name: str, default: Any) -> None:
    """A file that contains gunicorn's default gets Ostler's, without a warning."""
    loaded = load({}, {}, ConfigFile("gunicorn.conf.py", {name: default}), lambda: 2)
    assert loaded.warnings == []
    assert loaded.ignored == {}
    if name in rows():
        expected = _OTHERWISE.get(name, rows()[name].default)
        assert getattr(loaded.settings, name) == expected
