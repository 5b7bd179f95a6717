"""What a kind of value consists of, and how its messages show a value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read and shown.

    Args:
        parse: from text or object to the typed value; raises ValueError.
        metavar: how `--help` names the value; empty for a switch.
        several: the flag may be given more than once; the value is a tuple.
        bare: what the flag means when no value follows it; empty if it needs one.
        shown: how `--help` writes a default.
        blank: an empty text is a value too, also in the environment, where it is usually no value at all.
    """

    parse: Callable[[Any], Any]
    metavar: str
    several: bool = False
    bare: str = ""
    shown: Callable[[Any], str] = str
    blank: bool = False


_LONGEST_SHOWN = 80


def shown(value: Any) -> str:
    """A value for a message: on one line and short, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a number of thousands of digits, or an object of the file's own
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
