"""The Prometheus metrics, parsed by Prometheus's own parser."""

import subprocess
import sys
from dataclasses import replace

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ostler.control.metrics import Figures, Histogram, render
from tests.unit.control.conftest import Rig
from tests.unit.control.fake import FakeBackend


@pytest.fixture
def figures() -> Figures:
    return FakeBackend().figures()


def samples(text: str) -> dict[str, float]:
    """Values by `name{label=value,...}` with the labels in alphabetical order."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def test_one_metric_of_each_kind(figures: Figures) -> None:
    """One figure of each kind, under the name that dashboards and alerts use."""
    seen = samples(render(figures))
    assert seen["ostler_build_info{core=own,python=3.11.2,version=0.1.0,worker_class=sync}"] == 1
    assert seen["ostler_workers_wanted"] == seen["ostler_workers_ready"] == 3
    assert seen["ostler_workers{state=ready}"] == 3
    assert seen["ostler_workers{state=booting}"] == 0
    assert (seen["ostler_state{state=ready}"], seen["ostler_state{state=degraded}"]) == (1, 0)
    assert (seen["ostler_requests_total{status=2xx}"], seen["ostler_requests_total{status=5xx}"]) == (2990, 2)
    assert (seen["ostler_connections_total"], seen["ostler_open_connections"]) == (17, 5)
    assert seen["ostler_sent_bytes_total"] == 99
    assert seen["ostler_refused_requests_total{rule=missing_host}"] == 4
    assert seen["ostler_refused_requests_total{rule=fields}"] == 0
    assert seen["ostler_exits_total{cause=crashed,kind=worker}"] == 2
    assert seen["ostler_exits_total{cause=rolled,kind=fork server}"] == 1
    assert seen["ostler_reloads_total{outcome=done}"] == 3
    assert seen["ostler_accept_queue{listener=http://127.0.0.1:8000}"] == 7
    assert seen["ostler_accept_queue_limit{listener=http://127.0.0.1:8000}"] == 2048
    assert seen["ostler_worker_requests{slot=2}"] == 1002
    assert seen["ostler_worker_cpu_ratio{slot=2}"] == pytest.approx(0.03)
    assert seen["ostler_worker_unique_memory_bytes{slot=3}"] == 8 << 20


def test_a_histogram_is_cumulative(figures: Figures) -> None:
    """Each bucket counts everything within its limit; the count is that of the last bucket."""
    seen = samples(render(figures))
    name = "ostler_request_duration_seconds"
    assert [seen[f"{name}_bucket{{le={limit}}}"] for limit in ("0.001", "0.01", "+Inf")] == [3000, 3005, 3006]
    assert (seen[f"{name}_count"], seen[f"{name}_sum"]) == (3006, 3.25)


def test_what_has_not_happened_yet_is_zero(figures: Figures) -> None:
    """Counters exist before their first increment, which rate() would otherwise miss."""
    seen = samples(render(figures))
    assert seen["ostler_exits_total{cause=deadline,kind=worker}"] == 0
    assert seen["ostler_reloads_total{outcome=rolled back}"] == 0


def test_what_is_not_measured_is_left_out(figures: Figures) -> None:
    """Without queue waits there is no series for them; with them it has the form of the durations."""
    assert "queue_wait" not in render(figures)
    waits = replace(figures, queue_waits=Histogram([0.5], [1, 0], 0.2))
    assert samples(render(waits))["ostler_queue_wait_seconds_bucket{le=0.5}"] == 1


def test_two_workers_in_a_slot_are_one_series(figures: Figures) -> None:
    """While a successor boots, the slot's series is that of the serving worker, which comes first."""
    booting = msgspec.structs.replace(figures.workers[1], state="booting", requests=0)
    both = [figures.workers[0], figures.workers[1], booting, figures.workers[2]]
    seen = samples(render(replace(figures, workers=both)))
    assert seen["ostler_worker_requests{slot=2}"] == 1002
    assert seen["ostler_workers{state=booting}"] == 1


async def test_the_route(rig: Rig) -> None:
    """Text of the format's media type, only with the scope `read`."""
    async with rig.tcp.get("/metrics", headers=rig.bearer) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "ostler_workers_ready 3.0" in await answer.text()
    async with rig.tcp.get("/metrics") as answer:
        assert answer.status == 401


def test_the_library_is_imported_at_the_first_scrape() -> None:
    """A daemon without scraping does not import the library."""
    script = "import sys, ostler.daemon.main; print('prometheus_client' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout == "False\n"
