"""Names of worker classes: ours, gunicorn's, and those of packages that bring worker classes for gunicorn."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.settings.table import Settings

# What runs in a worker, by name; other names are looked up in the entry-point group `ostler.workers`.
BUILT_IN = ("sync", "gthread", "gevent", "eventlet", "meinheld", "asgi")

_ALIASES = {
    "threads": "gthread",
    "gunicorn.workers.sync.syncworker": "sync",
    "egg:gunicorn#sync": "sync",
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
    "gunicorn.workers.gasgi.asgiworker": "asgi",
    "uvicorn": "asgi",
    "uvicorn.workers.uvicornworker": "asgi",
    "uvicorn.workers.uvicornh11worker": "asgi",
    "uvicorn_worker.uvicornworker": "asgi",
    "uvicorn_worker.uvicornh11worker": "asgi",
}

# Requests that a worker of these classes may serve at once and tell of; the scoreboard has no more lanes.
MOST_LANES = 256
# Those whose hub says twice a second that it runs.
_GREENLETS = frozenset(("gevent", "eventlet"))
_ONE_LOOP = frozenset(("gevent", "eventlet", "asgi"))


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
    if found == "tornado":
        raise ValueError(
            "Tornado's worker runs Tornado apps, not WSGI apps; serve a tornado.web.Application with its own "
            "HTTPServer, and a WSGI app with sync, gthread or gevent"
        )
    return found


def is_one_loop(worker_class: str) -> bool:
    """Whether all requests of such a worker take turns in one thread.

    A name with a dot that is no alias is a class made from uvicorn's worker: see `workers.asgi.subclass`.
    """
    return worker_class in _ONE_LOOP or "." in worker_class


def has_hub(worker_class: str) -> bool:
    """Whether requests are served in greenlets, which one that computes keeps from everything."""
    return worker_class in _GREENLETS


def threads(settings: "Settings") -> int:
    """How many threads of a worker serve."""
    return 1 if is_one_loop(settings.worker_class) else settings.threads


def lanes(settings: "Settings") -> int:
    """How many requests at once a worker can tell the scoreboard of."""
    if is_one_loop(settings.worker_class):
        return min(settings.worker_connections, MOST_LANES)
    return settings.threads
