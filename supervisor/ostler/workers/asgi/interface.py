"""Types of the ASGI specification (version 3), and our addition to its scope."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTEND = "ostler.extend_deadline"
"""Key in the scope, as in a WSGI app's environ: `scope[EXTEND](seconds)`."""
