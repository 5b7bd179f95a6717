"""Where the control socket is, and that it belongs to exactly one instance."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.control import sockets
from ostler.control.sockets import (
    OwnedSocket,
    TokenFile,
    UntrustedFolder,
    candidate_dirs,
    default_socket_path,
    safe_name,
    trusted_owners,
)
from ostler.errors import SettingError
from ostler.osapi import unix_sockets


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_socket_is_ours_alone(tmp_path: Path, umask: int) -> None:
    """It has mode 0600 for any umask, which is then restored; nothing is left after release."""
    before = os.umask(umask)
    try:
        owned = OwnedSocket.claim(tmp_path / "a.sock")
        assert mode_of(owned.path) == 0o600
        assert mode_of(tmp_path / "a.sock.lock") == 0o600
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    owned.release()
    owned.release()
    assert list(tmp_path.iterdir()) == []


def test_a_live_instance_is_left_alone(tmp_path: Path) -> None:
    """A second claim fails with one line that names the setting and the owner; the first continues."""
    first = OwnedSocket.claim(tmp_path / "a.sock")
    first.socket.listen()
    with pytest.raises(SettingError, match=rf"^control_socket: .*in use.*pid {os.getpid()}") as caught:
        OwnedSocket.claim(tmp_path / "a.sock")
    assert "\n" not in str(caught.value)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(first.path))
    first.release()
    OwnedSocket.claim(tmp_path / "a.sock").release()


def test_an_instance_that_does_not_listen_yet_is_left_alone(tmp_path: Path) -> None:
    """Between bind and listen a socket refuses connections like a dead one; the lock shows the difference."""
    first = OwnedSocket.claim(tmp_path / "a.sock")
    with pytest.raises(SettingError, match="in use"):
        OwnedSocket.claim(tmp_path / "a.sock")
    first.release()


def test_another_programs_live_socket_is_left_alone(tmp_path: Path) -> None:
    """A program that does not use our lock but listens there keeps its socket."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(SettingError, match="in use"):
            OwnedSocket.claim(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not (tmp_path / "a.sock.lock").exists()


def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    """Socket and lock file of a killed instance are no obstacle."""
    path = tmp_path / "a.sock"
    script = (
        "import os, sys, pathlib; from ostler.control.sockets import OwnedSocket;"
        "OwnedSocket.claim(pathlib.Path(sys.argv[1])).socket.listen(); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=20)
    assert killed.returncode == -9
    assert path.is_socket()
    assert (tmp_path / "a.sock.lock").exists()
    owned = OwnedSocket.claim(path)
    assert mode_of(path) == 0o600
    owned.release()


def test_a_lock_whose_file_was_unlinked_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unlink race: between our open and our flock the owner removes the lock file.
    The claim starts again.
    """
    lock = tmp_path / "a.sock.lock"
    real, locked = fcntl.flock, []

    def race(descriptor: int, how: int) -> None:
        real(descriptor, how)
        locked.append(os.fstat(descriptor).st_ino)
        if len(locked) == 1:
            lock.rename(tmp_path / "gone")  # keeps the inode number from being reused

    monkeypatch.setattr("fcntl.flock", race)
    owned = OwnedSocket.claim(tmp_path / "a.sock")
    assert len(locked) == 2
    assert lock.stat().st_ino == locked[1]
    owned.release()


def test_release_leaves_what_others_have_put_there(tmp_path: Path) -> None:
    """If our socket was replaced by hand, the new one stays."""
    owned = OwnedSocket.claim(tmp_path / "a.sock")
    owned.path.rename(tmp_path / "moved")
    dead_socket(owned.path)
    owned.release()
    assert owned.path.is_socket()


def test_a_file_or_link_is_not_removed(tmp_path: Path) -> None:
    """Only sockets are replaced."""
    (tmp_path / "file.sock").write_text("precious")
    (tmp_path / "link.sock").symlink_to(tmp_path / "file.sock")
    for name in ("file.sock", "link.sock"):
        with pytest.raises(SettingError, match=r"^control_socket: .*no socket"):
            OwnedSocket.claim(tmp_path / name)
    assert (tmp_path / "file.sock").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"file.sock", "link.sock"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "read-only disk"),
        (errno.EACCES, "no permission"),
        (errno.ENOSPC, "disk of .* is full"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_what_the_disk_says_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    """Errors that a test can't cause for real, at least as root, are reported with the setting's name."""

    def fails(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.open", fails)
    with pytest.raises(SettingError, match=f"^control_socket: .*{words}"):
        OwnedSocket.claim(tmp_path / "a.sock")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The message names the folder; it is not created silently."""
    with pytest.raises(SettingError, match=r"^control_socket: the folder .*/no does not exist"):
        OwnedSocket.claim(tmp_path / "no" / "a.sock")
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="is no folder"):
        OwnedSocket.claim(tmp_path / "file" / "a.sock")


def test_a_path_too_long_for_the_kernel(tmp_path: Path) -> None:
    """sun_path has 107 bytes; a longer path is reported before anything is created."""
    name = "x" * (107 - len(os.fsencode(tmp_path)) - 1)
    OwnedSocket.claim(tmp_path / name).release()
    with pytest.raises(SettingError, match="107 bytes"):
        OwnedSocket.claim(tmp_path / (name + "y"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders like /tmp, `one` and `two`; no real folder of this machine is used."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    both = [tmp_path / "one", tmp_path / "two"]
    for place in both:
        place.mkdir()
        place.chmod(0o1777)
    monkeypatch.setattr(sockets, "_SYSTEM_DIR", tmp_path / "none" / "ostler")
    monkeypatch.setattr(sockets, "_temp_dirs", lambda: [place / f"ostler-{os.geteuid()}" for place in both])
    return tmp_path


def test_systemds_folder_is_first(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RUNTIME_DIRECTORY may name several folders; the first one is used."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{places}/one:{places}/two")
    assert default_socket_path("shop") == places / "one" / "shop.sock"
    assert candidate_dirs()[0] == places / "one"


def test_the_sessions_folder(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a login session the sockets are under XDG_RUNTIME_DIR, in a folder of mode 0700."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    before = os.umask(0)
    try:
        path = default_socket_path("shop")
    finally:
        os.umask(before)
    assert path == places / "ostler" / "shop.sock"
    assert mode_of(path.parent) == 0o700
    assert default_socket_path("shop") == path
    assert path.parent in candidate_dirs()


def test_without_a_session_a_user_gets_a_temporary_folder(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An XDG_RUNTIME_DIR of another user, or a missing one, is skipped, as after `su`."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places / "vanished"))
    path = default_socket_path("shop")
    assert path == places / "one" / f"ostler-{os.geteuid()}" / "shop.sock"
    assert mode_of(path.parent) == 0o700


def test_temporary_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the environment is first. Relative ones are ignored, because they differ between processes,
    and so is the current folder, which tempfile would use if there is no other.
    """
    monkeypatch.setenv("TMPDIR", "/scratch")
    monkeypatch.setenv("TEMP", "here")
    monkeypatch.delenv("TMP", raising=False)
    me = f"ostler-{os.geteuid()}"
    places = ("/scratch", "/tmp", "/var/tmp", "/dev/shm")
    assert sockets._temp_dirs() == [Path(place, me) for place in places]


def test_a_mode_that_lets_others_in(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket has the mode from its first moment, also when it is restored,
    and its folder can be entered.
    """
    assert mode_of(default_socket_path("shop").parent) == 0o700
    assert mode_of(default_socket_path("shop", 0o660).parent) == 0o711
    monkeypatch.setattr("os.chmod", None)
    monkeypatch.setattr(Path, "chmod", None)
    owned = OwnedSocket.claim(tmp_path / "a.sock", 0o666)
    assert mode_of(owned.path) == 0o666
    owned.path.unlink()
    again = owned.claim_again()
    assert mode_of(again.path) == 0o666
    owned.socket.close()
    again.release()
    assert places.exists()


def unfit(folder: Path, how: str) -> None:
    """Make a folder that must not be used, as another user could have made it."""
    match how:
        case "link":
            (folder.parent / "real").mkdir(mode=0o700)
            folder.symlink_to(folder.parent / "real")
        case "file":
            folder.touch()
        case "loose":
            folder.mkdir()
            folder.chmod(0o770)
        case "read-only":
            folder.mkdir(mode=0o500)


PROBLEMS = {"link": "no folder", "file": "no folder", "loose": "others can write", "read-only": "can't be"}


@pytest.mark.parametrize("how", PROBLEMS)
def test_a_folder_that_is_not_safely_ours_is_passed_over(
    places: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """In a shared folder another user may have made ours; then the next place is used.
    Without any: one line.
    """
    if how == "read-only":
        monkeypatch.setattr("os.access", lambda *_, **__: False)
    unfit(places / "one" / f"ostler-{os.geteuid()}", how)
    if how != "read-only":
        assert default_socket_path("shop") == places / "two" / f"ostler-{os.geteuid()}" / "shop.sock"
        (places / "two" / f"ostler-{os.geteuid()}").rmdir()
    unfit(places / "two" / f"ostler-{os.geteuid()}", how)
    with pytest.raises(SettingError, match=r"^control_socket: there is no place for it: ") as caught:
        default_socket_path("shop")
    said = str(caught.value)
    assert said.count(PROBLEMS[how]) == 2
    assert f"{places}/one/ostler-{os.geteuid()} (" in said
    assert "--control-socket" in said
    assert "\n" not in said


def test_another_users_folder_is_passed_over(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names its owner."""
    me = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    for place in ("one", "two"):
        (places / place / "ostler-4321").mkdir()
    with pytest.raises(SettingError, match=f"belongs to uid {me}, not to this user"):
        default_socket_path("shop")


@pytest.mark.parametrize("how", ["link", "file", "loose"])
def test_folders_that_ctl_does_not_look_into(places: Path, how: str) -> None:
    """In a folder where anyone may create folders; the parent's mode decides about that."""
    folder = places / "one" / f"ostler-{os.geteuid()}"
    unfit(folder, how)
    with pytest.raises(UntrustedFolder, match=PROBLEMS[how]) as caught:
        trusted_owners(folder)
    assert "\n" not in str(caught.value)


def test_which_owners_of_sockets_are_trusted(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and root's; in a folder that only root or we could have made, also the folder's owner."""
    me = os.geteuid()
    shared, given = places / "one" / "ostler-1", places / "ostler"
    for folder in (shared, given):
        folder.mkdir(mode=0o755)
    assert trusted_owners(shared) == trusted_owners(given) == {0, me}
    monkeypatch.setattr("os.geteuid", lambda: 4321)
    if me == 0:
        assert trusted_owners(shared) == {0, 4321}
        os.chown(given, 1234, -1)
        assert trusted_owners(given) == {0, 4321, 1234}
        os.chown(shared, 1234, -1)
    with pytest.raises(UntrustedFolder, match="belongs to "):
        trusted_owners(shared)
    with pytest.raises(FileNotFoundError):
        trusted_owners(places / "one" / "none")


def test_a_link_where_only_root_could_make_one(places: Path) -> None:
    """systemd makes such links for services with DynamicUser=."""
    (places / "private").mkdir(mode=0o755)
    (places / "ostler").symlink_to(places / "private")
    assert os.geteuid() in trusted_owners(places / "ostler")


@pytest.mark.parametrize("kind", ["fifo", "hard link", "directory"])
def test_a_lock_file_of_anothers_making(tmp_path: Path, kind: str) -> None:
    """Where others can write, the lock file may be another user's:
    it is neither written to nor waited for.
    """
    lock, precious = tmp_path / "a.sock.lock", tmp_path / "precious"
    precious.write_text("precious")
    match kind:
        case "fifo":
            os.mkfifo(lock)
        case "hard link":
            lock.hardlink_to(precious)
        case "directory":
            lock.mkdir()
    with pytest.raises(SettingError, match=r"^control_socket: .*a\.sock"):
        OwnedSocket.claim(tmp_path / "a.sock")
    assert precious.read_text() == "precious"
    assert lock.exists()


def test_a_folder_that_another_user_has_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our folder was deleted, as old files in /tmp are;
    one that another user has made in its place is not used.
    """
    folder = tmp_path / "ostler"
    folder.mkdir(mode=0o700)
    owned = OwnedSocket.claim(folder / "a.sock")
    for path in folder.iterdir():
        path.unlink()
    monkeypatch.setattr(sockets, "_owner", lambda _: 4321)
    with pytest.raises(SettingError, match=r"belongs to uid 4321 now"):
        owned.claim_again()
    assert list(folder.iterdir()) == []
    owned.release()


def test_a_folder_that_is_swapped_while_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account that can write in the parent folder can choose neither which file gets a mode,
    nor a mode with set-user-ID.
    """
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir(mode=0o700)
    owned = OwnedSocket.claim(folder / "a.sock")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    victim.touch(mode=0o600)
    owned._folder_mode = 0o4777
    make = Path.mkdir

    def swapping(self: Path, mode: int = 0o777) -> None:
        make(self, mode)
        self.rmdir()
        self.symlink_to(victim)

    monkeypatch.setattr(Path, "mkdir", swapping)
    with pytest.raises(SettingError):
        owned.claim_again()
    assert mode_of(victim) == 0o600
    owned.release()


def test_a_folder_that_is_swapped_before_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the socket that was checked is removed, because its name may lead elsewhere soon."""
    folder, other = tmp_path / "run", tmp_path / "other"
    for place in (folder, other):
        place.mkdir(mode=0o700)
        dead_socket(place / "a.sock")
    answers = unix_sockets._is_live

    def swapping(path: str) -> bool:
        found = answers(path)
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)
        return found

    monkeypatch.setattr(unix_sockets, "_is_live", swapping)
    with pytest.raises(SettingError):
        OwnedSocket.claim(folder / "a.sock")
    assert (other / "a.sock").is_socket()


def test_a_token_file_that_is_a_fifo_now(tmp_path: Path) -> None:
    """Our close does not wait for a reader of it, and does not remove it."""
    file = TokenFile(tmp_path / "a.token", "secret")
    file.write()
    file.path.unlink()
    os.mkfifo(file.path)
    writer = os.open(file.path, os.O_RDWR | os.O_NONBLOCK)
    file.remove()
    assert file.path.is_fifo()
    os.close(writer)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shop", "shop"),
        ("app:create()", "app_create_"),
        ("../../etc/x", "_.._etc_x"),
        ("", "ostler"),
        ("é" * 9, "_"),
        (".hidden", "hidden"),
        ("n" * 99, "n" * 60),
    ],
)
def test_a_name_is_made_file_safe(name: str, file: str) -> None:
    """No name leads out of the folder or makes a hidden file."""
    assert safe_name(name) == file
