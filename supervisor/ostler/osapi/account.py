"""Accounts: finding one, becoming it for good, or accessing files with its rights."""

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
        uid: None for that of this process.
        gid: None for that of this process, because no group was named.
        groups: supplementary groups; None for those of this process.
    """

    uid: int | None
    gid: int | None
    groups: tuple[int, ...] | None

    @property
    def is_ours(self) -> bool:
        """Whether becoming it would change nothing. Supplementary groups count only for root."""
        uid, gid = os.geteuid(), os.getegid()
        same = self.uid in (None, uid) and self.gid in (None, gid)
        return same and (uid != 0 or self.groups is None or set(os.getgroups()) <= {*self.groups, gid})


@cache  # a directory service that does not answer must delay the supervisor only at its start
def find_account(user: str | None, group: str | None, initgroups: bool) -> Account | None:
    """The account of a user and a group by name or number; None if neither is set, or if it is our own
    account.

    Without `group` it is the user's own group. A number without an account is allowed; if we are root its
    group has the same number, since root's own group could write files that are only for root.

    Args:
        initgroups: with all groups of the user (initgroups(3)), else only with the one group.

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
    """A text is first looked up as a name, then as a number, as in chown(1)."""
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
    """Give up our rights for those of `account`, for good.

    Real, effective and saved ids all change (setresuid(2)). The kernel then protects the process from
    its user (PR_SET_DUMPABLE of prctl(2)), as it may have read a private key: only root may trace it or read
    its memory, and it writes no core file unless fs.suid_dumpable allows that. Forks inherit this; it ends
    with exec.

    Raises:
        OSError: the kernel refuses; nothing is changed, or only groups.
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
    """Raise OSError if we can become root again, as with SECBIT_KEEP_CAPS (capabilities(7))."""
    try:
        os.setuid(0)
    except OSError:
        return
    # Not PermissionError: nothing was denied, we are root again. The caller must not go on, not even a trial.
    raise OSError("root's rights could be regained")


@contextmanager
def files_as(account: Account) -> Iterator[None]:
    """Access files with the rights of `account`, only in this thread (setfsuid(2)).

    The supplementary groups change in all threads: root may be in groups that the account is not in (e.g.
    disk). Other threads of root lose no right by that.
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
    """False if that is not permitted; then we can't become the account either."""
    try:
        os.setgroups(groups)
    except PermissionError:
        return False
    return True
