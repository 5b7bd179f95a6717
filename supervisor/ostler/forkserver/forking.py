"""Forking workers on demand: what a fork server does once it is ready, and a worker that has become one.

The parent of each worker is the supervisor, a child subreaper (see `osapi.orphan_fork`): it gets true exit
statuses, and the end of a fork server does not affect workers.

It ends when the supervisor closes the channel, at once and without the app's atexit functions: each worker
runs its own copy of them when it ends. Processes that the app has started with `multiprocessing` are ended
before. A worker that has become a fork server runs its atexit functions, like any worker.
"""

import gc
import importlib
import os
import signal
import threading
from functools import partial
from typing import NoReturn

from msgspec import structs

from ostler.forkserver.log_lines import flush_all, pass_on
from ostler.ipc import messages
from ostler.ipc.channel import Channel
from ostler.logs import bridge
from ostler.logs.sinks import LogSinks
from ostler.osapi import original
from ostler.osapi.needed import with_remedy
from ostler.osapi.orphan_fork import fork_orphan
from ostler.osapi.process import adopt_no_orphans, is_ending, number_of_children, set_title
from ostler.osapi.process_groups import end_own_group, own_group
from ostler.workers import app_forks, boot, signals
from ostler.workers.inheritance import Inheritance, WorkerGeneration, Zygote
from ostler.workers.multiprocessing_state import forget_parents

# This process waits for a message, or its supervisor has closed the channel.
_waiting = False

# A worker that has become a zygote may still receive messages for a worker.
Asked = messages.ToForkServer | messages.ToWorker


class Forking:
    """Forks workers of one generation.

    Args:
        channel: to the supervisor.
        generation: what they inherit.
        sinks: its own logs.
    """

    def __init__(self, channel: Channel[Asked], generation: WorkerGeneration, sinks: LogSinks) -> None:
        self._channel = channel
        self._generation = generation
        self._sinks = sinks

    def run(self, ready: messages.AppLoaded | messages.ZygoteReady) -> Inheritance | None:
        """Report that it is ready, and do what the supervisor asks until it closes the channel.

        Returns in forked workers with what they inherit, else None at the end. A zygote that is asked to
        drain before the supervisor uses it as a fork server has no children, and ends like the worker that it
        was.
        """
        _tidy_up()
        set_title(f"ostler: fork server gen {self._generation.number} [{self._generation.name}]", always=True)
        try:
            self._channel.send(structs.replace(ready, loggers=bridge.diverted()))
            while (received := self._receive()) is not None:
                message, descriptors = received
                if isinstance(message, messages.Spawn):
                    if (inheritance := self._spawn(message, descriptors)) is not None:
                        return inheritance
                elif isinstance(message, messages.HookDue):
                    if message.name == "retire" and not self._retire():
                        return None
                    self._channel.send(messages.HookBegun())
                    self._generation.hooks.due(message)
                    self._channel.send(messages.HookDone(message.name))
                elif isinstance(message, messages.ImportModules):
                    _import_modules(message.modules)
                elif isinstance(message, messages.LogLine):
                    pass_on(self._channel, message)
                elif isinstance(message, messages.ReopenLogs):
                    self._sinks.reopen()
                elif isinstance(message, messages.Drain) and not message.zygote:
                    boot.leave(0)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the supervisor has ended while it was answered
        return None

    def _receive(self) -> tuple[Asked, list[int]] | None:
        """The next message; None if the supervisor has closed the channel."""
        global _waiting
        _waiting = True
        received = self._channel.receive()
        _waiting = received is None
        return received

    def _retire(self) -> bool:
        """Close what is shared with other processes; whether anything runs that hooks have started."""
        generation = self._generation
        for sock in (*generation.listeners, *generation.handoff):
            sock.close()
        set_title(f"ostler: hooks gen {generation.number} [{generation.name}]", always=True)
        return threading.active_count() > 1 or number_of_children() > 0

    def _spawn(self, ask: messages.Spawn, descriptors: list[int]) -> Inheritance | None:
        """Fork a worker; in the worker, returns what it inherits."""
        channel_fd, stacks_fd, cell_fd = descriptors
        hook_worker = self._generation.hooks.about_to_fork(ask)
        flush_all()  # what hooks have printed
        gc.freeze()  # what came since the last time; see `_tidy_up`
        # Blocked until the worker has handlers of its own: otherwise a signal for it would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
        # The worker is to be the supervisor's child, even if the app has made this process a subreaper.
        adopt_no_orphans()
        try:
            # Without a group of its own in the foreground of a terminal: see `osapi.process_groups`.
            worker = fork_orphan(own_group(0) is not None)
        except OSError as error:
            worker, refused = -1, error
        if worker == 0:
            app_forks.forget_private()
            forget_parents()
            self._channel.close()
            self._sinks.drop()
            place = ask.worker_id, ask.urgent, ask.slot
            ends = channel_fd, stacks_fd, cell_fd
            return Inheritance(self._generation, *place, *ends, hook_worker)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.ENDING)
        for fd in descriptors:
            original.close(fd)
        if worker > 0:
            self._generation.hooks.forked(hook_worker, worker)
            self._channel.send(messages.Forked(ask.worker_id, worker))
        else:
            self._channel.send(messages.ForkFailed(ask.worker_id, with_remedy(refused)))
        return None


def leave_unless_waiting(supervisor: int) -> None:
    """End this process, which runs user code, because the supervisor has closed the channel.

    If it waits for the next message it is not ended here: it finds the end itself, and ends what it has
    started.

    supervisor: its pid.
    """
    if not _waiting:
        end_orphans(supervisor)
        leave()


def end_orphans(supervisor: int) -> None:
    """If the supervisor has ended, ask what this process has started to end: nothing else will.

    This process itself ignores SIGTERM. supervisor: its pid.
    """
    # In this order: one that is reaped in between, and so can't be looked at, is not the parent any more.
    if is_ending(supervisor) or os.getppid() != supervisor:
        end_own_group()


def take_over(zygote: Zygote, supervisor: int) -> Forking:
    """The fork server that a worker has become. supervisor: its pid."""
    # Without its supervisor it ends, like any fork server.
    signals.on_hang_up(zygote.channel_fd, partial(leave_unless_waiting, supervisor))
    sockets = (*zygote.generation.listeners, *zygote.generation.handoff)
    app_forks.forget_private()
    app_forks.keep_private(lambda: [zygote.channel_fd, *(sock.fileno() for sock in sockets)])
    channel: Channel[Asked] = Channel(original.Socket(fileno=zygote.channel_fd), Asked)
    generation = zygote.generation
    sinks = LogSinks(generation.settings, generation.log_format, fields_of(generation.number))
    generation.hooks.taken_over(sinks.log.event)
    return Forking(channel, generation, sinks)


def leave() -> NoReturn:
    """End a fork server at once; may be called by a signal handler."""
    flush_all()
    os._exit(0)


def fields_of(generation: int) -> dict[str, int]:
    """Fields of each event that a fork server logs."""
    return {"pid": os.getpid(), "generation": generation}


def _tidy_up() -> None:
    """Leave nothing that workers would inherit without need, or write a second time."""
    flush_all()
    # What exists now lives as long as this process: hidden from the collector it is never written to again,
    # so workers share its pages. What was hidden before may have become garbage.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _import_modules(modules: list[str]) -> None:
    """Import standard modules that the app's workers have imported; user code is not among them."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001, S112 - only memory is lost if it can't be imported here
            continue
    gc.collect()
    gc.freeze()
