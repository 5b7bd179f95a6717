"""Texts from apps can be shown whatever they contain, and so can any exception."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ostler.text import json_of, name_and_text, name_of, readable, text_of, trace_of

ANY_TEXT = st.text(st.characters(codec=None))


class Evil(Exception):
    """An exception all of whose attributes fail that a traceback reads."""

    def __str__(self) -> str:
        raise RuntimeError("str")

    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("cause")

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("traceback")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as found:
        return found


@given(ANY_TEXT)
def test_readable(text: str) -> None:
    """The result is UTF-8, and nothing else has changed."""
    shown = readable(text)
    shown.encode()
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert shown == text


def test_bytes_are_named() -> None:
    """Bytes of a path are distinguished from other surrogates."""
    assert readable("caf\udce9 \ud800") == r"caf\xe9 \ud800"


def test_json() -> None:
    """A view with such texts is valid JSON for others."""

    class View(msgspec.Struct):
        names: list[str]
        fields: dict[str, str]

    view = View(["caf\udce9"], {"\ud800": "\udfff", "plain": "\x00"})
    assert msgspec.json.decode(json_of(view)) == {
        "names": [r"caf\xe9"],
        "fields": {r"\ud800": r"\udfff", "plain": "\x00"},
    }


def test_texts_of_exceptions() -> None:
    """One line, not too long, without calling methods that fail."""
    assert name_and_text(ValueError("two\nlines")) == "ValueError: two lines"
    assert name_and_text(ValueError()) == "ValueError"
    assert text_of(ValueError("x" * 5000), 10) == "x" * 10
    assert name_and_text(Evil()) == "Evil: (its text can't be read)"

    class Meta(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise RuntimeError("name")

    class Nameless(Exception, metaclass=Meta):
        pass

    assert name_of(Nameless()) == "Nameless"


def test_traceback() -> None:
    """As Python shows it; if it can't be shown, only the frames; a long one is shortened in the middle."""
    assert trace_of(raised(ValueError("here"))).endswith("ValueError: here")
    shown = trace_of(raised(Evil()))
    assert "Evil: (its text can't be read)" in shown
    assert f'File "{__file__}"' in shown
    assert len(trace_of(raised(ValueError("x" * 10_000_000)))) < 200_000
    group = ExceptionGroup("many", [ValueError("y" * 10_000)] * 15)
    assert "[...]" in trace_of(raised(group))
