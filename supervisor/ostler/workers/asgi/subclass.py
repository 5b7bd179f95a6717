"""Worker classes that projects make from uvicorn's worker for gunicorn.

Most of them only set `CONFIG_KWARGS = {...}`, arguments for uvicorn's configuration, and nothing else of them
is used here. Importing one imports gunicorn. Where that is not installed, there are stand-ins
(`stand_ins/gunicorn`).
"""

import warnings
from importlib import import_module
from typing import Any, ClassVar, cast

from ostler.errors import SettingError
from ostler.workers.asgi.worker import AsgiWorker

# Whose code is not the project's own.
_NOT_THEIRS = {"uvicorn", "uvicorn_worker", "gunicorn", "ostler", "abc", "builtins"}


class UvicornH11Worker(AsgiWorker):
    """Reads HTTP by h11, which is written in Python, and needs nothing that is compiled."""

    config_kwargs: ClassVar[dict[str, Any]] = {"loop": "asyncio", "http": "h11"}


def from_gunicorns(name: str) -> type[AsgiWorker]:
    """The worker class for `MODULE.CLASS`, a subclass of uvicorn's worker.

    Raises:
        SettingError: it can't be imported, or is none.
    """
    module, _, attribute = name.rpartition(".")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # uvicorn's, of its module for gunicorn
            found = getattr(import_module(module), attribute)
    except Exception as error:
        problem = f"there is no {name!r}, and no installed package brings it ({error})"
        raise SettingError("worker_class", problem) from error
    wanted = getattr(found, "CONFIG_KWARGS", None)
    if not isinstance(found, type) or not isinstance(wanted, dict):
        raise SettingError(
            "worker_class",
            f"{name} is a class for gunicorn; of these only subclasses of uvicorn's worker can be used",
        )
    return cast(
        "type[AsgiWorker]", type(attribute, (_Derived,), {"config_kwargs": wanted, "original": found})
    )


class _Derived(AsgiWorker):
    original: Any = None

    @classmethod
    def check(cls, settings: Any) -> list[str]:
        own = [
            name
            for kind in cls.original.__mro__
            if kind.__module__.partition(".")[0] not in _NOT_THEIRS
            for name, value in vars(kind).items()
            if callable(value) or isinstance(value, classmethod | staticmethod)
        ]
        remarks = super().check(settings)
        if own:
            names = ", ".join(sorted(set(own)))
            remarks.append(f"worker_class: of {cls.__name__} only CONFIG_KWARGS counts, not its {names}")
        return remarks
