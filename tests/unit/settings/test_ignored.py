"""gunicorn's settings without effect: which values cause a warning, its lines, and which are refused."""

import ssl
from typing import Any

import pytest

from ostler.errors import SettingError
from ostler.settings import Loaded, load
from ostler.settings.configfile import ConfigFile
from ostler.settings.render import print_config


def loaded(
    file: dict[str, Any] | None = None, line: dict[str, Any] | None = None, **variables: str
) -> Loaded:
    config = ConfigFile("app.conf.py", file or {}, {name: n for n, name in enumerate(file or {}, 1)})
    return load(line or {}, {}, config, lambda: 2, variables)


class Logger:
    """Stands for a subclass of gunicorn's."""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worker_tmp_dir", "/dev/shm"),
        ("worker_tmp_dir", None),
        ("dirty_workers", "0"),
        ("dirty_timeout", "300"),
        ("http_protocols", "h1"),
        ("http2_cleartext", False),
        ("logger_class", "gunicorn.glogging.Logger"),
        ("ssl_version", "TLS"),
        ("ssl_version", ssl.PROTOCOL_TLS),
        ("ssl_version", ssl.PROTOCOL_TLS_SERVER),
        ("ssl_version", 5),
        ("protocol", "HTTP"),
        ("suppress_ragged_eofs", False),
        ("do_handshake_on_connect", True),
        ("uwsgi_allow_ips", ["127.0.0.1", "::1"]),
        ("print_config", False),
    ],
)
def test_values_that_match_ostlers_behaviour(name: str, value: Any) -> None:
    """No warning, for a text of the command line and for an object of a file."""
    for result in (loaded({name: value}), loaded(line={name: value})):
        assert (result.ignored, result.warnings) == ({}, [])


def test_one_line_for_all() -> None:
    """Each is named with its place and advice; the same advice for several is given once."""
    result = loaded(
        {"dirty_apps": ["a:b"], "worker_tmp_dir": "/tmp", "logger_class": Logger},
        {"dirty_workers": "3", "http_protocols": "h2,h1"},
        dirty_workers="environment GUNICORN_CMD_ARGS",
    )
    (line,) = result.warnings
    assert line.startswith("without effect: worker_tmp_dir (app.conf.py line 2): heartbeats are in ")
    assert "dirty_apps (app.conf.py line 1), dirty_workers (environment GUNICORN_CMD_ARGS): there are" in line
    assert "http_protocols (command line): HTTP/1.1 is what" in line
    assert "logger_class (app.conf.py line 3): " in line
    assert line.count("dirty workers") == 1
    assert set(result.ignored) == {
        "dirty_apps",
        "worker_tmp_dir",
        "logger_class",
        "dirty_workers",
        "http_protocols",
    }


def test_hooks_without_effect() -> None:
    """Hooks for features that do not exist are reported like values."""
    assert "on_dirty_starting (app.conf.py line 1)" in loaded({"on_dirty_starting": print}).warnings[0]


def test_another_protocol_is_refused() -> None:
    """A client of the uwsgi protocol would only get errors, so the server does not start."""
    with pytest.raises(SettingError, match=r"^protocol \(app\.conf\.py line 1\): only http .* proxy_pass"):
        loaded({"protocol": "uwsgi"})
    assert "protocol (app.conf.py line 1)" in loaded({"protocol": "https"}).warnings[0]


@pytest.mark.parametrize(
    ("value", "least"),
    [
        (5, "TLSv1.2"),
        ("TLSv1_2", "TLSv1.2"),
        ("PROTOCOL_TLSv1_2", "TLSv1.2"),
        ("TLSv1.3", "TLSv1.3"),
        (ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
    ],
)
def test_version_of_tls(value: Any, least: str) -> None:
    """An ssl_version that is supported becomes the minimum version, unless another minimum is set."""
    result = loaded({"ssl_version": value})
    assert (result.settings.ssl_minimum_version, result.warnings) == (least, [])
    assert result.origins["ssl_minimum_version"] == "ssl_version, app.conf.py line 1"
    other = loaded({"ssl_version": value, "ssl_minimum_version": "1.3"})
    assert (other.settings.ssl_minimum_version, other.warnings) == ("TLSv1.3", [])


@pytest.mark.parametrize("value", [3, "TLSv1_1", "SSLv3"])
def test_version_of_tls_that_is_too_old(value: Any) -> None:
    """Protocols that are not supported any more are reported, and do not prevent the start."""
    result = loaded({"ssl_version": value})
    assert result.settings.ssl_minimum_version == "TLSv1.2"
    assert "ssl_version (app.conf.py line 1): the oldest version" in result.warnings[0]


def test_default_name() -> None:
    """default_proc_name is used if there is no other name."""
    result = loaded({"default_proc_name": "shop"})
    assert (result.settings.proc_name, result.warnings) == ("shop", [])
    assert result.origins["proc_name"] == "default_proc_name, app.conf.py line 1"
    assert loaded({"default_proc_name": "shop", "proc_name": "till"}).settings.proc_name == "till"
    assert loaded({"default_proc_name": None}).settings.proc_name is None


def test_print_config() -> None:
    """Settings without effect come after the others, hooks between them; no secret is shown."""
    config = ConfigFile(
        "app.conf.py",
        {"raw_env": ["KEY=s3cret"], "dirty_workers": 3},
        {"raw_env": 1, "dirty_workers": 2, "ssl_context": 3},
        hooks={"ssl_context": test_default_name},
    )
    text = print_config(load({}, {}, config, lambda: 2))
    lines = [line.split() for line in text.splitlines()]
    assert lines[-1] == ["dirty_workers", "=", "3", "#", *"app.conf.py line 2, without effect".split()]
    assert lines[-2] == "ssl_context = hook # app.conf.py line 3".split()
    assert "KEY=..." in text
    assert "s3cret" not in text
