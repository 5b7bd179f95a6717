"""Functions that run at the same time, in threads between which the interpreter switches often."""

import sys
import threading
from collections.abc import Callable, Iterable

PATIENCE = 60.0


def run_at_once(functions: Iterable[Callable[[], object]], switch_interval: float = 1e-6) -> None:
    """Run each in a thread of its own until all have ended.

    Raises:
        AssertionError: one has not ended in time.
    """
    threads = [threading.Thread(target=function) for function in functions]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(switch_interval)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(usual)
    assert not any(thread.is_alive() for thread in threads)
