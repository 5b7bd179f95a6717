"""The pid file: written atomically, never taken from a live daemon."""

import os
from pathlib import Path

from supervisor.errors import SettingError


class PidFile:
    """A pid file that is ours from `write` to `remove`."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()

    def write(self) -> None:
        """Write our pid.

        Raises:
            SettingError: another live process has the file, or it can't be written.
        """
        owner = self._owner()
        if owner is not None and owner != os.getpid():
            raise SettingError(
                "pidfile", f"{self._path} belongs to process {owner}, which is alive; is this a second start?"
            )
        # A new file renamed into place: a reader sees the old pid or the new one, never half of it.
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            draft.write_text(f"{os.getpid()}\n")
            draft.replace(self._path)
        except OSError as error:
            try:
                draft.unlink(missing_ok=True)
            except OSError:
                pass  # the disk is read-only: nothing was written
            raise SettingError("pidfile", f"can't write {self._path}: {error.strerror}") from None

    def remove(self) -> None:
        """Remove the file if it is still ours."""
        try:
            if int(self._path.read_text()) == os.getpid():
                self._path.unlink()
        except (OSError, ValueError):
            pass  # gone or somebody else's by now: not ours to remove

    def _owner(self) -> int | None:
        try:
            pid = int(self._path.read_text())
            os.kill(pid, 0)
        except PermissionError:
            return pid
        except (OSError, ValueError, OverflowError):
            return None
        return pid if pid > 0 else None
