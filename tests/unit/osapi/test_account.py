"""Accounts: finding one, and becoming one."""

import os
import pwd
from pathlib import Path

import pytest

from ostler.errors import SettingError
from ostler.osapi.account import Account, files_as, find_account

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may be somebody else")
NOBODY = pwd.getpwnam("nobody")


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    find_account.cache_clear()


def test_no_account_asked_for() -> None:
    """Without user and group, and with those that the process has, nothing is to be changed."""
    own = pwd.getpwuid(os.geteuid())
    assert find_account(None, None, True) is None
    assert find_account(None, str(os.getegid()), False) is None
    if set(os.getgroups()) <= {own.pw_gid} and os.getegid() == own.pw_gid:
        assert find_account(own.pw_name, None, False) is None


@ROOT
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (("nobody", None, False), Account(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))),
        ((str(NOBODY.pw_uid), None, False), Account(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))),
        (("nobody", "123456", False), Account(NOBODY.pw_uid, 123456, (123456,))),
        (("123456", None, True), Account(123456, 123456, (123456,))),
        ((None, "123456", True), Account(None, 123456, None)),
    ],
)
def test_found(asked: tuple[str | None, str | None, bool], found: Account) -> None:
    """Names and numbers; a user alone brings its own group;
    a number without an account gets the group of that number.
    """
    assert find_account(*asked) == found


@ROOT
def test_initgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """All groups of the user, as in the machine's group database."""
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 7, 8] if name == "nobody" else [])
    account = find_account("nobody", None, True)
    assert account is not None
    assert account.groups == (NOBODY.pw_gid, 7, 8)


def test_not_found() -> None:
    """The setting that is wrong is named."""
    with pytest.raises(SettingError, match=r"^user: there is no user 'no_such_user'"):
        find_account("no_such_user", "no_such_group", False)
    with pytest.raises(SettingError, match=r"^group: there is no group 'no_such_group'"):
        find_account(None, "no_such_group", False)


@ROOT
def test_groups_that_stay() -> None:
    """Root in other groups is not the same as the wanted account."""
    assert not Account(0, os.getegid(), ()).is_ours or set(os.getgroups()) <= {os.getegid()}
    assert Account(0, os.getegid(), tuple(os.getgroups())).is_ours


@ROOT
def test_files_as_another(tmp_path: Path) -> None:
    """Files are accessed without root's rights and groups; afterwards these are restored."""
    before = os.getgroups()
    path = tmp_path / "file"
    path.touch(0o640)
    os.chown(path, 0, 34567)
    tmp_path.chmod(0o755)
    try:
        os.setgroups([34567])
        with (
            pytest.raises(PermissionError),
            files_as(Account(NOBODY.pw_uid, NOBODY.pw_gid, (NOBODY.pw_gid,))),
        ):
            path.open()
        assert os.getgroups() == [34567]
        assert path.read_text() == ""
    finally:
        os.setgroups(before)
