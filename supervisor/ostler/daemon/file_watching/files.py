"""Which files and folders the file watcher checks, and what has changed in them.

The app decides how many there are, and the supervisor does nothing else during a check. So all numbers are
limited.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

# Folders searched for templates or for `reload_extra_files`, and entries in them, at most in one look.
_MOST_FOLDERS, _MOST_ENTRIES = 2000, 20_000
# File name extensions of template languages; in a folder `templates` every file is a template.
_TEMPLATES = tuple(
    ".html .htm .xhtml .djhtml .jinja .jinja2 .j2 .mako .tmpl .tpl .pt .chameleon .mustache .hbs".split()
)
# Folders without sources, and what tools call files that are none.
_NO_SOURCES = ("__pycache__", "node_modules")
_IGNORED = ("~", ".pyc", ".swp", ".swx", ".tmp")

Signature = tuple[int, ...] | None
"""Inode, size, and time of change in ns; None if there is no file."""


def signature(path: str) -> Signature:
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of them
    except (OSError, ValueError):
        return None  # not there, or no path
    return found.st_ino, found.st_size, found.st_mtime_ns


def put_there(path: str) -> float:
    """When the file was written, or was moved there (unix time); 0 if there is none.

    The time of its inode's change, because a file that is moved, unpacked or synchronised may keep an old
    time of modification.
    """
    try:
        return os.stat(path).st_ctime  # noqa: PTH116
    except (OSError, ValueError):
        return 0.0


def is_template(path: str) -> bool:
    return path.endswith(_TEMPLATES) or "/templates/" in path


class Survey(NamedTuple):
    """What is to be checked: files, and the folders in which others may appear; absolute paths."""

    files: set[str]
    folders: set[str]


def survey(known: Iterable[str], templates: Iterable[str], extra: Iterable[str]) -> Survey:
    """What counts now.

    Args:
        known: files that the app has loaded.
        templates: folders in which its templates may be.
        extra: entries of `reload_extra_files`.
    """
    files: set[str] = set(known)
    folders: set[str] = set()
    walk = FolderWalk()
    for root in templates:
        for folder, found in walk.through(root):
            folders.add(folder)
            files.update(filter(is_template, found))
    for entry in extra:
        path = os.path.abspath(entry)  # noqa: PTH100
        if glob.has_magic(path) and not os.path.lexists(path):
            files.update(glob.glob(path, recursive=True))  # noqa: PTH207
            folders.update(_folders_of(path))
        elif os.path.isdir(path):  # noqa: PTH112
            for folder, found in walk.through(path):
                folders.add(folder)
                files.update(found)
        else:
            files.add(path)
    return Survey(files, folders)


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


def fixed_part(entry: str) -> str:
    """The folder or file that an entry of `reload_extra_files` begins with, before its pattern."""
    path = os.path.abspath(entry)  # noqa: PTH100
    while glob.has_magic(path) and not os.path.lexists(path):
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def existing(path: str) -> str:
    """The folder itself, or the nearest above it that exists: a change of that shows when it appears."""
    while not os.path.isdir(path):  # noqa: PTH112
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def inode(folder: str) -> int:
    found = signature(folder)
    return found[0] if found is not None else 0
