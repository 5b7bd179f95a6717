"""From settings to what the fleet needs of them."""

from collections.abc import Sequence

import msgspec

from ostler.fleet.model import FleetPolicy
from ostler.osapi.cpus import usable_cpus
from ostler.settings.load import Loaded
from ostler.settings.table import Settings

# A worker ends itself in time, its atexit functions included; the fleet's own limit is for one that does not.
_DRAIN_GRACE = 1.0


# How long a fork server may take to end. A hook has less (`hooks.calling`).
_GRACE, HOOKS_GRACE = 1.0, 6.0


def fleet_policy(loaded: Loaded, hooks: Sequence[str] = ()) -> FleetPolicy:
    """What a generation's settings, and the names of its hooks, say about the fleet."""
    settings = _hurried(loaded) if loaded.settings.reload else loaded.settings
    least, most = settings.workers if isinstance(settings.workers, tuple) else (settings.workers, None)
    share = settings.max_surge.endswith("%")
    surge = int(settings.max_surge.removesuffix("%"))
    return FleetPolicy(
        workers=least,
        preload=settings.preload_app,
        workers_most=most,
        graceful_timeout=settings.graceful_timeout,
        drain_grace=_DRAIN_GRACE,
        boot_timeout=settings.boot_timeout,
        timeout_grace=settings.timeout_grace,
        timeout_soft=settings.timeout_soft,
        max_surge=1 if share else surge,
        max_surge_share=surge / 100 if share else 0.0,
        boot_parallelism=settings.boot_parallelism or max(2, usable_cpus()),
        canary_time=settings.canary_time,
        probation=settings.probation,
        rollback_crashes=settings.rollback_crashes,
        rollback_error_rate=settings.rollback_error_rate,
        refork_after=settings.refork_after,
        max_age=settings.max_age,
        max_age_jitter=settings.max_age_jitter,
        max_memory=settings.max_memory,
        autoscale_utilisation=settings.autoscale_utilisation,
        autoscale_queue_wait=settings.autoscale_queue_wait,
        autoscale_cooldown=settings.autoscale_cooldown,
        fork_server_grace=HOOKS_GRACE if hooks else _GRACE,
    )


def _hurried(loaded: Loaded) -> Settings:
    """Settings for whoever writes the app and waits to see it: what nobody has set spares no old worker.

    An app that can't be loaded is shown (see `reload`), so there is nothing to go back to either.
    """
    quick = {"canary_time": 0.0, "probation": 0.0, "max_surge": "100%"}
    return msgspec.structs.replace(
        loaded.settings,
        **{name: value for name, value in quick.items() if loaded.origins.get(name) == "default"},
    )
