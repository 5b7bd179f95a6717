"""gunicorn's exceptions, for code that raises or catches them."""


class HaltServer(BaseException):
    """Ends the server."""

    def __init__(self, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason, exit_status)
        self.reason = reason
        self.exit_status = exit_status


class ConfigError(Exception):
    """A mistake in the configuration."""


class AppImportError(Exception):
    """The app can't be imported."""
