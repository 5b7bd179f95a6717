"""A fleet policy for tests.
Fields that are not given have plain values, so that a test names only what it is about.
"""

from typing import Any

from ostler.fleet.model import FleetPolicy


def fleet_policy(**changes: Any) -> FleetPolicy:
    """One worker, all optional features off, no random spread."""
    usual: dict[str, Any] = {
        "workers": 1,
        "preload": True,
        "workers_most": None,
        "graceful_timeout": 30.0,
        "drain_grace": 0.0,
        "shutdown_delay": 0.0,
        "boot_timeout": 60.0,
        "timeout_grace": 2.0,
        "timeout_soft": False,
        "max_surge": 1,
        "max_surge_share": 0.0,
        "boot_parallelism": 2,
        "boot_when_idle": False,
        "boot_retries": 0,
        "canary_time": 0.0,
        "probation": 0.0,
        "keep_generations": 0,
        "rollback_crashes": 0,
        "rollback_error_rate": 0.0,
        "refork_after": (),
        "max_age": 0.0,
        "max_age_jitter": 0.0,
        "max_memory": 0,
        "autoscale_utilisation": 0.7,
        "autoscale_queue_wait": 0.05,
        "autoscale_cooldown": 60.0,
        "fork_server_grace": 1.0,
    }
    return FleetPolicy(**usual | changes)
