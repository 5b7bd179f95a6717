"""Versions of the app and of its configuration, good ones and broken ones, in the folder of the daemon."""

from tests.kit.daemon import Place

WORKERS = 4

CONFIGURATION = """\
wsgi_app = "{module}:app"
workers = {workers}
"""
RELEASE = "import unruly\n\napp = unruly.make({version!r}, crash_after={crash_after})\n"


class Releases:
    """Puts them in place, one after another; the first is in place from the beginning."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._version = 0
        self.good()

    def good(self, crash_after: int = 0) -> None:
        """A new version of the app and of the configuration; crash_after: requests, 0 for never."""
        self._version += 1
        code = RELEASE.format(version=f"v{self._version}", crash_after=crash_after)
        self._place.add(f"release_{self._version}.py", code)
        self._configure()

    def broken_code(self, code: str) -> None:
        """A new version with this code."""
        self._version += 1
        self._place.add(f"release_{self._version}.py", code)
        self._configure()

    def broken_configuration(self, text: str) -> None:
        self._place.add("conf.py", text)

    def _configure(self) -> None:
        text = CONFIGURATION.format(module=f"release_{self._version}", workers=WORKERS)
        self._place.add("conf.py", text)
