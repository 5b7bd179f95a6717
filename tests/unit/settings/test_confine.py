"""Which settings count from a configuration that others than root can write."""

from typing import Any

import pytest
from msgspec import structs

from ostler.errors import SettingError
from ostler.settings.confine import OPENED, confine
from ostler.settings.load import Loaded
from ostler.settings.table import Settings, rows


def said(**values: Any) -> Loaded:
    settings = structs.replace(Settings(), **values)
    return Loaded(settings, {name: "app.conf.py line 1" if name in values else "default" for name in rows()})


def confined(loaded: Loaded, **command_line: Any) -> tuple[Loaded, list[str]]:
    return confine(loaded, lambda name: name == "user", command_line, "'app' can write it")


def test_harmless_settings_count() -> None:
    """Settings that only concern workers are as in the file."""
    loaded, warnings = confined(said(workers=(2, 5), timeout=7.0, user="app"))
    assert (loaded.settings.workers, loaded.settings.timeout, loaded.settings.user) == ((2, 5), 7.0, "app")
    assert warnings == []
    assert loaded.confined == list(OPENED)


def test_the_administrators_settings() -> None:
    """Settings of the control plane, and a Unix socket for the log, have no effect;
    there is a warning for each.
    """
    loaded, warnings = confined(
        said(
            control_socket="/run/x.sock",
            control_bind="0.0.0.0:1",
            agent_check="0.0.0.0:2",
            statsd_host="unix:///x",
            syslog_addr="udp://a:1",
        )
    )
    settings = loaded.settings
    assert (settings.control_socket, settings.control_bind, settings.statsd_host) == (None, None, None)
    assert (settings.agent_check, settings.syslog_addr) == (None, "udp://a:1")
    assert len(warnings) == 4
    assert "control_socket (app.conf.py line 1): without effect, because 'app' can write it" in " ".join(
        warnings
    )


def test_the_command_line_counts_whatever_is_said() -> None:
    """A forged report can't change the command line's values, and root opens the files that these name."""
    loaded, _ = confined(
        said(pidfile="/etc/passwd", bind=("unix:/etc/x",)), pidfile="/run/x.pid", bind=["unix:/run/x"]
    )
    assert (loaded.settings.pidfile, loaded.settings.bind) == ("/run/x.pid", ("unix:/run/x",))
    assert loaded.confined == [name for name in OPENED if name not in ("bind", "pidfile")]


def test_a_folder_of_their_choice() -> None:
    """With `chdir` from such a file, relative paths are relative to that folder: all are confined."""
    loaded, _ = confined(said(chdir="/etc/cron.d"), pidfile="x")
    assert loaded.confined == list(OPENED)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"bind": ("fd://3",)}, "must not name descriptors"),
        ({"umask": "many"}, "umask"),
        ({"control_socket_mode": "9", "loglevel": "loud"}, "loglevel"),
    ],
)
def test_refused(values: dict[str, Any], problem: str) -> None:
    """Values that can't come from a file, or that pass on descriptors of the supervisor."""
    with pytest.raises(SettingError, match=problem):
        confined(said(**values))
