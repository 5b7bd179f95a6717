"""The parts of an engine that are the same for threads and for greenlets, put together.

Each part owns its attributes and says which thread may call it. They know each other as follows; none knows
one that stands before it:

    LateRequests                                    what is done while no thread is free
    Sweeper, Acceptor, Receiver, RequestRunner      what is done with connections
    Evictor, Responder, Siblings                    how connections are answered, and end
    ConnectionTable, ConnectionFactory              which there are, and how they are made
    QueueTimes                                      how long requests have waited
    Reactor                                         what waits
    DrainState                                      whether the worker drains
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Self

from ostler.logs.limiter import LimitedLog
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.acceptor import Acceptor
from ostler.workers.base import Context
from ostler.workers.connection_factory import ConnectionFactory
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.drain import DrainState
from ostler.workers.eviction import Evictor
from ostler.workers.late_requests import LateRequests
from ostler.workers.queueing import QueueTimes
from ostler.workers.reactor import Reactor
from ostler.workers.receiver import Receiver
from ostler.workers.request_runner import RequestRunner
from ostler.workers.responder import Responder
from ostler.workers.server_date import ServerDate
from ostler.workers.siblings import Siblings
from ostler.workers.soft_interrupt import SoftInterrupts
from ostler.workers.sweeper import Sweeper
from ostler.workers.system_calls import SystemCalls
from ostler.workers.units import SECOND
from ostler.workers.wsgi_runner import WsgiRunner


@dataclass(frozen=True, slots=True)
class Parts:
    """See the classes.

    Attributes:
        limited: the log of what clients can cause.
        late: None without `queue_timeout`.
    """

    reactor: Reactor
    limited: LimitedLog
    date: ServerDate
    drain: DrainState
    table: ConnectionTable
    factory: ConnectionFactory
    responder: Responder
    siblings: Siblings
    acceptor: Acceptor
    receiver: Receiver
    runner: RequestRunner
    sweeper: Sweeper
    late: LateRequests | None

    @classmethod
    def of(
        cls,
        context: Context,
        reactor: Reactor,
        calls: SystemCalls,
        soft_interrupts: SoftInterrupts,
        flush_access: Callable[[], object],
        multithreaded: bool,
        turn: int,
        on_stays: Callable[[RequestSlot], object] = lambda _slot: None,
    ) -> Self:
        """The parts of one engine; for the arguments see those parts that have them."""
        settings, log, tls = context.settings, context.log, context.tls
        limited = LimitedLog(log, monotonic)
        date = ServerDate()
        drain = DrainState(settings.graceful_timeout, context.handoff is not None and tls is None)
        table = ConnectionTable(settings, reactor, limited)
        factory = ConnectionFactory(settings, calls, soft_interrupts.slot_at_hand, on_stays)
        responder = Responder(table, date, log, limited, context.access, flush_access)
        siblings = Siblings(context.handoff, table, drain, log, tls)
        evictor = Evictor(table, responder, log, settings.body_min_rate)
        acceptor = Acceptor(
            context.listeners, reactor, table, factory, evictor, siblings, drain, limited, tls
        )
        receiver = Receiver(reactor, table, responder, calls, settings.proxy_protocol, tls)
        queue_times = QueueTimes(reactor, settings.queue_timeout > 0)
        runner = WsgiRunner(
            *(
                context,
                table,
                responder,
                queue_times,
                date,
                soft_interrupts,
                flush_access,
                multithreaded,
                turn,
            ),
            *(calls.wait_in_app, on_stays),
        )

        def end_keep_alive() -> None:
            runner.keep_connections = False

        sweeper = Sweeper(settings, reactor, table, responder, acceptor, siblings, drain, end_keep_alive, log)
        late = None
        if queue_timeout := int(settings.queue_timeout * SECOND):
            access = context.access
            late = LateRequests(
                queue_timeout,
                context.listeners,
                tls is not None,
                reactor,
                acceptor,
                siblings,
                receiver,
                runner,
                drain,
                access.flush if access is not None else lambda: None,
            )
        return cls(
            *(reactor, limited, date, drain, table, factory, responder, siblings, acceptor, receiver),
            *(runner, sweeper, late),
        )
