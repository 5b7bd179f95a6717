"""Distinguishing WSGI apps from ASGI apps without calling them."""

import functools
from typing import Any

import pytest

from ostler.workers.app_kind import is_factory, kinds, mismatch


def wsgi(environ: Any, start_response: Any) -> Any: ...


async def asgi(scope: Any, receive: Any, send: Any) -> None: ...


def returns_coroutine(scope: Any, receive: Any, send: Any) -> Any:
    return asgi(scope, receive, send)


def asgi2(scope: Any) -> Any: ...


def anything(*args: Any, **kwargs: Any) -> Any: ...


def factory(debug: bool = False) -> Any: ...


class WsgiObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class Asgi2Class:
    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


@functools.wraps(wsgi)
def wrapped(*args: Any) -> Any: ...


@pytest.mark.parametrize(
    ("app", "kind"),
    [
        (wsgi, "wsgi"),
        (WsgiObject(), "wsgi"),
        (wrapped, "wsgi"),
        (asgi, "asgi3"),
        (returns_coroutine, "asgi3"),
        (AsgiObject(), "asgi3"),
        (functools.partial(asgi), "asgi3"),
        (asgi2, "asgi2"),
        (Asgi2Class, "asgi2"),
    ],
)
def test_kinds(app: Any, kind: str) -> None:
    """Each kind is recognised by its signature, and refused only by workers for the other interface."""
    assert kinds(app) == {kind}
    assert not is_factory(app)
    assert (mismatch(app, "wsgi") is None) == (kind == "wsgi")
    assert (mismatch(app, "asgi") is None) == (kind != "wsgi")


def test_a_wrapper_that_takes_anything_may_be_any_app() -> None:
    """A wrapper with *args may be an app of any kind."""
    assert mismatch(anything, "wsgi") is None
    assert mismatch(anything, "asgi") is None
    assert not is_factory(anything)


def test_factories() -> None:
    """A callable without parameters is a factory; one with an optional parameter may be an ASGI 2 app."""
    assert is_factory(lambda: asgi)
    assert not is_factory(factory), "its argument could be ASGI 2's scope"
