"""From settings to what the fleet needs of them."""

from collections.abc import Sequence

import msgspec

from ostler.fleet.model import FleetPolicy
from ostler.settings.load import Loaded
from ostler.settings.table import Settings, policy_fields

# A worker ends itself in time, its atexit functions included; the fleet's own limit is for one that does not.
_DRAIN_GRACE = 1.0
# How long a fork server may take to end. A hook has less (`hooks.calling`).
_GRACE, HOOKS_GRACE = 1.0, 6.0


def fleet_policy(loaded: Loaded, hooks: Sequence[str] = ()) -> FleetPolicy:
    """What a generation's settings, and the names of its hooks, say about the fleet."""
    settings = _hurried(loaded) if loaded.settings.reload else loaded.settings
    return FleetPolicy(
        **policy_fields(settings),
        drain_grace=_DRAIN_GRACE,
        fork_server_grace=HOOKS_GRACE if hooks else _GRACE,
    )


def _hurried(loaded: Loaded) -> Settings:
    """Settings for development, with `reload`: new code at once, unless the user has set something else.

    An app that can't be loaded is shown as an error page, so there is no reason to keep the old one either.
    """
    quick = {"canary_time": 0.0, "probation": 0.0, "max_surge": "100%"}
    return msgspec.structs.replace(
        loaded.settings,
        **{name: value for name, value in quick.items() if loaded.origins.get(name) == "default"},
    )
