"""prometheus_client in multiprocess mode, with a counter that is used when the module is imported."""

from fork_common import Outcome, app_of
from prometheus_client import Counter, Gauge

asked = Counter("asked", "Requests")
here = Gauge("here", "Workers that have answered and live", multiprocess_mode="livesum")
Counter("imported", "How often this module was imported").inc()


def work() -> Outcome:
    asked.inc()
    here.set(1)
    return {}


app = app_of(work)
