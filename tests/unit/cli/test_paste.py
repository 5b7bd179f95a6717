"""`use = egg:ostler#main`: the command line that the process executes."""

import pytest

from ostler.cli.paste import command
from ostler.errors import SettingError


def test_command() -> None:
    """The file, its variables and the section's settings, as flags."""
    argv = command(
        {"__file__": "/srv/site.ini", "here": "/srv", "debug": "true"},
        {
            "host": "::1",
            "port": "80",
            "workers": "3",
            "preload_app": "true",
            "reload": "false",
            "config": "c.py",
        },
    )
    assert argv == [
        *("--paste", "/srv/site.ini", "--paste-global=debug=true", "--config=c.py"),
        *("--workers=3", "--preload", "--bind=[::1]:80"),
    ]


@pytest.mark.parametrize("settings", [{"spam": "1"}, {"secure_scheme_headers": "1"}, {"reload": "perhaps"}])
def test_mistakes(settings: dict[str, str]) -> None:
    """Keys that can't be settings there are refused by name."""
    with pytest.raises(SettingError, match=next(iter(settings))):
        command({"__file__": "site.ini"}, settings)


def test_unknown_file() -> None:
    with pytest.raises(SettingError, match="must name the file"):
        command({}, {})
