"""Messages with text that is not UTF-8."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.ipc import messages, wire

ANY_TEXT = st.text(st.characters(codec=None))
FROM_WORKER = wire.decoder(messages.FromWorker)


@given(ANY_TEXT, st.none() | ANY_TEXT)
def test_any_text_arrives(reason: str, traceback: str | None) -> None:
    """Text arrives as it was sent, surrogates and NUL included."""
    message = messages.BootFailed(reason, traceback)
    assert FROM_WORKER(wire.encode(message)) == message


@given(st.dictionaries(ANY_TEXT, st.none() | ANY_TEXT | st.lists(ANY_TEXT) | st.integers(0, 9)))
def test_any_arguments_arrive(command_line: dict[str, object]) -> None:
    """A command line in any bytes."""
    message = messages.Configure(1, 2, command_line, "\udcff", "/caf\udce9")
    assert wire.decoder(messages.ToForkServer)(wire.encode(message)) == message


@given(st.binary())
def test_garbage(data: bytes) -> None:
    """Bytes that are not a message are a DecodeError, also after the mark of an escaped message."""
    for attempt in (data, b"\xc1" + data):
        try:
            FROM_WORKER(attempt)
        except msgspec.DecodeError:
            pass


@pytest.mark.parametrize(
    "data", [b"\xc1" + b"\x91" * 100_000 + b"\xc0", b"\xc1\x81\x90\xc0", b"\xc1\xa2\x00\xc4"]
)
def test_hostile_nesting(data: bytes) -> None:
    """Deep nesting, unusual keys and half an escape are a DecodeError and nothing else."""
    with pytest.raises(msgspec.DecodeError):
        FROM_WORKER(data)


@pytest.mark.parametrize("value", [[""] * 20_000, ["\0\u0169" * 20_000]])
def test_more_than_is_worth_the_time(value: list[str]) -> None:
    """Values and escapes in an escaped message are limited, because each takes Python to decode."""
    data = b"\xc1" + msgspec.msgpack.encode({"type": "Signalled", "signum": 15, "more": value})
    with pytest.raises(msgspec.DecodeError, match="too many"):
        FROM_WORKER(data)


def test_more_escapes_than_are_carried() -> None:
    """Text with very many escapes arrives with its surrogates as visible text."""
    data = wire.encode(messages.Configure(1, 2, {}, "\udce9" * 20_000, "/"))
    assert wire.decoder(messages.ToForkServer)(data).config == "\\udce9" * 20_000
