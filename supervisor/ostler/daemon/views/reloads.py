"""What the API shows of reloads: how the newest one goes, what it has changed, and how many ended how."""

import asyncio
import time

import msgspec

from ostler.control.views import ChangeView, ReloadPhase, ReloadView
from ostler.control.wording import change
from ostler.daemon.children.ports import Ports
from ostler.daemon.configurations import Configurations
from ostler.daemon.environment.environments import changed_environment
from ostler.daemon.views.changes import changed_settings
from ostler.fleet.model import Reload
from ostler.fleet.model import ReloadPhase as Phase
from ostler.fleet.state import State


class ReloadsState(msgspec.Struct):
    """What is known of reloads; an upgrade in place carries all of it.

    counts: reloads by outcome; counted: generation and outcome that were counted last; settled: the
    generation that served before the newest reload; changes_of, changes, environment: what the newest reload
    that has ended changed, because the settings of generations that have ended are forgotten.
    """

    counts: dict[ReloadPhase, int] = {}
    counted: tuple[int, ReloadPhase] = (0, "done")
    settled: int = 1
    changes_of: int = 0
    changes: list[ChangeView] = []
    environment: list[ChangeView] = []


class Reloads:
    """Follows reloads. Called only by the event loop's thread."""

    def __init__(self, ports: Ports, configurations: Configurations) -> None:
        self._ports = ports
        self._configurations = configurations
        self._own = ReloadsState()
        self._waiters: dict[int, list[asyncio.Future[ReloadView]]] = {}

    @property
    def counts(self) -> dict[ReloadPhase, int]:
        """Reloads by outcome, since the daemon's start."""
        return self._own.counts

    def snapshot(self) -> ReloadsState:
        """For `restore` in the program that comes next."""
        return self._own

    def restore(self, state: ReloadsState) -> None:
        """Continue where the program before this one stopped."""
        self._own = state

    def view(self) -> ReloadView | None:
        """The newest reload, running or ended; None if there was none."""
        reload = self._ports.state().reload
        if reload is None:
            return None
        end = time.monotonic() if reload.ended is None else reload.ended
        return ReloadView(
            generation=reload.generation,
            phase=reload.phase.value,
            replaced=reload.replaced,
            of=reload.of,
            seconds=round(end - reload.started, 3),
            asked_by=reload.asked_by,
            reason=reload.reason,
            traceback=reload.traceback,
            changes=self._changes_of(reload),
            environment=self._environment_of(reload),
            on_probation=_on_probation(self._ports.state(), reload),
        )

    async def ended(self, generation: int) -> ReloadView:
        """Wait until the reload to a generation has ended."""
        reload = self._ports.state().reload
        view = self.view()
        if view is not None and reload is not None and reload.generation == generation and not reload.running:
            return view
        waiter: asyncio.Future[ReloadView] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(generation, []).append(waiter)
        return await waiter

    def follow(self) -> None:
        """Called after each event: note which generation a reload replaces, and whether one was rolled back
        after its end."""
        state = self._ports.state()
        reload = state.reload
        if reload is None or not reload.running or state.candidate is not None:
            self._own.settled = state.current
        if reload is not None and reload.phase is Phase.ROLLED_BACK:
            self._count(reload.generation, "rolled back")

    def on_ended(self, generation: int) -> None:
        """Count a reload, keep what it has changed, and answer those that wait for it.

        Called while the settings of the generation before are still known.
        """
        reload = self._ports.state().reload
        if reload is not None and reload.generation == generation:
            self._count(generation, reload.phase.value)
            self._own.changes, self._own.environment = (
                self._changes_of(reload),
                self._environment_of(reload),
            )
            self._own.changes_of = generation
            self._report_changes(reload)
        else:
            # Another one has taken its place already.
            self._count(generation, "superseded")
        view = self.view()
        for waiter in self._waiters.pop(generation, []):
            if view is not None and not waiter.done():
                waiter.set_result(view)

    def _count(self, generation: int, outcome: ReloadPhase) -> None:
        if self._own.counted != (generation, outcome):
            self._own.counted = (generation, outcome)
            self._own.counts[outcome] = self._own.counts.get(outcome, 0) + 1

    def _report_changes(self, reload: Reload) -> None:
        """Log what a reload has changed: a change that takes effect only with a restart is a warning."""
        generation, found = self._own.changes_of, self._own.changes
        if reload.phase is Phase.DONE and found:
            late = any(view.takes_effect == "restart" for view in found)
            fields = {"generation": generation, "changes": "; ".join(map(change, found))}
            self._ports.journal.record("warning" if late else "info", "settings_changed", fields)
        if reload.phase is Phase.DONE and self._own.environment:
            fields = {"generation": generation, "changes": ", ".join(map(change, self._own.environment))}
            self._ports.journal.record("info", "environment_changed", fields)

    def _changes_of(self, reload: Reload) -> list[ChangeView]:
        if self._own.changes_of == reload.generation:
            return self._own.changes
        before = self._configurations.get(self._own.settled)
        after = self._configurations.get(reload.generation)
        return changed_settings(before, after) if before is not None and after is not None else []

    def _environment_of(self, reload: Reload) -> list[ChangeView]:
        if self._own.changes_of == reload.generation:
            return self._own.environment
        known = self._configurations
        return changed_environment(known.environment(self._own.settled), known.environment(reload.generation))


def _on_probation(state: State, reload: Reload) -> bool:
    probation = state.probation
    return probation is not None and not probation.over and reload.generation == state.current
