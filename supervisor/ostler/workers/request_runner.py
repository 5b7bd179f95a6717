"""The request runner: from a whole request to its answer, and all accounting of it.

`RequestRunner` is the interface; `wsgi_runner.WsgiRunner` serves WSGI apps. What replaces that has to keep
what the docstrings here demand. tests/unit/workers/test_request_runner.py checks it for any implementation.
"""

from typing import Protocol

from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.connection import Connection


class RequestRunner(Protocol):
    """Serves the requests that a connection has.

    Attributes:
        keep_connections: answers leave connections open. The polling thread sets it to False when the worker
            drains; a request that begins afterwards must see it.
        average: a moving average of what requests take in the app (ns), each counted as 2 ms at most.
        had_long_request: one took longer than `soft_interrupt.LONG_REQUEST_NS`. The owner may reset it.
    """

    keep_connections: bool
    average: int
    had_long_request: bool

    def run(self, connection: Connection, slot: RequestSlot, prompt_until: int) -> None:
        """Answer the requests in `connection.parser.requests`, in their order.

        It ends when there are none left, when the client does not take an answer (`connection.output` is not
        empty), when the connection ends, or when the connection's turn is over, should other clients have
        theirs. The caller sees by the connection's state which it was: requests that are left are served in
        a later call, output that is left is sent by the thread that polls.

        Called by the thread (or in the greenlet) that serves the connection; it belongs to the caller
        during the call. While a request is in the app the polling thread may stop the reactor from
        watching it, and changes `watched` and `mask` only.

        For each request, in this order:

        1. `slot.waited` is called, if the request waited. One that has waited longer than `queue_timeout` is
           answered with 503 without the app: it counts as answered (`slot.refused`), but with no time in the
           app, and not for the quota.
        2. `slot.begin` is called before the app is, `slot.leave_app` when its answer is sent or kept, and
           then `slot.count` once: also if `DeadlineExceeded` was raised at any moment between the first two.
           `slot.count` is not called if a defect of ours ends the connection, and not for a request whose
           body broke the protocol, which `Responder.refuse` answers and counts (`slot.refused`).
        3. If the request took longer than LONG_REQUEST_NS and did not end by `DeadlineExceeded`,
           `SoftInterrupts.end` is called within the block that handles `DeadlineExceeded`, so that an
           exception that was meant for this request is raised nowhere else.
        4. The access log and `request_failed` are written, the quota is counted down.

        A request that offers an upgrade has `gunicorn.socket` in its environ, see `upgrades`. If the app
        takes the connection by it, the request is counted as one with the status 101 and without a time in
        the app, and ends the connection (`ConnectionTable.end_upgraded`). If not, it is an ordinary one, and
        what came behind it is parsed (`parser.resume`).

        It may read all of the connection. It writes `parser.requests` (takes from the front),
        `parser.wants_continue`, `output` (by `send` and `send_file`), `unconfirmed`, `idle_since`,
        `answered_at`, `template`, `streamed`, `event_stream` (by `note_part`), and
        `pulled_at`. While the app reads a body that is still coming, `Connection.pull` and `note_progress`
        write `violation`, `receiving_since`, `in_body`, `body_deadline` and `credited_bytes`. Everything that
        ends the connection goes through ConnectionTable (`end`, `close`) and Responder (`refuse`, `settle`,
        `fail`).

        Args:
            connection: in the phase OPEN, without output, with one request at least.
            slot: the calling thread's, or the one in which this greenlet's request is shown; no request is
                in it.
            prompt_until: a request that gets to the app by this time (CLOCK_MONOTONIC, ns) has not waited;
                0: not known.

        Raises:
            QuitWorker: by a signal's handler. Nothing else: a defect of ours costs the connection.
        """
        ...

    def refuse_late(self, connection: Connection, slot: RequestSlot) -> None:
        """Answer the first of a connection's requests with 503, because it has waited for `queue_timeout`.

        Called by the thread that polls, while no thread is free; it owns the connection, which is in the
        phase OPEN, without output. As for `run` the caller sees by its state what is left to do.
        """
        ...
