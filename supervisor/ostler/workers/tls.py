"""TLS: the context of a generation, and a connection's socket under it.

The context is made while a generation is loaded, so a certificate that can't be used fails the reload and
not a client, and it is inherited by the workers: they share the key of the session tickets, and a client
resumes its session with any of them.

`TlsSocket` has what the engine uses of a plain socket. An epoll that watches the descriptor misses nothing as
long as no deciphered byte stays behind; therefore `recv` always returns all of them.
"""

import errno
import re
import socket
import ssl
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ostler.errors import SettingError
from ostler.osapi.files import check_file, read_file
from ostler.settings.table import Settings
from ostler.text import frames_of, name_and_text
from ostler.workers.tls_records import Records

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}

# What a client gets that speaks plain HTTP to us.
_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 25\r\n\r\n"
    b"This address takes https\n"
)
_RECORD = 16 * 1024  # RFC 8446 section 5.1
# The client's end, as one part without a record: OpenSSL reports it only when it is called.
_END = ((b"", 0),)

Hook = Callable[[Any, Callable[[], ssl.SSLContext]], Any]


class HookConfig:
    """The settings as a hook in gunicorn's style reads them: attributes, `cert_reqs` as ssl's constant."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.cert_reqs = _VERIFY[settings.cert_reqs]
        self.is_ssl = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)


class _NoCertificate(Exception):
    """The default context was asked for, but no certificate is set."""


def make_context(
    settings: Settings, hook: Hook | None, copies: Mapping[str, str] = MappingProxyType({})
) -> ssl.SSLContext | None:
    """The TLS context of a generation, or None if it serves plain HTTP.

    That is so without `certfile`, unless the hook makes a context without the help of the default one. A hook
    that asks for the default one then has no effect: gunicorn calls the hook only if there is a certificate,
    and a file may well define the one always and the other only in production.

    Args:
        copies: by the path of a file that this process may not read any more, that of a copy.

    Raises:
        SettingError: it can't be made; the text says which file is to blame.
    """

    def factory() -> ssl.SSLContext:
        if settings.certfile is None:
            raise _NoCertificate
        return _default_context(settings, settings.certfile, copies)

    if hook is None:
        return factory() if settings.certfile is not None else None
    try:
        context = hook(HookConfig(settings), factory)
    except _NoCertificate:
        return None
    except SettingError:
        raise
    except Exception as error:
        raise SettingError("ssl_context", _describe(error)) from error
    if not isinstance(context, ssl.SSLContext):
        raise SettingError("ssl_context", f"the function must return an ssl.SSLContext, got {context!r}")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise SettingError(
            "ssl_context", "the function returned a client's context; use ssl.Purpose.CLIENT_AUTH"
        )
    return context


def _default_context(settings: Settings, certfile: str, copies: Mapping[str, str]) -> ssl.SSLContext:
    _check_readable("certfile", certfile, copies)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    # OpenSSL before 3 lets clients renegotiate, which costs us much and them little.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.minimum_version = _VERSIONS[settings.ssl_minimum_version]
    context.set_alpn_protocols(["http/1.1"])
    if settings.keyfile is not None:
        _check_readable("keyfile", settings.keyfile, copies)
    _load_certificate(context, certfile, settings.keyfile, copies)
    if settings.ca_certs is not None:
        _check_readable("ca_certs", settings.ca_certs, copies)
        try:
            context.load_verify_locations(copies.get(settings.ca_certs, settings.ca_certs))
        except ssl.SSLError:
            raise SettingError(
                "ca_certs", f"{settings.ca_certs!r} holds no certificate in PEM form"
            ) from None
    context.verify_mode = _VERIFY[settings.cert_reqs]
    if settings.ciphers is not None:
        try:
            context.set_ciphers(settings.ciphers)
        except ssl.SSLError:
            raise SettingError(
                "ciphers", f"OpenSSL knows no cipher of {settings.ciphers!r}; see openssl ciphers -v"
            ) from None
    return context


def _load_certificate(
    context: ssl.SSLContext, certfile: str, keyfile: str | None, copies: Mapping[str, str]
) -> None:
    setting, path = ("keyfile", keyfile) if keyfile is not None else ("certfile", certfile)
    certificate, key = copies.get(certfile, certfile), copies.get(path, path)

    def no_password() -> str:
        # Without this OpenSSL asks the terminal, and a daemon waits there forever.
        raise SettingError(setting, f"the key in {path!r} is encrypted; give one without a passphrase")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            problem = f"the key in {path!r} does not belong to the certificate in {certfile!r}"
        elif not _holds(certificate, "CERTIFICATE"):
            setting, problem = "certfile", f"{certfile!r} holds no certificate in PEM form"
        elif not _holds(key, "PRIVATE KEY"):
            problem = f"{path!r} holds no private key in PEM form"
            if keyfile is None:
                problem += "; name the file that does with keyfile"
        else:
            setting = "certfile"
            problem = f"OpenSSL does not take {certfile!r} and its key: {_reason(error)}"
        raise SettingError(setting, problem) from None


def _check_readable(setting: str, path: str, copies: Mapping[str, str]) -> None:
    try:
        check_file(copies.get(path, path))
    except OSError as error:
        raise SettingError(setting, f"can't read {path!r}: {error.strerror}") from None


def _holds(path: str, what: str) -> bool:
    return re.search(rf"-----BEGIN [A-Z ]*{what}-----".encode(), read_file(path)) is not None


def _describe(error: Exception) -> str:
    frame, line = list(traceback.walk_tb(frames_of(error)))[-1]
    return f"{Path(frame.f_code.co_filename).name} line {line}: {name_and_text(error)}"


def _reason(error: OSError) -> str:
    """What went wrong in OpenSSL, in a few words."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return str(reason).lower().replace("_", " ")


class HandshakeFailed(OSError):
    """The client's fault, or its wish; the text says in a few words what happened."""


class TlsSocket:
    """The server's end of one TLS connection over an accepted, non-blocking socket.

    OpenSSL is given a few records at a time, see `tls_records`.

    Args:
        sock: the accepted socket; belongs to this object from now on, and keeps its descriptor.
        context: from `make_context`.

    Raises:
        OSError: the client is gone already.

    Attributes:
        handshaken: the handshake is done; nothing can be sent before.
        wants_write: what blocked last was blocked on writing: call `recv` again when the socket is writable.
        finished: the client has said that nothing more comes.
    """

    __slots__ = (
        "_ended",
        "_incoming",
        "_outgoing",
        "_plain",
        "_records",
        "_tls",
        "_unsent",
        "_writing",
        "finished",
        "handshaken",
        "wants_write",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.getpeername()
        self._plain = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._records = Records()
        # Enciphered bytes that the kernel has not taken; the size of what `send` was given that they end.
        self._unsent, self._writing = b"", 0
        self._ended = False
        self.finished = False
        self.handshaken = False
        self.wants_write = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Bytes from the client, b"" at their end; goes on with the handshake before.

        Returns all that was deciphered: `size` bytes and a record at most.

        Args:
            flags: with any, such as MSG_PEEK, it is asked of the descriptor: what comes is enciphered.

        Raises:
            BlockingIOError: nothing has come yet.
            HandshakeFailed: the client speaks no TLS, or none that we accept.
            OSError: the connection broke, or the client sends too many records without data.
        """
        if flags or self._ended:
            return self._plain.recv(size, flags)
        if self.finished:
            return b""
        if self.wants_write:
            self._flush()
        received = self._plain.recv(size)
        if not received:
            self._incoming.write_eof()
        found: list[bytes] = []
        for part, count in self._records.parts(received) if received else _END:
            if part:
                self._incoming.write(part)
            before = len(found)
            if self.handshaken or self._handshake():
                if not self._decipher(found):
                    self.finished = True
                    break
                self._records.note(count, useful=len(found) > before)
        if self._outgoing.pending:
            self._try_flush()
        if found or self.finished:
            return found[0] if len(found) == 1 else b"".join(found)
        raise BlockingIOError

    def _decipher(self, found: list[bytes]) -> bool:
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
            # It ended without saying so, as many do.
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
            raise HandshakeFailed(_reason(error)) from None
        self.handshaken = True
        self._try_flush()
        return True

    def _flush(self) -> None:
        """Send what OpenSSL has enciphered.

        Raises:
            BlockingIOError: the client takes no more now.
        """
        data = self._unsent or self._outgoing.read()
        while data:
            try:
                sent = self._plain.send(data)
            except BlockingIOError:
                self._unsent = data
                self.wants_write = True
                raise
            data = data[sent:] or self._outgoing.read()
        self._unsent = b""
        self.wants_write = False

    def _try_flush(self) -> None:
        """The same, where something else is to be done now, whatever becomes of it."""
        try:
            self._flush()
        except OSError:
            pass  # it goes with the next bytes, or the next call says that the connection broke

    def _answer_plainly(self) -> None:
        """The client speaks plain HTTP: tell it, as far as that goes without waiting."""
        try:
            self._plain.send(_PLAIN_ANSWER)
            self._plain.shutdown(socket.SHUT_WR)
            # Unread bytes would turn the close into a reset, which may overtake the answer.
            self._plain.recv(64 * 1024)
        except OSError:
            pass  # it is gone, and has no use for an answer

    def send(self, data: bytes | memoryview) -> int:
        """Send what goes now; returns how much that was.

        What did not go must come first in the next call, at least as much of it (up to 16 KiB): a record of
        it is enciphered already.

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
            # The acceptor watches for writability while something of an answer is left; that is enough.
            self.wants_write = False
            if not sent:
                raise
        return sent

    def pending(self) -> bool:
        """Whether `recv` has something to return at once: the end, which makes no event of its own."""
        return self.finished

    def fileno(self) -> int:
        return self._plain.fileno()

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self._plain.getsockopt(level, option, size)

    def shutdown(self, how: int) -> None:
        """As of a plain socket; the client is told first that this is the end (close_notify).

        What comes afterwards is enciphered and good only for being thrown away.
        """
        if how != socket.SHUT_RD and self.handshaken and not self._ended:
            try:
                self._tls.unwrap()
            except (OSError, ValueError):
                pass  # the client's own has not come yet, or never will
            self._try_flush()
        self._ended = True
        self._plain.shutdown(how)

    def close(self) -> None:
        self._plain.close()

    def peer_info(self) -> dict[str, str]:
        """What the environ says of the connection, under mod_ssl's names; once the handshake is done."""
        cipher = self._tls.cipher()
        name, _, bits = cipher if cipher is not None else ("", "", 0)
        variables = {
            "HTTPS": "on",
            "SSL_PROTOCOL": self._tls.version() or "",
            "SSL_CIPHER": name,
            "SSL_CIPHER_USEKEYSIZE": str(bits),
            "SSL_CIPHER_ALGKEYSIZE": str(self._algorithm_bits(name, bits)),
            "SSL_CIPHER_EXPORT": "false",
            "SSL_COMPRESS_METHOD": self._tls.compression() or "NULL",
            # Not known: each read of `session` leaks a copy of it, 1 KB, in CPython 3.11.
            "SSL_SESSION_ID": "",
            "SSL_SESSION_RESUMED": "Resumed" if self._tls.session_reused else "Initial",
            "SSL_CLIENT_VERIFY": "NONE",
        }
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is not None:
            variables["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(certificate)
            variables |= _certificate_info(self._tls.getpeercert() or {})
        return variables

    def _algorithm_bits(self, name: str, bits: int) -> int:
        for cipher in self._tls.context.get_ciphers():
            if cipher["name"] == name:
                return cipher.get("alg_bits", bits)
        return bits


# Short names of what stands in a distinguished name (RFC 4514 section 3, and mod_ssl's own).
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "emailAddress": "Email",
    "givenName": "G",
    "initials": "I",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "S",
    "title": "T",
    "userId": "UID",
}


def _certificate_info(certificate: dict[str, Any]) -> dict[str, str]:
    """Of a client's certificate that was checked; `certificate` as SSLSocket.getpeercert returns it."""
    if not certificate:
        return {}  # a hook's context asked for one and did not check it
    variables = {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_M_VERSION": str(certificate.get("version", "")),
        "SSL_CLIENT_M_SERIAL": certificate.get("serialNumber", ""),
        "SSL_CLIENT_V_START": certificate.get("notBefore", ""),
        "SSL_CLIENT_V_END": certificate.get("notAfter", ""),
    }
    for key, prefix in (("subject", "SSL_CLIENT_S_DN"), ("issuer", "SSL_CLIENT_I_DN")):
        name = certificate.get(key, ())
        variables[prefix] = distinguished_name(name)
        pairs = [pair for part in name for pair in part]
        _number(variables, f"{prefix}_", [(_SHORT[key], value) for key, value in pairs if key in _SHORT])
    kinds = {"DNS": "SSL_CLIENT_SAN_DNS", "email": "SSL_CLIENT_SAN_Email"}
    counts: dict[str, int] = {}
    for kind, value in certificate.get("subjectAltName", ()):
        if kind in kinds:
            variables[f"{kinds[kind]}_{counts.setdefault(kind, 0)}"] = _latin(value)
            counts[kind] += 1
    return variables


def _number(variables: dict[str, str], prefix: str, pairs: Iterable[tuple[str, str]]) -> None:
    """The first value of a name under the name itself, the others with _1, _2, ... behind it."""
    counts: dict[str, int] = {}
    for name, value in pairs:
        place = counts.get(name, 0)
        variables[f"{prefix}{name}_{place}" if place else f"{prefix}{name}"] = _latin(value)
        counts[name] = place + 1


_ESCAPED = re.compile(r'[,+"\\<>;]|^[# ]| $')


def distinguished_name(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    """A name as RFC 4514 writes it, its last part first: `CN=alice,O=Example`."""
    parts = []
    for part in name:
        pairs = ((_SHORT.get(key, key), _ESCAPED.sub(_escape, value)) for key, value in part)
        parts.append("+".join(f"{key}={value.replace(chr(0), chr(92) + '00')}" for key, value in pairs))
    return _latin(",".join(reversed(parts)))


def _escape(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def _latin(text: str) -> str:
    """As everything in environ: UTF-8 bytes, each as the latin-1 character of its number (PEP 3333)."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")
