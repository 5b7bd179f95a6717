"""The app of `ostler --demo`, for a first look at a running fleet.

Its pages produce what `ctl workers` and the dashboard show: requests that are slow, fail, use CPU or keep
memory. It runs in ordinary workers, so it is plain WSGI, uses only the standard library and imports little.
"""

from ostler.demo.routes import app

__all__ = ["app"]
