"""What can go wrong because of the user or the outside, each with its exit code.

An `OstlerError` is shown as one line (`ostler: error: ...`) and never as a traceback. Anything else that
escapes is a defect of ours and keeps its traceback.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `ostler` and `ctl`, which contrib/docs/settings.md documents."""

    OK = 0
    FAILED = 1  # a file, an address or an account can't be used; a refused or failed command
    USAGE = 2  # a wrong flag (click's own code for it), or a wrong value, wherever it is from
    BOOT = 3  # no worker of the very first generation ever booted (gunicorn's code for it)


class OstlerError(Exception):
    """A mistake that the user can correct; `str()` is one line: what, where, what to do."""

    exit_code = ExitCode.FAILED


class SettingError(OstlerError):
    """A setting's value can't be used.

    Args:
        setting: name in the settings table, e.g. `bind`.
        problem: what is wrong and what to do, without the setting's name.
        where: the source of the value, e.g. `command line` or `gunicorn.conf.py line 3`.
    """

    def __init__(self, setting: str, problem: str, where: str = "") -> None:
        super().__init__(setting, problem, where)
        self.setting = setting
        self.problem = problem
        self.where = where

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"{self.setting}{place}: {self.problem}"


class UsageProblem(OstlerError):
    """What a user has written is wrong in itself; another process has found out what it is."""

    exit_code = ExitCode.USAGE


class InvalidValue(SettingError):
    """A setting's value is wrong in itself, on every machine; only another value helps."""

    exit_code = ExitCode.USAGE


class ConfigFileError(OstlerError):
    """The configuration file can't be read or evaluated."""


class BootError(OstlerError):
    """The app never came up; the traceback was printed before."""

    exit_code = ExitCode.BOOT
