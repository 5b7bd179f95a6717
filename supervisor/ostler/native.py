"""The C extension, which is optional.

It is built at installation where there are a C compiler and Python's headers. Whatever it does is done by
Python code, too, if it is missing; who uses it says what is different then. OSTLER_NATIVE=0 turns it off.
"""

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from types import ModuleType

module: "ModuleType | None"
"""`ostler._native`, or None."""
try:
    if os.environ.get("OSTLER_NATIVE") == "0":
        raise ImportError
    from ostler import _native as module
except ImportError:
    module = None

CORE: Literal["c", "python"] = "python" if module is None else "c"
"""What serves ordinary requests in workers of this process; see `settings.classes.Core`."""
