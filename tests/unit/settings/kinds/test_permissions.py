"""Accounts, owners, modes, the umask: what a user may write, and the text of a refusal."""

from typing import Any

import pytest

from ostler.settings.kinds import permissions
from ostler.settings.kinds.kind import Kind
from tests.unit.settings.kinds.checks import assert_becomes, assert_refused


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (permissions.MODE, "0660", "0660"),
        (permissions.MODE, "660", "0660"),
        (permissions.MODE, "0o600", "0600"),
        (permissions.MODE, 0o660, "0660"),
        (permissions.MODE, "0", "0000"),
        (permissions.MODE, "", None),
        (permissions.MODE, None, None),
        (permissions.OWNER, "www-data", "www-data"),
        (permissions.OWNER, "www:data", "www:data"),
        (permissions.OWNER, ":data", ":data"),
        (permissions.OWNER, "1000:1000", "1000:1000"),
        (permissions.OWNER, None, None),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    assert_becomes(kind, given, value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (permissions.MODE, 660, "(in a file '0660' or 0o660), got 660"),
        (permissions.MODE, 777, "expected a mode in octal"),
        (permissions.MODE, "0680", "expected a mode in octal such as 0660"),
        (permissions.MODE, "1777", "expected a mode in octal"),
        (permissions.MODE, "-1", "expected a mode in octal"),
        (permissions.MODE, True, "expected a mode in octal"),
        (permissions.MODE, 6.0, "expected a mode in octal"),
        (permissions.OWNER, ":", "expected USER, USER:GROUP or :GROUP, got ':'"),
        (permissions.OWNER, "a:", "expected USER, USER:GROUP or :GROUP, got 'a:'"),
        (permissions.OWNER, "a:b:c", "expected USER, USER:GROUP or :GROUP"),
        (permissions.OWNER, 5, "expected text, got 5"),
        (permissions.UMASK, "089", "expected a mask in octal such as 022 (in a file 0o022), got '089'"),
        (permissions.UMASK, -1, "expected a mask in octal"),
        (permissions.UMASK, "-1", "expected a mask in octal"),
        (permissions.UMASK, None, "expected a mask in octal"),
        (permissions.UMASK, True, "expected a mask in octal"),
        (permissions.SOCKET_MODE, "999", "expected a mode in octal"),
        (permissions.SOCKET_MODE, "0888", "expected a mode in octal"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    assert_refused(kind, given, problem)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        # gunicorn takes text as decimal unless it begins with a prefix.
        (permissions.UMASK, "022", "0022"),
        (permissions.UMASK, " 007 ", "0007"),
        (permissions.UMASK, "0", "0000"),
        (permissions.UMASK, "00", "0000"),
        (permissions.UMASK, "18", "0022"),
        (permissions.UMASK, "0x12", "0022"),
        (permissions.UMASK, "0o22", "0022"),
        (permissions.UMASK, 0o077, "0077"),
        (permissions.UMASK, 664, "0230"),
        (permissions.SOCKET_MODE, "0660", "0660"),
        (permissions.SOCKET_MODE, "660", "0660"),
        (permissions.SOCKET_MODE, "384", "0600"),
        (permissions.SOCKET_MODE, 384, "0600"),
        (permissions.SOCKET_MODE, None, "0600"),
    ],
)
def test_values_as_gunicorn_takes_them(kind: Kind, given: Any, value: Any) -> None:
    """Forms that its files and command lines have, with the meaning that they have there."""
    assert kind.parse(given) == value


@pytest.mark.parametrize("value", [-1, 2**32 - 1, "-1", "99999999999", "9" * 5000])
def test_accounts_out_of_range(value: Any) -> None:
    """Numbers that no user or group can have (setresuid(2)); the largest is 4294967294."""
    with pytest.raises(ValueError, match="from 0 to 4294967294"):
        permissions.ACCOUNT.parse(value)
    assert permissions.ACCOUNT.parse("4294967294") == "4294967294"
