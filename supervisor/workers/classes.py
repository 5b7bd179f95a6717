"""Finding the worker class."""

from importlib import import_module, metadata
from typing import cast

from supervisor.errors import SettingError
from supervisor.settings.table import Settings
from supervisor.workers.base import BaseWorker

GROUP = "ostler.workers"

# Where each of ours is: its module, and its name there.
_OURS = {
    "sync": ("supervisor.workers.engine", "Engine"),
    "gthread": ("supervisor.workers.engine", "Engine"),
    "gevent": ("supervisor.workers.gevent_hub", "GeventWorker"),
    "eventlet": ("supervisor.workers.eventlet_hub", "EventletWorker"),
    "asgi": ("supervisor.workers.asgi.worker", "AsgiWorker"),
}


def worker_class(settings: Settings) -> type[BaseWorker]:
    """The class that `worker_class` names.

    Raises:
        SettingError: there is none of that name, or it can't be imported.
    """
    name = settings.worker_class
    if name in _OURS:
        module, attribute = _OURS[name]
        try:
            return cast("type[BaseWorker]", getattr(import_module(module), attribute))
        except ImportError as error:
            raise SettingError(
                "worker_class", f"{error}: {name} needs pip install 'ostler[{name}]'"
            ) from error
    for entry in metadata.entry_points(group=GROUP):
        if entry.name == name:
            return _loaded(entry)
    if "." in name:
        subclass = import_module("supervisor.workers.asgi.subclass")
        return cast("type[BaseWorker]", subclass.from_gunicorns(name))
    raise SettingError("worker_class", f"there is no {name!r}, and no installed package brings it")


def _loaded(entry: metadata.EntryPoint) -> type[BaseWorker]:
    try:
        found = entry.load()
    except Exception as error:
        raise SettingError("worker_class", f"can't import {entry.value}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, BaseWorker)):
        raise SettingError(
            "worker_class", f"{entry.value} is no subclass of supervisor.workers.base.BaseWorker"
        )
    return found
