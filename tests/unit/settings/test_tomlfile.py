"""Configuration in TOML: the same settings as in Python, with lines for errors."""

from pathlib import Path

import pytest

from ostler.errors import ConfigFileError, SettingError
from ostler.settings import load
from ostler.settings.configfile import evaluate, find

SOURCE = """\
# comment
bind = ["127.0.0.1:8000", "unix:app.sock"]
workers = "2..4"
worker-class = "gthread"
raw_env = [
    "A=1",
    "preload_app = true",
]
access_log_format = '''
backlog = 3
'''
backlog = 9
secure_scheme_headers."X-Https" = "on"

[logconfig_dict]
version = 1
[logconfig_dict.loggers."gunicorn.error"]
level = "INFO"
"""


def test_settings(tmp_path: Path) -> None:
    """Lists, sub-tables, ranges and hyphens, each with its line."""
    (tmp_path / "ostler.toml").write_text(SOURCE)
    file = evaluate("ostler.toml", tmp_path)
    settings = load({}, {}, file, lambda: 2).settings
    assert settings.bind == ("127.0.0.1:8000", "unix:app.sock")
    assert (settings.workers, settings.worker_class, settings.backlog) == ((2, 4), "gthread", 9)
    assert settings.raw_env == ("A=1", "preload_app = true")
    assert settings.secure_scheme_headers == {"X-HTTPS": "on"}
    assert settings.logconfig_dict == {"version": 1, "loggers": {"gunicorn.error": {"level": "INFO"}}}
    assert file.unrecognised == ()
    lines = {"bind": 2, "workers": 3, "worker_class": 4, "raw_env": 5, "backlog": 12}
    lines |= {"access_log_format": 9, "secure_scheme_headers": 13, "logconfig_dict": 15}
    assert {name: file.origin(name) for name in file.values} == {
        name: f"ostler.toml line {line}" for name, line in lines.items()
    }


def test_pyproject(tmp_path: Path) -> None:
    """Only [tool.ostler] counts, anywhere in the file."""
    source = "[project]\nname = 'x'\nworkers = 7\n[tool.ostler]\nworkers = 3\n[tool.other]\ntimeout = 1\n"
    (tmp_path / "pyproject.toml").write_text(source)
    file = evaluate("pyproject.toml", tmp_path)
    assert file.values == {"workers": 3}
    assert file.origin("workers") == "pyproject.toml line 5"
    (tmp_path / "pyproject.toml").write_text("[tool]\nostler.workers = 3\n")
    assert evaluate("pyproject.toml", tmp_path).origin("workers") == "pyproject.toml line 2"


def test_unknown_keys(tmp_path: Path) -> None:
    """In TOML a key that is not a setting can only be a mistake, so each is reported."""
    (tmp_path / "x.toml").write_text("shop = 1\nworker = 2\ndirty_workers = 3\nlog-level = 'info'\n")
    file = evaluate("x.toml", tmp_path)
    assert file.unrecognised == (
        "shop (line 1)",
        "worker (line 2): did you mean workers?",
        "log_level (line 4): use loglevel",
    )


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("x.toml", "workers = 2\nbind = = 3\n", "config: x.toml line 2: Invalid value"),
        ("x.toml", "workers = 2\nworkers = 3\n", "config: x.toml line 2: Cannot overwrite a value"),
        ("x.toml", "workers = 'ä'".encode("latin-1"), "config: x.toml: 'utf-8' codec can't decode"),
        ("pyproject.toml", "[project]\n", "config: pyproject.toml: there is no table [tool.ostler]"),
        ("pyproject.toml", "[tool]\nostler = 3\n", "config: pyproject.toml: there is no table"),
    ],
)
def test_mistakes(tmp_path: Path, name: str, source: str | bytes, message: str) -> None:
    """One line with the file, the line in it, and what is wrong."""
    (tmp_path / name).write_bytes(source.encode() if isinstance(source, str) else source)
    with pytest.raises(ConfigFileError) as caught:
        evaluate(name, tmp_path)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_value_that_can_not_be_used(tmp_path: Path) -> None:
    """It is reported with its line, as in Python."""
    (tmp_path / "x.toml").write_text("# first\n\nworkers = 'lots'\n")
    with pytest.raises(SettingError, match=r"^workers \(x\.toml line 3\): expected a whole number"):
        load({}, {}, evaluate("x.toml", tmp_path), lambda: 2)


def test_which_file_is_found(tmp_path: Path) -> None:
    """ostler.conf.py, ostler.toml, gunicorn.conf.py, and the project's file if it has our table."""
    project = tmp_path / "pyproject.toml"
    project.write_text("[tool.ruff]\n")
    assert find(None, tmp_path) is None
    project.write_text("[tool.ruff]\n# ostler\n[tool.ostler]\n")
    for name in ("pyproject.toml", "gunicorn.conf.py", "ostler.toml", "ostler.conf.py"):
        (tmp_path / name).touch()
        assert find(None, tmp_path) == name


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("broken = = 1\nname = 'ostler'\n", None),
        ("broken = = 1\n[tool.ostler]\n", "pyproject.toml"),
        ("tool = 'ostler'\n", None),
        ("[project]\nname = 'ostler'\n", None),
    ],
)
def test_projects_that_are_broken(tmp_path: Path, source: str, found: str | None) -> None:
    """A pyproject.toml without settings for Ostler never prevents a start, whatever is in it."""
    (tmp_path / "pyproject.toml").write_text(source)
    assert find(None, tmp_path) == found
