"""Constructs from configuration files of gunicorn users: each works, or is reported.

They were collected from public files and rewritten.
"""

from pathlib import Path
from typing import Any

import pytest

from ostler.errors import OstlerError
from ostler.settings import load
from ostler.settings.configfile import evaluate


def settings(tmp_path: Path, source: str) -> tuple[dict[str, Any], list[str], tuple[str, ...]]:
    """The settings that are not default, the warnings, and the unknown names."""
    (tmp_path / "gunicorn.conf.py").write_text(source)
    file = evaluate("gunicorn.conf.py", tmp_path)
    loaded = load({}, {}, file, lambda: 2)
    given = {name: value for name, value in loaded.origins.items() if value != "default"}
    return (
        {name: getattr(loaded.settings, name) for name in given if hasattr(loaded.settings, name)},
        loaded.warnings,
        file.unrecognised,
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # Numbers from the environment, with and without defaults.
        ("import os\nworkers = int(os.getenv('NO_SUCH', 0)) or 3\n", {"workers": 3}),
        ("import os\nworkers = os.environ.get('NO_SUCH', '3')\n", {"workers": 3}),
        ("import os\ntimeout = os.environ.get('NO_SUCH')\n", {"timeout": 30.0}),
        ("import os\nthreads = os.getenv('NO_SUCH', 2) * 1\n", {"threads": 2, "worker_class": "gthread"}),
        # Addresses.
        ("bind = ['127.0.0.1:9000']\n", {"bind": ("127.0.0.1:9000",)}),
        ("bind = '0.0.0.0'\n", {"bind": ("0.0.0.0:8000",)}),
        ("bind = ':5000'\n", {"bind": (":5000",)}),
        ("bind = '0.0.0.0:5000, unix:a.sock'\n", {"bind": ("0.0.0.0:5000", "unix:a.sock")}),
        ("import socket\nbind = f'unix:/run/{\"shop\"}.sock'\n", {"bind": ("unix:/run/shop.sock",)}),
        ("bind = 'http://127.0.0.1:7000'\n", {"bind": ("127.0.0.1:7000",)}),
        # Booleans in all spellings.
        ("daemon = 'false'\nreload = 'True'\n", {"daemon": False, "reload": True}),
        ("preload_app = 0\ncapture_output = None\n", {"preload_app": False, "capture_output": False}),
        # Modes of files, valid and invalid, as gunicorn reads them.
        ("umask = 0o007\n", {"umask": "0007"}),
        ("umask = 18\n", {"umask": "0022"}),
        ("umask = '022'\n", {"umask": "0022"}),
        ("umask = 664\n", {"umask": "0230"}),
        # Logs that may be None.
        ("accesslog = '' or None\nerrorlog = None\n", {"accesslog": None, "errorlog": "-"}),
        ("accesslog = ''\nerrorlog = ''\n", {"accesslog": None, "errorlog": "-"}),
        ("loglevel = 'WARN'\n", {"loglevel": "warning"}),
        ("loglevel = 'trace'\n", {"loglevel": "debug"}),
        ("loglevel = 'INFO'.lower()\n", {"loglevel": "info"}),
        ("import pathlib\nerrorlog = pathlib.Path('a') / 'b.log'\n", {"errorlog": "a/b.log"}),
        ("logconfig_dict = {'version': 1}\n", {"logconfig_dict": {"version": 1}}),
        # Accounts.
        ("user = 'www-data'\ngroup = 33\n", {"user": "www-data", "group": "33"}),
        ("user = None\ngroup = ''\n", {"user": None, "group": None}),
        # Worker classes.
        ("worker_class = 'egg:gunicorn#gthread'\n", {"worker_class": "gthread"}),
        ("worker_class = 'shop.workers.Worker'\n", {"worker_class": "shop.workers.Worker"}),
        ("class Own: pass\nworker_class = Own\n", {"worker_class": "__config__.Own"}),
        ("worker_class = None\n", {"worker_class": "sync"}),
        # The environment of the app.
        ("raw_env = 'HOSTS=a,b'\n", {"raw_env": ("HOSTS=a,b",)}),
        ("raw_env = ('A=1', 'B=x y')\n", {"raw_env": ("A=1", "B=x y")}),
        ("raw_env = {'A': 1}\n", {"raw_env": ("A=1",)}),
        ("import os\npythonpath = os.getcwd()[:0] + 'x,y'\n", {"pythonpath": ("x", "y")}),
        # Proxies.
        ("forwarded_allow_ips = '*'\nproxy_allow_ips = forwarded_allow_ips\n",
         {"forwarded_allow_ips": ("*",), "proxy_allow_ips": ("*",)}),
        ("proxy_protocol = True\n", {"proxy_protocol": "auto"}),
        ("secure_scheme_headers = {'X-FORWARDED-PROTO': 'https'}\n",
         {"secure_scheme_headers": {"X-FORWARDED-PROTO": "https"}}),
        # Numbers at their limits.
        ("backlog = 0\nthreads = 0\nmax_requests = '0'\n", {"backlog": 0, "threads": 1, "max_requests": 0}),
        ("limit_request_line = 0\nlimit_request_field_size = 65536\n",
         {"limit_request_line": 0, "limit_request_field_size": 65536}),
        ("timeout = 0.5\nkeepalive = '5'\n", {"timeout": 0.5, "keepalive": 5.0}),
        ("statsd_host = None\nstatsd_prefix = 'shop'\n", {"statsd_host": None, "statsd_prefix": "shop"}),
        # Branches, helpers, classes, output.
        ("import sys\nif sys.argv:\n    workers = 2\nelse:\n    workers = 3\n", {"workers": 2}),
        ("def cores():\n    return 3\nworkers = cores()\n", {"workers": 3}),
        ("import json\nworkers = 2\nprint(json.dumps({'workers': workers}))\n", {"workers": 2}),
        ("__cores = 4\nworkers = __cores\ndel __cores\n", {"workers": 4}),
        ("from os import environ as env\nkeyfile = env.get('NO_SUCH')\n", {"keyfile": None}),
        ("globals().update({'workers': 4})\n", {"workers": 4}),
        ("worker_tmp_dir = '/dev/shm'\nssl_version = 2\n", {}),
    ],
)  # fmt: skip
def test_constructs(tmp_path: Path, source: str, expected: dict[str, Any]) -> None:
    """The file's settings have their values, and there is no warning."""
    assert settings(tmp_path, source) == (expected, [], ())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("workers = 0\n", "workers (gunicorn.conf.py line 1): must be between 1 and 512"),
        ("bind = 'unix:'\n", "bind (gunicorn.conf.py line 1): expected unix:PATH, the path is empty"),
        ("bind = '0.0.0.0:' + 'None'\n", "bind (gunicorn.conf.py line 1): expected a port"),
        ("print 'hello'\n", "config: gunicorn.conf.py line 1: "),
        ("import no_such_settings\n", "config: gunicorn.conf.py line 1: ModuleNotFoundError"),
        (
            "\nfrom gunicorn.no_such import Logger\n",
            "config: gunicorn.conf.py line 2: ModuleNotFoundError: No module named 'gunicorn",
        ),
        ("raise ValueError('no\\nsecret')\n", "config: gunicorn.conf.py line 1: ValueError: no secret"),
        ("import sys\nsys.exit('not here')\n", "config: gunicorn.conf.py line 2: SystemExit: not here"),
        ("raw_env = ['A']\n", "raw_env (gunicorn.conf.py line 1): expected NAME=VALUE, got 'A'"),
        ("loglevel = 'loud'\n", "loglevel (gunicorn.conf.py line 1): expected one of debug, info"),
        ("worker_class = 'tornado'\n", "worker_class (gunicorn.conf.py line 1): Tornado's worker runs"),
    ],
)
def test_what_can_not_be_used(tmp_path: Path, source: str, words: str) -> None:
    """One line has the problem and its place."""
    with pytest.raises(OstlerError) as caught:
        settings(tmp_path, source)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


def test_import_of_gunicorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that import gunicorn for its classes get advice if it is not installed any more."""
    monkeypatch.setitem(__import__("sys").modules, "gunicorn", None)
    with pytest.raises(OstlerError, match=r"install gunicorn beside Ostler, or remove the import$"):
        settings(tmp_path, "import gunicorn.glogging\n")


def test_helpers_that_are_called_like_settings_of_ours(tmp_path: Path) -> None:
    """A name that gunicorn does not have may be anything in users' files, if the file itself uses it."""
    source = "log_format = '%(asctime)s'\nlogconfig_dict = {'formatters': {'f': {'format': log_format}}}\n"
    values, warnings, _ = settings(tmp_path, source)
    assert set(values) == {"logconfig_dict"}
    words = "expected one of auto, console, json, gunicorn, got '%(asctime)s'; without effect"
    assert warnings == [f"log_format (gunicorn.conf.py line 1): {words}"]
    assert settings(tmp_path, "max_age = 60\nprint(max_age)\n") == ({"max_age": 60.0}, [], ())
    with pytest.raises(OstlerError, match=r"^log_format \(gunicorn\.conf\.py line 1\): expected one of"):
        settings(tmp_path, "log_format = '%(asctime)s'\n")
