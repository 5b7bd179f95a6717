"""Text of apps, and text that stands for bytes, in a form that every reader accepts."""

import re
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal

import msgspec

# Characters of one frame or exception in a traceback, and of its beginning and its end.
_LONGEST_PIECE = 16 * 1024
_HALF_TRACE = 64 * 1024

_SURROGATE = re.compile("[\ud800-\udfff]")


def readable(text: str) -> str:
    r"""Text that UTF-8 can express: lone surrogates are written out.

    Those that stand for bytes of a path or an argument (PEP 383) become `\xe9`, others `\ud800`.
    """
    return text if text.isascii() else _SURROGATE.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def json_of(view: Any) -> bytes:
    """JSON of what msgspec can encode; its texts are made readable if need be."""
    try:
        return msgspec.json.encode(view)
    except UnicodeEncodeError:
        return msgspec.json.encode(_each_text(msgspec.to_builtins(view, str_keys=True)))


def _each_text(value: Any) -> Any:
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {readable(key): _each_text(found) for key, found in value.items()}
    return [_each_text(found) for found in value] if isinstance(value, list | tuple) else value


# An app's exceptions may override everything that can be overridden: `__str__`, `__cause__`, a
# metaclass. These functions run while something has failed already, so they never fail themselves.


def text_of(error: BaseException, most: int = 2000) -> str:
    """`str(error)` on one line, `most` characters at most; a placeholder if it can't be had."""
    try:
        text = str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - its own `__str__`
        return "(its text can't be read)"
    return " ".join(text[:most].split())


def name_of(error: BaseException) -> str:
    """The name of an exception's class."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name


def name_and_text(error: BaseException, most: int = 2000) -> str:
    """`ValueError: text`, or `ValueError` if it has no text."""
    text = text_of(error, most)
    return f"{name_of(error)}: {text}" if text else name_of(error)


def frames_of(error: BaseException) -> TracebackType | None:
    """Where an exception has been."""
    frames: TracebackType | None = BaseException.__dict__["__traceback__"].__get__(error)
    return frames


def trace_of(error: BaseException, frames: TracebackType | Literal["all"] | None = "all") -> str:
    """An exception's traceback as Python shows it, without a line end; a very long one without its middle.

    Args:
        frames: those to show, if not all.
    """
    shown = frames_of(error) if frames == "all" else frames
    try:
        pieces = traceback.format_exception(type(error), error, shown)
    except BaseException as failed:  # noqa: BLE001
        places = [f'  File "{place}", line {line}\n' for place, line in _places(shown)]
        pieces = [*places, f"{name_and_text(error)}\n(its traceback can't be shown: {name_of(failed)})"]
    text = "".join(piece[:_LONGEST_PIECE] for piece in pieces).rstrip()
    if len(text) > 2 * _HALF_TRACE:
        return f"{text[:_HALF_TRACE]}\n  [...]\n{text[-_HALF_TRACE:]}"
    return text


def _places(frames: TracebackType | None) -> Iterator[tuple[str, int]]:
    while frames is not None:
        yield frames.tb_frame.f_code.co_filename, frames.tb_lineno
        frames = frames.tb_next
