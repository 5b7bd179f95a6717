"""With `reload`, for development, new code is served without delay."""

from ostler.daemon.settings_to_policy import fleet_policy
from ostler.fleet.model import FleetPolicy
from ostler.settings.load import load


def policy(**given: object) -> FleetPolicy:
    return fleet_policy(load(given, {}, None, lambda: 2))


def test_reload_mode_has_no_delays() -> None:
    """No canary time, no probation, all workers at once; settings of the user are kept."""
    usual, hurried = policy(), policy(reload=True)
    assert (usual.canary_time, usual.probation, usual.max_surge_share) == (0.5, 10.0, 0.25)
    assert (hurried.canary_time, hurried.probation, hurried.max_surge_share) == (0.0, 0.0, 1.0)
    own = policy(reload=True, canary_time="0.5", probation="3", max_surge="2")
    assert (own.canary_time, own.probation, own.max_surge, own.max_surge_share) == (0.5, 3.0, 2, 0.0)
