"""Verifies the rows with "takes effect: live".

A reload changes the value of one setting, and the same scenario runs in three fleets: one where the
reload changes nothing, one where it changes the value, and one that had the new value from the start. The
second must be like the third and unlike the first, while all earlier workers still exist. A new live
row without an observation fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ostler.daemon.sensors.deadlines import DeadlineSensor
from ostler.daemon.settings_to_policy import fleet_policy
from ostler.settings import Loaded, load, rows
from ostler.settings.table import LIVE
from tests.kit.play import Play

MEGABYTE = 1 << 20
# Two workers: after the promotion of the canary, one of the old workers drains and one serves.
BASE = {"workers": "2", "canary_time": "0", "max_surge": "1", "boot_parallelism": "9", "preload_app": True}


class Reloading(Play):
    """A fleet for which a reload was requested; its new fork server is about to be configured."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        super().__init__()
        self.loaded_settings: dict[int, Loaded] = {}
        self._set(1, before)
        self.start().loaded()
        self.ready(*range(1, self.policy.workers + 1))
        self.reload()
        self._set(2, after)
        self.unseen.clear()

    def _set(self, generation: int, given: dict[str, Any]) -> None:
        loaded = load(BASE | given, {}, None, lambda: 2)
        self.loaded_settings[generation] = loaded
        self.policy = fleet_policy(loaded)

    def taken_over(self) -> "Reloading":
        """The canary serves in slot 1 and its generation is current; no old worker has left yet."""
        self.configured().app_loaded().ready(1)
        assert self.fleet.state.current == 2
        old = [worker.slot for worker in self.workers.values() if worker.generation == 1]
        assert old == [*range(1, 1 + len(old))]
        assert len(old) >= 1
        return self

    def old(self, slot: int) -> Any:
        """The actions for the old worker in the slot."""
        return next(w.ordered for w in self.workers.values() if (w.slot, w.generation) == (slot, 1))

    def asked(self) -> int:
        """How many workers are to be forked."""
        return sum(worker.state == "asked" for worker in self.workers.values())

    def seconds(self, number: int, **load: float) -> "Reloading":
        """Let this many seconds pass with this load of each serving worker;
        processes do what they are asked.
        """
        for _ in range(number):
            self.after(1.0)
            self.settle_processes()
            self.measured(**load)
        return self


def _memory(play: Reloading) -> bool:
    play.taken_over()
    for _ in range(3):
        play.measured(1, memory=200 * MEGABYTE)
    return any(report.name == "recycle" for report in play.reports)


def _errors(play: Reloading) -> int:
    play.taken_over().measured(1, requests=1000, errors=900)
    play.after(1.0)
    return play.fleet.state.current


def _refork(play: Reloading) -> bool:
    play.taken_over().settle_processes()
    play.unseen.clear()
    play.measured(requests=200)
    return any(cue.what == "AuditZygote" for cue in play.unseen)


def _sensor(play: Reloading) -> DeadlineSensor:
    play.taken_over()
    configurations = SimpleNamespace(current=play.loaded_settings[play.fleet.state.current])
    unused = cast(Any, None)
    return DeadlineSensor(unused, cast(Any, configurations), unused, unused)


def _waits(play: Reloading) -> bool:
    play.taken_over().seconds(20, busy=0.6, rate=50.0, queue_wait=1.0)
    return any("waited" in report.fields["reason"] for report in play.reports if report.name == "autoscale")


def _cooldown(play: Reloading) -> int:
    play.taken_over().seconds(20, busy=1.0, rate=50.0)
    return play.seconds(60, busy=0.0).fleet.state.wanted


@dataclass(frozen=True)
class Change:
    before: Any
    after: Any
    observe: Callable[[Reloading], Any]
    base: dict[str, Any] | None = None


RANGE = {"workers": "2..9"}
CHANGES = {
    "workers": Change("2", "4", lambda play: play.taken_over().fleet.state.wanted),
    "max_memory": Change("0", "100M", _memory),
    "max_surge": Change("1", "2", lambda play: play.taken_over().asked()),
    "boot_parallelism": Change("1", "4", lambda play: play.taken_over().scale(7) and play.asked()),
    "canary_time": Change("0", "5", lambda play: play.configured().app_loaded().ready(1).fleet.state.current),
    "probation": Change("0", "60", lambda play: play.taken_over().fork_servers[1].ordered),
    "keep_generations": Change(
        "0",
        "1",
        lambda play: play.taken_over().settled().after(100).settled().fork_servers.keys(),
        {"probation": "5"},
    ),
    "rollback_crashes": Change(
        "0", "1", lambda play: play.taken_over().crashes(1).fleet.state.current, {"probation": "60"}
    ),
    "rollback_error_rate": Change("0", "10%", _errors, {"probation": "60"}),
    "refork_after": Change("", "100", _refork, {"workers": "1"}),
    "autoscale_utilisation": Change(
        "0.95",
        "0.2",
        lambda play: play.taken_over().seconds(20, busy=0.5, rate=50.0).fleet.state.wanted,
        RANGE,
    ),
    "autoscale_queue_wait": Change("10", "0.01", _waits, RANGE),
    "autoscale_cooldown": Change("1000", "5", _cooldown, RANGE),
    "timeout": Change("30", "1", lambda play: _sensor(play).timeout()),
    "limit_request_time": Change("0", "60", lambda play: _sensor(play).limit()),
    "graceful_timeout": Change("30", "3", lambda play: play.taken_over().after(10) and play.old(1)),
    "shutdown_delay": Change("0", "20", lambda play: play.taken_over().stop().after(10) and play.old(2)),
    "boot_timeout": Change(
        "60", "5", lambda play: play.configured().after(10) and play.fork_servers[2].ordered
    ),
    "timeout_grace": Change(
        "100",
        "1",
        lambda play: play.taken_over().overdue(1).only_overdue_left(1).after(5) and play.old(1),
        {"graceful_timeout": "90"},
    ),
    "timeout_soft": Change(
        True, False, lambda play: [cue.what for cue in play.taken_over().overdue(2).unseen].count("Interrupt")
    ),
}


@pytest.mark.parametrize("name", [name for name, row in rows().items() if row.takes_effect is LIVE])
def test_live_row(name: str) -> None:
    change = CHANGES[name]
    base = change.base or {}
    before, after = base | {name: change.before}, base | {name: change.after}
    unchanged = change.observe(Reloading(before, before))
    changed = change.observe(Reloading(before, after))
    from_the_start = change.observe(Reloading(after, after))
    assert changed == from_the_start
    assert changed != unchanged


def test_no_other_rows() -> None:
    """Each observation is for a live row."""
    assert {name for name in CHANGES if rows()[name].takes_effect is not LIVE} == set()
