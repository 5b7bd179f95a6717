"""Python objects of a configuration file as plain data, which can be sent, shown and compared."""

from collections.abc import Mapping
from typing import Any

# msgpack's.
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_DEEPEST = 20


def plain_data(value: Any, depth: int = 0) -> Any:
    """A copy of texts, numbers, lists and dicts; of anything else a description.

    A class or function is its dotted name, which `logging.config` would import. Any other object is
    shown as its class: an address in memory would differ from process to process.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if _SMALLEST <= value <= _LARGEST else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {str(plain_data(key)): plain_data(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [plain_data(item, depth + 1) for item in value]
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{getattr(value, '__module__', None) or '?'}.{name}"
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
