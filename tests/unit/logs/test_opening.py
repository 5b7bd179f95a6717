"""Root opens logs for an account without following the account's links."""

import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostler.logs.opening import make_for_sharer, open_log, share_with
from ostler.osapi.account import Account

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others, which takes privileges")

UID, GID = 123456, 123457


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of root that all may enter, unlike pytest's, because logs are shared with an account."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        share_with(Account(UID, GID, (GID,)))
        yield place
        share_with(None)


def opened(path: Path) -> tuple[int, int]:
    """Open a log; returns its owner."""
    os.close(open_log(str(path)))
    info = path.stat()
    return info.st_uid, info.st_gid


@needs_root
def test_in_a_folder_of_root(folder: Path) -> None:
    """A new log belongs to the account; an existing one keeps its group; a writable one is not changed."""
    assert opened(folder / "new.log") == (UID, GID)
    old = folder / "old.log"
    old.touch(0o640)
    os.chown(old, 0, 4)
    assert opened(old) == (UID, 4)
    shared = folder / "shared.log"
    shared.touch()
    shared.chmod(0o666)
    assert opened(shared) == (0, 0)
    old.rename(folder / "rotated.log")
    make_for_sharer(str(old))
    assert opened(old) == (UID, GID)


@needs_root
def test_in_a_folder_of_the_account(folder: Path) -> None:
    """There only the account's rights count:
    its links give root's process access to no more than the account has.
    """
    mine = folder / "mine"
    mine.mkdir()
    os.chown(mine, UID, GID)
    assert opened(mine / "a.log") == (UID, GID)
    victim = folder / "victim"
    victim.touch(0o600)
    sub = mine / "sub"
    sub.mkdir()
    for link, target in (("link", victim), ("way", folder), ("up", Path("..") / "victim")):
        (mine / link).symlink_to(target)
    for path in (mine / "link", mine / "way" / "victim", mine / "up", sub / "victim.log"):
        with pytest.raises(PermissionError):
            open_log(str(path))
    (folder / "to_mine").symlink_to(mine / "link")
    with pytest.raises(PermissionError):
        open_log(str(folder / "to_mine"))
    assert (victim.stat().st_uid, sorted(sub.iterdir())) == (0, [])


@needs_root
def test_in_a_folder_of_a_third_account(folder: Path) -> None:
    """The owner of a folder, e.g. the account that deploys the app, can't make root give files to the app."""
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, UID + 5, GID + 5)
    victim = folder / "victim"
    victim.touch(0o600)
    (theirs / "link.log").symlink_to(victim)
    (theirs / "way").symlink_to(folder)
    (theirs / "moved.log").touch(0o600)
    for path in (theirs / "link.log", theirs / "way" / "victim", theirs / "moved.log", theirs / "new.log"):
        with pytest.raises(PermissionError):
            open_log(str(path))
    assert {path.stat().st_uid for path in (victim, theirs / "moved.log")} == {0}
    assert not (theirs / "new.log").exists()


@needs_root
def test_in_a_folder_of_root_and_a_group(folder: Path) -> None:
    """As /var/log on some systems: logs are created there, links of the group's members are not followed."""
    shared = folder / "shared"
    shared.mkdir()
    os.chown(shared, 0, GID + 5)
    shared.chmod(0o775)
    assert opened(shared / "new.log") == (UID, GID)
    victim = folder / "victim"
    victim.touch(0o600)
    for name, target in (("link.log", victim), ("way", folder)):
        (shared / name).symlink_to(target)
        os.chown(shared / name, UID + 5, GID + 5, follow_symlinks=False)
    for path in (shared / "link.log", shared / "way" / "victim"):
        with pytest.raises(PermissionError):
            open_log(str(path))
    assert victim.stat().st_uid == 0


@needs_root
def test_where_the_account_does_not_get(folder: Path) -> None:
    """A log in a folder that the account can't enter is an error."""
    (folder / "closed").mkdir(0o700)
    with pytest.raises(PermissionError):
        open_log(str(folder / "closed" / "a.log"))


@needs_root
def test_links_of_root(folder: Path) -> None:
    """Root's own links are followed."""
    (folder / "real").mkdir()
    (folder / "link").symlink_to("real")
    assert opened(folder / "link" / ".." / "link" / "a.log") == (UID, GID)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        open_log(str(folder / "loop" / "a.log"))


@needs_root
def test_where_all_may_write(folder: Path) -> None:
    """In folders like /tmp, files may belong to other accounts: they keep their owner."""
    place = folder / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    assert opened(place / "new.log") == (UID, GID)
    (place / "mine.log").touch(0o600)
    with pytest.raises(PermissionError):
        open_log(str(place / "mine.log"))
    (place / "below").mkdir()
    assert opened(place / "below" / "a.log") == (UID, GID)
    (place / "theirs").symlink_to(place / "below")
    os.chown(place / "theirs", UID, GID, follow_symlinks=False)
    (place / "below" / "root.log").touch(0o600)
    with pytest.raises(PermissionError):
        open_log(str(place / "theirs" / "root.log"))


@needs_root
def test_a_folder_with_an_access_list(folder: Path) -> None:
    """The mode does not show all accounts that may write (acl(5)): a link in it may be one of theirs."""
    place = folder / "listed"
    place.mkdir()
    # linux/posix_acl_xattr.h: version 2; the owner, one more user, the group, the mask, others.
    entries = [(1, 7, -1), (2, 7, UID), (4, 0, -1), (16, 7, -1), (32, 5, -1)]
    listed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(place, "system.posix_acl_access", listed)
    except OSError:
        pytest.skip("this file system has no access control lists")
    (folder / "victim").touch(0o600)
    (place / "a.log").symlink_to(folder / "victim")
    with pytest.raises(PermissionError):
        open_log(str(place / "a.log"))
    assert (folder / "victim").stat().st_uid == 0
    assert opened(place / "new.log")[0] == UID


@needs_root
def test_hard_links_and_fifos(folder: Path) -> None:
    """A hard link and a FIFO keep their owner."""
    (folder / "victim").touch(0o600)
    (folder / "second.log").hardlink_to(folder / "victim")
    os.mkfifo(folder / "fifo", 0o600)
    for name in ("second.log", "fifo"):
        with pytest.raises(PermissionError):
            open_log(str(folder / name))
        assert (folder / name).stat().st_uid == 0


def test_own_rights_are_back(tmp_path: Path) -> None:
    """After each opening the process is root again, also for files."""
    share_with(Account(UID, GID, (GID,)))
    try:
        with pytest.raises(OSError, match="directory"):
            open_log(str(tmp_path / "no" / "a.log"))
        assert Path("/proc/self/status").read_text().split("Uid:")[1].split()[:4] == [str(os.geteuid())] * 4
        assert Path("/proc/self/status").read_text().split("Gid:")[1].split()[:4] == [str(os.getegid())] * 4
    finally:
        share_with(None)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_descriptor_by_name(name: str) -> None:
    """A descriptor that can't be opened again, here a socket, is used directly."""
    script = f"import os\nfrom ostler.logs.opening import open_log\nos.write(open_log({name!r}), b'line')"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run([sys.executable, "-c", script], stdout=theirs, check=True)
        assert ours.recv(16) == b"line"
