"""Stands in for gunicorn, which is not installed. Ostler's own classes have the names that files import."""

version_info = (27, 0, 1)
__version__ = "27.0.1"
SERVER = "gunicorn"
SERVER_SOFTWARE = "gunicorn/27.0.1"


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"module 'gunicorn' has no attribute {name!r}: gunicorn is not installed, and Ostler has only names "
        "that are in use; pip install gunicorn"
    )
