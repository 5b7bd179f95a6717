"""Names that are not settings: which ones in a Python file are reported, and with what advice."""

from pathlib import Path

import pytest

from ostler.settings.configfile import evaluate


def reported(tmp_path: Path, source: str) -> list[str]:
    (tmp_path / "app.conf.py").write_text(source)
    return list(evaluate("app.conf.py", tmp_path).unrecognised)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("logfile = 'debug.log'\n", "logfile (line 1): use errorlog"),
        (
            "import os\n\ndebug = True\n",
            "debug (line 3): use loglevel = 'debug', or reload = True for development",
        ),
        (
            "x_forwarded_for_header = 'X-FORWARDED-FOR'\n",
            "x_forwarded_for_header (line 1): use forwarded_allow_ips; the framework finds the address",
        ),
        (
            "django_settings = 'a.b'\n",
            "django_settings (line 1): use raw_env = ['DJANGO_SETTINGS_MODULE=...']",
        ),
        # As on the command line.
        ("log_level = 'info'\n", "log_level (line 1): use loglevel"),
        ("log_file = '-'\n", "log_file (line 1): use errorlog"),
        ("keep_alive = 5\n", "keep_alive (line 1): use keepalive"),
        ("proxy_allow_from = '*'\n", "proxy_allow_from (line 1): use proxy_allow_ips"),
        ("name = 'shop'\n", "name (line 1): use proc_name"),
        ("preload = True\n", "preload (line 1): use preload_app"),
        ("worker_memory_limit = 400\n", "worker_memory_limit (line 1): use max_memory"),
        # Typing errors.
        ("forworded_allow_ips = '*'\n", "forworded_allow_ips (line 1): did you mean forwarded_allow_ips?"),
        ("worker = 3\n", "worker (line 1): did you mean workers?"),
        ("workers: int = 3\ntimeuot: int = 3\n", "timeuot (line 2): did you mean timeout?"),
        ("if True:\n    time_out = 3\n", "time_out (line 2): did you mean timeout?"),
        ("WORKERS = 3\n", "WORKERS (line 1): did you mean workers?"),
        # Without a similar setting.
        ("proxy_headers = True\n", "proxy_headers (line 1)"),
        ("ssl_session_tickets = False\n", "ssl_session_tickets (line 1)"),
        # Functions with names similar to hooks.
        ("def post_forks(server, worker): pass\n", "post_forks (line 1): did you mean post_fork?"),
        ("x = 1\ndef when_redy(server): pass\nprint(x)\n", "when_redy (line 2): did you mean when_ready?"),
    ],
)  # fmt: skip
def test_names_that_are_reported(tmp_path: Path, source: str, expected: str) -> None:
    """Plain data that the file does not read, and misspelt hooks, each with its line and the correct name."""
    assert reported(tmp_path, source) == [expected]


@pytest.mark.parametrize(
    "source",
    [
        "import os, sys, multiprocessing\nfrom pathlib import Path\n",
        "import multiprocessing\ncores = multiprocessing.cpu_count()\nworkers = cores * 2 + 1\n",
        "host = 'h'\nport = 1\nbind = f'{host}:{port}'\n",
        "level = 'info'\ndef get():\n    return level\nloglevel = get()\n",
        "_unused = 3\n__author__ = 'me'\n",
        "BASE_DIR = '/x'\nSECRETS = []\n",
        "import logging\nlogger = logging.getLogger()\n",
        "class Filter: pass\nhandler = Filter()\n",
        "for folder in ('a', 'b'):\n    pass\n",
        "try:\n    import nothing_of_that_name\nexcept ImportError as worker:\n    pass\n",
        "with open(__file__) as config_file:\n    pass\n",
        "first, second = 1, 2\n",
        "def helper(): pass\nhelper()\n",
        "def setup(app):\n    inner = 3\n    return inner\n",
        "def post_forked(server, worker): pass\nif 0:\n    post_forked(1, 2)\n",
        "def post_fork(server, worker): pass\ndef child_exit(server, worker): pass\n",
        "extra = 3\nprint(sorted(globals()))\n",
        "config = 3\ndefault_proc_name = 'x'\nworker_tmp_dir = '/tmp'\nprotocol = 'http'\n",
        "[unread for unread in range(3)]\n",
    ],
)  # fmt: skip
def test_names_that_are_not_reported(tmp_path: Path, source: str) -> None:
    """Imports, helpers, constants, names that are read, and names that gunicorn has are not reported."""
    assert reported(tmp_path, source) == []


def test_several(tmp_path: Path) -> None:
    """All are reported, in the file's order; for a name that is assigned twice the last line counts."""
    source = "logfile = 'a'\ndef pre_forks(server, worker): pass\ndebug = 1\nlogfile = 'b'\n"
    assert [text.split(":")[0] for text in reported(tmp_path, source)] == [
        "pre_forks (line 2)",
        "debug (line 3)",
        "logfile (line 4)",
    ]


def test_files_that_read_all_their_names(tmp_path: Path) -> None:
    """If a file reads all its names at once, only those similar to a setting are reported."""
    source = "extra = 3\nworker = 4\nprint(len(globals()))\n"
    assert reported(tmp_path, source) == ["worker (line 2): did you mean workers?"]


def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other modules may read a module's names, so only those similar to a setting are reported."""
    (tmp_path / "ostler_test_unknown.py").write_text("workers = 2\nshop = 'x'\nlogfile = 'y'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = evaluate("python:ostler_test_unknown", tmp_path)
    assert file.unrecognised == ("logfile (line 3): use errorlog",)
