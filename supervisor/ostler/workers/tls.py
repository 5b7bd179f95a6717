"""The TLS context of a generation; connections under it are `tls_socket`'s.

The context is made while a generation is loaded, so a certificate that can't be used fails the reload and
not a client. It is inherited by the workers: they share the key of the session tickets, and a client resumes
its session with any of them.
"""

import re
import ssl
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ostler.errors import SettingError
from ostler.osapi.files import check_file, read_file
from ostler.settings.table import Settings
from ostler.text import frames_of, name_and_text

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}

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
        SettingError: it can't be made; the text names the file that is wrong.
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
    # OpenSSL before 3 lets clients renegotiate, which costs the server much more than the client.
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
            problem = f"OpenSSL does not take {certfile!r} and its key: {reason_of(error)}"
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


def reason_of(error: OSError) -> str:
    """What went wrong in OpenSSL, as a short text."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return str(reason).lower().replace("_", " ")
