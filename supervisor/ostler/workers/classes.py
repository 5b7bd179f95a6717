"""Finds the class that the setting `worker_class` names."""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ostler.errors import InvalidValue, SettingError
from ostler.settings.classes import names
from ostler.settings.table import Settings
from ostler.workers.base import BaseWorker

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "ostler.workers"

# Module and name of each of our own classes.
_OURS = {
    "sync": ("ostler.workers.thread_engine", "Engine"),
    "gthread": ("ostler.workers.thread_engine", "Engine"),
    "gevent": ("ostler.workers.greenlets.gevent_hub", "GeventWorker"),
    "eventlet": ("ostler.workers.greenlets.eventlet_hub", "EventletWorker"),
    "asgi": ("ostler.workers.asgi.worker", "AsgiWorker"),
    "meinheld": ("ostler.workers.meinheld.worker", "MeinheldWorker"),
}

# How to install a worker class's packages, where that is not the extra of its name.
INSTALL = {
    # The greenlet that it requires can't be built any more; see pyproject.toml.
    "meinheld": "it needs Python 3.12 or older, and pip install --no-deps meinheld greenlet",
}


def worker_class(settings: Settings) -> type[BaseWorker]:
    """The class that `worker_class` names: ours, an entry point's, or one of the app's own code by its path.

    Raises:
        SettingError: there is none of that name, or it can't be imported.
    """
    name = settings.worker_class
    if name in _OURS:
        return of_ours(name)
    # Imported here: it takes a tenth of a fork server's start, which our own classes do without.
    from importlib import metadata

    entries = metadata.entry_points(group=GROUP)
    for entry in entries:
        if entry.name == name:
            return _loaded(entry)
    if "." in name:
        return _by_path(name)
    known = [*names(), *(entry.name for entry in entries)]
    similar = get_close_matches(name.lower(), known, n=1)
    problem = f"there is no {name!r}; did you mean {similar[0]}?" if similar else f"there is no {name!r}"
    raise InvalidValue("worker_class", f"{problem} (there are: {', '.join(dict.fromkeys(known))})")


def built_in(found: type[BaseWorker], settings: Settings) -> str | None:
    """Which of our classes one of a package or an app is made from, by name; None if it is from none."""
    if settings.worker_class in _OURS:
        return settings.worker_class
    made_from = {(base.__module__, base.__name__) for base in found.__mro__}
    return next((name for name, place in _OURS.items() if place in made_from), None)


def of_ours(name: str) -> type[BaseWorker]:
    """One of our own classes. Raises SettingError if its packages are missing."""
    module, attribute = _OURS[name]
    try:
        return cast("type[BaseWorker]", getattr(import_module(module), attribute))
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] == "ostler":
            raise
        install = INSTALL.get(name, f"pip install 'ostler[{name}]'")
        raise SettingError("worker_class", f"{name} can't be used ({error}); {install}") from error


def _loaded(entry: "EntryPoint") -> type[BaseWorker]:
    try:
        found = entry.load()
    except Exception as error:
        raise SettingError("worker_class", f"can't import {entry.value}: {error}") from error
    return _checked(found, entry.value)


def _by_path(path: str) -> type[BaseWorker]:
    module, _, attribute = path.rpartition(".")
    found = None
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        # A class for gunicorn can be used although gunicorn is not installed.
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] != "gunicorn":
            raise SettingError("worker_class", f"can't import {path}: {error}") from error
    if found is None or hasattr(found, "CONFIG_KWARGS"):
        subclass = import_module("ostler.workers.asgi.subclass")
        return cast("type[BaseWorker]", subclass.from_gunicorns(path))
    return _checked(found, path)


def _checked(found: object, path: str) -> type[BaseWorker]:
    if isinstance(found, type) and issubclass(found, BaseWorker):
        return found
    raise InvalidValue("worker_class", f"{path} is no subclass of ostler.workers.base.BaseWorker")
