"""Which files and folders the file watcher checks.

The app decides how many there are, so all numbers are limited.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ostler.settings.watched import fixed_part, is_template

# Folders searched for templates or for `reload_extra_files`, and entries in them, at most in one look.
_MOST_FOLDERS, _MOST_ENTRIES = 2000, 20_000
# Folders without sources, and what tools call files that are none.
_NO_SOURCES = ("__pycache__", "node_modules")
_IGNORED = ("~", ".pyc", ".swp", ".swx", ".tmp")


class Survey(NamedTuple):
    """What is to be checked; absolute paths.

    files: all; extra: those of `reload_extra_files` among them; folders: others may appear there.
    """

    files: set[str]
    extra: set[str]
    folders: set[str]


def survey(known: Iterable[str], templates: Iterable[str], extra: Iterable[str]) -> Survey:
    """What counts now.

    Args:
        known: files that the app has loaded.
        templates: folders in which its templates may be.
        extra: entries of `reload_extra_files`.
    """
    files: set[str] = set(known)
    found_extra: set[str] = set()
    folders: set[str] = set()
    walk = FolderWalk()
    for root in templates:
        for folder, found in walk.through(root):
            folders.add(folder)
            files.update(filter(is_template, found))
    for entry in extra:
        path = os.path.abspath(entry)  # noqa: PTH100
        if glob.has_magic(path) and not os.path.lexists(path):
            found_extra.update(glob.glob(path, recursive=True))  # noqa: PTH207
            folders.update(_folders_of(path))
        elif os.path.isdir(path):  # noqa: PTH112
            for folder, found in walk.through(path):
                folders.add(folder)
                found_extra.update(found)
        else:
            found_extra.add(path)
    return Survey(files | found_extra, found_extra, folders)


class FolderWalk:
    """Lists folders, and no more of them than one check may."""

    def __init__(self) -> None:
        self._folders, self._entries = _MOST_FOLDERS, _MOST_ENTRIES

    def through(self, root: str) -> Iterator[tuple[str, list[str]]]:
        """A folder and those below it, each with its files; absolute paths. Files of tools are left out."""
        waiting = [root]
        while waiting and self._folders > 0 and self._entries > 0:
            folder = waiting.pop()
            self._folders -= 1
            files = []
            try:
                with os.scandir(folder) as entries:
                    for entry in islice(entries, self._entries):
                        self._entries -= 1
                        if entry.name[0] == ".":
                            continue
                        if entry.is_dir():
                            if entry.name not in _NO_SOURCES and not entry.is_symlink():
                                waiting.append(entry.path)
                        elif not entry.name.endswith(_IGNORED):
                            files.append(entry.path)
            except OSError:
                continue  # not there, or not readable
            yield folder, files


def _folders_of(pattern: str) -> set[str]:
    """Existing folders in which files of a pattern may be, or folders that lead there."""
    fixed = fixed_part(pattern)
    if "**" in pattern:
        return {folder for folder, _ in FolderWalk().through(fixed)}
    found, pattern = {fixed}, os.path.dirname(pattern)  # noqa: PTH120
    while pattern != fixed and glob.has_magic(pattern):
        found.update(glob.glob(pattern))  # noqa: PTH207
        pattern = os.path.dirname(pattern)  # noqa: PTH120
    return found


def existing(path: str) -> tuple[str, list[str]]:
    """The folder itself, or the nearest above it that exists, and the folders that are missing below that."""
    missing = []
    while not os.path.isdir(path):  # noqa: PTH112
        missing.append(path)
        path = os.path.dirname(path)  # noqa: PTH120
    return path, missing


def inode(folder: str) -> int:
    try:
        return os.stat(folder).st_ino  # noqa: PTH116
    except (OSError, ValueError):
        return 0
