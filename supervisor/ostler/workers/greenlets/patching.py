"""Monkey-patching, and what the libraries have to say about it.

gevent and eventlet look through all objects that the garbage collector knows, for locks to convert and for
what was imported too early. Frozen objects (`gc.freeze`) are not among them. So nothing is frozen meanwhile:
a configuration file may have done that.
"""

import gc
import logging
import warnings
from collections.abc import Callable

# Of gevent's warnings and eventlet's log lines; others than about patching have nothing to do with it.
_ABOUT_PATCHING = ("patch", "green")


def problems_of(patch: Callable[[], object]) -> list[str]:
    """Patch; returns what the library has warned of, each on one line."""
    frozen, collects = bool(gc.get_freeze_count()), gc.isenabled()
    gc.disable()  # a run would write to all objects
    gc.unfreeze()
    lines: list[str] = []
    shown, logging.lastResort = logging.lastResort, _Collector(lines)
    try:
        with warnings.catch_warnings(record=True) as caught:
            # Whatever -W or PYTHONWARNINGS says.
            warnings.simplefilter("always")
            patch()
    finally:
        logging.lastResort = shown
        if frozen:
            gc.freeze()
        if collects:
            gc.enable()
    texts = [*(str(warning.message) for warning in caught), *lines]
    one_line = (" ".join(text.split()) for text in texts)
    return [text for text in one_line if any(word in text.lower() for word in _ABOUT_PATCHING)]


class _Collector(logging.Handler):
    """Takes what eventlet logs: it uses a logger without handlers."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())
