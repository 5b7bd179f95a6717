"""Worker classes that projects make from uvicorn's worker for gunicorn.

Most of them only set `CONFIG_KWARGS = {...}`, arguments for uvicorn's configuration, and nothing else of them
is used here. Importing one imports gunicorn. Where that is not installed, stand-ins for the two classes that
uvicorn's worker mentions are there during the import.
"""

import sys
import warnings
from importlib import import_module, util
from types import ModuleType
from typing import Any, ClassVar, cast

from ostler.errors import SettingError
from ostler.workers.asgi.worker import AsgiWorker


class UvicornH11Worker(AsgiWorker):
    """Reads HTTP by h11, which is written in Python, and needs nothing that is compiled."""

    config_kwargs: ClassVar[dict[str, Any]] = {"loop": "asyncio", "http": "h11"}


_STAND_INS = {"gunicorn.arbiter": "Arbiter", "gunicorn.workers.base": "Worker"}


def from_gunicorns(name: str) -> type[AsgiWorker]:
    """The worker class for `MODULE.CLASS`, a subclass of uvicorn's worker.

    Raises:
        SettingError: it can't be imported, or is none.
    """
    module, _, attribute = name.rpartition(".")
    stand_ins = _stand_ins()
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # uvicorn's, of its module for gunicorn
            found = getattr(import_module(module), attribute)
    except Exception as error:
        problem = f"there is no {name!r}, and no installed package brings it ({error})"
        raise SettingError("worker_class", problem) from error
    finally:
        for stand_in in stand_ins:
            del sys.modules[stand_in]
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
            if kind.__module__.partition(".")[0] not in ("uvicorn", "uvicorn_worker", "gunicorn", "builtins")
            for name, value in vars(kind).items()
            if callable(value) or isinstance(value, classmethod | staticmethod)
        ]
        remarks = super().check(settings)
        if own:
            names = ", ".join(sorted(set(own)))
            remarks.append(f"worker_class: of {cls.__name__} only CONFIG_KWARGS counts, not its {names}")
        return remarks


def _stand_ins() -> dict[str, ModuleType]:
    if util.find_spec("gunicorn") is not None:
        return {}
    found = {}
    for name in ("gunicorn", "gunicorn.workers", *_STAND_INS):
        found[name] = ModuleType(name)
    for name, attribute in _STAND_INS.items():
        setattr(found[name], attribute, type(attribute, (), {"__module__": name, "WORKER_BOOT_ERROR": 3}))
    return found
