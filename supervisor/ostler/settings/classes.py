"""Names of worker classes: ours, gunicorn's, and those of packages that bring worker classes for gunicorn."""

from typing import Any, Literal

# What runs in a worker, by name; other names are looked up in the entry-point group `ostler.workers`.
BUILT_IN = ("sync", "gthread", "gevent", "eventlet", "meinheld", "asgi")

Core = Literal["c", "python", "own"]
"""What serves the ordinary requests of a worker: the C extension, Python, or code of the worker class."""

# Those that replace what waits in the standard library.
PATCHING = frozenset({"gevent", "eventlet"})

# Groups of them, for the settings that only some worker classes use (`Setting.worker_classes`).
THREADED = frozenset({"sync", "gthread"})
OWN_HTTP = THREADED | {"gevent", "eventlet"}  # Ostler's own code reads requests and writes answers
WSGI = OWN_HTTP | {"meinheld"}
ASGI = frozenset({"asgi"})
NOT_MEINHELD = OWN_HTTP | ASGI

# `asgi` with uvicorn's other HTTP protocol. The name is uvicorn's.
H11 = "uvicorn.workers.UvicornH11Worker"
GEVENT_WEBSOCKET = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
"""The class of the package gevent-websocket; in its place is one of ours: `gevent` with `wsgi.websocket`."""

_ALIASES = {
    "threads": "gthread",
    "gunicorn.workers.sync.syncworker": "sync",
    "egg:gunicorn#sync": "sync",
    "gunicorn.workers.syncworker": "sync",
    "gunicorn.workers.gthread.threadworker": "gthread",
    "egg:gunicorn#gthread": "gthread",
    "gevent_pywsgi": "gevent",
    "gevent_wsgi": "gevent",
    "gunicorn.workers.ggevent.geventworker": "gevent",
    "gunicorn.workers.ggevent.geventpywsgiworker": "gevent",
    "egg:gunicorn#gevent": "gevent",
    "egg:gunicorn#gevent_pywsgi": "gevent",
    "egg:gunicorn#gevent_wsgi": "gevent",
    "gunicorn.workers.geventlet.eventletworker": "eventlet",
    "egg:gunicorn#eventlet": "eventlet",
    "gunicorn.workers.gtornado.tornadoworker": "tornado",
    "egg:gunicorn#tornado": "tornado",
    "egg:meinheld#gunicorn_worker": "meinheld",
    "meinheld.gmeinheld.meinheldworker": "meinheld",
    "meinheld.gmeinheld:meinheldworker": "meinheld",
    "gunicorn.workers.gasgi.asgiworker": "asgi",
    "egg:gunicorn#asgi": "asgi",
    "geventwebsocket.gunicorn.workers.geventwebsocketworker": GEVENT_WEBSOCKET,
    "flask_sockets.worker": GEVENT_WEBSOCKET,
    "uvicorn": "asgi",
    "uvicorn.workers.uvicornworker": "asgi",
    "uvicorn.workers.uvicornh11worker": H11,
    "uvicorn_worker.uvicornworker": "asgi",
    "uvicorn_worker.uvicornh11worker": H11,
}

_AIOHTTP = (
    "aiohttp's apps are neither WSGI nor ASGI apps; serve them with aiohttp's own server, "
    "aiohttp.web.run_app, under a service manager"
)
_NO_SERVER = "is a base class of gunicorn's, which serves nothing itself; use sync, gthread, gevent or asgi"

# Worker classes that can't be had, and what to do instead.
_REFUSED = {
    "tornado": (
        "Tornado's worker runs Tornado apps, not WSGI apps; serve a tornado.web.Application with its own "
        "HTTPServer, and a WSGI app with sync, gthread or gevent"
    ),
    "gaiohttp": _AIOHTTP,
    "gunicorn.workers.gaiohttp.aiohttpworker": _AIOHTTP,
    "aiohttp.gunicornwebworker": _AIOHTTP,
    "aiohttp.gunicornuvloopwebworker": _AIOHTTP,
    "aiohttp.worker.gunicornwebworker": _AIOHTTP,
    "aiohttp.worker.gunicornuvloopwebworker": _AIOHTTP,
    "aiohttp.worker.gunicorntokiowebworker": _AIOHTTP,
    "sanic.worker.gunicornworker": "Sanic's apps are ASGI apps as well: use asgi",
    "sanic.worker.gunicorn.gunicornworker": "Sanic's apps are ASGI apps as well: use asgi",
    "quart.worker.gunicornworker": "Quart's apps are ASGI apps: use asgi",
    "gunicorn.workers.base.worker": _NO_SERVER,
    "gunicorn.workers.base_async.asyncworker": _NO_SERVER,
    "pyuwsgi": "uWSGI is a server of its own; its apps are WSGI apps: use sync or gthread",
    "uwsgi": "uWSGI is a server of its own; its apps are WSGI apps: use sync or gthread",
}

# A worker has no more threads.
MOST_THREADS = 256


def canonical(value: Any) -> str:
    """The name of a worker class; files may also give a class itself.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, type):
        value = f"{value.__module__}.{value.__qualname__}"
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected the name of a worker class, got {value!r}")
    name = value.strip()
    folded = name.lower()
    found = _ALIASES.get(folded, folded if folded in BUILT_IN else name)
    if advice := _REFUSED.get(found.lower()):
        raise ValueError(f"{value.strip()} {advice}" if advice is _NO_SERVER else advice)
    return found


def names() -> list[str]:
    """Names of our classes and short aliases, to suggest one for a name that is unknown."""
    return [*BUILT_IN, *(alias for alias in _ALIASES if "." not in alias and ":" not in alias)]
