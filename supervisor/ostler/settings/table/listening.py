"""Listeners: addresses, Unix sockets, TLS."""

from typing import Annotated

import msgspec

from ostler.settings import classes
from ostler.settings.kinds import addresses, numbers, permissions, texts, tls
from ostler.settings.table.row import RESTART, Setting


class ListeningRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    bind: Annotated[
        tuple[str, ...],
        Setting(
            addresses.ADDRESSES,
            "Address to listen on: HOST:PORT, [V6]:PORT, unix:PATH or fd://N. May be given several times. "
            "The environment's PORT means 0.0.0.0:PORT, which others can reach.",
            flags=("-b", "--bind"),
            env="PORT",
        ),
    ] = ("127.0.0.1:8000",)
    backlog: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "How many connections may wait to be accepted.",
            flags=("--backlog",),
        ),
    ] = 2048
    reuse_port: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Let other programs listen on the same ports (SO_REUSEPORT).",
            flags=("--reuse-port",),
            takes_effect=RESTART,
        ),
    ] = False
    socket_mode: Annotated[
        str | None,
        Setting(
            permissions.MODE,
            "Mode of Unix sockets in octal, e.g. 0660; by default all accounts that can reach the folder may "
            "connect, except as umask forbids.",
            flags=("--socket-mode",),
            gunicorn=None,
        ),
    ] = None
    socket_owner: Annotated[
        str | None,
        Setting(
            permissions.OWNER,
            "Owner of Unix sockets: USER, USER:GROUP or :GROUP; by default the workers' (user, group).",
            flags=("--socket-owner",),
            gunicorn=None,
        ),
    ] = None
    certfile: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "Serve https with the certificate (PEM, with its chain) in this file; reread at each reload.",
            flags=("--certfile",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = None
    keyfile: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "The certificate's private key (PEM); not needed if it is in certfile.",
            flags=("--keyfile",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = None
    ca_certs: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "Authorities (PEM) that clients' certificates must be from.",
            flags=("--ca-certs",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = None
    cert_reqs: Annotated[
        str,
        Setting(
            tls.VERIFICATION,
            "Whether clients must show a certificate; 0, 1, 2 are none, optional, required.",
            flags=("--cert-reqs",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = "none"
    ciphers: Annotated[
        str | None,
        Setting(
            texts.OPTIONAL_TEXT,
            "Ciphers for TLS 1.2, as OpenSSL's cipher list; by default Python's choice.",
            flags=("--ciphers",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = None
    ssl_minimum_version: Annotated[
        str,
        Setting(
            tls.TLS_VERSION,
            "Oldest version of TLS that clients may speak.",
            flags=("--ssl-minimum-version",),
            worker_classes=classes.NOT_MEINHELD,
            gunicorn=None,
        ),
    ] = "TLSv1.2"
