"""What the parts that deal with children need of the rest of the daemon."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ostler.daemon.attempts import Attempts
from ostler.daemon.children.registry import ChildRegistry
from ostler.daemon.reporting.journal import Journal
from ostler.fleet import events
from ostler.fleet.state import State


@dataclass(frozen=True, slots=True)
class Ports:
    """Handed to each part instead of the shell.

    Attributes:
        loop: for timers and readers.
        journal: for events that an operator reads.
        children: the registry.
        submit: takes an event of the fleet.
        state: the fleet's state, for reading only.
        attempt: runs a step that may fail without harm to the next.
    """

    loop: asyncio.AbstractEventLoop
    journal: Journal
    children: ChildRegistry
    submit: Callable[[events.Event], None]
    state: Callable[[], State]
    attempt: Attempts
