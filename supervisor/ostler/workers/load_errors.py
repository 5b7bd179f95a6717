"""What is reported of an app that can't be loaded."""

from pathlib import Path

from ostler.text import frames_of, name_and_text, trace_of

_LONGEST_REASON = 500
# Modules whose frames are left out of the traceback.
_LOADERS = tuple(str(Path(__file__).with_name(name)) for name in ("loader.py", "paste.py"))


class AppLoadError(Exception):
    """The app can't be loaded.

    Args:
        reason: one line.
        trace: the app's own traceback; None if the setting is wrong.
    """

    def __init__(self, reason: str, trace: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trace = trace


def raised(spec: str, error: BaseException) -> AppLoadError:
    """The exception for an `error` that the app raised while `spec` was loaded."""
    reason = name_and_text(error, _LONGEST_REASON)
    if isinstance(error, ImportError) and str(error.name).partition(".")[0] == "gunicorn":
        reason += "; install gunicorn beside Ostler, or remove the import"
    return AppLoadError(f"can't load {spec!r}: {reason}", _app_traceback(error))


def _app_traceback(error: BaseException) -> str:
    """The traceback from the app's first frame on, without the frames of the import."""
    frames = frames_of(error)
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return trace_of(error, frames)


def _is_ours(filename: str) -> bool:
    return filename in _LOADERS or "importlib" in filename or "/paste/deploy/" in filename
