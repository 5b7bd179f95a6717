"""What is reported to systemd (sd_notify(3)): readiness, reloads, the end, and the state as a sentence."""

import os
import time

from ostler.daemon.process.notify import SystemdNotifier
from ostler.fleet import health
from ostler.fleet.state import State

# Seconds for what comes after the workers' budget: the kill of a worker, hooks, fork servers.
_MARGIN = 15.0


class ServiceManagerReports:
    """Sends each change once. Called only by the event loop's thread.

    Args:
        notifier: sends; without a socket from systemd nothing is computed.
    """

    def __init__(self, notifier: SystemdNotifier) -> None:
        self._notifier = notifier
        self._ready = False
        self._reloading = False
        self._sentence = ""

    def ready(self, state: State) -> None:
        """The first worker is ready, or a new program has taken over."""
        self._ready = True
        self._sentence = health.sentence(state)
        self._notifier.send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={self._sentence}")

    def follow(self, state: State) -> None:
        """Send what has changed since the last call."""
        if not self._notifier.path:
            return
        changes = []
        reloading = state.reload is not None and state.reload.running
        if self._ready and reloading != self._reloading and not state.stopping:
            self._reloading = reloading
            # systemd compares the time with that of its own request (Type=notify-reload).
            begun = ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"]
            changes += begun if reloading else ["READY=1"]
        sentence = health.sentence(state)
        if sentence != self._sentence:
            self._sentence = sentence
            changes.append(f"STATUS={sentence}")
        if changes:
            self._notifier.send(*changes)

    def stopping(self, state: State) -> None:
        """The daemon is to end. It may take as long as the settings say, whatever TimeoutStopSec= is."""
        messages = ["STOPPING=1"]
        policy = state.policy
        if policy is not None:
            # First the workers have graceful_timeout, then what the app has started (children/app_processes).
            seconds = policy.shutdown_delay + 2 * policy.graceful_timeout + policy.drain_grace + _MARGIN
            messages.append(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")
        self._notifier.send(*messages)
