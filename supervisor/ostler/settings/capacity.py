"""How many threads a worker has, and how many request slots in the scoreboard."""

from ostler.settings.table import Settings

# The scoreboard shows no more requests of a worker. Slots that no request has needed take no memory.
MOST_SLOTS = 16384


def threads(settings: Settings, one_loop: bool) -> int:
    """How many threads of a worker serve; `one_loop` as in `BaseWorker`."""
    return 1 if one_loop else settings.threads


def request_slots(settings: Settings, one_loop: bool) -> int:
    """How many request slots a worker's cell of the scoreboard has; `one_loop` as in `BaseWorker`.

    One for each request that the worker serves at once, and one for the thread that runs the loop.
    """
    return (min(settings.worker_connections, MOST_SLOTS) if one_loop else settings.threads) + 1
