"""Accounts, and permissions of files: owners, modes, the umask."""

from typing import Any

from ostler.settings.kinds.kind import Kind, shown
from ostler.settings.kinds.numbers import number_of
from ostler.settings.kinds.texts import optional_text

# The number above it means "unchanged" to the kernel (setresuid(2)).
_LARGEST_ID = 2**32 - 2


def _account(value: Any) -> str | None:
    """A user's or a group's name or number; files for gunicorn give None, a number or a text."""
    if isinstance(value, int) and not isinstance(value, bool):
        number: int | None = value
    else:
        value = optional_text(value)
        digits = value.removeprefix("-") if value is not None else ""
        number = number_of(digits) * (-1 if digits != value else 1) if digits.isdecimal() else None
    if number is not None and not 0 <= number <= _LARGEST_ID:
        raise ValueError(f"a user's or group's number is from 0 to {_LARGEST_ID}, got {shown(value)}")
    return None if value is None else str(value)


def _owner(value: Any) -> str | None:
    owner = optional_text(value)
    if owner is None:
        return None
    user, colon, group = owner.partition(":")
    if not (user or group) or (colon and not group) or ":" in group:
        raise ValueError(f"expected USER, USER:GROUP or :GROUP, got {shown(owner)}")
    return owner


ACCOUNT = Kind(_account, "NAME")
OWNER = Kind(_owner, "USER:GROUP")


def _mode(value: Any) -> str | None:
    """A file's mode as four octal digits: of text in octal digits, or of the number itself."""
    if value is None:
        return None
    if isinstance(value, str):
        digits = value.strip().lower().removeprefix("0o")
        if not digits:
            return None
        try:
            number = int(digits, 8)
        except ValueError:
            number = -1
    else:
        number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= number <= 0o777:
        # 660 in a Python file is a slip for 0o660; as a number it is 0o1224.
        raise ValueError(
            f"expected a mode in octal such as 0660 (in a file '0660' or 0o660), got {shown(value)}"
        )
    return f"{number:04o}"


def _socket_mode(value: Any) -> str:
    # gunicorn's --help shows its default in decimal: 384. Decimal is meant if the digits can't be octal.
    if isinstance(value, str) and value.strip().isdecimal() and not value.strip().startswith("0"):
        value = int(value) if {"8", "9"} & set(value) else value
    return _mode(value) or "0600"


MODE = Kind(_mode, "MODE")
SOCKET_MODE = Kind(_socket_mode, "MODE")


def _umask(value: Any) -> str:
    """Four octal digits. As in gunicorn text is decimal unless it begins with 0, 0o or 0x."""
    number = value
    if isinstance(value, str):
        digits = value.strip().lower()
        try:
            number = int(digits, 8) if digits.isdecimal() and digits.startswith("0") else int(digits, 0)
        except ValueError:
            number = -1
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"expected a mask in octal such as 022 (in a file 0o022), got {shown(value)}")
    return f"{number & 0o777:04o}"  # the kernel takes no other bits, umask(2)


UMASK = Kind(_umask, "MODE")
