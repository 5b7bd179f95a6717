"""Signals that arrive by the thousand."""

import asyncio
import signal

from ostler.daemon.process.signals import on_signal, release


async def test_no_signal_is_lost_among_thousands_of_another() -> None:
    """While the loop is busy: more of one signal than a pipe could hold, then one of another."""
    called: list[str] = []
    loop = asyncio.get_running_loop()
    on_signal(loop, signal.SIGCHLD, lambda: called.append("CHLD"), once=True)
    on_signal(loop, signal.SIGUSR2, lambda: called.append("USR2"))
    try:
        for _ in range(5000):
            signal.raise_signal(signal.SIGCHLD)
        signal.raise_signal(signal.SIGUSR2)
        await asyncio.sleep(0)
        assert called == ["CHLD", "USR2"]
    finally:
        release()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


async def test_a_signal_ends_the_wait() -> None:
    """An idle loop is woken at once."""
    loop = asyncio.get_running_loop()
    come = asyncio.Event()
    on_signal(loop, signal.SIGALRM, come.set)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        async with asyncio.timeout(15):
            await come.wait()
    finally:
        release()
