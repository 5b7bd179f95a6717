"""What an object is that was named as the app, found out without calling it."""

import functools
import sys
import types
from typing import Any

import pytest

from ostler.workers.app_kind import judge, judge_made, kinds


def wsgi(environ: Any, start_response: Any) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def returns_coroutine(scope: Any, receive: Any, send: Any) -> Any:
    return asgi(scope, receive, send)


def asgi2(scope: Any) -> Any: ...


def anything(*args: Any, **kwargs: Any) -> Any: ...


class WsgiObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Asgi2Class:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


class WsgiClass:
    """As in PEP 3333."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Any: ...


class AsgiClass:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def __await__(self) -> Any: ...


@functools.wraps(wsgi)
def wrapped(*args: Any) -> Any: ...


APPS: list[tuple[Any, str]] = [
    (wsgi, "wsgi"),
    (WsgiObject(), "wsgi"),
    (WsgiClass, "wsgi"),
    (wrapped, "wsgi"),
    (lambda env, start: None, "wsgi"),
    (asgi, "asgi3"),
    (returns_coroutine, "asgi3"),
    (AsgiObject(), "asgi3"),
    (AsgiClass, "asgi3"),
    (functools.partial(asgi), "asgi3"),
    (asgi2, "asgi2"),
    (Asgi2Class, "asgi2"),
]


@pytest.mark.parametrize(("app", "kind"), APPS)
def test_kinds(app: Any, kind: str) -> None:
    """Each kind is recognised by its signature, and refused only by workers for the other interface."""
    assert kinds(app) == {kind}
    fits = "wsgi" if kind == "wsgi" else "asgi"
    assert judge(app, fits, f"{__name__}:app") == (False, None, "")
    other = judge(app, "asgi" if fits == "wsgi" else "wsgi", f"{__name__}:app")
    assert not other.makes_app
    advice = "-k sync, gthread or gevent" if kind == "wsgi" else "-k asgi"
    assert other.problem is not None
    assert advice in other.problem


def optional(environ: Any = None, start_response: Any = None) -> Any: ...


@pytest.mark.parametrize("app", [anything, optional, functools.partial(anything, 1), int])
def test_whatever_may_be_an_app_is_served(app: Any) -> None:
    """Wrappers with *args, parameters with an app's names, and what is written in C: there is doubt."""
    for interface in ("wsgi", "asgi"):
        if app is not optional and app is not int:
            assert judge(app, interface, f"{__name__}:app") == (False, None, ""), interface
    assert judge(optional, "wsgi", f"{__name__}:app") == (False, None, "")


def test_a_decorator_that_changes_the_arguments() -> None:
    """Werkzeug's Request.application makes a WSGI app of a function that takes a request."""
    from werkzeug import Request, Response

    @Request.application
    def app(request: Request) -> Response:
        return Response("hello")

    assert judge(app, "wsgi", f"{__name__}:app") == (False, None, "")


def test_a_decorated_app_of_asgi_2() -> None:
    """A wrapper with any arguments around an app that takes only scope is still of ASGI 2."""

    @functools.wraps(asgi2)
    def app(*args: Any) -> Any: ...

    assert kinds(app) == {"asgi2"}


def test_the_class_of_an_object_is_named() -> None:
    """FastAPI's app under a WSGI worker, say: the class says more than that it is ASGI."""
    problem = judge(AsgiObject(), "wsgi", f"{__name__}:app").problem
    assert problem == f"is an ASGI app ({__name__}.AsgiObject); serve it with -k asgi"
    problem = judge(WsgiObject(), "asgi", f"{__name__}:app").problem
    assert problem == f"is a WSGI app ({__name__}.WsgiObject); serve it with -k sync, gthread or gevent"


# -- factories -----------------------------------------------------------------------------------------------


def create_app() -> Any: ...


def create_app_with_default(config: Any = None) -> Any: ...


def create_app_with_two_defaults(config: Any = None, debug: bool = False) -> Any: ...


def create_app_with_three(a: int = 1, b: int = 2, c: int = 3) -> Any: ...


def create_app_with_keywords(*, debug: bool = False, **more: Any) -> Any: ...


class Site:
    def __init__(self, debug: bool = False) -> None: ...

    def __call__(self, environ: Any, start_response: Any) -> Any: ...


@pytest.mark.parametrize(
    "factory",
    [
        lambda: wsgi,
        create_app,
        create_app_with_default,
        create_app_with_two_defaults,
        create_app_with_three,
        create_app_with_keywords,
        functools.partial(create_app_with_default, "testing"),
        functools.lru_cache(create_app),
        Site,
    ],
)
@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
def test_factories_without_doubt(factory: Any, interface: str) -> None:
    """What can be called without arguments, and as no app, makes an app."""
    found = judge(factory, interface, f"{__name__}:make")
    assert found.makes_app
    assert found.problem is None
    assert "needs no arguments" in found.what


def create_from_name(name: str) -> Any: ...


def create_from_two(name: str, debug: bool) -> Any: ...


def create_from_one_of_two(name: str, debug: bool = False) -> Any: ...


def app_for(name: str, debug: bool = False) -> Any: ...


def create_from_keyword(*, name: str) -> Any: ...


def four(a: int, b: int, c: int, d: int) -> Any: ...


class Shop:
    def __init__(self, database: str) -> None: ...

    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class Nothing:
    """Its objects can't be called."""


async def async_factory() -> Any: ...


async def async_wsgi(environ: Any, start_response: Any) -> Any: ...


async def view(request: Any) -> Any: ...


@pytest.mark.parametrize("interface", ["wsgi", "asgi"])
@pytest.mark.parametrize(
    ("named", "words"),
    [
        (create_from_name, ["needs the argument name", "write 'm:app(VALUE)'"]),
        (create_from_two, ["needs the arguments name, debug", "write 'm:app(VALUE, VALUE)'"]),
        (create_from_one_of_two, ["needs the argument name", "write 'm:app(VALUE)'"]),
        (app_for, ["needs the argument name", "write 'm:app(VALUE)'"]),
        (create_from_keyword, ["takes the argument name", "write 'm:app(name=VALUE)'"]),
        (four, ["takes the arguments a, b, c, d, as no app does"]),
        (Shop, ["is the class Shop, which needs the argument database", "write 'm:app(VALUE)'"]),
        (Nothing, ["is the class Nothing, whose objects can't be called"]),
        (async_factory, ["is an async function without arguments", "plain function"]),
        (async_wsgi, ["is an async function that takes the arguments environ, start_response"]),
        (view, ["is an async function that takes the argument request"]),
    ],
)
def test_what_is_no_app_and_can_not_be_called(named: Any, words: list[str], interface: str) -> None:
    """The problem says what the object is, and what to write."""
    if isinstance(named, type):
        named.__module__ = "m"
    found = judge(named, interface, "m:app")
    assert not found.makes_app
    assert found.problem is not None
    assert [word for word in words if word not in found.problem] == [], found.problem


def test_the_class_of_a_framework() -> None:
    """Flask or FastAPI itself, imported, in the place of the app: that is no factory, though FastAPI's can be
    called; the app of the module is suggested.
    """
    flask = pytest.importorskip("flask")
    module = types.ModuleType("shop_of_this_test")
    module.Flask, module.app = flask.Flask, flask.Flask("shop_of_this_test")  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        found = judge(flask.Flask, "wsgi", "shop_of_this_test:Flask")
    finally:
        del sys.modules[module.__name__]
    assert not found.makes_app
    assert found.problem is not None
    assert found.problem.startswith("is the class Flask of flask.app, and no app;")
    assert found.problem.endswith("perhaps shop_of_this_test:app")


def test_other_frameworks() -> None:
    """aiohttp's application can be called without arguments, and is an app for nothing but aiohttp."""
    from aiohttp import web

    for interface in ("wsgi", "asgi"):
        problem = judge(web.Application(), interface, "m:app").problem
        assert problem is not None
        assert problem.startswith("is an app of aiohttp, neither WSGI nor ASGI")


@pytest.mark.parametrize(
    ("made", "interface", "words"),
    [
        (None, "wsgi", "returned None"),
        ("app", "wsgi", "returned no callable but str"),
        (create_app, "wsgi", "returned a function that needs no arguments and no app"),
        (asgi, "wsgi", "returned what is an ASGI app; serve it with -k asgi"),
        (wsgi, "asgi", "returned what is a WSGI app; serve it with -k sync"),
        (async_factory(), "asgi", "returned a coroutine"),
    ],
)
def test_what_factories_return(made: Any, interface: str, words: str) -> None:
    """A factory's result is judged like an app, but never called."""
    problem = judge_made(made, interface, "m:make()")
    assert problem is not None
    assert words in problem


@pytest.mark.parametrize(("app", "kind"), APPS)
def test_factories_of_apps(app: Any, kind: str) -> None:
    """A result that is an app has no problem."""
    assert judge_made(app, "wsgi" if kind == "wsgi" else "asgi", "m:make()") is None
