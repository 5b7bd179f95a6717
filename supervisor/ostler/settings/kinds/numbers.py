"""Numbers: counts, sizes, times, shares, and how many workers."""

import math
import re
from collections.abc import Callable
from typing import Any

from ostler.settings.kinds.kind import Kind, shown

_MOST_DIGITS = 100  # more than any number that is accepted


def whole_number(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    """Parser of an integer within [least, most]."""

    def parse(value: Any) -> int:
        try:
            number = int(value, 10) if isinstance(value, str) else int(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected a whole number, got {shown(value)}") from None
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError(f"expected a whole number, got {shown(value)}")
        if not least <= number <= most:
            raise ValueError(f"must be between {least} and {most}, got {shown(number)}")
        return number

    return parse


def number_of(digits: str) -> int:
    """The number that decimal digits stand for, however many there are.

    int() refuses more than some thousands of digits. Of so many only the first are used: the number is out of
    every range all the same.
    """
    return int(digits[:_MOST_DIGITS]) if len(digits) > _MOST_DIGITS else int(digits)


COUNT = Kind(whole_number(0), "N")
POSITIVE = Kind(whole_number(1), "N")
KEPT = Kind(whole_number(0, 1), "N")


def _counts(value: Any) -> tuple[int, ...]:
    """Whole numbers from 1 on, in a list or separated by commas."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif not isinstance(value, list | tuple):
        value = (value,)
    parts = [part for one in value for part in (one.split(",") if isinstance(one, str) else (one,))]
    return tuple(map(whole_number(1), parts))


COUNTS = Kind(_counts, "N,N...", shown=lambda counts: ",".join(map(str, counts)))


def _threads(value: Any) -> int:
    # gunicorn accepts 0: its only worker class without threads ignores the value.
    return whole_number(0)(value) or 1


THREADS = Kind(_threads, "N")


# -- sizes ---------------------------------------------------------------------------------------------------

_SIZE = re.compile(r"([0-9]+)\s*(?:([KMGT])(?:I?B)?|B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(value: Any) -> int:
    """Bytes: a number, or text with a unit (1K is 1024)."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"expected a number of bytes such as 8190, 512K or 10M, got {shown(value)}")
        value = number_of(match[1]) * _UNITS[(match[2] or "").upper()]
    return whole_number(0, 2**63 - 1)(value)


def show_size(size: int) -> str:
    """A size as a user would write it: 512K rather than 524288."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


SIZE = Kind(_size, "BYTES", shown=show_size)


# -- times ---------------------------------------------------------------------------------------------------

# 68 years: the smallest limit of the system calls that take a time.
_LONGEST_TIME = 2**31 - 1


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected a number of seconds, got {shown(value)}") from None
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"expected zero or more seconds, got {shown(value)}")
    if seconds > _LONGEST_TIME:
        raise ValueError(f"must be {_LONGEST_TIME} seconds at most, got {shown(value)}")
    return seconds


SECONDS = Kind(_seconds, "SECONDS")


# -- shares --------------------------------------------------------------------------------------------------


def _share(value: Any) -> float:
    """A part of the whole: 0.25 or 25%."""
    text = str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1, or from 0% to 100%, got {shown(value)}")
    return share


def _part(value: Any) -> float:
    share = _share(value)
    if share == 0:
        raise ValueError("must be more than 0")
    return share


SHARE = Kind(_share, "SHARE")
PART = Kind(_part, "SHARE")


# -- numbers of workers --------------------------------------------------------------------------------------


def _workers(value: Any) -> int | str | tuple[int, int]:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    parts = tuple(value.split("..")) if isinstance(value, str) and ".." in value else value
    try:
        if not isinstance(parts, tuple):
            return whole_number(1, 512)(parts)
        least, most = map(whole_number(1, 512), parts)
    except ValueError as error:
        raise ValueError(f"{error}; give a number from 1 to 512, a range such as 2..16, or 'auto'") from None
    if least > most:
        raise ValueError(f"a range begins with its smaller end, got {least}..{most}")
    return (least, most) if least < most else least


def show_workers(workers: int | tuple[int, int]) -> str:
    """A number, or a range as a user would write it: 2..16."""
    return "..".join(map(str, workers)) if isinstance(workers, tuple) else str(workers)


def _surge(value: Any) -> str:
    text = str(value).strip()
    digits = text.removesuffix("%")
    count = number_of(digits) if digits.isascii() and digits.isdigit() else 0
    if isinstance(value, bool) or not 1 <= count < 2**31:
        raise ValueError(
            f"expected a number of workers from 1 on, or a share such as 25%, got {shown(value)}"
        )
    return f"{count}%" if text.endswith("%") else str(count)


WORKERS = Kind(_workers, "N|N..M|auto", shown=show_workers)
SURGE = Kind(_surge, "N|N%")
