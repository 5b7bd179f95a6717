"""logconfig_dict, logconfig_json and logconfig, each in a process of its own,
because they change a process permanently.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ostler.settings.plain_data import plain_data

PROGRAM = """\
import logging, sys
import msgspec
from ostler.errors import SettingError
from ostler.logs import bridge, logconfig
from ostler.logs.worker_log import Log
from ostler.logs.logfile import LogFile
from ostler.settings.table import Settings, rows
class Shout(logging.Formatter):
    def format(self, record):
        return "SHOUT " + record.getMessage().upper()
given = {given}
settings = Settings(logconfig_dict=rows()["logconfig_dict"].kind.parse(given), **{more})
bridge.attach(Log(LogFile("own.log", 2), "console", "info", {{}}))
bridge.set_up("info", access=False)
try:
    logconfig.apply(settings, given)
except SettingError as error:
    sys.exit(str(error))
bridge._error_handler.log.info("happened", n=1)
logging.getLogger("app").warning("app's")
"""


def run(folder: Path, given: str = "None", **more: Any) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(given=given, more=more)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=20, check=False
    )


def test_objects_of_the_configuration_s_own(tmp_path: Path) -> None:
    """Classes, which can't be sent as settings, are kept."""
    given = """{"formatters": {"s": {"()": Shout}}, "handlers": {"h": {"class": "logging.StreamHandler",
        "formatter": "s"}}, "loggers": {"gunicorn.error": {"handlers": ["h"], "propagate": False}}}"""
    done = run(tmp_path, given)
    assert done.stderr == "SHOUT HAPPENED N=1\n"
    assert (tmp_path / "own.log").read_text() == ""


def test_what_it_refers_to(tmp_path: Path) -> None:
    """gunicorn's formatter `generic` and handler `console` exist, also besides others."""
    given = """{"handlers": {"mine": {"class": "logging.FileHandler", "filename": "mine.log",
        "formatter": "generic"}}, "loggers": {"gunicorn.error": {"handlers": ["mine", "console"],
        "propagate": False}}}"""
    done = run(tmp_path, given)
    line = (tmp_path / "mine.log").read_text()
    assert line.endswith("[INFO] happened n=1\n")
    assert done.stdout.splitlines()[0] + "\n" == line
    assert "app's" in done.stdout  # the root logger has `console`


def test_loggers_of_the_app_only(tmp_path: Path) -> None:
    """Then our loggers are not changed."""
    done = run(tmp_path, '{"loggers": {"app": {"handlers": ["error_console"], "propagate": False}}}')
    assert "happened" in (tmp_path / "own.log").read_text()
    assert "[WARNING] app's" in done.stderr


def test_the_dictionary_comes_first(tmp_path: Path) -> None:
    """The dictionary has precedence over JSON, and that over the file, as in gunicorn."""
    level = {"loggers": {"gunicorn.error": {"handlers": ["error_console"], "propagate": 0, "level": 0}}}
    for name, mark in ("json", "J"), ("dict", "D"):
        formatters = {"generic": {"format": f"{mark} %(message)s"}}
        level["formatters"] = formatters
        (tmp_path / name).write_text(json.dumps(level))
    (tmp_path / "ini").write_text(
        "[loggers]\nkeys=root,e\n[handlers]\nkeys=h\n[formatters]\nkeys=f\n[logger_root]\nhandlers=\n"
        "[logger_e]\nhandlers=h\nqualname=gunicorn.error\npropagate=0\n"
        "[handler_h]\nclass=FileHandler\nargs=('%(here)s/file.log',)\nformatter=f\n"
        "[formatter_f]\nformat=F %(message)s\n"
    )
    ini = str(tmp_path / "ini")
    assert run(
        tmp_path, (tmp_path / "dict").read_text(), logconfig_json="json", logconfig=ini
    ).stderr.startswith("D happened")
    assert run(tmp_path, logconfig_json="json", logconfig=ini).stderr.startswith("J happened")
    run(tmp_path, logconfig=ini)
    assert (tmp_path / "file.log").read_text() == "F happened n=1\n"


@pytest.mark.parametrize(
    ("given", "more", "said"),
    [
        ('{"root": {"handlers": ["nope"]}}', {}, "logconfig_dict: Unable to configure root logger: .*'nope'"),
        (
            '{"handlers": {"h": {"class": "logging.FileHandler", "filename": "/nowhere/x"}}}',
            {},
            "logconfig_dict: Unable to configure handler 'h': '/nowhere/x': No such file or directory",
        ),
        ('{"version": 2}', {}, "logconfig_dict: Unsupported version: 2"),
        ("None", {"logconfig_json": "nope.json"}, "logconfig_json: can't read 'nope.json': .*No such file"),
        ("None", {"logconfig_json": "list.json"}, "logconfig_json: 'list.json' holds no dictionary"),
        ("None", {"logconfig": "nope.ini"}, "logconfig: there is no 'nope.ini'"),
        ("None", {"logconfig": "list.json"}, "logconfig: 'list.json': "),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, given: str, more: dict[str, Any], said: str) -> None:
    """The line has the setting, and the underlying reason, which logging hides behind a general one."""
    (tmp_path / "list.json").write_text("[]")
    done = run(tmp_path, given, **more)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(said, line), line


class Thing:
    pass


def test_plain() -> None:
    """The plain form has no objects: classes become their names, and the result is the same each time."""
    value = {
        "a": [1, 2.5, None, True, "x"],
        "()": Thing,
        "f": test_plain,
        "o": Thing(),
        5: (1,),
        "s": "\ud800",
    }
    assert plain_data(value) == {
        "a": [1, 2.5, None, True, "x"],
        "()": f"{__name__}.Thing",
        "f": f"{__name__}.test_plain",
        "o": f"<{__name__}.Thing>",
        "5": [1],
        "s": "\\ud800",
    }
    assert plain_data(1 << 70) == str(1 << 70)
    endless: dict[str, Any] = {}
    endless["self"] = endless
    assert "builtins.dict" in str(plain_data(endless))
