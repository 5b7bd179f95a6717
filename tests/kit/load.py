"""A strict load client: keep-alive connections, a schedule or a closed loop, and an account of every request.

Most load tools hide exactly what a reload test wants to see. A closed loop sends less while the server
stalls, so a stall of a second shows as one slow request; and a tool that reconnects by itself does not say
what it lost. Here

- each connection is a client of its own with its own schedule: request `k` is due at `start + k / rate`,
  whatever became of the ones before, and latency counts from the moment it was due;
- every request ends in exactly one `Outcome`, and nothing is retried but what browsers retry: a request on
  a reused connection that the server closed before any byte of an answer (RFC 9112, 9.3.1). It is retried
  once, on a new connection, and counted as stale all the same;
- who failed can be told: a record has the client's ports, which say at the server's side who held the
  connection, and the worker that has last answered on it, if the app names itself in `X-Worker`;
- an answer is complete only when its framing says so, and bytes that nobody asked for are an error.

All sockets live in one thread, in one epoll; nothing but the standard library is used.

    with Load(("127.0.0.1", 8000), rate=400, connections=16) as load:
        load.wait_for(400, within=10)
        ...                                    # reload the server, kill a worker
        report = load.finish()
    assert report.failed == 0, report.summary()
"""

import enum
import errno
import functools
import math
import os
import select
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NamedTuple, Self

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

KEPT_BODY = 200  # bytes of an answer's body that its record keeps
WORKER_FIELD = "X-Worker"
"""Header field of an answer with the pid of the process that gives it; the app under test sets it."""


class Outcome(enum.Enum):
    """How a request ended; all but `OK` are failures."""

    OK = "answered 200"
    STATUS = "answered with another status"
    REFUSED = "connection refused"
    RESET = "connection reset before the answer was complete"
    TRUNCATED = "connection closed within the answer"
    UNANSWERED = "connection closed before any byte of an answer"
    MALFORMED = "not an HTTP answer"
    TIMED_OUT = "no complete answer in time"


class MalformedAnswerError(Exception):
    """The bytes are no HTTP answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete answer."""

    status: int
    body: bytes
    reusable: bool
    """Whether the connection may carry another request."""
    worker: int = 0
    """Pid of the process that gave it, 0 if the answer does not say."""


class _Head(NamedTuple):
    """What an answer's head says."""

    status: int
    reusable: bool
    chunked: bool
    length: int | None
    """Of the body; None if it is in chunks, or lasts as long as the connection."""
    worker: int


class AnswerParser:
    """Turns the bytes of one connection into answers; strict, and ignorant of sockets.

    It knows what servers under test send: status line, header fields, `Content-Length`, chunks, or a body
    that lasts until the end of the connection; interim answers (1xx) are skipped.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def started(self) -> bool:
        """Whether any byte of an answer has come."""
        return bool(self._data)

    def feed(self, data: bytes) -> Answer | None:
        """Take more bytes; return the answer once it is complete.

        Raises:
            MalformedAnswerError: the bytes can't become an answer, or go on behind it.
        """
        self._data += data
        return self._parse(ended=False)

    def end(self) -> Answer | None:
        """The server closed: return the answer if that completes it, else None."""
        return self._parse(ended=True)

    def _parse(self, *, ended: bool) -> Answer | None:
        head_end = self._data.find(b"\r\n\r\n")
        if head_end < 0:
            if self._data and not b"HTTP/1.".startswith(self._data[:7]):
                raise MalformedAnswerError(f"starts with {bytes(self._data[:40])!r}")
            return None
        head = _parse_head(bytes(self._data[:head_end]))
        if 100 <= head.status < 200:
            del self._data[: head_end + 4]
            return self._parse(ended=ended) if self._data else None
        rest = bytes(self._data[head_end + 4 :])
        reusable = head.reusable
        if head.chunked:
            found = self._chunks(rest)
            if found is None:
                return None
            body, used = found
        elif head.length is not None:
            used = head.length
            if len(rest) < used:
                return None
            body = rest[:used]
        else:
            if not ended:
                return None
            body, used, reusable = rest, len(rest), False
        if used < len(rest):
            raise MalformedAnswerError(f"bytes behind the answer: {rest[used : used + 40]!r}")
        self._data.clear()
        return Answer(head.status, body, reusable, head.worker)

    @staticmethod
    def _chunks(data: bytes) -> tuple[bytes, int] | None:
        """Decode a whole chunked body; return it and the bytes it took, or None while it goes on."""
        body, at = bytearray(), 0
        while True:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                return None
            digits = data[at:line_end].partition(b";")[0].strip()
            try:
                size = int(digits, 16)
            except ValueError:
                raise MalformedAnswerError(f"chunk size {digits[:40]!r}") from None
            at = line_end + 2
            if size == 0:
                break
            if len(data) < at + size + 2:
                return None
            if data[at + size : at + size + 2] != b"\r\n":
                raise MalformedAnswerError("a chunk does not end where it should")
            body += data[at : at + size]
            at += size + 2
        while True:  # trailer fields up to an empty line
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                return None
            if line_end == at:
                return bytes(body), at + 2
            at = line_end + 2


# Most heads are like the one before: what a second's answers of one worker have is parsed once.
@functools.lru_cache(256)
def _parse_head(block: bytes) -> _Head:
    lines = block.decode("latin-1").split("\r\n")
    version, status = _status_line(lines[0])
    fields = _fields(lines[1:])
    wishes = {token.strip().lower() for token in fields.get("connection", "").split(",")}
    reusable = "close" not in wishes and (version == "HTTP/1.1" or "keep-alive" in wishes)
    chunked, length = "transfer-encoding" in fields, None
    if status in (204, 304):
        chunked, length = False, 0
    elif chunked:
        if fields["transfer-encoding"].lower() != "chunked" or "content-length" in fields:
            raise MalformedAnswerError("unclear framing: Transfer-Encoding is not just chunked")
    elif (digits := fields.get("content-length")) is not None:
        if not (digits.isascii() and digits.isdigit()):
            raise MalformedAnswerError(f"Content-Length {digits!r}")
        length = int(digits)
    worker = fields.get(WORKER_FIELD.lower(), "")
    return _Head(status, reusable, chunked, length, int(worker) if worker.isdecimal() else 0)


def _status_line(line: str) -> tuple[str, int]:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isdigit() and rest[3:4] in ("", " ")):
        raise MalformedAnswerError(f"status line {line[:80]!r}")
    return version, int(code)


def _fields(lines: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise MalformedAnswerError(f"header line {line[:80]!r}")
        key = name.lower()
        if key in ("content-length", "transfer-encoding") and key in fields:
            raise MalformedAnswerError(f"{name} is given twice")
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    return fields


# A tuple and no dataclass: one is made for each of some hundred thousand requests.
class Record(NamedTuple):
    """What became of one request; times are `time.monotonic()` seconds."""

    due: float
    sent: float
    """When the client turned to it: `due`, plus its own delay, plus the wait behind the ones before."""
    ended: float
    outcome: Outcome
    status: int
    """0 without an answer."""
    body: bytes
    """The answer's first bytes."""
    stale: bool
    """The first attempt met a connection that the server had closed; the outcome is the retry's."""
    detail: str
    """What the outcome leaves open; of a stale connection, how it ended."""
    connection: int
    worker: int
    """Pid of the process that answered; without an answer, the one that answered last on this connection.
    It need not be the one that held it, as connections travel. 0: nobody has said."""
    port: int
    """The client's own, of the connection on which the request ended; 0 on Unix sockets."""
    stale_port: int
    """That of the first attempt if it met a stale connection, or else 0."""
    stale_at: float
    """When that attempt ended, or else nan."""

    @property
    def latency(self) -> float:
        """Seconds from the moment the request was due."""
        return self.ended - self.due

    @property
    def losses(self) -> list[tuple[int, float]]:
        """The client's port and the time of each attempt that was lost."""
        stale = [(self.stale_port, self.stale_at)] if self.stale else []
        return stale if self.outcome is Outcome.OK else [*stale, (self.port, self.ended)]


@dataclass(frozen=True)
class Report:
    """All records of a run, or those of a part of it, in the order in which they ended."""

    records: Sequence[Record]
    lags: Sequence[float] = field(default=(), repr=False)
    """Seconds by which the client itself was late for an idle connection, over the whole run."""
    unasked: int = 0
    """How often, over the whole run, a server sent bytes on a connection that had no request."""

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lost(self) -> list[Record]:
        """The requests that failed or met a stale connection, in the order in which they ended."""
        return [record for record in self.records if record.stale or record.outcome is not Outcome.OK]

    @property
    def outcomes(self) -> Counter[Outcome]:
        return Counter(record.outcome for record in self.records)

    @property
    def failed(self) -> int:
        """Requests that got no 200, retry included."""
        return sum(record.outcome is not Outcome.OK for record in self.records)

    @property
    def stale(self) -> int:
        """Requests that needed the retry, whatever it gave."""
        return sum(record.stale for record in self.records)

    def due_within(self, start: float, end: float) -> "Report":
        """The requests that were due in `start <= due < end`."""
        return replace(self, records=[record for record in self.records if start <= record.due < end])

    def latency(self, share: float) -> float:
        """The latency that this share of the answered requests did not pass (nearest rank); nan if none."""
        latencies = sorted(record.latency for record in self.records if record.outcome is Outcome.OK)
        return percentile(latencies, share)

    def summary(self) -> str:
        """One line for people, then one for each kind of failure with an example."""
        lines = [f"{len(self)} requests, {self.failed} failed, {self.stale} met a stale connection"]
        for outcome, count in self.outcomes.items():
            if outcome is not Outcome.OK:
                example = next(record for record in self.records if record.outcome is outcome)
                said = f" ({example.detail})" if example.detail else ""
                worker = f", last with worker {example.worker}" if example.worker else ""
                lines.append(
                    f"  {count} x {outcome.value}, e.g. connection {example.connection}{worker}{said}"
                )
        if self.unasked:
            lines.append(f"  {self.unasked} x bytes without a request")
        return "\n".join(lines)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank in ascending numbers; nan if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


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
    """One client: its schedule's backlog, the socket it has now, and the request that is on it."""

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
    """The client. Use it as a context manager (runs in a thread of its own), or call `run()` in this thread.

    Args:
        address: where the server listens.
        path: the request target.
        headers: more header fields.
        body: sent with POST instead of GET. The server must not mind getting one twice.
        rate: requests per second over all connections; infinite: a closed loop, in which each connection
            sends its next request as soon as it has an answer.
        connections: how many keep-alive connections share them, in turn.
        close_every: each connection asks for its end with every so manieth request (1: no keep-alive); 0 is
            never.
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
        timeout: float = 30.0,
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

    # What callers use.

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

    def wait_for(self, count: int, *, within: float) -> None:
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
            return math.inf  # what follows, follows an answer
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
        """Seconds until something is due without the server's doing."""
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
        """Send the client's next request, if one is due, on the connection it has or on a new one."""
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
            # Closed while idle: the server's good right. An answer to nothing, e.g. a 408, is not.
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
            # Closing takes it out of the epoll, too.
            self._by_fd.pop(client.sock.fileno(), None)
            client.sock.close()
        client.sock, client.connecting, client.unsent = None, False, b""
        client.parser = AnswerParser()

    def _end(self, client: _Connection, outcome: Outcome, detail: str) -> None:
        """A failure that costs the connection."""
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
            # Not at every record: waking a thread that goes back to sleep would cost more than the request.
            if self._awaited and len(self._records) >= min(self._awaited):
                self._news.notify_all()

    def _close(self) -> None:
        for client in self._clients:
            self._drop(client)
        with self._news:
            self._over = True
            self._epoll.close()
            os.close(self._waker)
