"""Certificates for tests, made when they are needed, so that the repository has no private key.

authority = Authority(folder)
server = authority.issue("localhost")
context.load_cert_chain(server.cert, server.key)
"""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificate(NamedTuple):
    """Paths of two PEM files."""

    cert: str
    key: str


class Authority:
    """A certificate authority of its own in `folder`; skips the test where there is no openssl command."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("makes certificates with Debian's openssl")
        self._folder = folder
        self._count = 0
        subject = ("-subj", f"/O=Ostler/CN={name}")
        self.cert, self.key = self._files("ca")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", "-x509", *_new_key(self.key), *subject, *usage, "-days", "2", "-out", self.cert)

    def issue(self, name: str, subject: str = "", extensions: str = "") -> Certificate:
        """A certificate for the host or client `name`, valid from now for two days.

        Args:
            subject: as openssl's -subj, by default `/CN=NAME`.
            extensions: lines of an openssl extension file, by default the name as an alternative one.
        """
        cert, key = self._files("issued")
        request, details = f"{cert}.csr", Path(f"{cert}.ext")
        # Without the key identifiers Python 3.13 does not accept it (ssl.VERIFY_X509_STRICT).
        identifiers = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        details.write_text(identifiers + (extensions or f"subjectAltName=DNS:{name}\n"))
        _openssl("req", "-new", "-utf8", *_new_key(key), "-subj", subject or f"/CN={name}", "-out", request)
        signed_by = ("-CA", self.cert, "-CAkey", self.key, "-set_serial", str(0xABC000 + self._count))
        _openssl(
            *("x509", "-req", "-in", request, *signed_by, "-days", "2"),
            *("-extfile", str(details), "-out", cert),
        )
        return Certificate(cert, key)

    def client_context(self, certificate: Certificate | None = None) -> ssl.SSLContext:
        """A context for a client that trusts only this authority and presents `certificate` if it is asked
        for one.
        """
        context = ssl.create_default_context(cafile=self.cert)
        if certificate is not None:
            context.load_cert_chain(certificate.cert, certificate.key)
        return context

    def _files(self, name: str) -> Certificate:
        self._count += 1
        return Certificate(*(str(self._folder / f"{name}{self._count}.{end}") for end in ("pem", "key")))


def _new_key(path: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path)


def _openssl(*args: str) -> None:
    done = subprocess.run(["openssl", *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
