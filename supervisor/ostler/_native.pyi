"""The C extension, from supervisor/native. It is optional: see `ostler.native`."""

from collections.abc import Callable
from typing import Any

from ostler.http1.head import Head, Rules

def fork_orphan(own_group: bool, /) -> int:
    """Fork a process whose parent becomes the next subreaper (prctl(2)) and not this process.

    The functions of `os.register_at_fork`, and handlers of pthread_atfork(3), run once: "before" and
    "after in parent" in this process, "after in child" in the new one.

    own_group: the new process leads a process group of its own.

    Returns 0 in the new process, else its pid. Raises OSError.
    """

class RequestRules:
    """What `ordinary_request` has to know of `ostler.http1.head.Rules`.

    schemes: `Rules.secure_scheme_headers`; parse_head: `ostler.http1.head.parse_head`. One object is for one
    process, which may have threads.
    """

    def __init__(
        self,
        rules: Rules,
        parse_head: Callable[[bytes, str, Rules], Head],
        schemes: dict[bytes, bytes],
        max_line: int,
        max_fields: int,
        max_field_size: int,
    ) -> None: ...

class Request:
    """A request without a body; stands for `ostler.http1.request.Request` and for its `Line`.

    head: made by `parse_head` when it is asked for; nothing that serves ordinary requests does.
    """

    keep_alive: bool
    line: Request
    head: Head
    headers: list[tuple[bytes, bytes]]
    method: str
    target: bytes
    protocol: str
    raw_uri: str
    path: str
    query: str
    authority: None
    body: None
    length: int
    complete: bool
    ordinary: bool

    def environ(self, template: dict[str, Any], /) -> dict[str, Any]:
        """Its environ, as `ostler.wsgi.environ.request_environ` would make it.

        template: what all requests of its connection have in common: the result of `head_environ` for a head
        without fields.
        """

def ordinary_request(data: bytes, rules: RequestRules, /) -> Request | None:
    """The request that `data` is, if these are exactly one, and it is plainly ordinary; else None.

    What it does not recognize may be valid, incomplete, malformed, or several requests.
    """
