"""Which other accounts can write a file; checked by root before it runs code or uses a configuration.

A path is walked from `/` on, folder by folder. Each folder is held by a descriptor and symbolic links are
resolved here (path_resolution(7)), so that nothing can be replaced between check and use. These accounts can
make the path lead elsewhere, for each folder of it:

- its owner, unless that is root or our own account;
- the members of its group, if they may write and it is not root's group;
- everybody, if everybody may write. In a folder with the sticky bit (`/tmp`) others can't replace a folder of
  root or of ours, so such a folder is walked through; a file or a link there is not trusted.

With an access control list (acl(5)) the group's bits are its mask: the named accounts may write, and that
counts as everybody. A folder of root on a file system that is mounted read-only can't be written, whatever
its mode is (Kubernetes mounts a ConfigMap so).

See `imports` for what may be imported here, and when.
"""

import os
import stat
from functools import cache
from typing import NamedTuple

_MOST_LINKS = 40  # as path_resolution(7)
_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_GROUP_OR_ALL = stat.S_IWGRP | stat.S_IWOTH


class Writer(NamedTuple):
    """An account other than root and our own that can change what a path leads to.

    Attributes:
        path: the file or folder that they can write.
        uid: an account that can; None for the group or everybody.
        gid: a group whose members can; with neither, everybody can.
        owner_gid: the group of the file that the account owns.
    """

    path: str
    uid: int | None = None
    gid: int | None = None
    owner_gid: int = -1


class Walk(NamedTuple):
    """The result of following a path.

    Attributes:
        fd: open for reading, or only held (O_PATH); -1 if there is no such file, or if it was to be read
            and others can write it.
        writers: in the order of the path; empty if only root and we can write it.
        missing: there is nothing of that name.
    """

    fd: int
    writers: list[Writer]
    missing: bool = False


def writers(path: str) -> list[Writer]:
    """The accounts besides root and ours that can write the file or folder `path`, or replace it.

    For a path that goes on behind a file (a module in an archive): those that can write that file. For one
    that does not exist: those that could make it. For one that we can't examine: everybody.
    """
    try:
        found = walk(path)
    except OSError:
        return [Writer(path)]
    if found.fd >= 0:
        os.close(found.fd)
    return found.writers


def open_to_read(path: str) -> Walk:
    """As `walk`, for reading; the writers are those of the file that is open.

    A file that others can write is not opened: a link may lead to a device, and opening that may have an
    effect (a watchdog, a tape).

    Raises:
        OSError: it can't be opened, or does not exist.
    """
    found = walk(path, read=True)
    if found.missing:
        raise FileNotFoundError(2, os.strerror(2), path)
    return found


def walk(path: str, read: bool = False) -> Walk:
    """Follow `path`, as described above.

    Args:
        path: may be relative to the current folder.
        read: open the result for reading, else only hold it.

    Raises:
        OSError: it has a loop, or leads through something that is no folder or can't be entered.
    """
    # From getcwd(2): it does not depend on names that others could change.
    whole = path if path.startswith("/") else f"{os.getcwd()}/{path}"  # noqa: PTH109
    names = [name for name in whole.split("/") if name not in ("", ".")]
    folders = [os.open("/", _HOLD | os.O_DIRECTORY)]
    shown = [""]
    found: list[Writer] = []
    hops = 0
    try:
        sticky = _look(folders[0], "/", found)
        names.reverse()
        while names:
            name = names.pop()
            if name == "..":
                if len(folders) > 1:
                    os.close(folders.pop())
                    shown.pop()
                sticky = _is_sticky(folders[-1], os.fstat(folders[-1]))
                continue
            here = f"{'/'.join(shown)}/{name}"
            try:
                fd = os.open(name, _HOLD, dir_fd=folders[-1])
            except FileNotFoundError:
                if sticky:
                    found.append(Writer("/".join(shown) or "/"))
                return Walk(-1, found, missing=True)
            info = os.fstat(fd)
            if stat.S_ISLNK(info.st_mode):
                if sticky:
                    found.append(Writer("/".join(shown) or "/"))
                if not names and _is_magic(info):
                    os.close(fd)
                    fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folders[-1])
                    return _end(fd, here, found, False, read, "", folders[-1])
                target = os.readlink("", dir_fd=fd)
                os.close(fd)
                hops += 1
                if hops > _MOST_LINKS:
                    raise OSError(40, os.strerror(40), path)
                if target.startswith("/"):
                    while len(folders) > 1:
                        os.close(folders.pop())
                        shown.pop()
                names += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                sticky = _is_sticky(folders[-1], os.fstat(folders[-1]))
                continue
            if not stat.S_ISDIR(info.st_mode) or (not names and not read):
                if names and read:
                    os.close(fd)
                    raise NotADirectoryError(20, os.strerror(20), here)
                # With names left it may be an archive: an account that can write it can write all of its
                # content.
                return _end(fd, here, found, sticky, read, name, folders[-1])
            if names or read:
                sticky = _look(fd, here, found)
                folders.append(fd)
                shown.append(name)
        return _end(os.dup(folders[-1]), "/".join(shown) or "/", found, False, read, ".", folders[-1])
    finally:
        for fd in folders:
            os.close(fd)


def _end(fd: int, here: str, found: list[Writer], sticky: bool, read: bool, name: str, folder: int) -> Walk:
    """The last step: check the file, and open it if it is to be read."""
    try:
        if sticky and not stat.S_ISDIR(os.fstat(fd).st_mode):
            found.append(Writer(here))  # it may be a hard link to a file of root
        if not read:
            if _look(fd, here, found):
                found.append(Writer(here))  # others can make names in it
            return Walk(fd, found)
        _look(fd, here, found)
        if found:
            os.close(fd)
            return Walk(-1, found)
        held = os.fstat(fd)
        if name:
            opened = os.open(name, _READ | os.O_NOFOLLOW, dir_fd=folder)
        else:
            opened = os.open(f"/proc/self/fd/{fd}", _READ)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    try:
        if not os.path.samestat(held, os.fstat(opened)):
            raise OSError(116, "it was replaced while it was opened", here)
    except BaseException:
        os.close(opened)
        raise
    return Walk(opened, found)


def _look(fd: int, here: str, found: list[Writer]) -> bool:
    """Add accounts that can write `fd`.

    Returns whether it is a sticky folder, where others can make names.
    """
    info = os.fstat(fd)
    if is_alone():
        return False
    if not is_trusted(info.st_uid):
        found.append(Writer(here, uid=info.st_uid, owner_gid=info.st_gid))
    mode = info.st_mode
    if not mode & _GROUP_OR_ALL or (info.st_uid == 0 and _is_read_only(fd)):
        return False
    if _is_sticky(fd, info):
        return True
    if mode & stat.S_IWOTH or _has_access_list(fd):
        found.append(Writer(here))
    elif mode & stat.S_IWGRP and info.st_gid != 0:
        found.append(Writer(here, gid=info.st_gid))
    return False


@cache
def is_alone() -> bool:
    """Whether root is the only account of our user namespace (user_namespaces(7)).

    Outside the namespace it is an ordinary user with that user's rights, and it can't become another account;
    files of the system's root belong to the overflow uid here. So there is no other account.
    """
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:  # noqa: PTH123 - no pathlib here
            return sum(int(line.split()[2]) for line in file) == 1
    except (OSError, ValueError, IndexError):
        return False


def is_trusted(uid: int) -> bool:
    """Whether it is root or our own account."""
    return uid in (0, os.geteuid())


def _is_sticky(fd: int, info: os.stat_result) -> bool:
    """Whether it is a folder in which others can make names, and change only their own."""
    mode = info.st_mode
    if not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX and mode & _GROUP_OR_ALL) or is_alone():
        return False
    return info.st_uid != 0 or not _is_read_only(fd)


def _is_magic(link: os.stat_result) -> bool:
    """Whether it is a link of /proc to an open file and not to a name (proc_pid_fd(5))."""
    try:
        return link.st_dev == os.stat("/proc").st_dev  # noqa: PTH116
    except OSError:
        return False


def _is_read_only(fd: int) -> bool:
    try:
        return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _has_access_list(fd: int) -> bool:
    """Whether there is an access control list; also true if that can't be determined without /proc."""
    try:
        return any("acl_access" in name or "nfs4_acl" in name for name in os.listxattr(f"/proc/self/fd/{fd}"))
    except OSError as error:
        return error.errno != 95  # EOPNOTSUPP: a file system without these lists


def sole(found: list[Writer]) -> tuple[int, int] | None:
    """The account, as uid and gid, if only one account can write; None if several can.

    A group counts as an account if it is that account's own group: it has its name and no other member.
    """
    import grp
    import pwd

    owners = [(writer.uid, writer.owner_gid) for writer in found if writer.uid is not None]
    uids = {uid for uid, _ in owners}
    for writer in found:
        if writer.uid is not None:
            continue
        if writer.gid is None:
            return None
        try:
            group = grp.getgrgid(writer.gid)
        except KeyError:
            uids.add(writer.gid)  # as in a container, where neither has a name
            continue
        try:
            account = pwd.getpwnam(group.gr_name)
        except KeyError:
            return None
        others = set(group.gr_mem) - {group.gr_name}
        if account.pw_gid != writer.gid or others or _have_group(writer.gid, account.pw_uid):
            return None
        uids.add(account.pw_uid)
    if len(uids) != 1:
        return None
    uid = uids.pop()
    try:
        return uid, pwd.getpwuid(uid).pw_gid
    except KeyError:
        gid = next((gid for _, gid in owners if gid > 0), uid)
        return uid, gid


def _have_group(gid: int, besides: int) -> bool:
    """Whether it is the primary group of another account, which the list of members does not contain."""
    import pwd

    return any(entry.pw_gid == gid and entry.pw_uid != besides for entry in pwd.getpwall())


def shown(found: list[Writer]) -> str:
    """The first of them, for messages: `'app' can write /srv/app`."""
    import grp
    import pwd

    writer = found[0]
    writers_name = "everybody"
    try:
        if writer.uid is not None:
            writers_name = f"uid {writer.uid}"
            writers_name = f"{pwd.getpwuid(writer.uid).pw_name!r}"
        elif writer.gid is not None:
            writers_name = f"the members of gid {writer.gid}"
            writers_name = f"the members of the group {grp.getgrgid(writer.gid).gr_name!r}"
    except KeyError:
        pass
    return f"{writers_name} can write {writer.path}"
