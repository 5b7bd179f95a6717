"""The apps under test: as little as an app can do, and the same through Flask."""

from collections.abc import Callable, Iterable
from typing import Any

FIELDS = [("Content-Type", "text/plain"), ("Content-Length", "5")]
BODY = [b"Hello"]


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:  # noqa: ARG001
    """A constant: what is measured is the server."""
    start_response("200 OK", FIELDS)
    return BODY


try:
    from flask import Flask
except ImportError:
    pass
else:
    flask_json = Flask("bench")

    @flask_json.get("/")
    def greet() -> dict[str, str]:
        return {"message": "Hello"}
