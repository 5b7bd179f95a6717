"""Any value that is given for a setting is accepted, or refused in one line."""

import decimal
import os
from typing import Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ostler.cli.arguments import command
from ostler.errors import OstlerError
from ostler.ipc import messages, wire
from ostler.settings.configfile import ConfigFile
from ostler.settings.ignored import IGNORED
from ostler.settings.load import load
from ostler.settings.table import rows
from tests.kit.tiers import thorough


class Hostile:
    """An object from a configuration file, all of whose methods fail."""

    def _fail(self, *_: Any) -> Any:
        raise RuntimeError("mine")

    __str__ = __repr__ = __int__ = __float__ = __iter__ = __eq__ = __bool__ = __len__ = __getattr__ = _fail  # type: ignore[assignment]

    def __hash__(self) -> int:
        raise RuntimeError("mine")


ANY_TEXT = st.text(st.characters(codec=None))
HOSTILE_TEXTS = (
    *(
        "",
        " ",
        "-1",
        "1e400",
        "nan",
        "inf",
        str(2**70),
        "9" * 5000,
        "0x",
        "unix:",
        "[",
        "::",
        "fd://-1",
        "%(",
    ),
    *(
        os.fsdecode(b"\xff"),
        "unix:\udcff",
        "\ud800",
        "a\nb",
        "\x1b[2J\x9b",
        "x" * 5000,
        "=",
        "٣",
        "1..",
        "9..1",
    ),
)
HOSTILE_OBJECTS = (
    *(10**5000, -(10**5000), 2**70, -1, 1e400, float("nan"), 1e300, True, b"\xff", b"1", object(), Hostile()),
    *([[]], {1: 2}, {"a": Hostile()}, {"\ud800": "\0"}, [Hostile()], (None,), decimal.Decimal("1e9999"), 1j),
    *("\0", "a\0b", ["a\0b"], {"A": "\0"}, range(3), int, lambda: 1, [b"x"], {Hostile: 1}, "\ud800"),
)
NESTED: Any = []
for _ in range(5000):
    NESTED = [NESTED]

FLAGS = [(row.flags[-1], bool(row.kind.metavar)) for row in rows().values() if row.flags] + [
    (ignored.flags[-1], not ignored.switch) for ignored in IGNORED.values() if ignored.flags
]


def one_line(text: str) -> bool:
    return 0 < len(text) < 20_000 and "\n" not in text


@pytest.mark.parametrize("share", [5, *thorough(1)])
def test_every_flag_with_hostile_texts(share: int) -> None:
    """Each flag with each text (or one text in `share`) is a usage error in one line,
    or it is accepted and can be sent to a fork server.
    """
    taken: list[Any] = []
    made = command(taken.append)
    for number, (flag, has_value) in enumerate(FLAGS):
        for text in HOSTILE_TEXTS[number % share :: share]:
            refused = ""
            try:
                made.main([f"{flag}={text}" if has_value else flag, "app:app"], standalone_mode=False)
            except click.ClickException as error:
                refused = " ".join(error.format_message().split())
            if not taken:
                assert one_line(refused), (flag, text)
                continue
            given = taken.pop()
            ask = messages.Configure(messages.VERSION, 0, given.values, given.config, "/")
            assert wire.decoder(messages.ToForkServer)(wire.encode(ask)) == ask


def loaded(name: str, value: object) -> None:
    """Load a file with one setting. It must be usable and sendable, or refused in one line."""
    file = ConfigFile("gunicorn.conf.py", {"wsgi_app": "app:app", name: value})
    refused = "-"
    try:
        found = load({}, {}, file, lambda: 2)
        wire.encode(messages.Configured(found, []))
    except OstlerError as error:
        refused = str(error)
    assert one_line(refused), (name, refused[:200])


def test_every_setting_with_hostile_objects() -> None:
    """Each key of a configuration file with each object."""
    for name in (*rows(), *IGNORED):
        for value in (*HOSTILE_OBJECTS, *HOSTILE_TEXTS, NESTED):
            loaded(name, value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400)
@given(st.sampled_from([*rows(), *IGNORED]), VALUES)
@example("workers", 10**5000)
def test_any_object(name: str, value: object) -> None:
    """Any Python value in any setting."""
    loaded(name, value)
