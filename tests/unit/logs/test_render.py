"""Formats of events: for programs and for people, without forged lines."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.logs.render import console_line, json_line

AT = 1_795_251_600.125  # 2026-11-21 09:00:00.125 UTC


def console(event: str = "started", colour: bool = False, **fields: Any) -> str:
    return console_line(AT, "info", event, fields, colour)


def test_json_line() -> None:
    """Timestamp in UTC, level and event first, then the fields with their types."""
    line = json_line(AT, "error", "failed", {"slot": 3, "path": "/a", "age": 1.5, "gone": None, "ok": True})
    assert list(json.loads(line).items()) == [
        ("timestamp", "2026-11-21T09:00:00.125Z"),
        ("level", "error"),
        ("event", "failed"),
        ("slot", 3),
        ("path", "/a"),
        ("age", 1.5),
        ("gone", None),
        ("ok", True),
    ]
    assert "traceback" not in json_line(AT, "info", "hook", {"message": "hello", "traceback": None})


def test_json_line_takes_any_value() -> None:
    """A value that JSON does not support is written as text,
    so that an event is never lost because of its fields.
    """
    record = json.loads(
        json_line(AT, "info", "x", {"error": ValueError("oops"), "names": {"a"}, "u": "\xfc"})
    )
    assert (record["error"], record["names"], record["u"]) == ("oops", "{'a'}", "\xfc")


def test_json_line_stays_readable() -> None:
    """Letters of any language are written as they are."""
    assert "gr\xfc\xdfe \u4f60\u597d" in json_line(AT, "info", "x", {"text": "gr\xfc\xdfe \u4f60\u597d"})


EVIL = [
    "a\nb",
    "a\r\nb",
    "\x1b[2J",
    "\x9b2J",
    "a\x00b",
    "a\x7fb",
    "a\x85b",
    "a\u2028b",
    "\u202egnp.exe",
    'a" b="c',
]


@pytest.mark.parametrize("evil", EVIL)
def test_json_line_is_one_harmless_line(evil: str) -> None:
    """No text breaks the line or controls a terminal, and no text is lost."""
    line = json_line(AT, "error", "x", {"path": evil})
    assert line.isprintable()
    assert json.loads(line)["path"] == evil


@given(st.text(max_size=30))
def test_json_line_keeps_any_text(text: str) -> None:
    """Any text is one printable line and is the same after parsing."""
    line = json_line(AT, "error", "x", {"path": text})
    assert line.isprintable()
    assert json.loads(line)["path"] == text


def test_console_line() -> None:
    """Local time, level, event and `name=value`; None is left out."""
    line = console(slot=3, path="/a", age=0.5, gone=None, ok=True)
    assert re.fullmatch(r"\d\d:\d\d:00\.125 info    started {14}slot=3 path=/a age=0\.5 ok=True", line)


def test_console_line_without_fields() -> None:
    """There are no spaces at the end."""
    assert console().endswith(" started")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("gr\xfc\xdfe", "gr\xfc\xdfe"),
        (1.23456789, "1.23457"),
        (5, "5"),
    ],
)
def test_console_values(value: Any, shown: str) -> None:
    """Values are quoted only if their end would be ambiguous."""
    assert console(x=value).endswith(f" x={shown}")


@pytest.mark.parametrize("evil", EVIL)
def test_console_values_are_harmless(evil: str) -> None:
    """A path or a reason can't forge a line or another field, and sends no terminal escape."""
    line = console(path=evil, slot=1)
    assert line.isprintable()
    shown = line.partition("path=")[2].removesuffix(" slot=1")
    assert json.loads(shown) == evil


@given(st.text(max_size=30))
def test_console_line_is_one_line_whatever_the_value(text: str) -> None:
    """Any text gives one printable line, whose last field is still the last one."""
    line = console(path=text, slot=1)
    assert line.isprintable()
    assert line.endswith(" slot=1")


@pytest.mark.parametrize("name", ["traceback", "stack"])
def test_console_traceback_follows_indented(name: str) -> None:
    """Its text is unchanged; its lines can't be confused with lines of the log."""
    fields = {"slot": 1, name: "Traceback:\n  File x\n\tValueError: \x1b[2J\r\nforged\n"}
    line = console_line(AT, "error", "failed", fields, colour=False)
    first, *rest = line.split("\n")
    assert first.endswith(" slot=1")
    assert rest[:2] == ["    Traceback:", "      File x"]
    assert all(text.startswith("    ") and text.isprintable() for text in rest)
    assert rest[2].endswith("ValueError: \\x1b[2J\\r")
    assert len(rest) == 4


def test_console_colour() -> None:
    """Colour is only used when enabled, and always ends."""
    assert "\x1b" not in console(slot=1)
    coloured = console(colour=True, slot=1)
    assert re.sub(r"\x1b\[\d*m", "", coloured) == console(slot=1)
    assert re.findall(r"\x1b\[\d*m", coloured)[-1] == "\x1b[0m"
    assert "\x1b[2J" not in console(colour=True, path="\x1b[2J")
