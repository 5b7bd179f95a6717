"""What kind of app an object is: WSGI, or ASGI in one of its two shapes.

It is inferred from the signature where that is specific: an ASGI app takes scope, receive and send, one of
ASGI 2 takes only scope, and a WSGI app takes environ and start_response. A wrapper may take any arguments;
such an app is assumed to be of the kind that the worker class serves.
"""

import inspect
from typing import Any

_ARGUMENTS = {"wsgi": 2, "asgi3": 3, "asgi2": 1}


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
    except ValueError:
        return None  # written in C
    return True


def kinds(app: Any) -> frozenset[str]:
    """What it can be of `wsgi`, `asgi3`, `asgi2`; nothing if it is called without arguments, as a factory."""
    if is_coroutine_function(app):
        return frozenset(("asgi3",))
    return frozenset(kind for kind, arguments in _ARGUMENTS.items() if takes(app, arguments) is not False)


def is_factory(app: Any) -> bool:
    """Whether it makes an app: it can be called with nothing, and as no kind of app."""
    return bool(takes(app, 0)) and not kinds(app)


def mismatch(app: Any, interface: str) -> str | None:
    """Why an app can't be served by workers for `wsgi` or `asgi` apps; None: it can, or that is not known."""
    found = kinds(app)
    if interface == "wsgi" and found and "wsgi" not in found:
        return "is an ASGI app; serve it with -k asgi"
    if interface == "asgi" and found == {"wsgi"}:
        return "is a WSGI app; serve it with -k sync, gthread or gevent"
    return None
