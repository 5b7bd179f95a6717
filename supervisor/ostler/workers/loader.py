"""Loads the app: MODULE:NAME, MODULE:NAME.ATTRIBUTE, MODULE:FACTORY(args)."""

import ast
import importlib
import os
import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ostler import __version__
from ostler.errors import SettingError
from ostler.settings.table import Settings
from ostler.workers import app_kind
from ostler.workers.load_errors import AppLoadError, raised
from ostler.wsgi.exchange import App
from ostler.wsgi.interruption import QuitWorker


def enter(settings: Settings) -> None:
    """Change to the app's folder.

    Raises:
        SettingError: the folder does not exist.
    """
    if settings.chdir:
        try:
            os.chdir(settings.chdir)
        except OSError as error:
            raise SettingError("chdir", f"can't enter {settings.chdir!r}: {error.strerror}") from None


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


def _nothing(_remark: str) -> None:
    """For callers that do not report what was found out about the app."""


def load(settings: Settings, interface: str = "wsgi", report: Callable[[str], object] = _nothing) -> App:
    """Import the app of the settings, which must have the wanted interface: `wsgi` or `asgi`.

    report: called with one line if the named object is not the app itself, but was called to make it.

    Raises:
        AppLoadError: with the app's traceback if its code raised.
    """
    if settings.paste:
        # Imported only here: it imports PasteDeploy.
        from ostler.workers.paste import load_paste

        return load_paste(settings)
    return load_app(settings.wsgi_app or "", interface, report)


def load_app(spec: str, interface: str = "wsgi", report: Callable[[str], object] = _nothing) -> App:
    """Import the app.

    Args:
        spec: as in the module's docstring.
        interface: the wanted one, `wsgi` or `asgi`.
        report: as for `load`.

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
            reason = f"no module named {missing!r} in {_here()}; {_module_advice(module_name, expression)}"
            raise AppLoadError(f"wsgi_app: can't load {spec!r}: {reason}") from None
        raise raised(spec, error) from error
    except QuitWorker:
        raise
    except BaseException as error:
        raise raised(spec, error) from error
    found, made = _resolve(spec, sys.modules[module_name], expression or _DEFAULT_NAME)
    name = f"{module_name}:{expression or _DEFAULT_NAME}"
    if not made:
        judgement = app_kind.judge(found, interface, name)
        if judgement.problem:
            raise AppLoadError(f"wsgi_app: {spec!r} {judgement.problem}")
        if judgement.makes_app:
            found, made = _made(spec, found), True
            name += "()"
            report(f"{spec!r} is {judgement.what}: it was called to make the app; {name!r} says so")
    if made and (problem := app_kind.judge_made(found, interface, name)):
        raise AppLoadError(f"wsgi_app: {name!r} {problem}")
    return cast("App", found)


_DEFAULT_NAME = "application"
_SPELLINGS = "write MODULE:NAME or MODULE:FACTORY()"


def _module_advice(module_name: str, expression: str) -> str:
    """What to write instead of the name of a module that is not there."""
    stem, _, last = module_name.rpartition(".")
    parent = sys.modules.get(stem)
    if stem and last == "py":
        name = expression or (app_kind.suggestion(parent) if parent is not None else "") or "app"
        return f"it is named without its ending: {stem}:{name}"
    if parent is not None and not expression and callable(getattr(parent, last, None)):
        return f"{last} is a name in {stem}: write {stem}:{last}"
    return "see --chdir and --pythonpath"


def _resolve(spec: str, module: Any, expression: str) -> tuple[Any, bool]:
    """What the expression names, and whether that is what a factory has made, as the expression says."""
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise AppLoadError(f"wsgi_app: can't read {spec!r}; {_SPELLINGS}") from None
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
        raise AppLoadError(f"wsgi_app: can't read {spec!r}; {_SPELLINGS}")
    found: Any = module
    for name in (node.id, *names):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise AppLoadError(
                f"wsgi_app: {spec!r}: {module.__name__} has no {name!r}{_perhaps(module)}"
            ) from None
    if call:
        return _made(spec, found, *args, **kwargs), True
    if not callable(found):
        inner = app_kind.inner_app(found)
        advice = f"; write {module.__name__}:{expression}.{inner}" if inner else _perhaps(module)
        raise AppLoadError(f"wsgi_app: {spec!r} is no callable but {type(found).__name__}{advice}")
    return found, False


def _perhaps(module: ModuleType) -> str:
    name = app_kind.suggestion(module)
    return f"; did you mean {module.__name__}:{name}?" if name else ""


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
