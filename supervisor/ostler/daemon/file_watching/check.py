"""One check of all files that `reload` watches.

It runs in a thread: it may read many files, and a file system that does not answer must not block the
supervisor.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ostler.daemon.file_watching.contents import NONE, Reader, Seen
from ostler.daemon.file_watching.files import Survey, existing, inode, survey
from ostler.settings.watched import fixed_part, is_installed


@dataclass(frozen=True)
class CheckRequest:
    """What a check needs to know; nothing in it is changed while the check runs.

    Attributes:
        known: all files that count, as of the last check.
        dropped: files that counted earlier, and may count again.
        reported: files that were reported since the last check, with the time at which they were read; 0.0
            for one that was not there.
        since: files that are found for the first time are as old as this (unix time).
        loaded: files that processes have loaded.
        folders: where templates may appear.
        extra: `reload_extra_files`.
        searched: folders that the last check has searched, each with a slash at its end.
    """

    known: Mapping[str, Seen]
    dropped: Mapping[str, Seen]
    reported: Mapping[str, float]
    since: float
    loaded: Iterable[str]
    folders: Iterable[str]
    extra: Iterable[str]
    searched: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What a check has found.

    Attributes:
        known: all files that count now.
        dropped: files that count no more, as they were.
        changed: those that have changed; a list without order.
        emptied: one that has changed is gone or empty: perhaps it is just being written.
        real: where the changed files are, without symbolic links.
        roots: folders in which templates may appear, and extra_roots: what entries of `reload_extra_files`
            begin with; each with a slash at its end.
        exact: paths that matter, whatever happens to them.
        places: the folders to watch, with the inode of each: one that is replaced is another.
    """

    known: dict[str, Seen]
    dropped: dict[str, Seen]
    changed: list[str]
    emptied: bool = False
    real: dict[str, tuple[str, ...]] = field(default_factory=dict)
    roots: tuple[str, ...] = ()
    extra_roots: tuple[str, ...] = ()
    exact: set[str] = field(default_factory=set)
    places: dict[str, int] = field(default_factory=dict)


def check(request: CheckRequest) -> Outcome:
    """Look at all files."""
    found = survey(request.loaded, request.folders, request.extra)
    reader = Reader()
    now = {}
    for path in found.files:
        before = request.known.get(path) or request.dropped.get(path, NONE)
        # Of installed packages there is much to read, and no one edits them. To touch an extra file means
        # that it has changed.
        now[path] = reader.see(path, before, by_times=path in found.extra or is_installed(path))
    outcome = Outcome(now, {}, [path for path in now if _has_changed(request, path, now[path])])
    for path in request.known.keys() - now.keys():
        # A file that was found in a folder is gone; others were loaded by processes that are gone.
        if path.startswith(request.searched) and not os.path.lexists(path):
            outcome.changed.append(path)
        else:
            outcome.dropped[path] = request.known[path]
    outcome.emptied = any(now.get(path, NONE).is_empty for path in outcome.changed)
    outcome.real = {path: _places_of(path) for path in outcome.changed}
    _add_folders(outcome, request, found)
    return outcome


def _has_changed(request: CheckRequest, path: str, now: Seen) -> bool:
    before = request.known.get(path)
    if before is not None:
        return before.differs(now)
    before = request.dropped.get(path)
    if before is not None and not before.differs(now):
        return False
    if path not in request.reported and path.startswith(request.searched):
        return True
    # It may be newer than what was loaded, or was removed since.
    if now.times is None:
        return request.reported.get(path, 0.0) > 0.0
    return now.put_there > request.reported.get(path, request.since)


def _places_of(path: str) -> tuple[str, ...]:
    folder, name = os.path.split(path)
    return os.path.realpath(path), f"{os.path.realpath(folder)}/{name}"


def _add_folders(outcome: Outcome, request: CheckRequest, found: Survey) -> None:
    roots, extra = set(request.folders), set(map(fixed_part, request.extra))
    outcome.roots, outcome.extra_roots = (tuple(f"{path}/" for path in some) for some in (roots, extra))
    folders = {os.path.dirname(path) for path in outcome.known} | roots | extra | found.folders  # noqa: PTH120
    outcome.exact = folders | outcome.known.keys()
    # The folders above them show whether one is replaced.
    folders |= {os.path.dirname(path) for path in folders}  # noqa: PTH120
    for folder in folders:
        place, missing = existing(folder)
        outcome.places[place] = inode(place)
        # A folder that is not there yet is reported by its own name when it appears.
        outcome.exact.update(missing)
