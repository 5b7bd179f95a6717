"""All of gunicorn's settings: each is known, and what is gunicorn's default is no news here."""

from typing import Any

import pytest

from ostler.settings import load, rows
from ostler.settings.configfile import HOOKS, ConfigFile
from ostler.settings.ignored import IGNORED
from ostler.settings.table import not_in_gunicorn
from tests.unit.settings.gunicorn27 import HOOKS as GUNICORNS_HOOKS
from tests.unit.settings.gunicorn27 import SETTINGS

# Where the default is another, and why.
_OTHERWISE = {
    "sendfile": True,  # gunicorn's None means the same
    "user": None,  # whoever runs it, in both
    "group": None,
}


def test_every_setting_is_known() -> None:
    """A setting of gunicorn's has a row or is told to have no effect; no row is neither its nor ours."""
    names = {name for name, *_ in SETTINGS}
    assert names <= {*rows(), *IGNORED, "config", "default_proc_name"}
    assert set(rows()) - names == not_in_gunicorn()


def test_every_hook_is_known() -> None:
    """The same of functions in a file."""
    assert set(GUNICORNS_HOOKS) <= {*HOOKS, *IGNORED}


@pytest.mark.parametrize(("name", "default"), [(name, default) for name, _, _, default in SETTINGS])
def test_its_default_in_a_file(name: str, default: Any) -> None:
    """A file that spells out gunicorn's default asks for ours, and is not warned."""
    loaded = load({}, {}, ConfigFile("gunicorn.conf.py", {name: default}), lambda: 2)
    assert loaded.warnings == []
    assert loaded.ignored == {}
    if name in rows():
        expected = _OTHERWISE.get(name, rows()[name].default)
        assert getattr(loaded.settings, name) == expected
