"""What an object is that a user has named as the app, found out without calling it.

It is inferred from the signature where that is specific: an ASGI app takes scope, receive and send, one of
ASGI 2 takes only scope, and a WSGI app takes environ and start_response. A wrapper may take any arguments;
such an app is assumed to be of the kind that the worker class serves. What can be called without arguments
is no app but makes one (a factory), unless its parameters have the names of an app's.
"""

import inspect
import re
import sys
from typing import Any, NamedTuple

_ARGUMENTS = {"wsgi": 2, "asgi3": 3, "asgi2": 1}
# First parameters of apps, and what people call functions that make apps.
_OF_WSGI = re.compile(r"_*(env|environ|environment|wsgi_env|wsgi_environ|request_environ|e)?$")
_OF_ASGI = re.compile(r"_*(scope|connection_scope)?$")
_MAKER = re.compile(r"(^|_)(create|make|build|get|new|init|setup|configure|factory)(_|$)|^(create|make)[A-Z]")
# Where apps are usually found in a module.
_USUAL = (
    "application",
    "app",
    "api",
    "server",
    "wsgi",
    "asgi",
    "wsgi_app",
    "asgi_app",
    "create_app",
    "make_app",
)

_ASGI_ADVICE = "serve it with -k asgi"
_ASYNC_FACTORY = (
    "is an async function without arguments, so it is no app; if it makes the app, make it a plain function, "
    "and do what it awaits in the app's startup (lifespan)"
)
_WSGI_ADVICE = "serve it with -k sync, gthread or gevent"


class Judgement(NamedTuple):
    """What to do with an object that was named as the app.

    Attributes:
        makes_app: it is to be called without arguments, and its result is the app.
        problem: why it can't be served, and what to write instead, as the end of a sentence whose subject is
            the app's name; None: it can be served, or that is not known.
        what: for `makes_app`, what it is.
    """

    makes_app: bool = False
    problem: str | None = None
    what: str = ""


def is_coroutine_function(app: Any) -> bool:
    """Whether calling it gives a coroutine, as far as that can be known without calling."""
    if inspect.isclass(app):
        return False
    return any(
        inspect.iscoroutinefunction(inspect.unwrap(found)) or hasattr(found, "_is_coroutine")
        for found in (app, getattr(app, "__call__", None))  # noqa: B004 - to look at it
        if found is not None
    )


def takes(app: Any, arguments: int) -> bool | None:
    """Whether it can be called with so many positional arguments; None: that is not known."""
    try:
        inspect.signature(app).bind(*[None] * arguments)
    except TypeError:
        return False
    except Exception:  # noqa: BLE001 - ValueError: written in C; others: of the object's own code
        return None
    return True


def kinds(app: Any) -> frozenset[str]:
    """What it can be of `wsgi`, `asgi3`, `asgi2`; nothing if it can be none of them."""
    if is_coroutine_function(app):
        return frozenset(("asgi3",)) if takes(app, _ARGUMENTS["asgi3"]) is not False else frozenset()
    if takes(app, 0) and not _takes_anything(app):
        # ASGI 2's scope has no default.
        return frozenset(kind for kind in ("wsgi", "asgi3") if takes(app, _ARGUMENTS[kind]))
    found = frozenset(kind for kind, arguments in _ARGUMENTS.items() if takes(app, arguments) is not False)
    if found - {"asgi2"} or not _wrapper_takes_anything(app) or _takes_scope(app):
        return found
    # A decorator may give what it has decorated other arguments: Request.application of Werkzeug does.
    return frozenset(_ARGUMENTS)


def judge(app: Any, interface: str, spec: str) -> Judgement:
    """What to do with a callable that was named as the app.

    Args:
        interface: of the worker class, `wsgi` or `asgi`.
        spec: its name, MODULE:NAME.
    """
    if problem := _other_framework(app):
        return Judgement(problem=problem)
    if inspect.isclass(app) and (judged := _judge_class(app, spec)) is not None:
        return judged
    if takes(app, 0) and not _takes_anything(app) and not _named_as_an_apps(app):
        if is_coroutine_function(app):
            return Judgement(problem=_ASYNC_FACTORY)
        return Judgement(makes_app=True, what=f"{_kind_of_callable(app)} that needs no arguments")
    return Judgement(problem=_problem(app, interface, spec))


def judge_made(app: Any, interface: str, spec: str) -> str | None:
    """Why what a factory has returned can't be served; None: it can, or that is not known.

    Args:
        spec: the call, MODULE:FACTORY().
    """
    if app is None:
        return "returned None; a factory must return the app, perhaps its return is missing"
    if inspect.iscoroutine(app):
        app.close()
        return "returned a coroutine: the factory must be a plain function, which returns the app"
    if not callable(app):
        return f"returned no callable but {type(app).__name__}; a factory must return the app"
    found = judge(app, interface, spec)
    if found.makes_app:
        return f"returned {found.what} and no app"
    return f"returned what {found.problem}" if found.problem is not None else None


# -- kinds of objects ----------------------------------------------------------------------------------------


def _judge_class(app: type, spec: str) -> Judgement | None:
    """None if the class may be an app itself, or that is not known."""
    if _defines(app, "__new__") or _defines(type(app), "__call__"):
        return None  # calling it need not make an object of it
    call = getattr(app, "__call__", None)  # noqa: B004 - of its objects
    if takes(app, 2) and (hasattr(app, "__iter__") or hasattr(app, "__getitem__")):
        return None  # a WSGI app: PEP 3333's own example is such a class
    if takes(app, 3) and hasattr(app, "__await__"):
        return None  # an ASGI app, as endpoints of Starlette are
    if takes(app, 1) and not takes(app, 0) and inspect.iscoroutinefunction(call) and takes(call, 3):
        return None  # an ASGI 2 app, whose objects take receive and send
    module, _, _ = spec.partition(":")
    name = f"the class {app.__qualname__}"
    if app.__module__ != module and not app.__module__.startswith(f"{module}."):
        problem = f"is {name} of {app.__module__}, and no app; name the app that is made from it"
        return Judgement(problem=problem + _perhaps(module))
    if not _defines(app, "__call__"):
        return Judgement(problem=f"is {name}, whose objects can't be called, so they are no apps")
    if takes(app, 0):
        return Judgement(makes_app=True, what=f"{name}, which needs no arguments")
    return Judgement(problem=f"is {name}, which needs {_needed(app)}; write {_call_of(spec, app)}")


def _problem(app: Any, interface: str, spec: str) -> str | None:
    found = kinds(app)
    if problem := _looks_like_a_factory(app, found, interface, spec):
        return problem
    if is_coroutine_function(app) and not found:
        kinds_of_apps = "an ASGI app takes scope, receive and send, and a WSGI app is not async"
        return f"is an async function that takes {_needed(app)}: {kinds_of_apps}"
    if not found:
        return f"takes {_needed(app)}, as no app does; if it makes the app, write {_call_of(spec, app)}"
    if interface == "wsgi" and "wsgi" not in found:
        return f"is an ASGI app{_of_class(app)}; {_ASGI_ADVICE}"
    if interface == "asgi" and found == {"wsgi"}:
        return f"is a WSGI app{_of_class(app)}; {_WSGI_ADVICE}"
    return None


def _looks_like_a_factory(app: Any, found: frozenset[str], interface: str, spec: str) -> str | None:
    """The problem with a factory whose parameters are not those of an app."""
    names = _required(app)
    if not names or not found or is_coroutine_function(app):
        return None
    if _takes_anything(app) or _wrapper_takes_anything(app):
        return None
    alone = len(names) == 1
    if _OF_ASGI.match(names[0]) or (_OF_WSGI.match(names[0]) and not (alone and found == {"asgi2"})):
        return None
    called_so = bool(_MAKER.search(str(getattr(app, "__name__", ""))))
    # One argument that must be given is right for ASGI 2 alone, and that has no others.
    wrong = alone and (interface == "wsgi" or bool(takes(app, 2)))
    if not (called_so or wrong):
        return None
    return f"needs {_needed(app)}, so it is no app; if it makes the app, write {_call_of(spec, app)}"


def _other_framework(app: Any) -> str | None:
    """Apps that can be called, but for something else."""
    kind = type(app)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name == "aiohttp.web_app.Application":
        framework, server = "aiohttp", "aiohttp.web.run_app"
    elif name == "tornado.web.Application":
        framework, server = "Tornado", "Tornado's HTTPServer"
    else:
        return None
    return f"is an app of {framework}, neither WSGI nor ASGI; serve it with {server} under a service manager"


def suggestion(module: Any) -> str:
    """The name of what is probably the app in a module; empty if nothing is."""
    names = {name: found for name, found in vars(module).items() if callable(found)}
    for name in _USUAL:
        if name in names and not inspect.isclass(names[name]):
            return name
    own = [
        name
        for name, found in names.items()
        if not (name.startswith("_") or inspect.isclass(found) or inspect.isroutine(found))
        and kinds(found) & {"wsgi", "asgi3"}
    ]
    return own[0] if len(own) == 1 else ""


def inner_app(found: Any) -> str:
    """The attribute that is the app of an object which is not one, as Dash's `server` is; or empty."""
    for name in ("server", "wsgi_app", "wsgi", "asgi", "app"):
        try:
            if callable(getattr(found, name, None)):
                return name
        except Exception:  # noqa: BLE001, S112 - the object's own code
            continue
    return ""


# -- signatures ----------------------------------------------------------------------------------------------


def _parameters(app: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(app).parameters.values())
    except Exception:  # noqa: BLE001 - as in `takes`
        return []


def _required(app: Any) -> list[str]:
    """Names of the parameters that have no default."""
    return [
        one.name
        for one in _parameters(app)
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]


def _takes_scope(app: Any) -> bool:
    """Whether the first parameter that is needed has the name of an ASGI app's."""
    return any(_OF_ASGI.match(name) for name in _required(app)[:1])


def _takes_anything(app: Any) -> bool:
    """Whether it takes any number of positional arguments, as wrappers do."""
    return any(one.kind is one.VAR_POSITIONAL for one in _parameters(app))


def _wrapper_takes_anything(app: Any) -> bool:
    """Whether a decorator has put a function with any arguments in its place."""
    try:
        parameters = inspect.signature(app, follow_wrapped=False).parameters.values()
    except Exception:  # noqa: BLE001 - as in `takes`
        return False
    return any(one.kind is one.VAR_POSITIONAL for one in parameters)


def _defines(kind: type, name: str) -> bool:
    """Whether a class, or one that it is made from, has a method of its own with this name."""
    return any(name in vars(base) for base in kind.__mro__ if base not in (object, type))


def _named_as_an_apps(app: Any) -> bool:
    """Whether the parameters, which all have defaults, are called like those of an app."""
    names = [one.name for one in _parameters(app)]
    return len(names) in (2, 3) and bool(_OF_WSGI.match(names[0]) or _OF_ASGI.match(names[0]))


def _needed(app: Any) -> str:
    names = _required(app)
    if not names:
        return "no argument"
    return f"the argument {names[0]}" if len(names) == 1 else f"the arguments {', '.join(names)}"


def _call_of(spec: str, app: Any) -> str:
    """A call with a value for each argument that is needed."""
    values = [
        f"{one.name}=VALUE" if one.kind is one.KEYWORD_ONLY else "VALUE"
        for one in _parameters(app)
        if one.name in _required(app)
    ]
    return f"'{spec}({', '.join(values)})' with literal values"


def _of_class(app: Any) -> str:
    """The class of an object that is an app, in brackets; nothing for functions and classes."""
    kind = type(app)
    if inspect.isroutine(app) or inspect.isclass(app) or kind.__module__ in ("builtins", "functools"):
        return ""
    return f" ({kind.__module__}.{kind.__qualname__})"


def _kind_of_callable(app: Any) -> str:
    return "a function" if inspect.isroutine(app) else f"a callable object ({type(app).__name__})"


def _perhaps(module: str) -> str:
    found = sys.modules.get(module)
    name = suggestion(found) if found is not None else ""
    return f", perhaps {module}:{name}" if name else ""
