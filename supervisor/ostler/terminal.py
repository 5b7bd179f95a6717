"""Text that goes to a terminal.

Paths, names, reasons and tracebacks are written by apps and clients. A terminal acts on control characters:
ESC and the C1 controls (U+0080 to U+009F, ECMA-48 section 5.3) move the cursor, rename the window, or send an
answer as if it had been typed; the bidirectional controls (UAX #9) show text in another order than programs
read it; line separators begin a line that looks like one of ours. `str.isprintable` is false for all of them,
for invisible characters and for lone surrogates, so nothing has to be listed here. Colours are added only
after a text has been through one of these functions.

Standard library only: workers and `ctl` load this.
"""

import io
import re

_NOT_ASCII = re.compile("[^\0-~]")


def one_line(text: str, longest: int | None = None) -> str:
    """`text` with what a terminal would act upon escaped as Python does it (`\\x1b`, `\\n`, `\\u202e`).

    Args:
        longest: characters to show; of a longer text the beginning is shown, and how long it is.
    """
    shown = text[:longest]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else _escape(c) for c in shown)
    return _cut(shown, text, longest)


def lines(text: str, longest: int | None = None) -> str:
    """The same for a text of several lines: line feeds stay, tabs become blanks."""
    shown = text[:longest]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in shown.expandtabs())
    return _cut(shown, text, longest)


def ascii_json(text: str) -> str:
    """JSON without any character beyond ASCII: it means the same (RFC 8259 section 7), also on a terminal.

    Args:
        text: valid JSON; it has no other control characters than line feeds between its parts.
    """
    return _NOT_ASCII.sub(_json_escape, text)


def encode_anything(stream: object) -> None:
    """Let a standard stream escape what its encoding lacks, as standard error does, instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _cut(shown: str, text: str, longest: int | None) -> str:
    """Escaping makes a text longer; a long text costs no more than what is shown of it."""
    if longest is None or len(text) <= longest >= len(shown):
        return shown
    return f"{shown[:longest]}... ({len(text)} characters in all)"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000  # a surrogate pair
    return f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}"
