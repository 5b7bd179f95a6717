"""Listening sockets: which users may connect to a Unix socket from its first moment on, and errors."""

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ostler.daemon.listening import unix as module
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.listening.unix import Access
from ostler.errors import SettingError
from ostler.osapi import refusing, unix_sockets
from tests.kit.ports import free_port

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others, which takes privileges")
NOBODY = 65534


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    several = Listeners([])
    yield several
    several.close_all()


def mode_of(path: Path) -> str:
    return f"{stat.S_IMODE(path.lstat().st_mode):04o}"


def problem_of(call: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(SettingError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "mode"),
    [(None, "0777"), ("0660", "0660"), ("0600", "0600"), ("0000", "0000"), ("0666", "0666")],
)
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_mode(listeners: Listeners, tmp_path: Path, asked: str | None, mode: str, umask: int) -> None:
    """The socket has the mode of the setting, or the one for all users; the umask is restored."""
    path = tmp_path / "app.sock"
    before = os.umask(umask)
    try:
        listeners.bind((f"unix:{path}",), 10, Access(asked))
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode_of(path) == mode


def test_mode_is_never_wider(listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Immediately after bind the socket has at most the permissions of the setting;
    if its owner will change, none.
    """
    seen: list[str] = []

    class Watched(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            seen.append(mode_of(Path(address)))

    monkeypatch.setattr(module.socket, "socket", Watched)
    listeners.bind((f"unix:{tmp_path}/a",), 10, Access("0640"))
    listeners.bind((f"unix:{tmp_path}/b",), 10, Access("0640", f"{os.getuid()}:{os.getgid()}"))
    assert seen == ["0640", "0000"]
    assert mode_of(tmp_path / "b") == "0640"


@needs_root
@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        (f"{NOBODY}:{NOBODY}", (NOBODY, NOBODY)),
        (f"{NOBODY}", (NOBODY, 0)),
        (f":{NOBODY}", (0, NOBODY)),
        ("nobody", (NOBODY, 0)),
    ],
)
def test_owner(listeners: Listeners, tmp_path: Path, owner: str, ids: tuple[int, int]) -> None:
    """User and group by name or number; a part that is not given stays ours."""
    path = tmp_path / "app.sock"
    listeners.bind((f"unix:{path}",), 10, Access("0660", owner))
    status = path.stat()
    assert (status.st_uid, status.st_gid) == ids
    assert mode_of(path) == "0660"


def test_owner_that_is_not_there(listeners: Listeners, tmp_path: Path) -> None:
    """An unknown user or group is named, and nothing is bound."""
    path = tmp_path / "app.sock"
    for owner, problem in [
        ("no_such_user_", "socket_owner: there is no user 'no_such_user_'"),
        (":no_such_group_", "socket_owner: there is no group 'no_such_group_'"),
    ]:
        assert problem_of(listeners.bind, (f"unix:{path}",), 10, Access(None, owner)) == problem
        assert not path.exists()


def test_owner_without_privileges(
    listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to change the owner there is an error, and no socket is left."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "chown", refuse)
    path = tmp_path / "app.sock"
    problem = problem_of(listeners.bind, (f"unix:{path}",), 10, Access(None, "0:0"))
    assert problem.startswith(f"bind: unix:{path}: no permission to make '0:0' its owner (socket_owner)")
    assert not path.exists()


def test_replaced_by_a_link(listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the folder can't replace the socket by a link so that another file changes its owner."""
    path, victim = tmp_path / "app.sock", tmp_path / "victim"
    victim.touch(mode=0o600)

    class Swapped(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            path.unlink()
            path.symlink_to(victim)

    monkeypatch.setattr(module.socket, "socket", Swapped)
    problem = problem_of(listeners.bind, (f"unix:{path}",), 10, Access("0666", f"{os.getuid()}"))
    assert "it was replaced by something that is no socket" in problem
    assert mode_of(victim) == "0600"


def test_replaced_by_another_socket(
    listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a hard link to the socket of another program."""
    path, victim = tmp_path / "app.sock", tmp_path / "victim"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victim))
        victim.chmod(0o600)

        class Swapped(socket.socket):
            def bind(self, address: Any) -> None:
                super().bind(address)
                path.unlink()
                path.hardlink_to(victim)

        monkeypatch.setattr(module.socket, "socket", Swapped)
        problem = problem_of(listeners.bind, (f"unix:{path}",), 10, Access("0666", f"{os.getuid()}"))
    assert "it was replaced by a link to another socket" in problem
    assert mode_of(victim) == "0600"


def test_another_socket_is_moved_there(
    listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with another socket that the folder's owner renames to the path:
    it listens, but it is not ours.
    """
    path, victim = tmp_path / "app.sock", tmp_path / "victim"
    mine = listeners.bind((f"unix:{path}",), 10, Access("0600", f"{os.getuid()}"))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victim))
        victim.chmod(0o600)
        other.listen()
        path.rename(tmp_path / "moved")
        victim.rename(path)
        problem = problem_of(listeners.bind, tuple(mine), 10, Access("0666", f"{os.getuid()}"))
        assert "it was replaced by another socket" in problem
        assert mode_of(path) == "0600"
        if os.geteuid() != 0:
            return  # without permissions that could be misused
        path.rename(victim)
        os.chown(tmp_path, 65534, 65534)

        class Swapped(socket.socket):
            def bind(self, address: Any) -> None:
                super().bind(address)
                path.rename(tmp_path / "moved")
                victim.rename(path)

        monkeypatch.setattr(module.socket, "socket", Swapped)
        problem = problem_of(Listeners([]).bind, (f"unix:{path}",), 10, Access("0666", f"{os.getuid()}"))
    assert "it was replaced by another socket" in problem
    assert mode_of(path) == "0600"


def test_change_of_a_bound_socket(listeners: Listeners, tmp_path: Path) -> None:
    """A reload with another mode changes it; one with the same mode keeps changes that were made by hand."""
    path = tmp_path / "app.sock"
    addresses = (f"unix:{path}", "unix:@ostler-test-listeners", "127.0.0.1:0")
    keys = listeners.bind(addresses, 10, Access("0660"))
    inode = path.stat().st_ino
    path.chmod(0o606)
    assert listeners.bind(addresses, 10, Access("0660")) == keys
    assert mode_of(path) == "0606"
    listeners.bind(addresses, 10, Access("0600"))
    assert mode_of(path) == "0600"
    listeners.bind(addresses, 10, Access(None, f"{os.getuid()}"))
    assert mode_of(path) == "0777"
    assert path.stat().st_ino == inode
    path.unlink()
    assert problem_of(listeners.bind, addresses, 10, Access("0640")).startswith(f"bind: unix:{path}: ")


def test_other_files_in_the_way(listeners: Listeners, tmp_path: Path) -> None:
    """A file that is not a socket is not removed, and the error differs from that for a missing folder."""
    file = tmp_path / "file"
    file.write_text("precious")
    problem = problem_of(listeners.bind, (f"unix:{file}",), 10)
    assert problem.startswith(f"bind: unix:{file}: the address is in use")
    assert file.read_text() == "precious"
    assert problem_of(listeners.bind, (f"unix:{tmp_path}/no/x",), 10).endswith("the folder does not exist")
    assert problem_of(listeners.bind, (f"unix:{file}/x",), 10).endswith("a part of the path is no folder")


@pytest.mark.parametrize("other", ["localhost", "0.0.0.0"])
def test_overlap(listeners: Listeners, other: str) -> None:
    """Another name of a port that this daemon itself has: the error says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listeners.bind((f"127.0.0.1:{port}",), 5)
    problem = problem_of(listeners.bind, (f"{other}:{port}",), 5)
    assert f"this daemon listens on 127.0.0.1:{port}" in problem


def test_only_its_own_file_is_removed(listeners: Listeners, tmp_path: Path) -> None:
    """At its end a listener removes its file, but not a file that another one has put in its place."""
    kept, lost = f"unix:{tmp_path}/kept", f"unix:{tmp_path}/lost"
    listeners.bind((kept, lost), 5)
    (tmp_path / "kept").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{tmp_path}/kept")
        after = Listeners([])
        state = listeners.snapshot()
        sockets = {key: os.dup(fd) for key, fd in state.sockets.items()}
        after.restore(msgspec.structs.replace(state, sockets=sockets))  # as after an upgrade in place
        assert sorted(after.keep_only(set(), 0.0)) == [kept, lost]
        after.close_all()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_links_to_dead_sockets_are_not_followed(listeners: Listeners, tmp_path: Path) -> None:
    """Only a socket itself counts as what is left of a dead one."""
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    (tmp_path / "link").symlink_to(tmp_path / "dead")
    assert "in use" in problem_of(listeners.bind, (f"unix:{tmp_path}/link",), 10)
    assert (tmp_path / "dead").exists()
    listeners.bind((f"unix:{tmp_path}/dead",), 10)


def test_a_dead_socket_that_can_not_be_removed(
    listeners: Listeners, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says that, and not that the address is in use."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "dead"))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(unix_sockets, "unlink_if", refuse)
    problem = problem_of(listeners.bind, (f"unix:{tmp_path}/dead",), 10)
    assert "no permission to write into its folder" in problem


@pytest.mark.parametrize("spelling", ["127.0.0.1:0", "tcp://127.0.0.1:0", "[::1]:0", "tcp://[::1]:0"])
def test_spellings_of_tcp(listeners: Listeners, spelling: str) -> None:
    """Addresses in gunicorn's spellings are listened on, and shown as URLs."""
    keys = listeners.bind((spelling,), 10)
    (url,) = listeners.urls(keys)
    assert url.startswith("http://[::1]:" if "[" in spelling else "http://127.0.0.1:")
    host = "::1" if "[" in spelling else "127.0.0.1"
    socket.create_connection((host, int(url.rpartition(":")[2]))).close()
    assert listeners.urls(keys, "https") == [url.replace("http", "https")]


def test_small_packets_are_not_held_back() -> None:
    """An inherited TCP socket, from systemd or by fd://, has TCP_NODELAY like one that was bound here."""
    with socket.create_server(("127.0.0.1", 0)) as outer:
        assert not outer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        several = Listeners([])
        (key,) = several.bind((f"fd://{outer.fileno()}",), 10)
        assert outer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        several.close_all()
        assert key == f"fd://{outer.fileno()}"
    with socket.create_server(("127.0.0.1", 0)) as outer:
        several = Listeners([os.dup(outer.fileno())])
        several.bind((), 10)
        assert outer.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        several.close_all()


@pytest.mark.parametrize("by", ["fd://", "systemd"])
def test_the_end_leaves_sockets_of_others_alone(by: str) -> None:
    """A listener that was handed over stays open, with what waits in it, for the next daemon."""
    with socket.create_server(("127.0.0.1", 0)) as outer:
        several = Listeners([os.dup(outer.fileno())] if by == "systemd" else [])
        own = () if by == "systemd" else ("127.0.0.1:0",)
        several.bind((f"fd://{outer.fileno()}", *own), 10)
        with socket.create_connection(outer.getsockname()):
            several.refuse_new()
            assert several.shut_empty()
            several.close_all()
            outer.accept()[0].close()
        socket.create_connection(outer.getsockname()).close()


def test_reuse_port() -> None:
    """With it other programs may listen on the same port; all of them must set it."""
    first, second = Listeners([]), Listeners([])
    try:
        first.bind(("127.0.0.1:0",), 5, reuse_port=True)
        port = first.sockets(["127.0.0.1:0"])[0].getsockname()[1]
        key = f"127.0.0.1:{port}"
        assert "in use" in problem_of(second.bind, (key,), 5)
        second.bind((key,), 5, reuse_port=True)
        assert second.sockets([key])[0].getsockname()[1] == port
    finally:
        first.close_all()
        second.close_all()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("then", ["accepted", "too late", "wanted again"])
def test_one_that_is_not_named_any_more(listeners: Listeners, tmp_path: Path, kind: str, then: str) -> None:
    """It takes no new connections. It is shut down when none waits in it, at the deadline, or when its
    address is wanted again."""
    key = f"127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{tmp_path}/sock"
    listeners.bind((key,), 5)
    (sock,) = listeners.sockets([key])
    address, family = sock.getsockname(), sock.family
    with sock.dup() as workers, socket.socket(family) as client:
        client.connect(address)
        assert listeners.keep_only(set(), 100.0) == [key]
        assert listeners.sockets([key]) == []
        listeners.shut_ended(99.0)
        assert not refusing.is_shut(workers.fileno())
        if kind == "unix":
            assert not (tmp_path / "sock").exists()
        if then == "accepted":
            workers.accept()[0].close()
            listeners.shut_ended(99.0)
        elif then == "too late":
            listeners.shut_ended(100.0)
        else:
            listeners.bind((key,), 5)
            with socket.socket(family) as other:
                other.connect(address)
        assert refusing.is_shut(workers.fileno())
    listeners.bind((key,), 5)


def test_those_that_a_new_generation_serves_too(listeners: Listeners) -> None:
    """It gets what was bound here and it does not name, but not what was handed over."""
    with socket.create_server(("127.0.0.1", 0)) as outer:
        first, second, third = listeners.bind(("127.0.0.1:0", "[::1]:0", f"fd://{outer.fileno()}"), 5)
        assert listeners.others([second]) == [first]
        assert listeners.others([first, second, third]) == []


# -- [::] and IPv4 -----------------------------------------------------------------------------------------


def answers(listeners: Listeners, keys: list[str], host: str, port: int) -> bool:
    """Whether a connection to `host` arrives at one of the sockets."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        try:
            client.connect((host, port))
        except ConnectionRefusedError:
            return False
        for sock in listeners.sockets(keys):
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                continue
            return True
    return False


def served(listeners: Listeners, keys: list[str], port: int) -> tuple[bool, bool]:
    """Whether IPv4 and IPv6 are answered."""
    return answers(listeners, keys, "127.0.0.1", port), answers(listeners, keys, "::1", port)


def test_all_of_ipv6_takes_ipv4(listeners: Listeners) -> None:
    """[::] takes IPv4 as well, whatever the system's default is, and is shown as one listener."""
    port = free_port()
    keys = listeners.bind((f"[::]:{port}",), 5)
    assert keys == [f"[::]:{port}"]
    assert served(listeners, keys, port) == (True, True)
    assert listeners.urls(keys) == [f"http://[::]:{port}"]


@pytest.mark.parametrize("v4", ["0.0.0.0", ""])
@pytest.mark.parametrize("first", [4, 6])
def test_both_wildcards(listeners: Listeners, v4: str, first: int) -> None:
    """With all of IPv4 on the same port beside it, [::] is IPv6-only, in either order."""
    port = free_port()
    addresses = [f"{v4}:{port}", f"[::]:{port}"][:: 1 if first == 4 else -1]
    keys = listeners.bind(tuple(addresses), 5)
    assert keys == addresses
    assert served(listeners, keys, port) == (True, True)
    only = {key: sock.family for key, sock in zip(keys, listeners.sockets(keys), strict=True)}
    assert only == {f"{v4}:{port}": socket.AF_INET, f"[::]:{port}": socket.AF_INET6}
    assert not answers(listeners, [f"[::]:{port}"], "127.0.0.1", port)


def test_other_ports_do_not_count(listeners: Listeners) -> None:
    """All of IPv4 on another port, or on one that the kernel chooses, leaves IPv4 to [::]."""
    port = free_port()
    keys = listeners.bind((f"[::]:{port}", "0.0.0.0:0", "[::]:0"), 5)
    assert len(keys) == 3
    for sock in listeners.sockets([keys[0], keys[2]]):
        assert not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert answers(listeners, keys[:1], "127.0.0.1", port)


@pytest.mark.parametrize(
    "steps",
    [
        ("[::]", "[::] 0.0.0.0", "[::]"),
        ("0.0.0.0", "[::]", "0.0.0.0 [::]"),
        ("[::] 0.0.0.0", "[::]", "0.0.0.0 [::]"),
        (":", "[::]", "[::] :", "[::]"),
    ],
)
def test_reloads_that_change_it(listeners: Listeners, steps: tuple[str, ...]) -> None:
    """A reload that adds or removes all of IPv4 beside [::] never stops answering either version."""
    port = free_port()
    for step in steps:
        asked = tuple(f"{host.removesuffix(':')}:{port}" for host in step.split())
        keys = listeners.bind(asked, 5)
        listeners.keep_only(set(keys), 0.0)
        assert served(listeners, keys, port) == (True, "[::]" in step), step
        assert listeners.bind(asked, 5) == keys


def test_ipv6_only_of_an_older_version(listeners: Listeners) -> None:
    """After an upgrade from a version whose [::] was IPv6-only there is a socket for IPv4 beside it."""
    port = free_port()
    with socket.socket(socket.AF_INET6) as old:
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        old.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        old.bind(("::", port))
        old.listen(5)
        old.setblocking(False)
        state = listeners.snapshot()
        key = f"[::]:{port}"
        listeners.restore(msgspec.structs.replace(state, sockets={key: os.dup(old.fileno())}))
    keys = listeners.bind((key,), 5)
    assert keys == [key, f"0.0.0.0:{port}"]
    assert served(listeners, keys, port) == (True, True)
    assert listeners.urls(keys) == [f"http://[::]:{port}", f"http://0.0.0.0:{port}"]


@pytest.mark.parametrize("first", [4, 6])
def test_one_ipv4_address_beside_all_of_ipv6(listeners: Listeners, first: int) -> None:
    """A single IPv4 address with the same port overlaps with [::]: one line says why; nothing is bound."""
    port = free_port()
    addresses = [f"127.0.0.1:{port}", f"[::]:{port}"][:: 1 if first == 4 else -1]
    problem = problem_of(listeners.bind, tuple(addresses), 5)
    assert problem == (
        f"bind: {addresses[1]}: it overlaps with {addresses[0]}, as [::] takes IPv4 as well; leave one out"
    )
    assert listeners.keep_only(set(), 0.0) == []
