"""Cookie fields are removed before parsing, however they are split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.control.cookies import CookieFilter

PAGE = b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n"
POST = b"POST /v1/login HTTP/1.1\r\nContent-Length: 12\r\n\r\ncookie: a=b\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def filtered(data: bytes, size: int | None = None) -> bytes:
    """The result for pieces of `size` bytes; at the end only the beginning of a line may be held back."""
    fields, size = CookieFilter(), size or len(data) or 1
    return b"".join(fields.feed(data[at : at + size]) for at in range(0, len(data), size))


@pytest.mark.parametrize("size", [None, 1, 2, 7, 19])
@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (PAGE % b"Cookie: a=b\r\n", PAGE % b""),
        (PAGE % b"Accept: x\r\ncOOKIE:\r\nX-Cookie: y\r\n", PAGE % b"Accept: x\r\nX-Cookie: y\r\n"),
        (PAGE % b"Cookie: a\r\nA: cookie: b\r\nCookie: c\r\n", PAGE % b"A: cookie: b\r\n"),
        (PAGE % b"Cookie: a\r\n folded\r\nB: c\r\n d\r\n", PAGE % b"B: c\r\n d\r\n"),
        (PAGE % b"Cookie2: a\r\nCookies: b\r\n", PAGE % b"Cookie2: a\r\nCookies: b\r\n"),
        (b"cookie /x\nCookie: a\n\n", b"cookie /x\n\n"),
        (PAGE % b"Cookie: a\r\n" * 2, PAGE % b"" * 2),
        (PAGE % b"Cookie: a\r\n" + POST, PAGE % b"" + POST),
        (POST + PAGE % b"Cookie: a\r\n", POST + PAGE % b"Cookie: a\r\n"),
        (PAGE % CHUNKED + b"cookie: a", PAGE % CHUNKED + b"cookie: a"),
        (b"", b""),
    ],
)  # fmt: skip
def test_cookies_go(head: bytes, expected: bytes, size: int | None) -> None:
    """Only cookie fields are removed, in any spelling and in each head; bodies are not changed."""
    assert filtered(head, size) == expected


@given(
    st.lists(st.sampled_from([PAGE, b"Cookie: ", b"\r\n", b"\n", b"A: b", b" ", b":", b"\0", POST])),
    st.data(),
)
def test_pieces_do_not_matter(parts: list[bytes], data: st.DataObject) -> None:
    """The result is the same for any division into pieces, and only whole lines are removed."""
    whole = b"".join(parts) + b"\r\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    fields = CookieFilter()
    ends = [*cuts, len(whole)]
    pieces = [fields.feed(whole[start:end]) for start, end in zip([0, *cuts], ends, strict=True)]
    assert b"".join(pieces) == filtered(whole)
    kept = iter(whole.splitlines(keepends=True))
    assert all(line in kept for line in filtered(whole).splitlines(keepends=True))


def test_nothing_is_kept_of_cookies() -> None:
    """A field of any length is dropped as it arrives; of an undecided line at most 18 bytes are held."""
    fields = CookieFilter()
    assert fields.feed(b"GET / HTTP/1.1\r\nCookie: ") == b"GET / HTTP/1.1\r\n"
    for _ in range(1000):
        assert fields.feed(b"x" * 65536) == b""
    assert fields.feed(b"\r\nHost") == b""
    assert fields.feed(b": a\r\n\r\n") == b"Host: a\r\n\r\n"
