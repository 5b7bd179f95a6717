"""Messages as bytes: msgpack, and a form of it for text that UTF-8 can't express.

Unix paths and arguments are bytes. Python keeps those that are no UTF-8 as lone surrogates (PEP 383), and an
app's exception may contain any. msgpack refuses them. So a message that contains some is written with each of
them escaped; its first byte, which msgpack never uses, marks it.
"""

import math
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
# Values and escapes in one message, which cost some milliseconds; the longest batch of paths has fewer.
_MOST = 18_000

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def encode(message: msgspec.Struct) -> bytes:
    """Any message as bytes. If it has very many texts or escapes, surrogates are written as `\\udXXX`."""
    try:
        return _pack(message)
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(message, builtin_types=(bytes,))
    try:
        return _ESCAPED + _pack(_TextReplacer(_escaped, _UNSAFE).through(plain))
    except _TooMuch:
        return _pack(_TextReplacer(_written_out, _UNSAFE, math.inf).through(plain))


def is_escaped(data: bytes) -> bool:
    """Whether it has escapes, which are decoded in Python and take far longer."""
    return data[:1] == _ESCAPED


def decoder(kind: Any) -> Callable[[bytes], Any]:
    """A function that decodes messages of a type, or a union of types.

    It raises msgspec.DecodeError if the bytes are no such message.
    """
    plain = msgspec.msgpack.Decoder(kind).decode

    def decode(data: bytes) -> Any:
        try:
            if not is_escaped(data):
                return plain(data)
            return msgspec.convert(_TextReplacer(_unescaped, _ESCAPE).through(_unpack(data[1:])), kind)
        except (_TooMuch, UnicodeDecodeError, RecursionError, TypeError) as error:
            # No UTF-8, nested too deep, keys of an impossible type, or too much for the time it takes.
            raise msgspec.DecodeError(str(error)) from None

    return decode


class _TooMuch(Exception):
    pass


class _TextReplacer:
    """Replaces each text in a value that has no more than so many parts, and matches of `pattern`."""

    def __init__(self, change: Callable[[str], str], pattern: re.Pattern[str], most: float = _MOST) -> None:
        self._change = change
        self._pattern = pattern
        self._left = most

    def through(self, value: Any) -> Any:
        """Raises _TooMuch."""
        self._left -= 1
        if self._left < 0:
            raise _TooMuch("too many values or escapes for a message with text that is no UTF-8")
        if isinstance(value, str):
            for _ in self._pattern.finditer(value):
                self._left -= 1
                if self._left < 0:
                    return self.through(None)
            return self._change(value)
        if isinstance(value, dict):
            return {self.through(key): self.through(found) for key, found in value.items()}
        if isinstance(value, list | tuple):
            return [self.through(found) for found in value]
        return value


def _written_out(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(text: str) -> str:
    return _UNSAFE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _MARK + (chr(code - _OFFSET) if code else _MARK)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(_unescape, text)


def _unescape(found: re.Match[str]) -> str:
    code = ord(found[1])
    # What is no escape of `encode` stays as it is: a child may write anything.
    return chr(code + _OFFSET) if 0x100 <= code <= 0x8FF else found[1]
