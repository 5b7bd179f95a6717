"""The files of `env_file`: variables for the app and for the configuration.

A fork server reads them when it starts, so each start and each reload has what is in them by then. What is
removed from a file is gone with the next reload, unless the daemon was started with it.

Files that the command line names are read first, so that the configuration file can use their variables.
Files that the configuration names are read after it.

Variables control libraries that root runs (OPENSSL_CONF). So a file that others than root can write is read,
and its variables are set, only when root's rights are given up. A file that root alone can write is read
before, as the app's account need not be allowed to read it. If the app itself runs as root, it gets a file of
others as well, with a warning.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ostler.errors import SettingError
from ostler.osapi import trust
from ostler.osapi.files import read_file, read_opened
from ostler.settings.load import COMMAND_LINE
from ostler.settings.table import rows

# Bytes of a file.
_MOST = 1 << 20
# These were read with the command line, when the daemon started.
_TOO_LATE = ("GUNICORN_CMD_ARGS", "OSTLER_CMD_ARGS")


class EnvironmentFiles:
    """Sets the variables of the files, those of a later file over those of an earlier one.

    Args:
        folder: where Ostler was started; relative paths count from there.

    Attributes:
        warnings: for the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.warnings: list[str] = []
        self._values: dict[str, dict[str, str]] = {}

    def use_given(self, command_line: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """Set the variables of what the command line names, as far as it can be read by now.

        Args:
            command_line: raw values by setting name.
            places: of what is from a variable with arguments, where it is from.

        Raises:
            SettingError: a file can't be read.
        """
        try:
            paths = rows()["env_file"].kind.parse(command_line.get("env_file"))
        except ValueError:
            return  # an error that is reported when the settings are parsed
        self.use(paths, places.get("env_file", COMMAND_LINE))

    def use(self, paths: Iterable[str], where: str) -> None:
        """Set the variables of these files; as root only of those that root alone can write.

        where: they are named.

        Raises:
            SettingError: a file can't be read.
        """
        for path in paths:
            if path in self._values:
                continue
            content = self._content_of_roots(path, where) if os.geteuid() == 0 else self._content(path, where)
            if content is not None:
                self._keep(path, content, where)
        self._set(paths)

    def finish(self, paths: Iterable[str], where: str) -> None:
        """As `use`, with the rights that the app gets: all of these files are read.

        Raises:
            SettingError: a file can't be read.
        """
        for path in paths:
            if path not in self._values:
                self._keep(path, self._content(path, where), where)
                if os.geteuid() == 0:
                    why = trust.shown(trust.writers(str(self._folder / path)))
                    problem = f"the app runs as root, though {why}; --user gives it fewer rights"
                    self.warnings.append(f"env_file ({where}): {problem}")
        self._set(paths)

    def _set(self, paths: Iterable[str]) -> None:
        for path in paths:
            os.environ.update(self._values.get(path, {}))

    def _content(self, path: str, where: str) -> bytes:
        try:
            return read_file(self._folder / path, _MOST)
        except OSError as error:
            raise _cant_read(path, error, where) from None

    def _content_of_roots(self, path: str, where: str) -> bytes | None:
        """None: others can write it."""
        try:
            found = trust.open_to_read(str(self._folder / path))
            if found.writers:
                return None
            try:
                return read_opened(found.fd, path, _MOST)
            finally:
                os.close(found.fd)
        except OSError as error:
            raise _cant_read(path, error, where) from None

    def _keep(self, path: str, content: bytes, where: str) -> None:
        self._values[path] = values = _parse(path, content, where)
        for name in _TOO_LATE:
            if name in values:
                self.warnings.append(f"env_file ({where}): {path}: {name} has no effect in a file")


def _parse(path: str, content: bytes, where: str) -> dict[str, str]:
    """The variables of a file, as python-dotenv reads them.

    Raises:
        SettingError: a line is no assignment.
    """
    # Imported only if they are used.
    import io

    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    def refuse(problem: str) -> SettingError:
        return SettingError("env_file", f"{path}: {problem}", where)

    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise refuse("it is no UTF-8") from None
    for binding in parse_stream(io.StringIO(text)):
        # A name alone is allowed there, and sets nothing.
        if binding.error or (binding.key is not None and binding.value is None):
            raise refuse(f"line {binding.original.line} is no NAME=VALUE")
        if "=" in (binding.key or ""):  # in quotes; no variable can be called so
            raise refuse(f"line {binding.original.line} has a name with an equals sign")
        if "\0" in (binding.key or "") + (binding.value or ""):
            raise refuse(f"line {binding.original.line} has a NUL character")
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None}


def _cant_read(path: str, error: OSError, where: str) -> SettingError:
    return SettingError("env_file", f"can't read {path}: {error.strerror}", where)
