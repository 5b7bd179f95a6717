"""Kinds of values: what a user may write, and the text of an error."""

import ssl
from pathlib import Path
from typing import Any

import pytest

from ostler.settings import kinds
from ostler.settings.kinds import Kind

LEVEL = kinds.choice("info", "warning", aliases={"warn": "warning"})
FEW = Kind(kinds.whole_number(1, 9), "N")


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (kinds.COUNT, "0", 0),
        (kinds.COUNT, " 7 ", 7),
        (kinds.COUNT, 7, 7),
        (kinds.COUNT, 7.0, 7),
        (kinds.POSITIVE, "1", 1),
        (FEW, "9", 9),
        (kinds.SECONDS, "0", 0.0),
        (kinds.SECONDS, "1.5", 1.5),
        (kinds.SECONDS, 30, 30.0),
        (kinds.TEXT, " a b ", "a b"),
        (kinds.TEXT, Path("/tmp/x"), "/tmp/x"),
        (kinds.OPTIONAL_TEXT, "", None),
        (kinds.OPTIONAL_TEXT, None, None),
        (kinds.PATH, Path("x"), "x"),
        (kinds.SWITCH, True, True),
        (kinds.SWITCH, "Yes", True),
        (kinds.SWITCH, "1", True),
        (kinds.SWITCH, "off", False),
        (kinds.SWITCH, "", False),
        (kinds.WORKERS, "auto", "auto"),
        (kinds.WORKERS, " AUTO ", "auto"),
        (kinds.WORKERS, "512", 512),
        (kinds.WORKERS, "2..16", (2, 16)),
        (kinds.WORKERS, (3, 3), 3),
        (kinds.SURGE, 2, "2"),
        (kinds.SURGE, "050%", "50%"),
        (kinds.SHARE, "5%", 0.05),
        (kinds.PART, 0.7, 0.7),
        (kinds.COUNTS, "50, 100", (50, 100)),
        (kinds.COUNTS, [50, "100"], (50, 100)),
        (kinds.WARMUP, "/health", (kinds.WarmupRequest("/health"),)),
        (kinds.WARMUP, ["HEAD /", "/a?b"], (kinds.WarmupRequest("/", "HEAD"), kinds.WarmupRequest("/a?b"))),
        (
            kinds.WARMUP,
            {"path": "/x", "headers": {"Host": "shop"}},
            (kinds.WarmupRequest("/x", "GET", {"HOST": "shop"}),),
        ),
        (kinds.ADDRESSES, "a:1,b:2", ("a:1", "b:2")),
        (kinds.ADDRESSES, ["a:1", "unix:/x,y"], ("a:1", "unix:/x,y")),
        (kinds.ADDRESSES, "localhost", ("localhost:8000",)),
        (kinds.ADDRESSES, None, ()),
        (kinds.ADDRESSES, "", ()),
        (kinds.PATHS, "a,b", ("a", "b")),
        (kinds.PATHS, ["a,b", "c"], ("a", "b", "c")),
        (kinds.PATHS, None, ()),
        (kinds.ENVIRONMENT, "A=1", ("A=1",)),
        (kinds.ENVIRONMENT, ["A=1,2", "B="], ("A=1,2", "B=")),
        (LEVEL, "INFO", "info"),
        (LEVEL, "warn", "warning"),
        (kinds.SWITCH, "y", True),
        (kinds.SWITCH, "n", False),
        (kinds.SENDFILE, None, True),
        (kinds.SENDFILE, False, False),
        (kinds.SENDFILE, "0", False),
        (kinds.SIZE, 0, 0),
        (kinds.SIZE, 8190, 8190),
        (kinds.SIZE, "8190", 8190),
        (kinds.SIZE, "512K", 512 * 1024),
        (kinds.SIZE, "10m", 10 * 1024**2),
        (kinds.SIZE, "1 GiB", 1024**3),
        (kinds.SIZE, "2TB", 2 * 1024**4),
        (kinds.SIZE, "100B", 100),
        (kinds.NETWORKS, "127.0.0.1, 10.0.0.0/8,*", ("127.0.0.1", "10.0.0.0/8", "*")),
        (kinds.NETWORKS, ["::1", "10.0.0.0/8"], ("::1", "10.0.0.0/8")),
        (kinds.NETWORKS, "", ()),
        (kinds.NETWORKS, None, ()),
        (kinds.HEADER_NAMES, "script_name,Remote_User", ("SCRIPT_NAME", "REMOTE_USER")),
        (kinds.HEADER_NAMES, ["*"], ("*",)),
        (kinds.HEADER_NAMES, "", ()),
        (kinds.HEADER_VALUES, {"X-Forwarded-Proto": " https "}, {"X-FORWARDED-PROTO": "https"}),
        (kinds.HEADER_VALUES, {}, {}),
        (kinds.PROXY_MODE, None, "off"),
        (kinds.PROXY_MODE, False, "off"),
        (kinds.PROXY_MODE, True, "auto"),
        (kinds.PROXY_MODE, "False", "off"),
        (kinds.PROXY_MODE, "true", "auto"),
        (kinds.PROXY_MODE, "1", "auto"),
        (kinds.PROXY_MODE, "V1", "v1"),
        (kinds.PROXY_MODE, "v2", "v2"),
        (kinds.VERIFICATION, 0, "none"),
        (kinds.VERIFICATION, "1", "optional"),
        (kinds.VERIFICATION, ssl.CERT_REQUIRED, "required"),
        (kinds.VERIFICATION, "CERT_REQUIRED", "required"),
        (kinds.VERIFICATION, "ssl.CERT_OPTIONAL", "optional"),
        (kinds.VERIFICATION, "Required", "required"),
        (kinds.VERIFICATION, None, "none"),
        (kinds.TLS_VERSION, "TLSv1.2", "TLSv1.2"),
        (kinds.TLS_VERSION, "tls1.3", "TLSv1.3"),
        (kinds.TLS_VERSION, "TLSv1_3", "TLSv1.3"),
        (kinds.TLS_VERSION, "1.2", "TLSv1.2"),
        (kinds.TLS_VERSION, ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        (kinds.TLS_VERSION, ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        (kinds.MODE, "0660", "0660"),
        (kinds.MODE, "660", "0660"),
        (kinds.MODE, "0o600", "0600"),
        (kinds.MODE, 0o660, "0660"),
        (kinds.MODE, "0", "0000"),
        (kinds.MODE, "", None),
        (kinds.MODE, None, None),
        (kinds.OWNER, "www-data", "www-data"),
        (kinds.OWNER, "www:data", "www:data"),
        (kinds.OWNER, ":data", ":data"),
        (kinds.OWNER, "1000:1000", "1000:1000"),
        (kinds.OWNER, None, None),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    parsed = kind.parse(given)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (kinds.COUNT, "x", "expected a whole number, got 'x'"),
        (kinds.COUNT, "1.5", "expected a whole number, got '1.5'"),
        (kinds.COUNT, 1.5, "expected a whole number, got 1.5"),
        (kinds.COUNT, float("nan"), "expected a whole number, got nan"),
        (kinds.COUNT, None, "expected a whole number, got None"),
        (kinds.COUNT, "-1", "must be between 0 and 2147483647, got -1"),
        (kinds.POSITIVE, 0, "must be between 1 and"),
        (FEW, "10", "must be between 1 and 9, got 10"),
        (kinds.SECONDS, "soon", "expected a number of seconds, got 'soon'"),
        (kinds.SECONDS, None, "expected a number of seconds, got None"),
        (kinds.SECONDS, "-1", "expected zero or more seconds, got '-1'"),
        (kinds.SECONDS, "nan", "expected zero or more seconds, got 'nan'"),
        (kinds.SECONDS, "inf", "expected zero or more seconds, got 'inf'"),
        (kinds.TEXT, 5, "expected text, got 5"),
        (kinds.TEXT, "a\0b", "must not contain a NUL character"),
        (kinds.SWITCH, "maybe", "expected true or false, got 'maybe'"),
        (kinds.SWITCH, 2, "expected true or false, got 2"),
        (kinds.WORKERS, "4..2", "a range begins with its smaller end, got 4..2"),
        (kinds.WORKERS, "2..", "expected a whole number, got ''"),
        (kinds.WORKERS, "1..513", "must be between 1 and 512, got 513"),
        (kinds.SURGE, "0", "expected a number of workers from 1 on, or a share such as 25%"),
        (kinds.SURGE, "half", "expected a number of workers from 1 on, or a share such as 25%"),
        (kinds.SHARE, "101%", "expected a share from 0 to 1"),
        (kinds.SHARE, True, "expected a share from 0 to 1"),
        (kinds.PART, "0%", "must be more than 0"),
        (kinds.COUNTS, "100,0", "must be between 1"),
        (kinds.WARMUP, "health", "expected a path such as /health"),
        (kinds.WARMUP, "GET /a b", "expected a path such as /health"),
        (kinds.WARMUP, {"path": "/", "body": ""}, "knows path, method and headers, got 'body'"),
        (kinds.WARMUP, {"path": "/", "headers": {"X": "a\r\nb"}}, "the header X can't be"),
        (kinds.WORKERS, "0", "give a number from 1 to 512, a range such as 2..16, or 'auto'"),
        (kinds.WORKERS, "513", "give a number from 1 to 512, a range such as 2..16, or 'auto'"),
        (
            kinds.WORKERS,
            "many",
            "expected a whole number, got 'many'; give a number from 1 to 512, a range",
        ),
        (kinds.ADDRESSES, 5, "expected a list of texts, got 5"),
        (kinds.ADDRESSES, [5], "expected text, got 5"),
        (kinds.ADDRESSES, "a:1,b:x", "expected a port from 0 to 65535 in 'b:x'"),
        (kinds.ENVIRONMENT, "A", "expected NAME=VALUE, got 'A'"),
        (kinds.ENVIRONMENT, ["=1"], "expected NAME=VALUE, got '=1'"),
        (kinds.SIZE, "10X", "expected a number of bytes such as 8190, 512K or 10M, got '10X'"),
        (kinds.SIZE, "1.5M", "expected a number of bytes"),
        (kinds.SIZE, "-1", "expected a number of bytes"),
        (kinds.SIZE, "", "expected a number of bytes"),
        (kinds.SIZE, "K", "expected a number of bytes"),
        (kinds.SIZE, -1, "must be between 0 and"),
        (kinds.SIZE, "9" * 12 + "T", "must be between 0 and"),
        (kinds.SIZE, None, "expected a whole number, got None"),
        (kinds.SIZE, True, "expected a whole number, got True"),
        (kinds.NETWORKS, "localhost", "expected an address, a network such as 10.0.0.0/8, or *"),
        (kinds.NETWORKS, "10.0.0.1/8", "write 10.0.0.0/8 for the network"),
        (kinds.NETWORKS, 5, "expected a list of addresses and networks, got 5"),
        (kinds.NETWORKS, [5], "expected text, got 5"),
        (kinds.NETWORKS, b"::1", "expected a list of addresses and networks"),
        (kinds.HEADER_NAMES, "A B", "expected the name of a header, got 'A B'"),
        (kinds.HEADER_VALUES, None, "expected a dictionary of header names and values, got None"),
        (kinds.HEADER_VALUES, "a=b", "expected a dictionary"),
        (kinds.HEADER_VALUES, {"A:": "b"}, "expected the name of a header, got 'A:'"),
        (kinds.HEADER_VALUES, {"A": 1}, "expected text, got 1"),
        (kinds.PROXY_MODE, "v3", "expected one of off, v1, v2, auto, got 'v3'"),
        (kinds.PROXY_MODE, 2, "expected one of off, v1, v2, auto, got '2'"),
        (kinds.VERIFICATION, 3, "expected one of none, optional, required (or 0, 1, 2), got 3"),
        (kinds.VERIFICATION, True, "expected one of none"),
        (kinds.VERIFICATION, "maybe", "expected one of none"),
        (kinds.TLS_VERSION, "TLSv1.1", "expected TLSv1.2 or TLSv1.3, got 'TLSv1.1'"),
        (kinds.TLS_VERSION, ssl.TLSVersion.MINIMUM_SUPPORTED, "expected TLSv1.2 or TLSv1.3"),
        (kinds.TLS_VERSION, 1.2, "expected text, got 1.2"),
        (kinds.MODE, 660, "(in a file '0660' or 0o660), got 660"),
        (kinds.MODE, 777, "expected a mode in octal"),
        (kinds.MODE, "0680", "expected a mode in octal such as 0660"),
        (kinds.MODE, "1777", "expected a mode in octal"),
        (kinds.MODE, "-1", "expected a mode in octal"),
        (kinds.MODE, True, "expected a mode in octal"),
        (kinds.MODE, 6.0, "expected a mode in octal"),
        (kinds.OWNER, ":", "expected USER, USER:GROUP or :GROUP, got ':'"),
        (kinds.OWNER, "a:", "expected USER, USER:GROUP or :GROUP, got 'a:'"),
        (kinds.OWNER, "a:b:c", "expected USER, USER:GROUP or :GROUP"),
        (kinds.OWNER, 5, "expected text, got 5"),
        (kinds.UMASK, "089", "expected a mask in octal such as 022 (in a file 0o022), got '089'"),
        (kinds.UMASK, -1, "expected a mask in octal"),
        (kinds.UMASK, "-1", "expected a mask in octal"),
        (kinds.UMASK, None, "expected a mask in octal"),
        (kinds.UMASK, True, "expected a mask in octal"),
        (kinds.SOCKET_MODE, "999", "expected a mode in octal"),
        (kinds.SOCKET_MODE, "0888", "expected a mode in octal"),
        (kinds.THREADS, -1, "must be between 0 and"),
        (kinds.THREADS, None, "expected a whole number"),
        (kinds.STATSD_ADDRESS, "http://a:1", "expected an address such as 127.0.0.1:8125"),
        (kinds.STATSD_ADDRESS, "a:b", "expected a port"),
        (kinds.SYSLOG_ADDRESS, "unix://", "expected an address such as udp://localhost:514"),
        (LEVEL, "loud", "expected one of info, warning, got 'loud'"),
        (LEVEL, 3, "expected text, got 3"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        kind.parse(given)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (8190, "8190"), (512 * 1024, "512K"), (1024**2, "1M"), (1536 * 1024**2, "1536M")],
)
def test_sizes_are_shown_as_they_are_read(size: int, text: str) -> None:
    """--help shows a size with the unit that fits, and that text has the same value."""
    assert kinds.show_size(size) == text
    assert kinds.SIZE.parse(text) == size


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        # gunicorn reads text as decimal unless it begins with a prefix.
        (kinds.UMASK, "022", "0022"),
        (kinds.UMASK, " 007 ", "0007"),
        (kinds.UMASK, "0", "0000"),
        (kinds.UMASK, "00", "0000"),
        (kinds.UMASK, "18", "0022"),
        (kinds.UMASK, "0x12", "0022"),
        (kinds.UMASK, "0o22", "0022"),
        (kinds.UMASK, 0o077, "0077"),
        (kinds.UMASK, 664, "0230"),
        (kinds.SOCKET_MODE, "0660", "0660"),
        (kinds.SOCKET_MODE, "660", "0660"),
        (kinds.SOCKET_MODE, "384", "0600"),
        (kinds.SOCKET_MODE, 384, "0600"),
        (kinds.SOCKET_MODE, None, "0600"),
        (kinds.LOG_FILE, None, "-"),
        (kinds.LOG_FILE, " ", "-"),
        (kinds.LOG_FILE, Path("a/b"), "a/b"),
        (kinds.ENVIRONMENT, "A=1,B=2", ("A=1,B=2",)),
        (kinds.ENVIRONMENT, ["A=1,2", "B="], ("A=1,2", "B=")),
        (kinds.ENVIRONMENT, {"A": 1, "B": "x"}, ("A=1", "B=x")),
        (kinds.SWITCH, 1, True),
        (kinds.SWITCH, 0, False),
        (kinds.STATSD_ADDRESS, "", None),
        (kinds.STATSD_ADDRESS, "localhost", "localhost"),
        (kinds.SYSLOG_ADDRESS, None, "udp://localhost:514"),
        (kinds.SYSLOG_ADDRESS, "unix:///dev/log#dgram", "unix:///dev/log#dgram"),
    ],
)
def test_values_as_gunicorn_takes_them(kind: Kind, given: Any, value: Any) -> None:
    """Forms in gunicorn's files and command lines, with the same meaning."""
    assert kind.parse(given) == value


@pytest.mark.parametrize("value", [-1, 2**32 - 1, "-1", "99999999999", "9" * 5000])
def test_accounts_out_of_range(value: Any) -> None:
    """Numbers that are not valid ids (setresuid(2)); the largest valid one is 4294967294."""
    with pytest.raises(ValueError, match="from 0 to 4294967294"):
        kinds.ACCOUNT.parse(value)
    assert kinds.ACCOUNT.parse("4294967294") == "4294967294"


def test_times_out_of_range() -> None:
    """Values that system calls do not accept as a time are refused, as text and as an object."""
    for value in ("1e300", 1e300, 2**40, 10**400, "1e400"):
        with pytest.raises(ValueError, match="seconds"):
            kinds.SECONDS.parse(value)


def test_long_values_are_shown_short() -> None:
    """The message is one readable line for any value."""
    with pytest.raises(ValueError, match=r"^expected a whole number, got ") as caught:
        kinds.COUNT.parse("9" * 100_000)
    assert len(str(caught.value)) < 200
