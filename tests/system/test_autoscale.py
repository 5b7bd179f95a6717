"""Decisions from measurements of real workers: how many workers there are, and which have grown too large."""

import math
from itertools import pairwise

import pytest

from tests.kit.daemon import Place
from tests.kit.load import Load

pytestmark = pytest.mark.system

BUSY = """
import time

hoard = []


def app(environ, start_response):
    if environ["PATH_INFO"] == "/grow":
        hoard.append(bytearray(b"x") * (100 << 20))
    else:
        time.sleep(0.05)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""


def test_the_load_decides_on_the_number(place: Place) -> None:
    """With a range of 1..4 workers, four clients without pauses lead to more workers; without load there is
    one again.

    No request fails meanwhile, and each change is an event that gives the reason.
    """
    place.add("busy.py", BUSY)
    daemon = place.start("--workers", "1..4", "--autoscale-cooldown", "1", "busy:app")
    daemon.settled(1)
    with Load(daemon.address, rate=math.inf, connections=4) as load:
        first = daemon.event("autoscale")
        assert (first["workers"], first["before"]) == (2, 1)
        assert first["reason"].startswith(("requests waited", "busy ")), first
        daemon.event("autoscale", workers=4)
        assert [worker.slot for worker in daemon.settled(4)] == [1, 2, 3, 4]
        report = load.finish()
    assert report.failed == 0, report.summary()
    daemon.event("autoscale", within=60, workers=1)
    daemon.settled(1)
    scaled = daemon.events("autoscale")
    assert all(earlier["workers"] == later["before"] for earlier, later in pairwise(scaled)), scaled
    assert "would have done for" in scaled[-1]["reason"]
    assert daemon.status().totals.deaths == 0


@pytest.mark.thorough
def test_autoscaling_leaves_a_number_set_by_hand(place: Place) -> None:
    """After `ctl scale` busy workers are not increased; measurements since then decide nothing."""
    place.add("busy.py", BUSY)
    daemon = place.start("--workers", "1..4", "busy:app")
    daemon.settled(1)
    assert daemon.ctl("scale", "2").code == 0
    daemon.settled(2)
    with Load(daemon.address, rate=math.inf, connections=4) as load:
        load.wait_for(240)
        report = load.finish()
    assert report.failed == 0, report.summary()
    assert daemon.events("autoscale") == []
    daemon.settled(2)


def test_a_worker_that_has_grown_too_large(place: Place) -> None:
    """A worker whose own memory exceeds max_memory is recycled, its successor first; no request fails."""
    place.add("busy.py", BUSY)
    daemon = place.start("-w", "2", "--max-memory", "90M", "busy:app")
    before = {worker.slot: worker.pid for worker in daemon.settled(2)}
    with Load(daemon.address, rate=20, connections=2) as load:
        assert daemon.get("/grow").text == "done"
        event = daemon.event("recycle")
        assert event["memory"] > 100 << 20
        assert event["limit"] == 90 << 20
        daemon.event("worker_exited", cause="memory")
        report = load.finish()
    assert report.failed == 0, report.summary()
    after = {worker.slot: worker.pid for worker in daemon.settled(2)}
    assert [slot for slot in before if before[slot] != after[slot]] == [event["slot"]]
    assert after[event["slot"]] != event["pid"]
