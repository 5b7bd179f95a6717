"""What the fleet needs of a generation's settings, e.g. `graceful_timeout`.

contrib/docs/architecture.md, walk 4, follows that setting from the flag to its effect.
"""

from collections.abc import Sequence

import msgspec

from ostler.fleet.model import FleetPolicy
from ostler.settings.load import Loaded
from ostler.settings.table import Settings, policy_fields

# Seconds. A worker ends by itself in time, its atexit functions included; the fleet's own limit is for one
# that does not.
_DRAIN_GRACE = 1.0
# Seconds that a fork server may take to end. A hook has less (`hooks.calling`).
_GRACE, HOOKS_GRACE = 1.0, 6.0


def fleet_policy(loaded: Loaded, hooks: Sequence[str] = ()) -> FleetPolicy:
    """The fleet's policy under a generation's settings. hooks: names of those it has."""
    settings = _for_development(loaded) if loaded.settings.reload else loaded.settings
    return FleetPolicy(
        **policy_fields(settings),
        drain_grace=_DRAIN_GRACE,
        fork_server_grace=HOOKS_GRACE if hooks else _GRACE,
    )


def _for_development(loaded: Loaded) -> Settings:
    """Settings for the development of an app: unless they were set, old workers are replaced at once.

    An app that can't be loaded is shown as an error page (see `reload`), so a roll-back is not needed either.
    """
    quick = {"canary_time": 0.0, "probation": 0.0, "max_surge": "100%"}
    return msgspec.structs.replace(
        loaded.settings,
        **{name: value for name, value in quick.items() if loaded.origins.get(name) == "default"},
    )
