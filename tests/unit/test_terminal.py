"""Text for a terminal: everything that a terminal would interpret is escaped; JSON keeps its meaning."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.terminal import ascii_json, encode_anything, lines, one_line

# C0, DEL, C1, bidirectional controls, zero-width, line separators, a lone surrogate.
EVIL = (
    "\x00\x07\x08\r\x1b\x7f\x80\x85\x9b\x9c\x9d\x9f"
    "\u061c\u200b\u200e\u200f\u2028\u2029\u202e\u2066\u2069\ud800"
)


@pytest.mark.parametrize("evil", EVIL)
def test_each_control_is_shown_and_not_sent(evil: str) -> None:
    """In a single line and in several lines."""
    for shown in (one_line(f"a{evil}b"), lines(f"a{evil}b")):
        assert shown.isprintable()
        assert shown.startswith("a\\")
        assert shown.endswith("b")
        assert evil not in shown


@given(st.text(max_size=50))
def test_any_text(text: str) -> None:
    """Only printable characters remain, and line feeds where several lines are allowed."""
    assert one_line(text).isprintable()
    assert all(line.isprintable() for line in lines(text).split("\n"))
    assert lines(text).count("\n") == text.count("\n")


def test_plain_text_is_left_as_it_is() -> None:
    """Letters of any language, backslashes and brackets, which are markup elsewhere."""
    text = "gr\xfc\xdfe \u4f60\u597d [red]C:\\x[/red]"
    assert one_line(text) == lines(text) == text


def test_a_long_text_is_cut() -> None:
    """The length of the text is shown; the limit counts what is shown."""
    assert one_line("x" * 10, 10) == "x" * 10
    assert one_line("x" * 11, 10) == "x" * 10 + "... (11 characters in all)"
    assert one_line("\x1b" * 1_000_000, 8) == r"\x1b\x1b... (1000000 characters in all)"
    assert one_line("\x1b" * 8, 8) == r"\x1b\x1b... (8 characters in all)"
    assert lines("a\nb\nc", 3) == "a\nb... (5 characters in all)"


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30))
def test_json_in_ascii_means_the_same(text: str) -> None:
    """Also outside of the Basic Multilingual Plane, whose characters are two escapes."""
    shown = ascii_json(json.dumps([text], ensure_ascii=False))
    assert shown.isascii()
    assert "\x7f" not in shown
    assert json.loads(shown) == [text]


def test_a_stream_that_has_not_all_characters() -> None:
    """Characters that the stream's encoding lacks are escaped instead of raising."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    encode_anything(stream)
    stream.write("gr\xfc\xdfe")
    stream.flush()
    assert raw.getvalue() == rb"gr\xfc\xdfe"
    encode_anything(None)
