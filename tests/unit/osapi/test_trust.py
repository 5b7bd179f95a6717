"""Which accounts can write a path: owners, groups, everybody, sticky folders, links, missing files."""

import os
import pwd
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import ostler
from ostler.osapi import trust
from ostler.osapi.trust import Writer

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")

UID, GID = 12345, 23456


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that only root can write, with a file of root."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o022 and not path.stat().st_mode & 0o1000:
            path.chmod(0o755)
    safe = tmp_path / "safe"
    safe.mkdir(0o755)
    (safe / "file").write_text("text")
    return safe


def of(path: Path) -> list[Writer]:
    """Which accounts can write the path; the same result for reading and for looking."""
    looked = trust.writers(str(path))
    found = trust.open_to_read(str(path))
    assert found.writers == looked
    assert (found.fd >= 0) == (not looked)
    if found.fd >= 0:
        os.close(found.fd)
    return looked


def test_safe(folder: Path) -> None:
    """Files that only root can write, directly and through links, `..` and the current folder."""
    (folder / "link").symlink_to("../safe/file")
    (folder / "far").symlink_to(folder / "link")
    for name in ("file", "link", "far", "../safe/./file"):
        assert of(folder / name) == []
    assert trust.writers(str(folder)) == []
    assert trust.writers("/") == []


def test_owner(folder: Path) -> None:
    """The owner of the file, of its folder, or of a parent folder can change what the path means."""
    os.chown(folder / "file", UID, GID)
    assert of(folder / "file") == [Writer(str(folder / "file"), uid=UID, owner_gid=GID)]
    os.chown(folder / "file", 0, 0)
    (folder / "in").mkdir()
    (folder / "in/file").touch()
    os.chown(folder, UID, GID)
    assert of(folder / "in/file") == [Writer(str(folder), uid=UID, owner_gid=GID)]


def test_modes(folder: Path) -> None:
    """Everybody, and a group other than root's, if the mode lets them write."""
    (folder / "file").chmod(0o646)
    assert of(folder / "file") == [Writer(str(folder / "file"))]
    os.chown(folder / "file", 0, GID)
    (folder / "file").chmod(0o664)
    assert of(folder / "file") == [Writer(str(folder / "file"), gid=GID)]
    (folder / "file").chmod(0o644)
    assert of(folder / "file") == []
    os.chown(folder / "file", 0, 0)
    (folder / "file").chmod(0o664)
    assert of(folder / "file") == []


def test_sticky(folder: Path) -> None:
    """As in /tmp: a folder of root in it is safe; a file, a link and a missing name are not."""
    folder.chmod(0o1777)
    (folder / "own").mkdir()
    (folder / "own/file").touch()
    (folder / "link").symlink_to("own/file")
    assert of(folder / "own/file") == []
    assert [writer.uid for writer in of(folder / "file")] == [None]
    assert of(folder / "link") == [Writer(str(folder))]
    assert trust.writers(str(folder / "missing")) == [Writer(str(folder))]
    assert trust.writers(str(folder)) == [Writer(str(folder))]
    os.chown(folder / "own", UID, GID)
    assert of(folder / "own/file") == [Writer(str(folder / "own"), uid=UID, owner_gid=GID)]
    assert of(folder / "own/../own/file") == [Writer(str(folder / "own"), uid=UID, owner_gid=GID)] * 2


def test_links(folder: Path) -> None:
    """Both the folder of a link and its target count."""
    other = folder / "other"
    other.mkdir()
    os.chown(other, UID, GID)
    (other / "link").symlink_to(folder / "file")
    (other / "file").touch()
    (folder / "link").symlink_to("other/file")
    by_other = Writer(str(other), uid=UID, owner_gid=GID)
    assert of(other / "link") == [by_other]
    assert of(folder / "link") == [by_other]
    (folder / "round").symlink_to("round")
    with pytest.raises(OSError, match="symbolic links"):
        trust.open_to_read(str(folder / "round"))
    assert trust.writers(str(folder / "round")) == [Writer(str(folder / "round"))]


def test_missing(folder: Path) -> None:
    """A missing file: the accounts that could create it; opening it is the usual error."""
    assert trust.writers(str(folder / "no/file")) == []
    with pytest.raises(FileNotFoundError):
        trust.open_to_read(str(folder / "no"))
    with pytest.raises(NotADirectoryError):
        trust.open_to_read(str(folder / "file/more"))


def test_archive(folder: Path) -> None:
    """A file in an archive has the archive's writers; a file to be read can't be in an archive."""
    assert trust.writers(str(folder / "file/part.py")) == []
    os.chown(folder / "file", UID, GID)
    by_other = Writer(str(folder / "file"), uid=UID, owner_gid=GID)
    assert trust.writers(str(folder / "file/part.py")) == [by_other]


def test_mounted_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes of Kubernetes have modes open to all, and links in them, and can't be written."""
    (folder / "..2026").mkdir()
    (folder / "..2026/conf.py").touch()
    (folder / "..data").symlink_to("..2026")
    (folder / "conf.py").symlink_to("..data/conf.py")
    folder.chmod(0o1777)
    assert of(folder / "conf.py") != []
    monkeypatch.setattr(trust, "_is_read_only", lambda fd: True)
    assert of(folder / "conf.py") == []
    folder.chmod(0o777)
    assert of(folder / "conf.py") == []


def test_what_others_can_write_is_not_opened(folder: Path, opened: list[str]) -> None:
    """A link of others may lead to a device, and opening a device may have effects."""
    (folder / "link").symlink_to("/dev/null")
    os.chown(folder, UID, GID)
    assert trust.open_to_read(str(folder / "link")).writers[0].uid == UID
    assert opened == []


def test_descriptor(folder: Path) -> None:
    """For links in /proc the open file counts to which they lead."""
    with (folder / "file").open() as file:
        found = trust.open_to_read(f"/dev/fd/{file.fileno()}")
    assert found.writers == []
    assert os.read(found.fd, 10) == b"text"
    os.close(found.fd)


def test_access_list(folder: Path) -> None:
    """An access control list with write permission shows in the group's bits (acl(5))."""
    # linux/posix_acl_xattr.h: version 2, then tag, permissions and id of owner, UID, group, mask and others.
    entries = [(0x01, 6, -1), (0x02, 6, UID), (0x04, 4, -1), (0x10, 6, -1), (0x20, 4, -1)]
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(folder / "file", "system.posix_acl_access", packed)
    except OSError:
        pytest.skip("a file system without access control lists")
    assert of(folder / "file") == [Writer(str(folder / "file"))]


def test_the_file_that_was_checked_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that replaces it between check and opening is refused."""
    real_open = os.open

    def swap(path: str, flags: int, *args: int, **more: int) -> int:
        if path == "file" and not flags & os.O_PATH:
            (folder / "file").unlink()
            (folder / "file").write_text("another")
        return real_open(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match="replaced"):
        trust.open_to_read(str(folder / "file"))


def test_no_socket_is_opened(folder: Path) -> None:
    """A path that can't be opened is the usual error, and no descriptor stays open."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "sock"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No such device"):
        trust.open_to_read(str(folder / "sock"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_only_writer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One account, by its own files and its own group; several accounts give none."""
    nobody = 65534
    own = Writer("a", uid=nobody, owner_gid=nobody)
    assert trust.sole([own, own]) == (nobody, nobody)
    assert trust.sole([own, Writer("b")]) is None
    assert trust.sole([own, Writer("b", uid=1, owner_gid=1)]) is None
    # Without names, as in a container: the group belongs to the account with the same number.
    assert trust.sole([Writer("a", uid=UID, owner_gid=UID), Writer("a", gid=UID)]) == (UID, UID)
    assert trust.sole([Writer("a", uid=UID, owner_gid=0)]) == (UID, UID)
    assert trust.sole([Writer("a", gid=1)]) == (1, 1)  # daemon's own group
    everybody = pwd.getpwall()
    monkeypatch.setattr(
        pwd, "getpwall", lambda: [*everybody, pwd.struct_passwd(("x", "", 7777, 1, "", "", ""))]
    )
    # The group of `daemon` is also the primary group of another account.
    assert trust.sole([Writer("a", gid=1)]) is None
    assert "'nobody' can write a" in trust.shown([own])
    assert "everybody can write b" in trust.shown([Writer("b")])


def test_alone_in_a_user_namespace(folder: Path) -> None:
    """Root of a user namespace with one account has no rights outside; the system's root appears there as the
    overflow user (user_namespaces(7)).
    """
    alone = ["unshare", "--user", "--map-root-user", sys.executable, "-c"]
    if subprocess.run([*alone, ""], check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here")
    os.chown(folder, UID, GID)
    folder.chmod(0o777)
    root = str(Path(ostler.__file__).parents[1])
    source = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from ostler.osapi import trust\n"
        f"print(trust.writers({str(folder / 'file')!r}))"
    )
    done = subprocess.run([*alone, source], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
    assert len(of(folder / "file")) == 2
