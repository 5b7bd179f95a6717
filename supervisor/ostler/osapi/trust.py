"""Who else can write a file: asked by root before it runs code or believes a configuration.

A path is walked from `/` on, folder by folder, each held by a descriptor and symbolic links resolved by hand
(path_resolution(7)), so that nothing can be put in its place between the look and the use. Each folder on the
way says who can have the path mean something else:

- its owner, unless that is root or the account that we are;
- the members of its group, if they may write and it is not root's group;
- everybody, if everybody may write. In a folder with the sticky bit (`/tmp`) others can't replace a folder
  that is root's or ours, so the way goes on through such a one; a file or a link there is not believed.

With an access control list (acl(5)) the group's bits are its mask: those that it names may write, and that
counts as everybody. A folder of root's on a file system that is mounted read-only can't be written, whatever
its mode says (Kubernetes mounts a ConfigMap so).

See `imports` for what may be imported here, and when.
"""

import os
import stat
from functools import cache
from typing import NamedTuple

_MOST_LINKS = 40  # as path_resolution(7)
_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO that lies there must not hold us up.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_GROUP_OR_ALL = stat.S_IWGRP | stat.S_IWOTH


class Writer(NamedTuple):
    """An account other than root and our own that can change what a path leads to.

    Attributes:
        path: the file or folder that they can write.
        uid: an account that can; None for the group or everybody.
        gid: a group whose members can; with neither, everybody can.
        owner_gid: the group of what the account owns.
    """

    path: str
    uid: int | None = None
    gid: int | None = None
    owner_gid: int = -1


class Walk(NamedTuple):
    """What a path leads to.

    Attributes:
        fd: open for reading, or held by O_PATH if that was asked for; -1 if there is nothing, or others can
            write what was to be read.
        writers: in the order of the path; empty if only root and we can write it.
        missing: there is nothing of that name.
    """

    fd: int
    writers: list[Writer]
    missing: bool = False


def writers(path: str) -> list[Writer]:
    """Who besides root and us can write the file or folder `path`, or have the path mean another one.

    Of a path that goes on behind a file (a module in an archive): who can write that file. Of what does not
    exist: who could make it. Of what we can't look at: taken for everybody's.
    """
    try:
        found = walk(path)
    except OSError:
        return [Writer(path)]
    if found.fd >= 0:
        os.close(found.fd)
    return found.writers


def open_to_read(path: str) -> Walk:
    """As `walk`, for reading; the writers are those of the very file that is open.

    What others can write is not opened: to open a device is to use it (a watchdog, a tape), and a link may
    lead to one.

    Raises:
        OSError: it can't be opened, or there is nothing.
    """
    found = walk(path, read=True)
    if found.missing:
        raise FileNotFoundError(2, os.strerror(2), path)
    return found


def walk(path: str, read: bool = False) -> Walk:
    """Follow `path`; see above.

    Args:
        path: counts from the current folder if it is relative.
        read: open what it leads to for reading, else only hold it.

    Raises:
        OSError: it leads in circles, or through something that is no folder or can't be entered.
    """
    # By the kernel's word for it: no name that others could change leads to the current folder.
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
                # With names left it is an archive, perhaps: who can write it can write all that is in it.
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
    """The last step: look at what is there, and open it if it is to be read."""
    try:
        if sticky and not stat.S_ISDIR(os.fstat(fd).st_mode):
            found.append(Writer(here))  # a second name of a file of root's, perhaps
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
    """Note who can write what is open; whether it is a folder in which others can make names, and no more."""
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

    Outside the namespace it is an ordinary user, has the rights of that user and can take no other account;
    files of the system's root belong to the overflow uid here. So there is no account to guard against.
    """
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:  # noqa: PTH123 - no pathlib here
            return sum(int(line.split()[2]) for line in file) == 1
    except (OSError, ValueError, IndexError):
        return False


def is_trusted(uid: int) -> bool:
    """Root, and the account that we are."""
    return uid in (0, os.geteuid())


def _is_sticky(fd: int, info: os.stat_result) -> bool:
    """Whether it is a folder in which others can make names, and change none but their own."""
    mode = info.st_mode
    if not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX and mode & _GROUP_OR_ALL) or is_alone():
        return False
    return info.st_uid != 0 or not _is_read_only(fd)


def _is_magic(link: os.stat_result) -> bool:
    """Whether it is one of proc's that lead to an open file and not to a name (proc_pid_fd(5))."""
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
    """Also where that can't be found out: of a held descriptor only /proc tells."""
    try:
        return any("acl_access" in name or "nfs4_acl" in name for name in os.listxattr(f"/proc/self/fd/{fd}"))
    except OSError as error:
        return error.errno != 95  # EOPNOTSUPP: a file system without such


def sole(found: list[Writer]) -> tuple[int, int] | None:
    """The one account, as uid and gid, if all that can write is that account; None if several can.

    A group counts as an account if it is that account's own: it bears its name and has no other member.
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
    """Whether it is the first group of another account, which does not show among its members."""
    import pwd

    return any(entry.pw_gid == gid and entry.pw_uid != besides for entry in pwd.getpwall())


def shown(found: list[Writer]) -> str:
    """The first of them, for people: `uid 1000 (app) can write /srv/app`."""
    import grp
    import pwd

    writer = found[0]
    who = "everybody"
    try:
        if writer.uid is not None:
            who = f"uid {writer.uid}"
            who = f"{pwd.getpwuid(writer.uid).pw_name!r}"
        elif writer.gid is not None:
            who = f"the members of gid {writer.gid}"
            who = f"the members of the group {grp.getgrgid(writer.gid).gr_name!r}"
    except KeyError:
        pass
    return f"{who} can write {writer.path}"
