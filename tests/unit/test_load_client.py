"""The load client with small scripted servers: its counts of failures must be correct."""

import itertools
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.kit.answers import Answer, AnswerParser, MalformedAnswerError
from tests.kit.load import Address, Load, host_field
from tests.kit.report import Outcome, Report, percentile

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DEADLINE = 20.0


class Peer:
    """The server's end of one connection, as a script sees it."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        """Counts connections from 1, in the order in which they were accepted."""
        self.head = b""
        """Of the newest request."""
        self._data = b""

    def request(self) -> bool:
        """Wait for a whole request; False once the client has closed."""
        while b"\r\n\r\n" not in self._data:
            data = self.sock.recv(65536)
            if not data:
                return False
            self._data += data
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")
        return True

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close so that the client gets a reset (SO_LINGER of zero seconds, tcp(7))."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Peer], None]


class ScriptedServer:
    """Runs a script for every connection, each in a thread; all have ended when the block ends."""

    def __init__(self, script: Script, path: str | None = None) -> None:
        self._script = script
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address: Address = self._listener.getsockname()
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
            self.address = path
        self.accepted = 0
        self._peers: list[Peer] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # shut down by __exit__
                return
            self.accepted += 1
            peer = Peer(sock, self.accepted)
            thread = threading.Thread(target=self._play, args=(peer,))
            self._peers.append(peer)
            self._threads.append(thread)
            thread.start()

    def _play(self, peer: Peer) -> None:
        with peer.sock:
            try:
                self._script(peer)
            except OSError:
                pass  # the client has closed first, as it may at the end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(DEADLINE)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE)
        assert not any(thread.is_alive() for thread in self._threads)


def play(script: Script, *, requests: int = 1, connections: int = 1, timeout: float = DEADLINE) -> Report:
    """Run a load against the script, as fast as the schedule lets it."""
    with ScriptedServer(script) as server:
        return load(server.address, requests=requests, connections=connections, timeout=timeout)


def load(
    address: Address, *, requests: int = 1, connections: int = 1, timeout: float = DEADLINE, rate: float = 1e4
) -> Report:
    return Load(address, rate=rate, connections=connections, requests=requests, timeout=timeout).run()


def always(answer: bytes) -> Script:
    """A server that keeps its connections and gives one answer to everything."""

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(answer)

    return script


def only(report: Report) -> Outcome:
    """The outcome, which must be the same for all requests of the run."""
    [outcome] = report.outcomes
    return outcome


def test_every_request_is_answered_over_few_connections() -> None:
    """With a server that answers and keeps alive there is one connection per client,
    and no error is counted.
    """
    with ScriptedServer(always(HELLO)) as server:
        report = load(server.address, requests=100, connections=4)
        assert server.accepted == 4
    assert (len(report), report.failed, report.stale) == (100, 0, 0)
    assert {record.body for record in report.records} == {b"Hello"}
    assert {record.connection for record in report.records} == {0, 1, 2, 3}


def test_unix_socket(tmp_path: Path) -> None:
    """An address that is a path means a Unix socket."""
    with ScriptedServer(always(HELLO), str(tmp_path / "app.sock")) as server:
        assert load(server.address, requests=3).failed == 0


@pytest.mark.parametrize(
    "last",
    [b"Connection: close\r\n", b"Connection: Foo, Close\r\n", b"HTTP/1.0"],
    ids=["close", "list", "1.0"],
)
def test_connection_close_is_respected(last: bytes) -> None:
    """After an answer that ends its connection the client opens a new one; nothing is stale or failed."""
    answer = b"HTTP/1.1 200 OK\r\n%sContent-Length: 5\r\n\r\nHello" % last
    if last == b"HTTP/1.0":
        answer = HELLO.replace(b"HTTP/1.1", b"HTTP/1.0")

    def script(peer: Peer) -> None:
        assert peer.request()
        peer.send(answer)
        assert not peer.request()  # the client closes and sends nothing more

    with ScriptedServer(script) as server:
        report = load(server.address, requests=6, connections=2)
        assert server.accepted == 6
    assert (len(report), report.failed, report.stale) == (6, 0, 0)


def test_other_status_is_a_failure() -> None:
    """A complete answer other than 200 counts as failed, and the connection is used again."""
    with ScriptedServer(always(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")) as server:
        report = load(server.address, requests=3)
        assert server.accepted == 1
    assert only(report) is Outcome.STATUS
    assert {record.status for record in report.records} == {503}
    assert "status 503" in report.summary()


def test_refused() -> None:
    """Without a listener each request is refused and counted."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = unused.getsockname()
    report = load(address, requests=3)
    assert report.outcomes == {Outcome.REFUSED: 3}


def test_refused_at_once_with_a_long_backlog(tmp_path: Path) -> None:
    """A missing Unix socket fails in connect() itself, a thousand times, without deep recursion."""
    report = load(str(tmp_path / "none.sock"), requests=3000, rate=1e9)
    assert report.outcomes == {Outcome.REFUSED: 3000}


def test_reset_in_the_middle_of_an_answer() -> None:
    """A reset after some bytes is a reset and is not retried."""

    def script(peer: Peer) -> None:
        assert peer.request()
        peer.send(HELLO[:-2])
        peer.reset()

    with ScriptedServer(script) as server:
        report = load(server.address, requests=1)
        assert server.accepted == 1
    assert only(report) is Outcome.RESET
    assert report.records[0].detail == "Connection reset by peer"


def test_reset_before_any_answer_on_a_fresh_connection() -> None:
    """A first request is not retried."""

    def script(peer: Peer) -> None:
        assert peer.request()
        peer.reset()

    assert only(play(script)) is Outcome.RESET


@pytest.mark.parametrize(
    "part",
    [
        HELLO[:-1],
        HELLO[:10],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nHello\r\n",
    ],
    ids=["body", "head", "chunks"],
)
def test_truncated_answer(part: bytes) -> None:
    """An answer that ends early is truncated, however the connection closed."""

    def script(peer: Peer) -> None:
        assert peer.request()
        peer.send(part)

    assert only(play(script)) is Outcome.TRUNCATED


def test_unanswered() -> None:
    """Closing a new connection without a byte is a failure of its own kind and is not retried."""

    def script(peer: Peer) -> None:
        assert peer.request()

    with ScriptedServer(script) as server:
        report = load(server.address, requests=2)
        assert server.accepted == 2
    assert only(report) is Outcome.UNANSWERED


@pytest.mark.parametrize("reset", [False, True], ids=["end of file", "reset"])
def test_stale_connection_is_retried_once_and_counted(*, reset: bool) -> None:
    """A reused connection that is closed after a request, before any byte of the answer:
    retried, answered, and counted.
    """

    def script(peer: Peer) -> None:
        assert peer.request()
        peer.send(HELLO)
        if peer.number == 1:
            assert peer.request()  # the second request has arrived when the connection closes
            if reset:
                peer.reset()
            return
        while peer.request():
            peer.send(HELLO)

    with ScriptedServer(script) as server:
        report = load(server.address, requests=3)
        assert server.accepted == 2
    assert (len(report), report.failed, report.stale) == (3, 0, 1)
    assert [record.stale for record in report.records] == [False, True, False]
    expected = "stale: Connection reset by peer" if reset else "stale: end of file"
    assert report.records[1].detail == expected


def test_stale_retry_may_fail() -> None:
    """The failure of the retry is final."""

    def script(peer: Peer) -> None:
        assert peer.request()
        if peer.number == 1:
            peer.send(HELLO)
            assert peer.request()

    with ScriptedServer(script) as server:
        report = load(server.address, requests=2)
        assert server.accepted == 2
    assert [record.outcome for record in report.records] == [Outcome.OK, Outcome.UNANSWERED]
    assert (report.failed, report.stale) == (1, 1)


def test_idle_close_costs_nothing() -> None:
    """A server may close an idle connection: the client notices before it sends, and opens another."""
    closed = threading.Event()

    def script(peer: Peer) -> None:
        assert peer.request()
        peer.send(HELLO)
        peer.sock.shutdown(socket.SHUT_RDWR)
        closed.set()

    with ScriptedServer(script) as server:
        # The next request is due 200 ms later: long after the close, also on a busy machine.
        report = load(server.address, requests=4, rate=5)
        assert closed.is_set()
        assert server.accepted == 4
    assert (report.failed, report.stale) == (0, 0)


def test_malformed_answers() -> None:
    """Bytes that are not an answer are distinguished from a truncated one."""
    assert only(play(always(b"SSH-2.0-server\r\n"))) is Outcome.MALFORMED


def test_bytes_without_a_request_are_counted() -> None:
    """Bytes on an idle connection are counted, and the connection is not used again."""

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(HELLO)
            if peer.number == 1:
                assert answered.wait(DEADLINE)
                peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    answered = threading.Event()
    with ScriptedServer(script) as server, Load(server.address, rate=10, connections=1) as client:
        client.wait_for(1, within=DEADLINE)
        answered.set()
        client.wait_for(2, within=DEADLINE)
        report = client.finish()
    assert (report.unasked, report.failed) == (1, 0)
    assert "bytes without a request" in report.summary()


def test_timeout() -> None:
    """A request without an answer ends at its deadline, and so does its connection."""

    def script(peer: Peer) -> None:
        assert peer.request()
        assert not peer.request()  # until the client gives up

    report = play(script, requests=2, timeout=0.05)
    assert only(report) is Outcome.TIMED_OUT
    assert all(record.ended - record.sent >= 0.05 for record in report.records)


def test_stall_shows_in_every_request_that_was_due() -> None:
    """Latency counts from the schedule: what waits behind a stalled request is late, too."""
    arrived, release = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        while peer.request():
            arrived.set()
            assert release.wait(DEADLINE)
            peer.send(HELLO)

    with (
        ScriptedServer(script) as server,
        Load(server.address, rate=1000, connections=1, requests=50) as client,
    ):
        assert arrived.wait(DEADLINE)
        time.sleep(0.1)  # the whole schedule is past then: 50 requests are due within 50 ms
        released = time.monotonic()
        release.set()
        client.wait_for(50, within=DEADLINE)
        report = client.finish()
    for record in report.records:
        assert record.due < released < record.ended
        assert record.latency == pytest.approx(record.ended - record.due)
    assert sum(record.sent > released for record in report.records) == 49


def test_schedule_is_steady() -> None:
    """Requests are due at equal intervals, on the connections in turn."""
    with ScriptedServer(always(HELLO)) as server:
        report = load(server.address, requests=20, connections=2, rate=1000)
    by_due = sorted(report.records, key=lambda record: record.due)
    steps = [later.due - sooner.due for sooner, later in itertools.pairwise(by_due)]
    assert steps == pytest.approx([0.001] * 19, abs=1e-6)
    assert [record.connection for record in by_due] == [0, 1] * 10


def test_closed_loop() -> None:
    """Without a rate each connection sends its next request after an answer, and not before."""
    with ScriptedServer(always(HELLO)) as server:
        report = load(server.address, requests=200, connections=3, rate=math.inf)
        assert server.accepted == 3
    assert (len(report), report.failed, report.stale) == (200, 0, 0)
    by_connection = sorted(report.records, key=lambda record: (record.connection, record.due))
    for former, later in itertools.pairwise(by_connection):
        if former.connection == later.connection:
            assert later.due == former.ended


def test_finish_ends_a_closed_loop() -> None:
    """finish() ends a closed loop that would otherwise not end."""
    with (
        ScriptedServer(always(HELLO)) as server,
        Load(server.address, rate=math.inf, connections=2) as client,
    ):
        client.wait_for(50, within=DEADLINE)
        report = client.finish()
    assert len(report) >= 50
    assert report.failed == 0


@pytest.mark.parametrize("every", [1, 3])
def test_connections_that_the_client_ends(every: int) -> None:
    """With close_every each request of that number says so, and the next one uses a new connection."""

    def script(peer: Peer) -> None:
        answered = 0
        while peer.request():
            answered += 1
            assert (b"Connection: close" in peer.head) == (answered == every)
            peer.send(HELLO)  # the server does not close, so the client has to
        assert answered == every

    with ScriptedServer(script) as server:
        report = Load(server.address, rate=1e4, connections=2, requests=12, close_every=every).run()
        assert server.accepted == 12 // every
        # A script that fails closes its connection during a request.
        assert (len(report), report.failed, report.stale) == (12, 0, 0)


def test_records_name_worker_and_ports() -> None:
    """A record has the pid from its answer, or the last one on its connection,
    and the ports of both attempts.
    """
    ports = {}

    def script(peer: Peer) -> None:
        ports[peer.number] = peer.sock.getpeername()[1]
        assert peer.request()
        peer.send(HELLO.replace(b"\r\n\r\n", b"\r\nX-Worker: 4%d\r\n\r\n" % peer.number))
        assert peer.request()
        if peer.number == 2:
            peer.send(HELLO[:-1])

    with ScriptedServer(script) as server:
        report = load(server.address, requests=3)
    answered, retried, cut = report.records
    assert (answered.worker, answered.port, answered.stale_port) == (41, ports[1], 0)
    assert (retried.outcome, retried.worker) == (Outcome.OK, 42)
    assert (retried.port, retried.stale_port) == (ports[2], ports[1])
    assert (cut.outcome, cut.worker, cut.port) == (Outcome.TRUNCATED, 42, ports[2])
    assert report.lost == [retried, cut]
    assert retried.losses == [(ports[1], retried.stale_at)]
    assert retried.sent < retried.stale_at < retried.ended
    assert (answered.losses, cut.losses) == ([], [(ports[2], cut.ended)])
    assert "last with worker 42" in report.summary()


def test_wait_for_reports_how_far_it_got() -> None:
    """The wait ends with its count, or says how far it got; records can be read meanwhile."""
    with ScriptedServer(always(HELLO)) as server, Load(server.address, requests=2) as client:
        client.wait_for(2, within=DEADLINE)
        assert client.ended == 2
        assert len(client.records(-1)) == len(client.records(1)) == 1
        with pytest.raises(TimeoutError, match="2 of 3"):
            client.wait_for(3, within=DEADLINE)


def test_report_of_a_part() -> None:
    """A window contains the requests that were due in it."""
    with ScriptedServer(always(HELLO)) as server:
        report = load(server.address, requests=10, rate=1000)
    first = min(record.due for record in report.records)
    part = report.due_within(first + 0.0025, first + 0.0055)
    assert len(part) == 3
    assert 0 < part.latency(0.5) <= part.latency(1.0) < DEADLINE


def test_percentile_is_nearest_rank() -> None:
    """No interpolation: the figure is a measured one."""
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile([1, 2, 3, 4], 0.99) == 4
    assert percentile([7], 0) == 7
    assert percentile([], 0.5) != percentile([], 0.5)  # nan


def test_host_field() -> None:
    """Host has brackets around an IPv6 address and never the path of a socket."""
    assert host_field(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert host_field(("::1", 80)) == "[::1]:80"
    assert host_field("/run/app.sock") == "localhost"


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (HELLO, Answer(200, b"Hello", reusable=True)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Answer(204, b"", reusable=True)),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, Answer(200, b"Hello", reusable=True)),
        (
            CHUNKED + b"3;x=y\r\nHel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n",
            Answer(200, b"Hello", reusable=True),
        ),
        (
            b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            Answer(200, b"", reusable=True),
        ),
    ],
)
def test_parser_takes_answers_in_any_pieces(wire: bytes, expected: Answer) -> None:
    """Whole or byte by byte, the answer is complete at its last byte and not before."""
    assert AnswerParser().feed(wire) == expected
    parser = AnswerParser()
    answers = [parser.feed(piece) for piece in bytewise(wire)]
    assert answers[-1] == expected
    assert answers[:-1] == [None] * (len(wire) - 1)


def test_parser_ends_a_body_without_length_at_end_of_file() -> None:
    """Without framing the end of the connection ends the body, and the connection can't be used again."""
    parser = AnswerParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nHello") is None
    assert parser.end() == Answer(200, b"Hello", reusable=False)


@pytest.mark.parametrize(
    "wire",
    [
        b"GARBAGE",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        HELLO + b"more",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
    ],
)
def test_parser_refuses_invalid_answers(wire: bytes) -> None:
    """Broken framing is reported, never guessed around."""
    with pytest.raises(MalformedAnswerError):
        AnswerParser().feed(wire)
