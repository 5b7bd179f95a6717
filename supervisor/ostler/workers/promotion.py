"""Decides whether a worker can be promoted to a zygote, the fork server of its generation.

A worker is audited twice: while it serves, before the supervisor drains it for that purpose, and when it has
been drained.
"""

import threading
import time

from ostler.ipc import messages
from ostler.ipc.channel import lines
from ostler.workers.audit import Audit, audit_drained, audit_serving

# Seconds that the engine's threads may take to end when all requests are answered.
_THREADS_END = 1.0


class Promotion:
    """The promotion of one worker; called only by its main thread.

    Attributes:
        wanted: the newest drain message asks for it.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._forced = False

    def audit(
        self, own_descriptors: set[int], busy: bool, force: bool, exit_hook: bool
    ) -> messages.ZygoteAudited:
        """Audit a worker that serves; it goes on serving.

        Args:
            own_descriptors: those that a zygote closes, or shares on purpose.
            busy: requests are in the app.
            force: problems count as warnings, here and in `drained_problem`.
            exit_hook: there is a hook worker_exit. It is called between the two audits, and may close what
                this one finds, so the second one decides.
        """
        self._forced = force
        try:
            found = audit_serving(own_descriptors, busy)
        except OSError as error:
            found = Audit([f"the process can't be examined: {error}"])
        if force:
            found = found.forced()
        elif exit_hook:
            found = found.left_to("worker_exit")
        problems, warnings = (lines(texts, messages.MOST_LINES) for texts in (found.problems, found.warnings))
        return messages.ZygoteAudited(problems, warnings)

    def running_requests(self, busy: bool) -> str | None:
        """Wait for the end of the engine's threads; the problem if requests did not end in time."""
        if late := _wait_for_engine_threads():
            return f"requests are running in {', '.join(late)}"
        return "requests are running in greenlets" if busy else None

    def drained_problem(self, own_descriptors: set[int]) -> str | None:
        """Audit a worker whose engine is closed; why it can't be promoted, or None."""
        found = audit_drained(own_descriptors)
        return "; ".join(found.problems) if found.problems and not self._forced else None


def _engine_threads() -> list[threading.Thread]:
    """Ostler's own running threads, without the main thread."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("ostler-")]


def _wait_for_engine_threads() -> list[str]:
    """Wait for the end of the engine's threads; returns the names of those that are still running."""
    deadline = time.monotonic() + _THREADS_END
    for thread in _engine_threads():
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread.name for thread in _engine_threads()]
