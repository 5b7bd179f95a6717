"""Settings from all sources: which one counts, where a value came from, and the errors."""

from typing import Any

import msgspec
import pytest

from ostler.errors import SettingError
from ostler.settings import Loaded, Settings, load, rows
from ostler.settings.configfile import ConfigFile
from ostler.settings.render import print_config


def loaded(
    command_line: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    file: dict[str, Any] | None = None,
    cpus: int = 2,
) -> Loaded:
    """Load; in the file each setting is on the line of its position, counted from 1."""
    config = None
    if file is not None:
        config = ConfigFile("app.conf.py", file, {name: n for n, name in enumerate(file, 1)})
    return load(command_line or {}, environment or {}, config, lambda: cpus)


def test_defaults() -> None:
    """With nothing given everything is its default, with that origin."""
    result = loaded()
    assert result.settings == Settings()
    assert set(result.origins) == set(rows())
    assert set(result.origins.values()) == {"default"}
    assert result.settings.bind == ("127.0.0.1:8000",)
    assert result.settings.workers == 1


def test_precedence_of_the_number_of_workers() -> None:
    """Command line before file before WEB_CONCURRENCY before the default, as in gunicorn."""
    line, env, file = {"workers": "4"}, {"WEB_CONCURRENCY": "3"}, {"workers": 2}
    for given, workers, origin in [
        ((line, env, file), 4, "command line"),
        (({}, env, file), 2, "app.conf.py line 1"),
        (({}, env, {}), 3, "environment WEB_CONCURRENCY"),
        (({}, env, None), 3, "environment WEB_CONCURRENCY"),
        (({}, {"WEB_CONCURRENCY": ""}, None), 1, "default"),
    ]:
        result = loaded(*given)
        assert (result.settings.workers, result.origins["workers"]) == (workers, origin)


def test_each_setting_has_its_own_origin() -> None:
    """Sources are merged setting by setting."""
    result = loaded({"backlog": "9"}, file={"timeout": 5, "backlog": 8})
    assert (result.settings.timeout, result.settings.backlog) == (5.0, 9)
    assert result.origins["timeout"] == "app.conf.py line 1"
    assert result.origins["backlog"] == "command line"
    assert result.origins["keepalive"] == "default"


def test_workers_auto() -> None:
    """auto is twice the usable CPUs plus one; without it CPUs are not counted."""
    assert loaded({"workers": "auto"}, cpus=4).settings.workers == 9
    load({}, {}, None, lambda: pytest.fail("asked for CPUs"))


def test_threads_choose_the_worker_class() -> None:
    """More than one thread makes sync workers gthread, and the origin is the reason."""
    result = loaded({"threads": "4"})
    assert result.settings.worker_class == "gthread"
    assert result.origins["worker_class"] == "threads = 4"
    assert loaded({"threads": "1"}).settings.worker_class == "sync"


def test_several_addresses() -> None:
    """A single text in the file and a list on the command line have the same meaning."""
    expected = ("127.0.0.1:1", "unix:/x")
    assert loaded({"bind": ["127.0.0.1:1", "unix:/x"]}).settings.bind == expected
    assert loaded(file={"bind": "127.0.0.1:1,unix:/x"}).settings.bind == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (({"workers": "x"},), "workers (command line): expected a whole number, got 'x'"),
        (({}, {"WEB_CONCURRENCY": "-2"}), "workers (environment WEB_CONCURRENCY): must be between 1"),
        (({}, {}, {"backlog": 1, "timeout": "soon"}), "timeout (app.conf.py line 2): expected a number of"),
        (({"bind": ["h:x"]},), "bind (command line): expected a port from 0 to 65535 in 'h:x'"),
        (({}, {}, {"bind": []}), "bind (app.conf.py line 1): give at least one address"),
        (
            ({"worker_class": "tornado"},),
            "worker_class (command line): Tornado's worker runs Tornado apps, not",
        ),
    ],
)
def test_mistakes(given: tuple[Any, ...], message: str) -> None:
    """An error is one line that begins with the setting and where its value stands."""
    with pytest.raises(SettingError) as caught:
        loaded(*given)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_environments_proxies() -> None:
    """FORWARDED_ALLOW_IPS is a default, as in gunicorn; if it is empty no proxy is trusted."""
    for environment, file, networks in [
        ({}, {}, ("127.0.0.1", "::1")),
        ({"FORWARDED_ALLOW_IPS": "10.0.0.0/8"}, {}, ("10.0.0.0/8",)),
        ({"FORWARDED_ALLOW_IPS": ""}, {}, ()),
        ({"FORWARDED_ALLOW_IPS": "*"}, {"forwarded_allow_ips": "::1"}, ("::1",)),
        ({}, {"forwarded_allow_ips": ""}, ()),
    ]:
        assert loaded({}, environment, file).settings.forwarded_allow_ips == networks


def test_sendfile() -> None:
    """On unless the flag, the file or the environment turns it off; None in a file has no effect."""
    assert loaded().settings.sendfile is True
    assert loaded({"sendfile": "false"}).settings.sendfile is False
    assert loaded(file={"sendfile": None}).settings.sendfile is True
    assert loaded(environment={"SENDFILE": "0"}).settings.sendfile is False
    assert loaded(environment={"SENDFILE": "y"}).settings.sendfile is True


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"keyfile": "k.pem"}, "keyfile (app.conf.py line 1): needs certfile as well"),
        ({"cert_reqs": 2}, "cert_reqs (app.conf.py line 1): needs certfile as well"),
        ({"ca_certs": "ca.pem"}, "ca_certs (app.conf.py line 1): needs certfile as well"),
        ({"certfile": "c.pem", "cert_reqs": 2}, "cert_reqs (app.conf.py line 2): needs ca_certs as well"),
    ],
)
def test_settings_of_tls_that_need_another(file: dict[str, Any], message: str) -> None:
    """A configuration that only looks as if clients were verified, or https served, is refused."""
    with pytest.raises(SettingError) as caught:
        loaded(file=file)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_settings_of_tls_that_belong_together() -> None:
    """TLS settings of files for gunicorn are accepted; None and 0 count as not set."""
    settings = loaded(file={"certfile": None, "keyfile": None, "ca_certs": None, "cert_reqs": 0}).settings
    assert (settings.certfile, settings.cert_reqs) == (None, "none")
    assert loaded(file={"certfile": "c", "cert_reqs": 1}).settings.cert_reqs == "optional"
    assert loaded(file={"certfile": "c", "ca_certs": "ca", "cert_reqs": 2}).settings.ca_certs == "ca"


def test_a_value_that_is_not_used_is_not_judged() -> None:
    """An invalid WEB_CONCURRENCY has no effect if the number is set elsewhere."""
    assert loaded({"workers": "2"}, {"WEB_CONCURRENCY": "lots"}).settings.workers == 2


def test_settings_travel() -> None:
    """The settings that the fork server has loaded arrive unchanged in the supervisor."""
    result = loaded(
        {"bind": ["h:1", "unix:/x"], "threads": "3", "timeout": "1.5", "socket_mode": "660"},
        file={"secure_scheme_headers": {"X-Https": "1"}, "forwarded_allow_ips": ["10.0.0.0/8", "::1"]},
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(result), type=Loaded) == result


def test_table_is_sound() -> None:
    """Every row has help, a valid default, and flags of its own."""
    flags = [flag for row in rows().values() for flag in row.flags]
    assert len(flags) == len(set(flags))
    for name, row in rows().items():
        assert row.name == name
        assert row.help.endswith("."), name
        assert row.kind.parse(row.default) == row.default, name


def test_print_config() -> None:
    """--print-config names each setting once, with its value and origin, sorted."""
    lines = print_config(loaded({"workers": "2"})).splitlines()
    assert [line.split()[0] for line in lines] == sorted(rows())
    (line,) = [line for line in lines if line.startswith("workers ")]
    assert line.split() == ["workers", "=", "2", "#", "command", "line"]


def test_no_secrets_in_print_config() -> None:
    """Values of the app's environment and arguments of `logging` handlers are not shown; their names are."""
    mail = {"class": "logging.handlers.SMTPHandler", "level": "ERROR", "credentials": ("me", "secret")}
    own = {"()": "app.Filter", "key": "secret"}
    config = {
        "version": 1,
        "handlers": {"mail": mail, "other": "secret"},
        "filters": {"own": own},
        "root": {"handlers": ["mail"]},
        "more": {"token": "secret"},
    }
    text = print_config(loaded({"logconfig_dict": config, "raw_env": ["A=secret"]}))
    assert "secret" not in text
    shown = "{'class': 'logging.handlers.SMTPHandler', 'level': 'ERROR', 'credentials': '...'}"
    assert f"'mail': {shown}" in text
    assert "'root': {'handlers': ['mail']}" in text
    assert "('A=...',)" in text


def test_the_port_of_a_platform() -> None:
    """PORT is the default address as in gunicorn, reachable from outside, and only a default."""
    result = loaded({}, {"PORT": "5000"})
    assert result.settings.bind == ("0.0.0.0:5000",)
    assert result.origins["bind"] == "environment PORT"
    assert loaded({}, {"PORT": "5000"}, {"bind": "127.0.0.1:1"}).settings.bind == ("127.0.0.1:1",)
    assert loaded({"bind": [":2"]}, {"PORT": "5000"}).settings.bind == (":2",)
    assert loaded({}, {"PORT": ""}).settings.bind == ("127.0.0.1:8000",)
    with pytest.raises(SettingError, match=r"^bind \(environment PORT\): expected a port"):
        loaded({}, {"PORT": "x"})


def test_origins_of_variables() -> None:
    """A value from a variable with arguments names the variable as its origin, in errors as well."""
    given = {"timeout": "5", "backlog": "7"}
    result = load(given, {}, ConfigFile("c.py", {"timeout": 3}), lambda: 2, {"timeout": "environment X"})
    assert (result.settings.timeout, result.origins["timeout"]) == (5.0, "environment X")
    assert result.origins["backlog"] == "command line"
    with pytest.raises(SettingError, match=r"^timeout \(environment X\): expected"):
        load({"timeout": "x"}, {}, None, lambda: 2, {"timeout": "environment X"})


def test_none_in_a_file() -> None:
    """None in a file counts as not set, also where gunicorn would stop."""
    for name, row in rows().items():
        if name in ("bind", "forwarded_allow_ips", "proxy_allow_ips", "forwarder_headers"):
            continue  # no peer, as in gunicorn
        assert getattr(loaded(file={name: None}).settings, name) == row.default, name
    assert loaded(file={"forwarded_allow_ips": None}).settings.forwarded_allow_ips == ()


def test_more_threads_than_can_be_seen() -> None:
    """More threads than a worker may have are reduced with a warning, not refused."""
    result = loaded(file={"threads": 500})
    assert result.settings.threads == 256
    assert result.warnings == ["threads (app.conf.py line 1): 256 is the most, not 500"]
    assert loaded(file={"threads": 256}).warnings == []
    assert loaded(file={"threads": 0}).settings.threads == 1
