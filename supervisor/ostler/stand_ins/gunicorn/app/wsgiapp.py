from .base import Application


class WSGIApplication(Application):
    """gunicorn's command."""


def run(prog: str | None = None) -> None:
    """Raises RuntimeError."""
    WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog=prog).run()
