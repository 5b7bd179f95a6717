"""What is known of one setting: the row's type."""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ostler.settings.kinds.kind import Kind


class TakesEffect(enum.Enum):
    """When a value that a reload has changed counts."""

    LIVE = "live"
    """As soon as the reload's generation takes over; no worker need be replaced for it.

    LIVE means live in the supervisor; a worker that already runs needs a message.
    """
    GENERATION = "generation"
    """In the workers that the reload starts; older ones keep the value that they were started with."""
    RESTART = "restart"


LIVE, GENERATION, RESTART = TakesEffect.LIVE, TakesEffect.GENERATION, TakesEffect.RESTART

SAME_NAME = "="


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting besides its type and default.

    Args:
        kind: how values are read.
        help: one line for `--help`.
        flags: spellings on the command line; empty for settings that only files have.
        takes_effect: when a change counts.
        env: environment variable that gives a default.
        policy: what the value is in the fleet's policy: the name of a field of `FleetPolicy`, or a function
            that turns the value into fields; empty: the fleet does not use it.
        worker_classes: names of our worker classes that use it; empty: it does not depend on them.
        gunicorn: gunicorn's name of the setting, which files may use; None: gunicorn has no such setting.
        name, default: of the field; set by `rows`.
    """

    kind: Kind
    help: str
    flags: tuple[str, ...] = ()
    takes_effect: TakesEffect = GENERATION
    env: str | None = None
    policy: str | Callable[[Any], Mapping[str, Any]] = ""
    worker_classes: frozenset[str] = frozenset()
    gunicorn: str | None = SAME_NAME
    name: str = field(default="", compare=False)
    default: Any = field(default=None, compare=False)

    def of_field(self, name: str, default: Any) -> "Setting":
        """The row with name and default of its field."""
        gunicorn = name if self.gunicorn == SAME_NAME else self.gunicorn
        return replace(self, name=name, default=default, gunicorn=gunicorn)

    def policy_fields(self, value: Any) -> Mapping[str, Any]:
        """Fields of the fleet's policy that follow from `value`."""
        if callable(self.policy):
            return self.policy(value)
        return {self.policy: value} if self.policy else {}
