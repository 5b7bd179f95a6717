"""Messages as bytes: msgpack, and a form of it for text that UTF-8 can't express.

Unix paths and arguments are bytes. Python keeps those that are no UTF-8 as lone surrogates (PEP 383), and an
app's exception may have any. msgpack refuses them. So a message that has some is written with each of them
escaped; its first byte, which msgpack never uses, says so.
"""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

Kind = TypeVar("Kind")

_ESCAPED = b"\xc1"  # "never used" in the msgpack specification
_MARK = "\0"
_UNSAFE = re.compile("[\0\ud800-\udfff]")
# A surrogate follows the mark as the character that is so much smaller, NUL as itself.
_OFFSET = 0xD800 - 0x100
_ESCAPE = re.compile("\0(.)", re.DOTALL)

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def encode(message: msgspec.Struct) -> bytes:
    """Any message as bytes."""
    try:
        return _pack(message)
    except UnicodeEncodeError:
        return _ESCAPED + _pack(_each_text(msgspec.to_builtins(message, builtin_types=(bytes,)), _escaped))


def is_escaped(data: bytes) -> bool:
    """Whether it is in the form that takes Python, and so far longer, to decode."""
    return data[:1] == _ESCAPED


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """What makes messages of a type, or a union of types, from bytes.

    It raises msgspec.DecodeError if they are no such message.
    """
    plain = msgspec.msgpack.Decoder(kind).decode

    def decode(data: bytes) -> Any:
        try:
            if not is_escaped(data):
                return plain(data)
            return msgspec.convert(_each_text(_unpack(data[1:]), _unescaped), kind)
        except (UnicodeDecodeError, RecursionError, TypeError) as error:
            # No UTF-8, nested too deep, or keys that can be none.
            raise msgspec.DecodeError(str(error)) from None

    return decode


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_each_text(key, change): _each_text(found, change) for key, found in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(found, change) for found in value]
    return value


def _escaped(text: str) -> str:
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _MARK + (chr(code - _OFFSET) if code else _MARK)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_unescape, text)


def _unescape(found: re.Match[str]) -> str:
    code = ord(found[1])
    # What is no escape of ours stays as it is: a child may write what it likes.
    return chr(code + _OFFSET) if 0x100 <= code <= 0x8FF else found[1]
