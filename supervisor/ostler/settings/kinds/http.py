"""Parts of HTTP: names and values of header fields, and warm-up requests."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from ostler.settings.kinds.kind import Kind, shown
from ostler.settings.kinds.texts import list_of, text

# RFC 9110 section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


def _header_name(value: Any) -> str:
    name = text(value)
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"expected the name of a header, got {shown(name)}")
    return name.upper()


def _header_values(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a dictionary of header names and values, got {shown(value)}")
    return {_header_name(name): text(content) for name, content in value.items()}


HEADER_NAMES = Kind(list_of(_header_name), "NAMES", shown=",".join)
HEADER_VALUES = Kind(_header_values, "DICT")


# -- warm-up requests ----------------------------------------------------------------------------------------


class WarmupRequest(msgspec.Struct, frozen=True):
    """A request that a worker sends to itself before it is ready."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = {}


def _warmups(value: Any) -> tuple[WarmupRequest, ...]:
    if value is None:
        return ()
    several = value if isinstance(value, list | tuple) else (value,)
    return tuple(_warmup(one) for one in several)


def _warmup(value: Any) -> WarmupRequest:
    if isinstance(value, Mapping):
        if unknown := set(value) - {"path", "method", "headers"}:
            raise ValueError(f"has path, method and headers, not {min(map(str, unknown))!r}")
        method, path = text(value.get("method", "GET")), text(value.get("path", "/"))
        headers = value.get("headers") or {}
    else:
        method, _, path = text(value).rpartition(" ")
        headers = {}
    method = method.strip() or "GET"
    if not _TOKEN.fullmatch(method) or not re.fullmatch(r"/[!-~]*", path):
        raise ValueError(f"expected a path such as /health or 'HEAD /health', got {shown(value)}")
    return WarmupRequest(path, method, _header_lines(headers))


def _header_lines(headers: Any) -> dict[str, str]:
    found = _header_values(headers)
    for name, content in found.items():
        if not re.fullmatch(r"[\t -~]*", content):
            raise ValueError(f"the header {name} can't be {shown(content)}")
    return found


WARMUP = Kind(_warmups, "REQUEST", several=True)
