"""Channels: messages and descriptors between two ends of a real socket pair."""

import array
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from ostler.ipc import messages
from ostler.ipc.channel import TRACEBACK_LIMIT, BadMessage, Channel, line, pair, shorten
from ostler.settings import Loaded, load

Ends = tuple[Channel[Any], Channel[Any]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The supervisor's end, which receives from a fork server, and the fork server's end."""
    left, right = pair()
    channels: Ends = (
        Channel(left, messages.FromForkServer),
        Channel(right, messages.ToForkServer),
    )
    yield channels
    for channel in channels:
        channel.close()


def descriptors_open() -> set[str]:
    found = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    # The descriptor of the listing itself is closed by now.
    return {name for name in found if Path(f"/proc/self/fd/{name}").is_symlink()}


UNIONS = [messages.ToForkServer, messages.FromForkServer, messages.ToWorker, messages.FromWorker]
# A value for each type of field; a message with a new type of field needs one more.
SAMPLES: dict[Any, Any] = {
    int: 7,
    float: 0.5,
    bool: True,
    str: "text",
    str | None: None,
    int | None: 3,
    Literal["start", "reload", "upgrade", "restart", "check"]: "reload",
    dict[str, str]: {"timeout": "environment OSTLER_CMD_ARGS"},
    list[str]: ["one", "two"],
    dict[str, Any]: {"workers": "2", "bind": ["a:1"], "preload_app": True},
    messages.Path: "/a/file",
    messages.Paths: ["/a/file"],
    Loaded: load({}, {}, None, lambda: 1),
    Loaded | None: load({}, {}, None, lambda: 1),
}


def sample(kind: Any) -> Any:
    """Of a type, with or without bounds."""
    if kind in SAMPLES:
        return SAMPLES[kind]
    plain = get_args(kind)[0]
    return sample(list[str] if get_origin(plain) is list else plain)


@pytest.mark.parametrize(
    ("kind", "union"),
    [pytest.param(kind, union, id=kind.__name__) for union in UNIONS for kind in union.__args__],
)
def test_every_message_travels(kind: type[msgspec.Struct], union: Any) -> None:
    """Each message arrives equal and with its own type."""
    message = kind(*(sample(field.type) for field in msgspec.structs.fields(kind)))
    left, right = pair()
    sender, receiver = Channel[Any](left, union), Channel[Any](right, union)
    sender.send(message)
    received = receiver.receive()
    assert received == (message, [])
    assert received is not None
    assert type(received[0]) is kind
    sender.close()
    receiver.close()


def test_order_and_boundaries(ends: Ends) -> None:
    """Messages stay apart and in order."""
    supervisor, fork_server = ends
    for worker_id in range(1, 6):
        supervisor.send(messages.Spawn(worker_id, worker_id))
    got = [fork_server.receive() for _ in range(5)]
    assert [message[0].worker_id for message in got if message] == [1, 2, 3, 4, 5]


def test_descriptors_travel(ends: Ends) -> None:
    """Descriptors arrive in order, open, close-on-exec, and as the receiver's own."""
    supervisor, fork_server = ends
    reading, writing = os.pipe()
    supervisor.send(messages.Spawn(1, 1), [reading, writing])
    os.close(reading)
    os.close(writing)
    received = fork_server.receive()
    assert received is not None
    message, (reading, writing) = received
    assert message == messages.Spawn(1, 1)
    assert not os.get_inheritable(reading)
    os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)


def test_many_descriptors(ends: Ends) -> None:
    """As many listeners as the kernel allows at once arrive without loss."""
    supervisor, fork_server = ends
    with open(os.devnull) as null:  # noqa: PTH123 - a descriptor is wanted
        supervisor.send(messages.Load([], "app"), [null.fileno()] * 250)
    received = fork_server.receive()
    assert received is not None
    assert len(set(received[1])) == 250
    for fd in received[1]:
        os.close(fd)


def test_end_of_file(ends: Ends) -> None:
    """When the other side is closed, pending messages are still read;
    then None is returned, again and again.
    """
    supervisor, fork_server = ends
    fork_server.send(messages.AppLoaded())
    fork_server.close()
    assert supervisor.receive() == (messages.AppLoaded(), [])
    assert supervisor.receive() is None
    assert supervisor.receive() is None


def test_end_with_unread_messages(ends: Ends) -> None:
    """A process that died before it read its messages is reported as ended like any other."""
    supervisor, fork_server = ends
    supervisor.send(messages.Spawn(1, 1))
    fork_server.close()
    assert supervisor.receive() is None


@pytest.mark.parametrize("unvouched", [True, False])
def test_what_was_sent_before_an_end_with_unread_messages(ends: Ends, unvouched: bool) -> None:
    """The kernel reports such an end before the messages that the other side has sent."""
    here, there = ends
    there.send(messages.HookBegun())
    here.send(messages.ReopenLogs())
    there.close()

    def received() -> object:
        found = here.receive_unvouched() if unvouched else here.receive()
        return found and found[0]

    assert received() == messages.HookBegun()
    assert received() is None
    assert received() is None


def test_send_to_a_process_that_has_ended(ends: Ends) -> None:
    """Sending to a process that has ended is an OSError, and no SIGPIPE."""
    supervisor, fork_server = ends
    fork_server.close()
    with pytest.raises(OSError, match=r"Broken pipe|Connection reset"):
        supervisor.send(messages.Spawn(1, 1))


def test_nothing_there(ends: Ends) -> None:
    """Without blocking, an empty channel is an error, not the end."""
    supervisor, _ = ends
    supervisor.set_blocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.receive()


def test_full_channel(ends: Ends) -> None:
    """Without blocking, a full channel is an error for the sender; no message is cut."""
    supervisor, fork_server = ends
    supervisor.set_blocking(False)
    sent = 0

    def send_for_ever() -> None:
        nonlocal sent
        while True:
            supervisor.send(messages.Spawn(sent, 1))
            sent += 1

    with pytest.raises(BlockingIOError):
        send_for_ever()
    for worker_id in range(sent):
        received = fork_server.receive()
        assert received is not None
        assert received[0].worker_id == worker_id


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"not msgpack",
        msgspec.msgpack.encode({"type": "NoSuchMessage"}),
        msgspec.msgpack.encode({"type": "Spawn", "worker_id": "x", "slot": 1, "cell": 1}),
        msgspec.msgpack.encode(messages.Forked(1, 2)),
    ],
    ids=["byte", "text", "unknown", "wrong type", "wrong direction"],
)
def test_garbage(data: bytes) -> None:
    """Bytes that are not a message of the union are refused, their descriptors are closed,
    and the next message is read.
    """
    left, right = pair()
    channel = Channel[Any](right, messages.ToForkServer)
    before = descriptors_open()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 0]))]
    left.sendmsg([data], rights)
    with pytest.raises(msgspec.DecodeError):
        channel.receive()
    assert descriptors_open() == before
    Channel[Any](left, messages.FromForkServer).send(messages.Spawn(1, 1))
    assert channel.receive() == (messages.Spawn(1, 1), [])
    channel.close()
    left.close()


def test_oversize_message() -> None:
    """A message larger than the limit is not treated as complete."""
    left, right = pair()
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
    channel = Channel[Any](right, messages.FromForkServer)
    left.send(msgspec.msgpack.encode(messages.LoadFailed("x" * 170 * 1024, None)))
    with pytest.raises(msgspec.DecodeError):
        channel.receive()
    channel.close()
    left.close()


@pytest.mark.parametrize("character", ["x", "é", "\N{PILE OF POO}"])
def test_longest_traceback_fits(ends: Ends, character: str) -> None:
    """A traceback of any length, shortened, fits into a message, with its beginning and its end."""
    supervisor, fork_server = ends
    text = "Traceback" + character * 1_000_000 + "NameError"
    short = shorten(text)
    assert short.startswith("Traceback")
    assert short.endswith("NameError")
    assert "[...]" in short
    cut = line(text)
    assert cut.startswith("Traceback")
    fork_server.send(messages.LoadFailed(cut, short))
    assert supervisor.receive() == (messages.LoadFailed(cut, short), [])


def test_short_traceback_is_whole() -> None:
    """A traceback that fits is not shortened."""
    text = "x" * (TRACEBACK_LIMIT // 4)
    assert shorten(text) == text


def test_escaped_messages_are_small_and_count_for_more() -> None:
    """Decoding them takes Python, so a child may send few of them; the longest batch of paths fits."""
    left, right = pair()
    worker, supervisor = Channel[Any](left, messages.ToWorker), Channel[Any](right, messages.FromWorker)
    worker.send(messages.Watch(["/" + "\udce9" * 4094] * 4))
    worker.send(messages.Watch(["/" + "\U0001f40d" * 4093 + "\udce9"] * 4))
    for _ in range(2):
        received = supervisor.receive_unvouched()
        assert received is not None
        assert received[1] > 8 * 40_000
    left.send(b"\xc1" + bytes(80_000))
    with pytest.raises(BadMessage, match="an escaped message of more than"):
        supervisor.receive_unvouched()
    for channel in (worker, supervisor):
        channel.close()
