"""When idle CPUs are measured, and that the fleet is told."""

import asyncio
from typing import cast

import pytest

from ostler.daemon.sensors import idle_cpus
from ostler.daemon.sensors.idle_cpus import IdleCpuSensor
from ostler.fleet import events
from ostler.osapi.cpus import IdleCpus
from tests.kit.play import running


class Idle:
    """Instead of a measurement."""

    def read(self) -> float:
        return 1.5


def test_measures_while_boots_are_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cpus, "_SECONDS", 0.0)
    told: list[events.CpusIdle] = []

    async def play(**policy: object) -> None:
        fleet = running(workers=1, **policy)  # type: ignore[arg-type]
        sensor = IdleCpuSensor(lambda: fleet.fleet.state, told.append, cast("type[IdleCpus]", Idle))
        told.clear()
        fleet.scale(9)
        sensor.follow()
        sensor.follow()
        for _ in range(3):
            await asyncio.sleep(0)
        sensor.stop()

    asyncio.run(play(boot_parallelism=2, boot_when_idle=True))
    assert told == [events.CpusIdle(1.5)]
    asyncio.run(play(boot_parallelism=9, boot_when_idle=True))
    assert told == []
    asyncio.run(play(boot_parallelism=2, boot_when_idle=False))
    assert told == []


def test_measures_no_more_when_the_boots_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_cpus, "_SECONDS", 0.0)
    told: list[events.CpusIdle] = []

    async def play() -> None:
        fleet = running(workers=1, boot_parallelism=1, boot_when_idle=True)
        sensor = IdleCpuSensor(lambda: fleet.fleet.state, told.append, cast("type[IdleCpus]", Idle))
        fleet.scale(3)
        sensor.follow()
        fleet.ready(2)
        fleet.ready(3)
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(play())
    assert told == []
