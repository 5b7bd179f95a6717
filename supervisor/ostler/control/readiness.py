"""Whether load balancers are to send requests: what `/readyz` and the agent check answer."""

import enum

from ostler.control.views import FleetState


class FleetReadiness(enum.Enum):
    """The value is the text of `/readyz`."""

    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    NO_WORKER = "no worker is ready"


def readiness(state: FleetState, ready: int) -> FleetReadiness:
    """Decide by the fleet's state and its number of ready workers."""
    if state == "draining":
        return FleetReadiness.DRAINING
    if state == "stopping":
        return FleetReadiness.STOPPING
    return FleetReadiness.READY if ready else FleetReadiness.NO_WORKER
