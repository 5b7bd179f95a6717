"""Where frames of a websocket begin, in what a server sends."""

import pytest

from ostler.http1.frames import GOING_AWAY, Outgoing, close_frame

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
SHORT = b"\x81\x05hello"
MEDIUM = b"\x82\x7e\x01\x00" + b"m" * 256
LONG = b"\x02\x7f" + (70_000).to_bytes(8, "big") + b"l" * 70_000
MASKED = b"\x81\x83\1\2\3\4abc"
EMPTY = b"\x8a\x00"


def sent(*pieces: bytes) -> Outgoing:
    outgoing = Outgoing()
    for piece in pieces:
        outgoing.note(piece)
    return outgoing


def test_a_frame_may_begin_where_one_ends() -> None:
    """A frame may begin behind the head and behind each frame, nowhere else, for any length and split."""
    wire = HEAD + SHORT + MEDIUM + EMPTY + MASKED + SHORT
    ends = set()
    outgoing = Outgoing()
    for at in range(len(wire)):
        outgoing.note(wire[at : at + 1])
        if outgoing.between_frames:
            ends.add(at + 1)
    expected, at = set(), 0
    for part in (HEAD, SHORT, MEDIUM, EMPTY, MASKED, SHORT):
        at += len(part)
        expected.add(at)
    assert ends == expected
    for cut in range(len(wire)):
        assert sent(wire[:cut], wire[cut:]).between_frames


def test_a_long_frame() -> None:
    """Lengths of eight bytes count; a part of a frame is no place for another one."""
    assert sent(HEAD + LONG).between_frames
    assert not sent(HEAD + LONG[:-1]).between_frames
    assert sent(HEAD, memoryview(LONG)[:9], memoryview(LONG)[9:]).between_frames


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", HEAD[:-1], b"x" * 70_000 + HEAD]
)
def test_without_a_101_there_are_no_frames(head: bytes) -> None:
    """What answers otherwise, or has not answered yet, gets no close frame."""
    assert not sent(head).between_frames
    assert not sent(head).accepted


def test_nothing_follows_a_close_frame() -> None:
    """RFC 6455 section 5.5.1; the app's own counts as ours."""
    assert sent(HEAD).between_frames
    assert not sent(HEAD + close_frame(GOING_AWAY)).between_frames
    assert sent(HEAD + close_frame(GOING_AWAY)).closed


def test_the_close_frame() -> None:
    """RFC 6455 section 5.5.1: final, unmasked, the code in two bytes."""
    assert close_frame(1001) == b"\x88\x02\x03\xe9"
