from ostler.workers.greenlets import eventlet_hub

from .base import Worker


class EventletWorker(Worker, eventlet_hub.EventletWorker):
    """Ostler's own, by gunicorn's name."""
