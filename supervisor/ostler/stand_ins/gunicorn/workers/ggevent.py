from ostler.workers.greenlets import gevent_hub

from .base import Worker


class GeventWorker(Worker, gevent_hub.GeventWorker):
    """Ostler's own, by gunicorn's name."""


class GeventPyWSGIWorker(GeventWorker):
    """The same."""
