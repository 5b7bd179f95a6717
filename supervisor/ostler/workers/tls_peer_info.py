"""What the environ says of a TLS connection and of its client's certificate, under mod_ssl's names."""

import re
import ssl
from collections.abc import Iterable
from typing import Any


def variables(tls: ssl.SSLObject) -> dict[str, str]:
    """The variables of a connection whose handshake is done."""
    cipher = tls.cipher()
    name, _, bits = cipher if cipher is not None else ("", "", 0)
    found = {
        "HTTPS": "on",
        "SSL_PROTOCOL": tls.version() or "",
        "SSL_CIPHER": name,
        "SSL_CIPHER_USEKEYSIZE": str(bits),
        "SSL_CIPHER_ALGKEYSIZE": str(_algorithm_bits(tls, name, bits)),
        "SSL_CIPHER_EXPORT": "false",
        "SSL_COMPRESS_METHOD": tls.compression() or "NULL",
        # Not known: each read of `session` leaks a copy of it, 1 KB, in CPython 3.11.
        "SSL_SESSION_ID": "",
        "SSL_SESSION_RESUMED": "Resumed" if tls.session_reused else "Initial",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    certificate = tls.getpeercert(binary_form=True)
    if certificate is not None:
        found["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(certificate)
        found |= _certificate_info(tls.getpeercert() or {})
    return found


def _algorithm_bits(tls: ssl.SSLObject, name: str, bits: int) -> int:
    for cipher in tls.context.get_ciphers():
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
