"""Which settings a fork server may report."""

from typing import Any

import msgspec
import pytest

from ostler.daemon.children.protocol import _check_settings
from ostler.ipc.channel import BadMessage
from ostler.settings.load import Loaded, load
from ostler.settings.table import Settings, rows

RAW: tuple[Any, ...] = (
    *(
        "1",
        "0",
        "on",
        "off",
        "2..4",
        "auto",
        "25%",
        "/x",
        "a:b",
        "0660",
        "10M",
        "TLSv1.3",
        "none",
        "required",
    ),
    *("127.0.0.1:0", "unix:/x", "10.0.0.0/8,::1", "x-a", "A=b", "GET /x", "json", "info", "a,b", "  a  ", ""),
    *(1, 0, 1.5, True, False, None, 0o660, [1, 2], ["/x"], ["GET /x", {"path": "/y", "headers": {"A": "b"}}]),
    *({"X-A": "b"}, {"A": "b"}, ["10.0.0.0/8"], ("127.0.0.1:0", "unix:/x"), (2, 4), "gthread", "tornado"),
)


def received(settings: Settings) -> Loaded:
    """The value after it was sent and received."""
    loaded = msgspec.structs.replace(load({}, {}, None, lambda: 1), settings=settings)
    return msgspec.msgpack.decode(msgspec.msgpack.encode(loaded), type=Loaded)


@pytest.mark.parametrize("name", rows())
def test_settings_of_our_own_loading(name: str) -> None:
    """Any value that our own loading makes of users' settings is accepted."""
    values = [getattr(Settings(), name)]
    for raw in RAW:
        try:
            values.append(rows()[name].kind.parse(raw))
        except ValueError:
            continue
    for value in values:
        if value == "auto" and name == "workers":
            continue  # replaced by the number of processors
        _check_settings(received(Settings(**{name: value})))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("boot_timeout", float("inf")),
        ("timeout", -1.0),
        ("workers", 10**6),
        ("backlog", 2**62),
        ("bind", ("x" * 10 + ":99999",)),
        ("chdir", "/a\0b"),
        ("loglevel", "x"),
    ],
)
def test_impossible_settings(name: str, value: Any) -> None:
    """Other values are refused, with the setting's name."""
    with pytest.raises(BadMessage, match=name):
        _check_settings(received(Settings(**{name: value})))
