"""Whether load balancers are to send requests: what `/readyz` and the agent check answer."""

import enum

from ostler.control.views import FleetState


class Readiness(enum.Enum):
    """The value is the text of `/readyz`."""

    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    NO_WORKER = "no worker is ready"


def readiness(state: FleetState, ready: int) -> Readiness:
    """Decide by the fleet's state and its number of ready workers."""
    if state == "draining":
        return Readiness.DRAINING
    if state == "stopping":
        return Readiness.STOPPING
    return Readiness.READY if ready else Readiness.NO_WORKER
