"""Whose rights a process has: finding an account, becoming it for good, or borrowing its view of files."""

import ctypes
import grp
import os
import pwd
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from ostler.errors import SettingError


class Account(NamedTuple):
    """Numbers of a user and a group.

    Attributes:
        uid: None for the one that we have.
        gid: None for the one that we have, because nobody named one.
        groups: what else it is a member of; None leaves what we are in.
    """

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None

    @property
    def is_ours(self) -> bool:
        """Becoming it would change nothing; what we are a member of does not count for others than root."""
        uid, gid = os.geteuid(), os.getegid()
        same = self.uid in (None, uid) and self.gid in (None, gid)
        return same and (uid != 0 or self.groups is None or set(os.getgroups()) <= {*self.groups, gid})


@cache  # a directory service that does not answer must hold the supervisor up at its start alone
def find_account(user: str | None, group: str | None, initgroups: bool) -> Account | None:
    """The account of a user and a group by name or number; None if neither is given, or it is who we are.

    A user alone brings its own group. A number without an account is fine; for root its group has the same
    number, since root's own could write what only root is to write.

    Args:
        initgroups: with all groups that the user is in, else with none but the one (initgroups(3)).

    Raises:
        SettingError: there is no such user or group.
    """
    if user is None and group is None:
        return None
    entry = _user(user) if user is not None else None
    uid = entry.pw_uid if entry is not None else None if user is None else int(user)
    gid = _group(group) if group is not None else entry.pw_gid if entry is not None else None
    if gid is None and uid is not None and os.geteuid() == 0:
        gid = uid
    groups: tuple[int, ...] | None = None
    if uid is not None:
        own = os.getegid() if gid is None else gid
        groups = tuple(os.getgrouplist(entry.pw_name, own)) if initgroups and entry is not None else (own,)
    account = Account(uid, gid, groups)
    return None if account.is_ours else account


def _user(user: str) -> pwd.struct_passwd | None:
    """A name goes before a number, as in chown(1)."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        pass
    if not user.isdecimal():
        raise SettingError("user", f"there is no user {user!r}")
    try:
        return pwd.getpwuid(int(user))
    except KeyError:
        return None


def has_account(user: str) -> bool:
    """Whether a user that `find_account` has found has an account."""
    return _user(user) is not None


def _group(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        pass
    if not group.isdecimal():
        raise SettingError("group", f"there is no group {group!r}")
    return int(group)


def become(account: Account) -> None:
    """Give up what rights we have for those of `account`; there is no way back.

    Real, effective and saved ids all change (setresuid(2)). The kernel then takes the process for one that
    knows more than its user may (PR_SET_DUMPABLE of prctl(2)), which is true of one that has read a private
    key: only root may trace it or read its memory, and it leaves no core file unless fs.suid_dumpable says
    so. That is inherited by forks, and ends with exec.

    Raises:
        OSError: the kernel refuses; nothing is changed, or groups alone.
    """
    if account.groups is not None:
        os.setgroups(account.groups)
    if account.gid is not None:
        os.setresgid(account.gid, account.gid, account.gid)
    if account.uid is not None:
        if account.gid is None:
            gid = os.getegid()
            os.setresgid(gid, gid, gid)
        os.setresuid(account.uid, account.uid, account.uid)
        if account.uid != 0:
            _check_no_return()


def _check_no_return() -> None:
    """Raises OSError if the way back is open, as with SECBIT_KEEP_CAPS (capabilities(7))."""
    try:
        os.setuid(0)
    except OSError:
        return
    # Not PermissionError: we may, and are root again; nothing must go on like this, a trial neither.
    raise OSError("it would not be for good")


@contextmanager
def files_as(account: Account) -> Iterator[None]:
    """Reach files as `account` does, in this thread alone (setfsuid(2)).

    Meanwhile we are in the account's groups, in all threads: root may be in some that the account is not in
    (disk, on several systems). Other threads of root's lose no right by that.
    """
    libc = ctypes.CDLL(None)
    libc.setfsuid.argtypes = libc.setfsgid.argtypes = (ctypes.c_uint32,)
    gid = os.getegid() if account.gid is None else account.gid
    uid = os.geteuid() if account.uid is None else account.uid
    before = os.getgroups()
    other = account.groups is not None and set(account.groups) != set(before) and _set_groups(account.groups)
    libc.setfsgid(gid)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())
        libc.setfsgid(os.getegid())
        if other:
            os.setgroups(before)


def _set_groups(groups: Sequence[int]) -> bool:
    """False if we may not; then we can't become the account either."""
    try:
        os.setgroups(groups)
    except PermissionError:
        return False
    return True
