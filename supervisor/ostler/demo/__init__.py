"""The app behind `ostler --demo`: a first fleet to play with, with nothing to write or install.

It gives a newcomer something to watch in `ctl workers` and on the dashboard: requests that are slow, fail,
burn CPU or keep memory. It runs in ordinary workers, so it is plain WSGI on the standard library alone and
imports little.
"""

from ostler.demo.routes import app

__all__ = ["app"]
