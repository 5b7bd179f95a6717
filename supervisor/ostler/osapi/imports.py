"""Prevents root from importing code that other accounts can write.

As long as a process has root's rights, `guard` removes folders that other accounts can write from the module
search path, and checks each module that is found: its file and every folder on its path. Bytecode in a place
that others can write is not read. The installation itself (the interpreter's folders, and the one with this
package) is not checked: its code has run already. But a part of it is refused if an account can write that
part and not the whole. `release` restores everything once the rights are given up.

What an interpreter does before its first line of our code can't be undone: PYTHONPATH and the like are
removed from the environment of the interpreters that we start (`environment`), which restore it for the app.

The modules that this one needs are imported only from the installation.
"""

import os
import stat
import sys

_before = list(sys.path)
if os.geteuid() == 0:
    _library = os.path.dirname(os.__file__)  # noqa: PTH120
    sys.path[:] = [entry for entry in sys.path if entry == _library or entry.startswith(f"{_library}/")]

import site  # noqa: E402
from collections.abc import Iterable, Mapping, Sequence  # noqa: E402
from functools import cache  # noqa: E402
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader  # noqa: E402
from types import ModuleType  # noqa: E402
from typing import Any  # noqa: E402

import ostler  # noqa: E402
from ostler.osapi import trust  # noqa: E402

sys.path[:] = _before

_STAND_INS = os.path.join(os.path.dirname(os.path.abspath(ostler.__file__)), "stand_ins")  # noqa: PTH100, PTH118, PTH120
_WITHHELD = "OSTLER_WITHHELD_"
# The token that `ctl` sends to a daemon. It is the administrator's; a process for the app must not have it.
_TOKEN = "OSTLER_TOKEN"  # noqa: S105 - a variable's name
_INSTALLATION = {
    os.path.dirname(os.__file__),  # noqa: PTH120
    *site.getsitepackages(),
    os.path.dirname(os.path.dirname(os.path.abspath(ostler.__file__))),  # noqa: PTH100, PTH120
}
_TREES = tuple(f"{folder}/" for folder in _INSTALLATION)
_REAL_TREES = tuple(f"{os.path.realpath(folder)}/" for folder in _INSTALLATION)
_real: dict[str, str] = {}

_guard: "_Guard | None" = None


class _SourceLoader(SourceFileLoader):
    """Compiles the source, and ignores its cached bytecode."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Guard:
    """The only finder while it is installed; calls the finders that it has replaced.

    Attributes:
        finders: the replaced ones.
        before: the original search path; kept: the remaining part of it; left_out: more folders that were
            refused.
    """

    def __init__(self) -> None:
        self.finders = list(sys.meta_path)
        self.before = list(sys.path)
        self.kept = [entry for entry in self.before if _is_safe(entry)]
        self.left_out: list[str] = []
        self.prefix = sys.pycache_prefix
        self.withheld = _restore_environment()
        self._safe: dict[str, bool] = {}
        self._user_site = _user_site() if "PYTHONNOUSERSITE" in self.withheld else None

    def install(self) -> None:
        sys.path[:] = self.kept
        sys.meta_path[:] = [self]
        if self.prefix is not None and trust.writers(self.prefix):
            sys.pycache_prefix = None

    def remove(self) -> None:
        # A configuration may have replaced the list.
        place = sys.meta_path.index(self) if self in sys.meta_path else len(sys.meta_path)
        sys.meta_path[place : place + 1] = [found for found in self.finders if found not in sys.meta_path]
        new = [entry for entry in sys.path if entry not in self.kept]
        old = [entry for entry in self.before if entry not in self.kept or entry in sys.path]
        withheld = [entry for entry in _entries(self.withheld.get("PYTHONPATH")) if entry not in old]
        if self._user_site is not None:
            old.append(self._user_site)
        sys.path[:] = [*new, *withheld, *old]
        sys.pycache_prefix = self.withheld.get("PYTHONPYCACHEPREFIX", self.prefix)
        customized = [entry for entry in withheld if os.path.exists(f"{entry}/sitecustomize.py")]  # noqa: PTH110
        if customized:
            # As the interpreter would have done at its start.
            sys.modules.pop("sitecustomize", None)
            site.execsitecustomize()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        refused = ""
        for finder in self.finders:
            find = getattr(finder, "find_spec", None)
            if find is None:
                continue
            for spec in self._found(finder, find, name, path, target):
                problem = self._problem(spec)
                if not problem:
                    return spec
                refused = refused or problem
        if path is None and not refused:
            refused = self._left_out(name)
        if refused:
            raise ModuleNotFoundError(f"No module named {name!r} that root may import: {refused}", name=name)
        return None

    def _left_out(self, name: str) -> str:
        """Why a module was not found, if it is in a folder that is not searched."""
        listed = [entry for entry in self.before if entry.startswith("/") and entry not in self.kept]
        for place in (*_entries(self.withheld.get("PYTHONPATH")), *listed, *self.left_out):
            if PathFinder.find_spec(name, [place]) is not None:
                return trust.shown(trust.writers(place))
        return ""

    def _found(
        self, finder: Any, find: Any, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> Iterable[ModuleSpec]:
        """All candidates: a refused one must not hide another one later in the path."""
        if finder is not PathFinder:
            found = find(name, path, target)
            return [found] if found is not None else []
        places = [place for place in (sys.path if path is None else path) if isinstance(place, str)]
        found = find(name, places, target)
        if found is None or not self._problem(found):
            return [found] if found is not None else []
        each = (find(name, [place], target) for place in places)
        return [spec for spec in each if spec is not None]

    def _problem(self, spec: ModuleSpec) -> str:
        """Why root may not import it, or an empty text. If only its bytecode is unsafe, that is not used."""
        if not spec.has_location or spec.origin is None:
            for folder in spec.submodule_search_locations or ():  # of a namespace package
                if not self._is_safe(folder):
                    return trust.shown(trust.writers(folder))
            return ""
        place = _outside(spec.origin)
        if place is None:  # as for most modules
            if (other := _writer_within(spec.origin)) is not None:
                return trust.shown([other])
        elif not self._is_safe(place):
            return trust.shown(trust.writers(place))
        if spec.cached is not None and not self._may_be_read(spec.cached):
            if isinstance(spec.loader, SourceFileLoader):
                spec.loader = _SourceLoader(spec.loader.name, spec.loader.path)
            spec.cached = None
        return ""

    def _may_be_read(self, cached: str) -> bool:
        place = _outside(cached)
        if place is not None:
            return self._is_safe(place)
        folder = os.path.dirname(cached)  # noqa: PTH120
        return _writer_within(cached) is None and _writer_within(folder) is None

    def _is_safe(self, path: str) -> bool:
        known = self._safe.get(path)
        if known is None:
            known = self._safe[path] = _is_safe(path)
        return known

    def find_distributions(self, context: Any) -> Iterable[Any]:
        """For importlib.metadata: distributions in the remaining folders."""
        for finder in self.finders:
            find = getattr(finder, "find_distributions", None)
            if find is not None:
                yield from find(context)

    def invalidate_caches(self) -> None:
        self._safe.clear()
        for finder in self.finders:
            invalidate = getattr(finder, "invalidate_caches", None)
            if invalidate is not None:
                invalidate()


def offer_stand_ins() -> None:
    """Put the folder of modules for user code at the end of the module search path, behind all others.

    To be called again when the path was changed.
    """
    if _STAND_INS in sys.path:
        sys.path.remove(_STAND_INS)
    sys.path.append(_STAND_INS)


def guard() -> None:
    """Install the guard if we are root; may be called again."""
    global _guard
    if _guard is None and os.geteuid() == 0:
        _guard = _Guard()
        _guard.install()


def release() -> None:
    """Remove the guard: rights are given up, or the app is to have them."""
    global _guard
    if _guard is not None:
        before, _guard = _guard, None
        before.remove()


def may_come_from(folder: str) -> bool:
    """Whether modules may be imported from `folder` now."""
    if _guard is None or _is_safe(folder):
        return True
    _guard.left_out.append(folder)
    return False


def withheld() -> list[str]:
    """Entries of PYTHONPATH that are not searched while we have root's rights."""
    if _guard is None:
        return []
    listed = _entries(_guard.withheld.get("PYTHONPATH")) or _entries(os.environ.get("PYTHONPATH"))
    return [entry for entry in listed if entry not in _guard.kept]


def top_level(name: str, first: str) -> ModuleSpec | None:
    """The module that would be found without a guard, with `first` first on the path. Imports nothing."""
    path = [first, *(_guard.before if _guard is not None else sys.path)]
    if _guard is not None:
        path[1:1] = _entries(_guard.withheld.get("PYTHONPATH"))
    return PathFinder.find_spec(name.partition(".")[0], path)


def environment(folder: str | None = None) -> dict[str, str]:
    """The environment for an interpreter that starts with root's rights and calls `guard` at once.

    folder: the interpreter may put this folder first on its module search path.
    """
    environ = dict(os.environ)
    if os.geteuid() != 0:
        return environ
    environ.pop(_TOKEN, None)
    path = environ.get("PYTHONPATH")
    kept = [entry for entry in _entries(path) if _is_safe(entry)]
    if path is not None and kept != _entries(path):
        _withhold(environ, "PYTHONPATH", os.pathsep.join(kept))
    prefix = environ.get("PYTHONPYCACHEPREFIX")
    if prefix and trust.writers(prefix):
        _withhold(environ, "PYTHONPYCACHEPREFIX", "")
    # False in a virtual environment, None if real and effective ids differ: then there is no such folder.
    if site.ENABLE_USER_SITE or (_guard is not None and "PYTHONNOUSERSITE" in _guard.withheld):
        folder_of_user = _user_site()
        if folder_of_user is not None and not _is_safe(folder_of_user):
            _withhold(environ, "PYTHONNOUSERSITE", "1")
    if folder is not None and not _is_safe(folder):
        _withhold(environ, "PYTHONSAFEPATH", "1")
    return environ


def writers(path: str) -> list[trust.Writer]:
    """As `trust.writers`, but none for the installation."""
    place = _outside(path)
    return [] if place is None else trust.writers(place)


def installation() -> list[str]:
    """What root executes in any case: the interpreter, its library, and the folder of this package."""
    return [sys.executable, os.path.realpath(sys.executable), *sorted(_INSTALLATION)]


def _withhold(environ: dict[str, str], name: str, value: str) -> None:
    environ[_WITHHELD + name] = environ.get(name, "")
    environ.pop(name, None)
    if value:
        environ[name] = value


def _restore_environment() -> Mapping[str, str]:
    """Restore variables that `environment` has withheld; returns them by name."""
    found = {}
    for key in [key for key in os.environ if key.startswith(_WITHHELD)]:
        name, value = key.removeprefix(_WITHHELD), os.environ.pop(key)
        found[name] = value
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    return found


def _entries(path: str | None) -> list[str]:
    return [entry for entry in (path or "").split(os.pathsep) if entry]


def _user_site() -> str | None:
    """The user's own site-packages, if that folder exists."""
    folder = site.getusersitepackages()
    return folder if os.path.isdir(folder) else None  # noqa: PTH112


def is_installation(path: str) -> bool:
    """Whether it is part of the standard library, of site-packages, or of the folder with this package."""
    return path in _INSTALLATION or path.startswith(_TREES)


def _outside(path: str) -> str | None:
    """The resolved path if it is not in the installation, or if a link in there leads out of it."""
    if not is_installation(path):
        return path
    folder, name = os.path.split(path)
    if folder not in _real:
        _real[folder] = os.path.realpath(folder)
    real = f"{_real[folder]}/{name}"
    if os.path.islink(real):  # noqa: PTH114
        real = os.path.realpath(real)
    return None if f"{real}/".startswith(_REAL_TREES) else real


@cache
def _writer_within(path: str) -> trust.Writer | None:
    """An account that can write a file or folder of the installation, but not the installation itself, if
    any.

    Checked by name: only an account that can write the installation could replace it meanwhile.
    """
    tree = max((tree for tree in _TREES if path.startswith(tree)), key=len, default=None)
    if tree is None or trust.is_alone():
        return None
    try:
        whole, part = os.stat(tree), os.stat(path)  # noqa: PTH116
    except OSError:
        return None  # it is in an archive, or no file at all
    if not trust.is_trusted(part.st_uid) and part.st_uid != whole.st_uid:
        return trust.Writer(path, uid=part.st_uid)
    if part.st_mode & ~whole.st_mode & stat.S_IWOTH:
        return trust.Writer(path)
    if part.st_mode & stat.S_IWGRP and part.st_gid not in (0, whole.st_gid):
        return trust.Writer(path, gid=part.st_gid)
    folder = os.path.dirname(path)  # noqa: PTH120
    return _writer_within(folder) if len(folder) >= len(tree) else None


def _is_safe(path: str) -> bool:
    # A relative path, like '' for the current folder, could be safe now and unsafe a moment later.
    return path.startswith("/") and (is_installation(path) or not trust.writers(path))
