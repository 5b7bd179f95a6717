"""Reports how many CPUs are idle while workers boot, so that more of them may boot at once.

Boots that wait for a network or a disk leave CPUs idle. It measures only while as many workers boot as
`boot_parallelism` allows, and only if that is 0.
"""

import asyncio
from collections.abc import Callable

from ostler.fleet import events
from ostler.fleet.model import WorkerState
from ostler.fleet.state import State
from ostler.osapi.cpus import IdleCpus

_SECONDS = 1.0


class IdleCpuSensor:
    """Called only by the event loop's thread.

    Args:
        state: the fleet's.
        submit: hands an event in.
        make: begins a measurement.
    """

    def __init__(
        self,
        state: Callable[[], State],
        submit: Callable[[events.CpusIdle], object],
        make: Callable[[], IdleCpus] = IdleCpus,
    ) -> None:
        self._state = state
        self._submit = submit
        self._make = make
        self._timer: asyncio.TimerHandle | None = None

    def follow(self) -> None:
        """An event was handled: begin to measure if that is needed now."""
        if self._timer is None and self._is_needed():
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self._measure, self._make())

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_needed(self) -> bool:
        state = self._state()
        policy = state.policy
        if policy is None or not policy.boot_when_idle or state.stopping:
            return False
        return policy.boot_parallelism <= state.count(WorkerState.BOOTING) < state.wanted

    def _measure(self, idle: IdleCpus) -> None:
        self._timer = None
        if self._is_needed():
            self._submit(events.CpusIdle(idle.read()))  # and then follows that event
