"""Checks whether what the settings name can be written, with the workers' rights."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ostler.errors import SettingError
from ostler.logs import logconfig
from ostler.logs.opening import open_log
from ostler.logs.worker_log import resolve_format
from ostler.osapi import original
from ostler.settings.table import Settings


def check_folder(folder: str | None) -> None:
    """Raises SettingError if no temporary file can be made in `tmp_upload_dir`."""
    if folder is not None:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problem = f"can't write a file into {folder!r}: {error.strerror}"
            raise SettingError("tmp_upload_dir", problem) from None


@contextmanager
def new_logs(settings: Settings, keep: bool) -> Iterator[None]:
    """Remove logs that are made meanwhile, unless `keep`: a check may be made by another user."""
    if keep:
        yield
        return
    paths = [Path(path) for path in (settings.accesslog, settings.errorlog) if path and path != "-"]
    new = [path for path in paths if not os.path.exists(path)]  # noqa: PTH110 - Path raises for a name that is too long
    try:
        with logconfig.noting_files() as made:
            yield
    finally:
        for path in (*new, *made):
            # With the workers' rights by now: one that root has made in its own folder stays.
            with suppress(OSError):
                path.unlink()


def check_logs(settings: Settings) -> str:
    """The log's format, after a check whether workers will be able to open their logs.

    Raises:
        SettingError: they will not.
    """
    terminal = os.isatty(2)
    for name, path in (("accesslog", settings.accesslog), ("errorlog", settings.errorlog)):
        if path is None or path == "-":
            continue
        try:
            fd = open_log(path)
        except OSError as error:
            raise SettingError(name, f"can't open {path!r}: {error.strerror}") from None
        terminal = os.isatty(fd) if name == "errorlog" else terminal
        # Not kept: after logrotate this process would hold the old file.
        original.close(fd)
    return resolve_format(settings.log_format, terminal)
