"""A strict load client: keep-alive connections, a schedule or a closed loop, and a record of every request.

Most load tools hide what a reload test has to see. A tool with a closed loop sends less while the server
stalls, so a stall of a second shows as one slow request. A tool that reconnects by itself does not report
what it lost. Here

- each connection is a client of its own with its own schedule: request `k` is due at `start + k / rate`,
  whether or not the ones before were answered, and latency counts from the moment it was due;
- every request ends in exactly one `Outcome`, and nothing is retried but what browsers retry: a request on
  a reused connection that the server closed before any byte of an answer (RFC 9112, 9.3.1). It is retried
  once, on a new connection, and still counts as stale;
- a record has the client's ports, which show at the server's side which process held the connection, and the
  worker that answered last on it, if the app sends its pid in `X-Worker`;
- an answer is complete only when its framing is, and bytes without a request are an error.

All sockets are in one thread, in one epoll; nothing but the standard library is used.

    with Load(("127.0.0.1", 8000), rate=400, connections=16) as load:
        load.wait_for(400)
        ...                                    # reload the server, kill a worker
        report = load.finish()
    assert report.failed == 0, report.summary()
"""

import errno
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.kit.answers import Answer, AnswerParser, MalformedAnswerError
from tests.kit.report import Outcome, Record, Report
from tests.kit.waiting import PATIENCE

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

KEPT_BODY = 200  # bytes of an answer's body that its record keeps


def host_field(address: Address) -> str:
    """The value of `Host` for an address (RFC 9112, 3.2)."""
    if isinstance(address, str):
        return "localhost"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(slots=True)
class _Request:
    due: float
    sent: float
    last: bool = False
    """Sent with `Connection: close`."""
    stale: str = ""
    """How the connection of the first attempt turned out to be stale."""
    stale_port: int = 0
    stale_at: float = math.nan


class _Connection:
    """One client: its overdue and waiting requests, its current socket, and the request that is on it."""

    __slots__ = (
        "connecting", "current", "deadline", "mask", "number", "parser", "port", "queue", "sent", "sock",
        "unsent", "used", "worker",
    )  # fmt: skip

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: deque[float] = deque()
        """When each of the requests was due that wait for this connection."""
        self.sock: socket.socket | None = None
        self.port = 0
        """This socket's own."""
        self.mask = 0
        """What epoll reports of it."""
        self.connecting = False
        self.used = False
        """Whether this socket has carried an answer already."""
        self.sent = 0
        """Requests so far, on all sockets."""
        self.worker = 0
        """The pid in the last answer on this socket."""
        self.current: _Request | None = None
        self.parser = AnswerParser()
        self.unsent = b""
        self.deadline = math.inf


class Load:
    """The client. As a context manager it runs in a thread of its own; `run()` runs it in the caller's.

    Args:
        address: where the server listens.
        path: the request target.
        headers: more header fields.
        body: sent with POST instead of GET. It must not matter if the server gets one twice.
        rate: requests per second over all connections; infinite: a closed loop, in which each connection
            sends its next request as soon as it has an answer.
        connections: how many keep-alive connections share them, in turn.
        close_every: each connection sends `Connection: close` with every so many requests (1: no keep-alive);
            0: never.
        requests: how many to send; None goes on until `finish()`.
        timeout: seconds that one request may take on its connection.
    """

    def __init__(
        self,
        address: Address,
        *,
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        rate: float = 400.0,
        connections: int = 16,
        close_every: int = 0,
        requests: int | None = None,
        timeout: float = PATIENCE,
    ) -> None:
        self._address = address
        fields = {"Host": host_field(address), **(headers or {})}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n{lines}".encode("latin-1")
        self._request = head + b"\r\n" + (body or b"")
        self._last_request = head + b"Connection: close\r\n\r\n" + (body or b"")
        self._close_every = close_every
        self._closed_loop = math.isinf(rate)
        self._interval = 1.0 / rate
        self._wanted = requests
        self._timeout = timeout
        self._clients = [_Connection(number) for number in range(connections)]
        self._epoll = select.epoll()
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._waker, select.EPOLLIN)
        self._by_fd: dict[int, _Connection] = {}
        self._watch_at = math.inf
        """No request's time is over before this: it spares a look at all connections between two events."""
        self._scheduled = 0
        self._started = math.nan
        self._lags: list[float] = []
        self._unasked = 0
        self._news = threading.Condition()
        self._records: list[Record] = []  # appended by the loop, under _news
        self._awaited: list[int] = []  # the counts that wait_for() waits for, under _news
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._over = False
        self._defect: BaseException | None = None

    # -- the interface

    def run(self) -> Report:
        """Send `requests` requests (or until `finish()` elsewhere), wait for what is in flight, report."""
        try:
            self._loop()
        finally:
            self._close()
            with self._news:
                self._over = True
                self._news.notify_all()
        return self.report()

    def start(self) -> Self:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self._run_in_thread, name="load", daemon=True)
        self._thread.start()
        return self

    def wait_for(self, count: int, *, within: float = PATIENCE) -> None:
        """Wait until `count` requests have ended, failed ones included.

        Raises:
            TimeoutError: they have not, `within` seconds.
        """
        with self._news:
            self._awaited.append(count)
            try:
                self._news.wait_for(lambda: len(self._records) >= count or self._over, within)
            finally:
                self._awaited.remove(count)
            if len(self._records) < count:
                raise TimeoutError(f"{len(self._records)} of {count} requests ended within {within:g} s")

    @property
    def ended(self) -> int:
        """How many requests have ended so far."""
        return len(self._records)

    def records(self, first: int) -> list[Record]:
        """The records so far, from the `first`-th on (from 0; negative: the newest ones)."""
        with self._news:
            return self._records[first:]

    def report(self) -> Report:
        """Everything so far."""
        with self._news:
            return Report(list(self._records), list(self._lags), self._unasked)

    def finish(self) -> Report:
        """Send no more, wait for what is in flight (at most two timeouts), and report."""
        self._stopping = True
        with self._news:
            if not self._over:
                os.eventfd_write(self._waker, 1)
        if self._thread is not None:
            self._thread.join(2 * self._timeout + 5)
            if self._thread.is_alive():
                raise TimeoutError("the load client did not end")
            if self._defect is not None:
                raise self._defect
        return self.report()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    # The loop, in its one thread.

    def _run_in_thread(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._defect = error  # raised again by finish()

    def _loop(self) -> None:
        self._started = time.monotonic()
        while True:
            now = time.monotonic()
            self._schedule(now)
            if self._stopping or self._scheduled == self._wanted:
                for client in self._clients:
                    if self._stopping:
                        client.queue.clear()
                if not any(client.current or client.queue for client in self._clients):
                    return
            # select() on the epoll's own descriptor: epoll_wait rounds up to milliseconds, which would be
            # the largest part of the latency of a fast server.
            select.select([self._epoll.fileno()], [], [], self._pause())
            for fd, mask in self._epoll.poll(0):
                if fd == self._waker:
                    os.eventfd_read(self._waker)
                elif (ready := self._by_fd.get(fd)) is not None:
                    self._handle(ready, mask)
                    self._next(ready)
            self._expire()

    def _next_due(self) -> float:
        if self._stopping or self._scheduled == self._wanted:
            return math.inf
        if self._closed_loop and self._scheduled >= len(self._clients):
            return math.inf  # in a closed loop the next request follows an answer
        return self._started + self._scheduled * self._interval

    def _schedule(self, now: float) -> None:
        """Hand every request that is due to its connection."""
        while (due := self._next_due()) <= now:
            client = self._clients[self._scheduled % len(self._clients)]
            self._scheduled += 1
            client.queue.append(due)
            if client.current is None:
                self._lags.append(now - due)
                self._next(client)

    def _pause(self) -> float:
        """Seconds until something is due that does not depend on the server."""
        return min(1.0, max(0.0, min(self._next_due(), self._watch_at) - time.monotonic()))

    def _expire(self) -> None:
        now = time.monotonic()
        if now < self._watch_at:
            return
        self._watch_at = math.inf
        for client in self._clients:
            if client.deadline <= now:
                self._end(client, Outcome.TIMED_OUT, f"{self._timeout:g} s")
                self._next(client)
            self._watch_at = min(self._watch_at, client.deadline)

    def _set_deadline(self, client: _Connection, now: float) -> None:
        client.deadline = now + self._timeout
        self._watch_at = min(self._watch_at, client.deadline)

    def _next(self, client: _Connection) -> None:
        """Send the client's next request, if one is due, on its connection or on a new one."""
        while client.current is None and client.queue:
            now = time.monotonic()
            client.sent += 1
            last = self._close_every > 0 and client.sent % self._close_every == 0
            client.current = _Request(client.queue.popleft(), now, last)
            self._set_deadline(client, now)
            self._send(client)

    def _send(self, client: _Connection) -> None:
        client.unsent = self._last_request if client.current and client.current.last else self._request
        if client.sock is None:
            self._connect(client)
        else:
            self._write(client)

    def _connect(self, client: _Connection) -> None:
        address = self._address
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        else:
            family = socket.AF_UNIX
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sock, client.used, client.parser = sock, False, AnswerParser()
        client.port, client.worker = 0, 0
        error = sock.connect_ex(address)
        if error not in (0, errno.EINPROGRESS):
            # EAGAIN from a Unix socket: its backlog is full (unix(7)).
            self._end(client, Outcome.REFUSED, os.strerror(error))
            return
        if family != socket.AF_UNIX:
            client.port = sock.getsockname()[1]
        client.connecting = True
        client.mask = select.EPOLLIN | select.EPOLLOUT
        self._by_fd[sock.fileno()] = client
        self._epoll.register(sock.fileno(), client.mask)

    def _write(self, client: _Connection) -> None:
        assert client.sock is not None
        try:
            sent = client.sock.send(client.unsent)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._lost(client, error)
            return
        client.unsent = client.unsent[sent:]
        mask = select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0)
        if mask != client.mask:
            client.mask = mask
            self._epoll.modify(client.sock.fileno(), mask)

    def _handle(self, client: _Connection, mask: int) -> None:
        assert client.sock is not None
        if client.connecting:
            error = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                refused = error in (errno.ECONNREFUSED, errno.ENOENT)
                self._end(client, Outcome.REFUSED if refused else Outcome.RESET, os.strerror(error))
                return
            if not mask & (select.EPOLLOUT | select.EPOLLHUP):
                return
            client.connecting = False
        if client.unsent:
            self._write(client)
            if client.sock is None or client.unsent:
                return
        if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read(client)

    def _read(self, client: _Connection) -> None:
        assert client.sock is not None
        try:
            data = client.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(client, error)
            return
        if client.current is None:
            # The server may close an idle connection, but not send an answer without a request, e.g. a 408.
            self._unasked += bool(data)
            self._drop(client)
            return
        try:
            answer = client.parser.feed(data) if data else client.parser.end()
        except MalformedAnswerError as error:
            self._end(client, Outcome.MALFORMED, str(error))
            return
        if answer is not None:
            client.used = True
            client.worker = answer.worker
            if not (answer.reusable and data) or client.current.last:
                self._drop(client)
            outcome = Outcome.OK if answer.status == 200 else Outcome.STATUS
            self._record(client, outcome, "" if outcome is Outcome.OK else f"status {answer.status}", answer)
        elif not data:
            self._lost(client, None)

    def _lost(self, client: _Connection, error: OSError | None) -> None:
        """The connection ended early: with an error, or with the end of file."""
        detail = error.strerror or str(error) if error else "end of file"
        request = client.current
        if request is None:
            self._drop(client)
        elif client.used and not client.parser.started and not request.stale:
            self._drop(client)
            request.stale, request.stale_port = f"stale: {detail}", client.port
            request.stale_at = time.monotonic()
            self._set_deadline(client, request.stale_at)
            self._send(client)
        elif error is not None:
            self._end(client, Outcome.RESET, detail)
        else:
            self._end(client, Outcome.TRUNCATED if client.parser.started else Outcome.UNANSWERED, detail)

    def _drop(self, client: _Connection) -> None:
        if client.sock is not None:
            # Closing also removes it from the epoll.
            self._by_fd.pop(client.sock.fileno(), None)
            client.sock.close()
        client.sock, client.connecting, client.unsent = None, False, b""
        client.parser = AnswerParser()

    def _end(self, client: _Connection, outcome: Outcome, detail: str) -> None:
        """Record a failure that costs the connection."""
        self._drop(client)
        self._record(client, outcome, detail, None)

    def _record(self, client: _Connection, outcome: Outcome, detail: str, answer: Answer | None) -> None:
        request = client.current
        assert request is not None
        now = time.monotonic()
        record = Record(
            due=request.due,
            sent=request.sent,
            ended=now,
            outcome=outcome,
            status=answer.status if answer else 0,
            body=answer.body[:KEPT_BODY] if answer else b"",
            stale=bool(request.stale),
            detail=detail or request.stale,
            connection=client.number,
            worker=client.worker,
            port=client.port,
            stale_port=request.stale_port,
            stale_at=request.stale_at,
        )
        client.current, client.deadline = None, math.inf
        if self._closed_loop and not self._stopping and self._scheduled != self._wanted:
            self._scheduled += 1
            client.queue.append(now)
        with self._news:
            self._records.append(record)
            # Not at every record: waking a thread that then sleeps again would cost more than the request.
            if self._awaited and len(self._records) >= min(self._awaited):
                self._news.notify_all()

    def _close(self) -> None:
        for client in self._clients:
            self._drop(client)
        with self._news:
            self._over = True
            self._epoll.close()
            os.close(self._waker)
