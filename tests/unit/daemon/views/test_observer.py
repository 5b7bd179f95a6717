"""What the observer computes: coarser histograms, and the changes of a reload."""

import itertools
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from ostler.control.views import ChangeView
from ostler.daemon.configurations import Configurations
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.views.changes import changed_settings
from ostler.daemon.views.histograms import QUEUE_WAITS, coarse_histogram
from ostler.daemon.views.observer import Observer, ObserverState
from ostler.fleet import actions, events
from ostler.fleet.machine import Fleet
from ostler.fleet.model import ExitStatus
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.layout import BUCKETS, bucket_of
from ostler.settings.load import Loaded, load
from tests.kit.policies import fleet_policy
from tests.unit.daemon.fakes import fake_ports


def loaded(**given: Any) -> Loaded:
    return load(given, {}, None, lambda: 1)


def test_a_histogram_in_fewer_buckets() -> None:
    """Each duration is counted in the first bucket whose limit it does not exceed; the sum is approximate."""
    durations = [1e-6, 20e-6, 33e-6, 0.0011, 0.5, 3.0, 100.0, 200.0]
    counts = [0] * BUCKETS
    for duration in durations:
        counts[bucket_of(round(duration * 1e9))] += 1
    coarse = coarse_histogram(counts)
    assert len(coarse.counts) == len(coarse.limits) + 1 == 23
    assert list(coarse.limits) == sorted(coarse.limits)
    assert coarse.limits[0] == pytest.approx(32.768e-6)
    reached = 0
    for limit, count in zip(coarse.limits, coarse.counts, strict=False):
        reached += count
        assert reached == sum(duration < limit for duration in durations)
    assert reached + coarse.counts[-1] == len(durations)
    assert coarse.counts[-1] == 2
    waits = coarse_histogram(counts, QUEUE_WAITS, 7)
    assert waits.limits[0] == pytest.approx(1.048576e-3)
    assert waits.counts[0] == 7 + sum(duration < waits.limits[0] for duration in durations)
    assert sum(waits.counts) == 7 + len(durations)
    one = [0] * BUCKETS
    one[bucket_of(1_300_000)] = 1
    assert coarse_histogram(one).total == pytest.approx(0.0013, rel=0.125)


def test_waits_never_shrink() -> None:
    """A wait is counted when its request reaches the app, the request itself when it is answered.
    In between, the number of requests that did not wait stays the same.
    """
    rig = Rig()

    def waits(answered: int, queued: int) -> list[int]:
        counts = Counts(statuses=[0, 0, answered] + [0] * 7)
        counts.queued[bucket_of(10_000_000)] = queued
        rig.scoreboard.totals = lambda _: counts
        waits = rig.observer.figures().queue_waits
        assert waits is not None
        return list(itertools.accumulate(waits.counts))

    for earlier, later in itertools.pairwise([waits(100, 5), waits(100, 6), waits(101, 6), waits(102, 6)]):
        assert all(a <= b for a, b in zip(earlier, later, strict=True))
    assert (waits(102, 6)[0], waits(102, 6)[-1]) == (96, 102)


def test_changes_between_two_configurations() -> None:
    """Names, both values and when the change takes effect; unchanged settings are not listed."""
    found = changed_settings(loaded(workers="4", pidfile="/a"), loaded(workers="2..6", pidfile="/b"))
    assert found == [
        ChangeView("workers", 4, "2..6", "live"),
        ChangeView("pidfile", "/a", "/b", "restart"),
    ]
    assert changed_settings(loaded(), loaded()) == []


def test_changed_secrets_stay_secret() -> None:
    """It is shown that the app's environment has changed, but not its values."""
    (found,) = changed_settings(loaded(raw_env=["TOKEN=one"]), loaded(raw_env=["TOKEN=two"]))
    assert (found.name, found.before, found.after) == ("raw_env", ("TOKEN=...",), ("TOKEN=...",))


class Rig:
    """An observer of a fleet whose first generation serves."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self.configurations = Configurations(lambda: self.fleet.state)
        self.configurations.add(1, loaded(workers="1"))
        self.logged: list[tuple[str, str, dict[str, Any]]] = []
        journal = SimpleNamespace(record=lambda *what: self.logged.append(what))
        self.scoreboard: Any = SimpleNamespace(read_all=dict)
        self.observer = Observer(
            fake_ports(state=self.fleet.state, journal=journal),
            self.configurations,
            self.scoreboard,
            Listeners([]),
            Ledger(),
            lambda: "shop",
            lambda: 0.0,
        )
        self.submit(events.StartAsked())
        self.configured(1)
        self.boot(1)

    def submit(self, event: events.Event) -> None:
        """As in the shell: the end of a reload is reported before `follow`, here by `reload_ended`."""
        found = self.fleet.handle(event, 0.0)
        if not any(isinstance(action, actions.ReloadEnded) for action in found):
            self.observer.reloads.follow()

    def reload_ended(self, generation: int) -> None:
        self.observer.reloads.on_ended(generation)
        self.observer.reloads.follow()

    def configured(self, generation: int) -> None:
        self.submit(events.ForkServerConfigured(generation, fleet_policy()))
        self.submit(events.AppLoaded(generation))

    def boot(self, worker_id: int) -> None:
        self.submit(events.WorkerForked(worker_id, 100 + worker_id))
        self.submit(events.WorkerReady(worker_id))

    def names(self) -> list[str]:
        view = self.observer.reload()
        assert view is not None
        return [change.name for change in view.changes]


def test_a_reload_shows_what_it_has_changed() -> None:
    """As soon as the new configuration is read, at the end, and also after the old settings were dropped."""
    rig = Rig()
    rig.submit(events.ReloadAsked("test"))
    assert rig.names() == []
    rig.configurations.add(2, loaded(workers="1", timeout="5"))
    assert rig.names() == ["timeout"]
    rig.configured(2)
    rig.boot(2)
    rig.reload_ended(2)
    rig.configurations.keep_only({2})
    assert rig.names() == ["timeout"]


def test_the_next_reload_is_compared_with_the_last() -> None:
    """Not with the first generation; a failed reload does not affect the next comparison."""
    rig = Rig()
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(2, loaded(timeout="5"))
    rig.configured(2)
    rig.boot(2)
    rig.reload_ended(2)
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(3, loaded(timeout="7", backlog="9"))
    rig.submit(events.GenerationFailed(3, "no such module"))
    rig.reload_ended(3)
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(4, loaded(timeout="5", threads="2"))
    assert rig.names() == ["worker_class", "threads"]


def test_a_reload_that_is_rolled_back_after_its_end() -> None:
    """It is counted as done and as rolled back;
    the next one is compared with the generation that serves again.
    """
    rig = Rig()
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(2, loaded(timeout="5"))
    rig.submit(events.ForkServerConfigured(2, fleet_policy(probation=60, rollback_crashes=1)))
    rig.submit(events.AppLoaded(2))
    rig.boot(2)
    rig.submit(events.WorkerExited(1, ExitStatus(0)))
    rig.reload_ended(2)
    assert rig.observer.reloads.counts == {"done": 1}
    assert rig.logged == [("info", "settings_changed", {"generation": 2, "changes": "timeout 30 -> 5"})]
    rig.submit(events.WorkerExited(2, ExitStatus(signal=11)))
    view = rig.observer.reload()
    assert view is not None
    assert (view.phase, rig.names()) == ("rolled back", ["timeout"])
    rig.observer.reloads.follow()
    assert rig.observer.reloads.counts == {"done": 1, "rolled back": 1}
    rig.boot(3)
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(3, loaded(backlog="9"))
    assert rig.names() == ["backlog"]


def test_another_program_goes_on() -> None:
    """Start time, samples and counters survive as JSON; the start time of the program is its own."""
    rig, other = Rig(), Rig()
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(2, loaded(timeout="5"))
    rig.reload_ended(2)
    state = msgspec.json.decode(msgspec.json.encode(rig.observer.snapshot()), type=ObserverState)
    other.observer.restore(state)
    assert other.observer.snapshot() == rig.observer.snapshot() == state
    assert other.observer._program_since >= other.observer._started_at


def test_reading_changes_nothing() -> None:
    """Views may be requested at any time and any number of times; the state stays the same."""
    rig = Rig()
    rig.scoreboard.totals = lambda _: Counts()
    rig.submit(events.ReloadAsked("test"))
    rig.configurations.add(2, loaded(timeout="5"))
    rig.fleet.handle(events.GenerationFailed(2, "no such module"), 0.0)  # and `follow` was not called yet
    before = msgspec.json.encode(rig.observer.snapshot())
    for _ in range(2):
        rig.observer.reload()
        rig.observer.status()
        rig.observer.workers()
        rig.observer.config()
    assert msgspec.json.encode(rig.observer.snapshot()) == before
