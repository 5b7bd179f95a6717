"""Telling WSGI apps from ASGI apps without calling them."""

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
    """Each shape is told by its signature, and refused by workers for the other interface alone."""
    assert kinds(app) == {kind}
    assert not is_factory(app)
    assert (mismatch(app, "wsgi") is None) == (kind == "wsgi")
    assert (mismatch(app, "asgi") is None) == (kind != "wsgi")


def test_what_takes_anything_is_believed() -> None:
    """A wrapper that takes anything may be an app of any kind."""
    assert mismatch(anything, "wsgi") is None
    assert mismatch(anything, "asgi") is None
    assert not is_factory(anything)


def test_factories() -> None:
    """What can be called with nothing, or with one optional argument, is no app... unless that is a scope."""
    assert is_factory(lambda: asgi)
    assert not is_factory(factory), "its argument could be ASGI 2's scope"
