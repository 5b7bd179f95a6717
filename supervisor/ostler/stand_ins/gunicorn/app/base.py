"""Custom applications: their classes can be defined, and `load` their apps; Ostler runs them."""

from typing import Any

from ..config import Config


class BaseApplication:
    """Base class of custom applications.

    Attributes:
        cfg: the settings that `load_config` sets; callable: the app, when it is loaded.
    """

    def __init__(self, usage: str | None = None, prog: str | None = None) -> None:
        self.usage = usage
        self.prog = prog
        self.cfg: Any = None
        self.callable: Any = None
        self.logger: Any = None
        self.do_load_config()

    def do_load_config(self) -> None:
        self.load_default_config()
        self.load_config()

    def load_default_config(self) -> None:
        self.cfg = Config(self.usage, self.prog)

    def load_config(self) -> None:
        raise NotImplementedError

    def init(self, parser: Any, opts: Any, args: Any) -> Any:
        raise NotImplementedError

    def load(self) -> Any:
        raise NotImplementedError

    def reload(self) -> None:
        self.do_load_config()

    def wsgi(self) -> Any:
        if self.callable is None:
            self.callable = self.load()
        return self.callable

    def run(self) -> None:
        raise RuntimeError(
            "this process is one of Ostler's, which serves already; give Ostler the app itself "
            "(ostler MODULE:APP), or install gunicorn to run its server from Python"
        )


class Application(BaseApplication):
    """The same for applications that gunicorn configures by its command line."""

    def load_config(self) -> None:
        pass
