"""The ports of the daemon's parts, with fakes for everything that a test does not need."""

from typing import Any

from ostler.daemon.children.ports import Ports
from ostler.daemon.children.registry import ChildRegistry


def fake_ports(**given: Any) -> Any:
    """Ports with an empty registry; using a port that was not given fails.

    given: by name; `state` is the state itself, `workers`, `fork_servers` and `leaving` are the contents of
    the registry.
    """
    children = ChildRegistry()
    children.workers = given.pop("workers", children.workers)
    children.fork_servers = given.pop("fork_servers", children.fork_servers)
    children.leaving = given.pop("leaving", children.leaving)
    state = given.pop("state", None)
    names = ("loop", "journal", "submit", "attempt")
    parts: dict[str, Any] = {name: given.pop(name, None) for name in names}
    assert not given, f"no ports: {given}"
    return Ports(children=children, state=lambda: state, **parts)
