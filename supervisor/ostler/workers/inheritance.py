"""What a worker inherits from its fork server, and what a zygote keeps."""

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostler.hooks.generation import Hooks
from ostler.hooks.objects import HookWorker
from ostler.settings.table import Settings
from ostler.workers.base import BaseWorker
from ostler.wsgi.exchange import App

if TYPE_CHECKING:
    from ssl import SSLContext


@dataclass(slots=True)
class WorkerGeneration:
    """What all workers of a generation have in common.

    app: None if each worker loads it itself; handoff: both ends of the socket pair; own_listeners:
    those of `listeners` that the daemon has bound.
    """

    number: int
    name: str
    settings: Settings
    log_format: str
    worker_class: type[BaseWorker]
    app: App | None
    tls: "SSLContext | None"
    handoff: tuple[socket.socket, socket.socket]
    listeners: list[socket.socket]
    own_listeners: list[socket.socket]
    hooks: Hooks


@dataclass(slots=True)
class Inheritance:
    """What a worker gets from its fork server.

    urgent: clients wait for this worker; channel_fd: its end of the channel; stacks_fd: for the dumps of
    faulthandler; cell_fd: its scoreboard cell; hook_worker: the object that hooks get for it.
    """

    generation: WorkerGeneration
    worker_id: int
    urgent: bool
    slot: int
    channel_fd: int
    stacks_fd: int
    cell_fd: int
    hook_worker: HookWorker


@dataclass(slots=True)
class Zygote:
    """What remains of a worker that becomes a fork server; channel_fd: its channel to the supervisor."""

    generation: WorkerGeneration
    channel_fd: int
