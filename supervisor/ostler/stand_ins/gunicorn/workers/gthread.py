from ostler.workers.thread_engine import Engine

from .base import Worker


class ThreadWorker(Worker, Engine):
    """Ostler's own, by gunicorn's name."""
