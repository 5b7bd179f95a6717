from ostler.workers.asgi.worker import AsgiWorker

from .base import Worker


class ASGIWorker(Worker, AsgiWorker):
    """Ostler's own, by gunicorn's name."""
