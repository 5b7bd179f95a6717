"""Settings in a PasteDeploy file."""

from pathlib import Path

import pytest

from ostler.errors import SettingError
from ostler.settings import pastefile
from ostler.settings.configfile import ConfigFile
from ostler.settings.load import Loaded, load
from ostler.settings.pastefile import with_paste
from ostler.settings.table import Settings


def loaded(
    folder: Path, ini: str, file: ConfigFile | None = None, **given: object
) -> tuple[Loaded, list[str]]:
    """Settings with an ini, and the warnings."""
    (folder / "site.ini").write_text(ini)
    line = {"paste": "config:site.ini#admin", **given}
    warnings: list[str] = []
    before = load(line, {}, file, lambda: 2).settings
    return load(line, {}, with_paste(file, before, folder, warnings), lambda: 2), warnings


SERVER = """
[DEFAULT]
home = here
workers = 9
[server:main]
use = egg:ostler#main
host = 127.0.0.1
port = 6543
threads = 3
pidfile = %(here)s/%(home)s.pid
"""


def test_server_settings(tmp_path: Path) -> None:
    """They count, with their place as origin; those of [DEFAULT] are not settings of the server."""
    found, warnings = loaded(tmp_path, SERVER)
    settings = found.settings
    assert (settings.bind, settings.threads, settings.workers) == (("127.0.0.1:6543",), 3, 1)
    assert settings.pidfile == f"{tmp_path}/here.pid"
    assert found.origins["bind"] == "site.ini [server:main]"
    assert warnings == []


def test_below_the_others(tmp_path: Path) -> None:
    """The command line and the configuration file have precedence, and are then the origin."""
    file = ConfigFile("conf.py", {"threads": 5, "timeout": 7}, {"threads": 2})
    found, _ = loaded(tmp_path, SERVER, file, bind=["127.0.0.1:1"])
    assert (found.settings.bind, found.settings.threads) == (("127.0.0.1:1",), 5)
    origins = [found.origins[name] for name in ("bind", "threads", "timeout", "pidfile")]
    assert origins == ["command line", "conf.py line 2", "conf.py", "site.ini [server:main]"]


@pytest.mark.parametrize(
    ("host", "port", "bind"),
    [("::1", "80", "[::1]:80"), ("0.0.0.0", "", "0.0.0.0:8000"), ("", "81", "127.0.0.1:81")],
)
def test_host_and_port(host: str, port: str, bind: str) -> None:
    """Either may be left out; `bind` has precedence over both."""
    section = {"host": host, "port": port}
    pastefile.bind_to_host(section)
    assert section == {"bind": bind}
    section = {"host": host, "port": port, "bind": "unix:x"}
    pastefile.bind_to_host(section)
    assert section == {"bind": "unix:x"}


@pytest.mark.parametrize("use", ["egg:gunicorn#main", "egg:waitress"])
def test_meant_for_others(tmp_path: Path, use: str) -> None:
    """As with `gunicorn --paste` the section of another server does not count; there is a warning."""
    found, (warning,) = loaded(tmp_path, SERVER.replace("egg:ostler#main", use))
    assert found.settings.threads == 1
    assert warning.startswith(f"site.ini [server:main]: without effect, because it is meant for {use};")


def test_unknown_names(tmp_path: Path) -> None:
    """One warning for all of them."""
    _, (warning,) = loaded(tmp_path, SERVER + "spam = 1\neggs = 2\n")
    assert warning == "site.ini [server:main]: unknown and without effect: eggs, spam"


def test_loggers(tmp_path: Path) -> None:
    """With [loggers] the file is the logconfig, unless another one is given."""
    ini = "[loggers]\nkeys = root\n"
    found, _ = loaded(tmp_path, ini)
    assert found.settings.logconfig == str(tmp_path / "site.ini")
    assert found.origins["logconfig"] == "site.ini [loggers]"
    found, _ = loaded(tmp_path, ini, logconfig="other.ini")
    assert found.settings.logconfig == "other.ini"
    found, _ = loaded(tmp_path, ini, ConfigFile("conf.py", {"logconfig_dict": {"version": 1}}))
    assert found.settings.logconfig is None


@pytest.mark.parametrize(
    ("ini", "words"),
    [
        ("[server:main]\nuse = egg:ostler\npidfile = %(nowhere)s\n", "nowhere"),
        ("workers = 1\n", "no section headers"),
        ("[server:main]\nuse = egg:ostler\nworkers = many\n", "site.ini [server:main]): expected"),
    ],
)
def test_mistakes(tmp_path: Path, ini: str, words: str) -> None:
    """One line that names the file and the mistake."""
    with pytest.raises(SettingError) as caught:
        loaded(tmp_path, ini)
    assert words in str(caught.value)
    assert "site.ini" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"paste: can't read 'gone\.ini': No such file"):
        with_paste(None, Settings(paste="gone.ini"), tmp_path, [])


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PasteDeploy the error names the extra."""
    monkeypatch.setattr(pastefile, "find_spec", lambda _name: None)
    with pytest.raises(SettingError, match=r"needs PasteDeploy; install ostler\[paste\]"):
        with_paste(None, Settings(paste="site.ini"), tmp_path, [])


def test_folder(tmp_path: Path) -> None:
    """The name is relative to `chdir`, as in gunicorn."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/dev.ini").write_text("[server:main]\nuse = egg:ostler\nthreads = %(many)s\n")
    settings = Settings(paste="dev.ini", chdir="site", raw_paste_global_conf=("many=4",))
    assert with_paste(None, settings, tmp_path, []).values == {"threads": "4"}
