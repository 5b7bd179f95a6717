"""One TLS connection, over OpenSSL's memory buffers.

`TlsSocket` has what the engine uses of a plain socket. A reactor that watches the descriptor misses nothing
as long as no decrypted byte stays behind; therefore `recv` always returns all of them.
"""

import errno
import socket
import ssl

from ostler.workers import tls_peer_info
from ostler.workers.tls import reason_of
from ostler.workers.tls_records import Records

# The answer to a client that speaks plain HTTP here.
_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 25\r\n\r\n"
    b"This address takes https\n"
)
_RECORD = 16 * 1024  # RFC 8446 section 5.1
# The client's end, as one part without a record: OpenSSL reports it only when it is called.
_END = ((b"", 0),)


class HandshakeFailed(OSError):
    """The client broke off the handshake, or can't complete it; the text says briefly what happened."""


class TlsSocket:
    """The server's end of one TLS connection over an accepted, non-blocking socket.

    OpenSSL is given a few records at a time, see `tls_records`.

    Args:
        sock: the accepted socket; belongs to this object from now on, and keeps its descriptor.
        context: from `make_context`.

    Raises:
        OSError: the client is gone already.

    Attributes:
        plain: the accepted socket.
        handshaken: the handshake is done; nothing can be sent before.
        wants_write: what blocked last was blocked on writing: call `recv` again when the socket is writable.
        finished: the client has said that nothing more comes.
    """

    __slots__ = (
        "_ended",
        "_incoming",
        "_outgoing",
        "_records",
        "_tls",
        "_unsent",
        "_writing",
        "finished",
        "handshaken",
        "plain",
        "wants_write",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.getpeername()
        self.plain = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._records = Records()
        # Encrypted bytes that the kernel has not taken; the size of what `send` was given that they end.
        self._unsent, self._writing = b"", 0
        self._ended = False
        self.finished = False
        self.handshaken = False
        self.wants_write = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Bytes from the client, b"" at their end; goes on with the handshake before.

        Returns all that was decrypted: `size` bytes and a record at most.

        Args:
            flags: with any, such as MSG_PEEK, it is asked of the descriptor: what comes is encrypted.

        Raises:
            BlockingIOError: nothing has come yet.
            HandshakeFailed: the client speaks no TLS, or none that we accept.
            OSError: the connection broke, or the client sends too many records without data.
        """
        if flags or self._ended:
            return self.plain.recv(size, flags)
        if self.finished:
            return b""
        if self.wants_write:
            self._flush()
        received = self.plain.recv(size)
        if not received:
            self._incoming.write_eof()
        found: list[bytes] = []
        for part, count in self._records.parts(received) if received else _END:
            if part:
                self._incoming.write(part)
            before = len(found)
            if self.handshaken or self._handshake():
                if not self._decrypt(found):
                    self.finished = True
                    break
                self._records.note(count, useful=len(found) > before)
        if self._outgoing.pending:
            self._try_flush()
        if found or self.finished:
            return found[0] if len(found) == 1 else b"".join(found)
        raise BlockingIOError

    def _decrypt(self, found: list[bytes]) -> bool:
        """Append the data of all records that OpenSSL was given; False at the client's end."""
        tls = self._tls
        try:
            while data := tls.read(_RECORD):
                found.append(data)
                if not (self._incoming.pending or tls.pending()):
                    return True
        except ssl.SSLWantReadError:
            return True
        except ssl.SSLError as error:
            if error.errno != ssl.SSL_ERROR_EOF:
                self._try_flush()
                raise
            # It closed without a close_notify, as many clients do.
        return False

    def _handshake(self) -> bool:
        """Go on with the handshake; whether it is done.

        Raises:
            HandshakeFailed: see `recv`.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._try_flush()
            return False
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                self._answer_plainly()
            else:
                self._try_flush()
            raise HandshakeFailed(reason_of(error)) from None
        self.handshaken = True
        self._try_flush()
        return True

    def _flush(self) -> None:
        """Send what OpenSSL has encrypted.

        Raises:
            BlockingIOError: the client takes no more now.
        """
        data = self._unsent or self._outgoing.read()
        while data:
            try:
                sent = self.plain.send(data)
            except BlockingIOError:
                self._unsent = data
                self.wants_write = True
                raise
            data = data[sent:] or self._outgoing.read()
        self._unsent = b""
        self.wants_write = False

    def _try_flush(self) -> None:
        """As `_flush`, but errors are ignored: a later call reports them."""
        try:
            self._flush()
        except OSError:
            pass  # it goes with the next bytes, or the next call says that the connection broke

    def _answer_plainly(self) -> None:
        """Answer a client that speaks plain HTTP here, as far as that is possible without waiting."""
        try:
            self.plain.send(_PLAIN_ANSWER)
            self.plain.shutdown(socket.SHUT_WR)
            # Unread bytes would turn the close into a reset, which may overtake the answer.
            self.plain.recv(64 * 1024)
        except OSError:
            pass  # the client is gone

    def send(self, data: bytes | memoryview) -> int:
        """Send what goes now; returns how much that was.

        What did not go must come first in the next call, at least as much of it (up to 16 KiB): a record of
        it is encrypted already.

        Raises:
            BlockingIOError: nothing goes now.
            OSError: the connection broke, or its handshake is not done.
        """
        if not self.handshaken:
            raise OSError(errno.ENOTCONN, "the TLS handshake is not done")
        view = memoryview(data)
        sent = 0
        try:
            while sent < len(view):
                if not self._writing:
                    part = view[sent : sent + _RECORD]
                    self._tls.write(part)
                    self._writing = len(part)
                self._flush()
                sent += self._writing
                self._writing = 0
        except BlockingIOError:
            # The reactor watches for writability while something of an answer is left; that is enough.
            self.wants_write = False
            if not sent:
                raise
        return sent

    def pending(self) -> bool:
        """Whether `recv` has something to return at once: the end, which makes no event of its own."""
        return self.finished

    def fileno(self) -> int:
        return self.plain.fileno()

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self.plain.getsockopt(level, option, size)

    def shutdown(self, how: int) -> None:
        """As of a plain socket; a close_notify is sent to the client first.

        What comes afterwards is encrypted and is to be discarded.
        """
        if how != socket.SHUT_RD and self.handshaken and not self._ended:
            try:
                self._tls.unwrap()
            except (OSError, ValueError):
                pass  # the client's own has not come yet, or never will
            self._try_flush()
        self._ended = True
        self.plain.shutdown(how)

    def close(self) -> None:
        self.plain.close()

    def peer_info(self) -> dict[str, str]:
        """What the environ says of the connection, once the handshake is done; see `tls_peer_info`."""
        return tls_peer_info.variables(self._tls)
