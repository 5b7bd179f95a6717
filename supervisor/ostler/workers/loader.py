"""Loads the app: MODULE:NAME, MODULE:NAME.ATTRIBUTE, MODULE:FACTORY(args)."""

import ast
import importlib
import os
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ostler import __version__
from ostler.settings.table import Settings
from ostler.workers.app_kind import is_factory, mismatch
from ostler.workers.load_errors import AppLoadError, raised
from ostler.wsgi.exchange import App
from ostler.wsgi.interruption import QuitWorker


def enter(settings: Settings) -> None:
    """Change to the app's folder.

    Raises:
        AppLoadError: the folder does not exist.
    """
    if settings.chdir:
        try:
            os.chdir(settings.chdir)
        except OSError as error:
            raise AppLoadError(f"chdir: can't enter {settings.chdir!r}: {error.strerror}") from None


def set_environment(settings: Settings) -> None:
    """Set SERVER_SOFTWARE and the variables of `raw_env`, which may set it, too.

    As in gunicorn, to be called when the configuration was evaluated, before user code sets up logs or is the
    app: code looks for `gunicorn` in the variable to find out under which server it runs. The environ of
    requests has Ostler's own name.
    """
    os.environ["SERVER_SOFTWARE"] = f"gunicorn (ostler/{__version__})"
    for pair in settings.raw_env:
        name, _, value = pair.partition("=")
        os.environ[name] = value


def extend_path(settings: Settings) -> None:
    """Add the current folder and those of `pythonpath` to `sys.path`.

    Raises:
        AppLoadError: the folder was removed.
    """
    try:
        here = str(Path.cwd())
    except OSError as error:
        raise AppLoadError(f"can't find the working folder: {error.strerror}; it was removed") from None
    for folder in (*reversed(settings.pythonpath), here):
        path = str(Path(folder).absolute())
        if path in sys.path:
            sys.path.remove(path)
        sys.path.insert(0, path)


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "the working folder, which was removed"


def load(settings: Settings, interface: str = "wsgi") -> App:
    """Import the app of the settings, which must have the wanted interface: `wsgi` or `asgi`.

    Raises:
        AppLoadError: with the app's traceback if its code raised.
    """
    if settings.paste:
        # Imported only here: it imports PasteDeploy.
        from ostler.workers.paste import load_paste

        return load_paste(settings)
    return load_app(settings.wsgi_app or "", interface)


def load_app(spec: str, interface: str = "wsgi") -> App:
    """Import the app.

    Args:
        spec: as in the module's docstring.
        interface: the wanted one, `wsgi` or `asgi`.

    Raises:
        AppLoadError: with the app's traceback if its code raised.
    """
    module_name, _, expression = spec.partition(":")
    try:
        importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # No traceback is needed if the module itself, or a package that it is in, is missing.
        missing = error.name if isinstance(error.name, str) else ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            reason = f"no module named {missing!r} in {_here()} (see --chdir and --pythonpath)"
            raise AppLoadError(f"wsgi_app: can't load {spec!r}: {reason}") from None
        raise raised(spec, error) from error
    except QuitWorker:
        raise
    except BaseException as error:
        raise raised(spec, error) from error
    found = _resolve(spec, sys.modules[module_name], expression or "application")
    if interface == "asgi" and is_factory(found):
        # uvicorn's command line also calls it.
        found = _made(spec, found)
    if problem := mismatch(found, interface):
        raise AppLoadError(f"wsgi_app: {spec!r} {problem}")
    return cast("App", found)


def _resolve(spec: str, module: Any, expression: str) -> Any:
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise AppLoadError(f"wsgi_app: can't read {spec!r}; write MODULE:NAME or MODULE:FACTORY()") from None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    call = isinstance(node, ast.Call)
    if isinstance(node, ast.Call):
        try:
            args = [ast.literal_eval(arg) for arg in node.args]
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
        except ValueError:
            raise AppLoadError(f"wsgi_app: arguments in {spec!r} must be literals") from None
        node = node.func
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise AppLoadError(f"wsgi_app: can't read {spec!r}; write MODULE:NAME or MODULE:FACTORY()")
    found: Any = module
    for name in (node.id, *names):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppLoadError(f"wsgi_app: {spec!r}: {module.__name__} has no {name!r}") from None
    if call:
        found = _made(spec, found, *args, **kwargs)
    if not callable(found):
        raise AppLoadError(f"wsgi_app: {spec!r} is no callable but {type(found).__name__}")
    return found


def _made(spec: str, factory: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return factory(*args, **kwargs)
    except QuitWorker:
        raise
    except BaseException as error:
        raise raised(spec, error) from error


def standard_modules(before: AbstractSet[str]) -> list[str]:
    """Names of modules of the standard library that were imported since `before`, in that order.

    Modules with a standard name in another folder (an app's own `secrets.py`) are not among them.
    """
    # Not from sysconfig: that reads a file that the account of the app may not be allowed to read.
    library = str(Path(os.__file__).parent)
    found = []
    for name, module in list(sys.modules.items()):
        if type(name) is not str or name in before or name.partition(".")[0] not in sys.stdlib_module_names:
            continue
        origin = getattr(attributes(module).get("__spec__"), "origin", None) or ""
        if type(origin) is not str:
            continue
        if origin in ("built-in", "frozen") or (
            origin.startswith(library) and "site-packages" not in origin and "dist-packages" not in origin
        ):
            found.append(name)
    return found


def attributes(module: object) -> dict[str, Any]:
    """The attributes of a module, without running code of its class: `sys.modules` may contain any object."""
    if not issubclass(type(module), ModuleType):
        return {}
    found: dict[str, Any] = vars(ModuleType)["__dict__"].__get__(module)
    return found
