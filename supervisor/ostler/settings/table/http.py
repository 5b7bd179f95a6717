"""Connections and requests: limits, times, buffers, how strictly HTTP is read, and proxies."""

from typing import Annotated

import msgspec

from ostler.settings import classes
from ostler.settings.kinds import addresses, http, numbers, texts
from ostler.settings.table.fleet import FleetRows
from ostler.settings.table.row import Setting

# Headers by which proxies mark requests that came to them by https; gunicorn's default.
SECURE_SCHEME_HEADERS = {
    "X-FORWARDED-PROTOCOL": "ssl",
    "X-FORWARDED-PROTO": "https",
    "X-FORWARDED-SSL": "on",
}


class HttpRows(FleetRows, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    queue_timeout: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "Answer 503 to requests that have waited longer than this for a worker; 0 is never.",
            flags=("--queue-timeout",),
            worker_classes=classes.OWN_HTTP,
            gunicorn=None,
        ),
    ] = 0.0
    keepalive: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long an idle connection is kept for the next request; 0 closes after each answer.",
            flags=("--keep-alive",),
        ),
    ] = 2.0
    worker_connections: Annotated[
        int,
        Setting(
            numbers.POSITIVE,
            "How many connections a worker keeps open at most. Idle ones, then those that send or read "
            "slowest, make room for others.",
            flags=("--worker-connections",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = 1000
    limit_connections_per_address: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "How many connections a worker keeps open from one client address, or from one /64 network of "
            "IPv6; more are closed at once. It counts the address that a PROXY header gives; clients behind "
            "another proxy share the proxy's address. 0 is no limit. Not in meinheld workers.",
            flags=("--limit-connections-per-address",),
            worker_classes=classes.NOT_MEINHELD,
            gunicorn=None,
        ),
    ] = 0
    limit_request_line: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Longest request line, in bytes; 0 is no limit, but for the 1 MiB that no line may exceed.",
            flags=("--limit-request-line",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = 4094
    limit_request_fields: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Most header fields of a request; 0 is no limit, but for the 32,768 that no request may exceed.",
            flags=("--limit-request-fields",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = 100
    limit_request_field_size: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Longest header field, in bytes; 0 is no limit, but for the 16 MiB that all fields of a request "
            "together may not exceed.",
            flags=("--limit-request-field-size", "--limit-request-field_size"),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = 8190
    limit_request_body: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "Largest body of a request, e.g. 10M; a larger one is refused with 413. 0 is no limit.",
            flags=("--limit-request-body",),
            worker_classes=classes.WSGI,
            gunicorn=None,
        ),
    ] = 0
    header_timeout: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long a client may take to send a request's head, from its first byte on; 0 is forever.",
            flags=("--header-timeout",),
            worker_classes=classes.NOT_MEINHELD,
            gunicorn=None,
        ),
    ] = 15.0
    body_timeout: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long a client that sends a body may pause, having sent more than body_min_rate before; with "
            "body_min_rate 0, how long it may take to send all of it. 0 is forever.",
            flags=("--body-timeout",),
            worker_classes=classes.NOT_MEINHELD,
            gunicorn=None,
        ),
    ] = 30.0
    body_min_rate: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "Bytes per second at which a client must send a body, on average and from its third second on; "
            "0: only body_timeout limits it.",
            flags=("--body-min-rate",),
            worker_classes=classes.NOT_MEINHELD,
            gunicorn=None,
        ),
    ] = 500
    buffer_request: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "How much of a request's body is kept in memory; what is longer goes to a temporary file.",
            flags=("--buffer-request",),
            worker_classes=classes.WSGI,
            gunicorn=None,
        ),
    ] = 512 * 1024
    tmp_upload_dir: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "Folder of temporary files for bodies and answers; by default the system's.",
            flags=("--tmp-upload-dir",),
        ),
    ] = None
    stream_request: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Call the app when a request's head is there; it reads the body while it comes. A chunked body "
            "has no CONTENT_LENGTH then, without which Django and Bottle read nothing.",
            flags=("--stream-request",),
            worker_classes=classes.OWN_HTTP,
            gunicorn=None,
        ),
    ] = False
    buffer_response: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "How much of an answer is kept in memory for a client that is slow to read.",
            flags=("--buffer-response",),
            worker_classes=classes.OWN_HTTP,
            gunicorn=None,
        ),
    ] = 1024 * 1024
    buffer_response_file: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "How much more of it is kept in a temporary file before the app must wait; 0 is no file.",
            flags=("--buffer-response-file",),
            worker_classes=classes.OWN_HTTP,
            gunicorn=None,
        ),
    ] = 1024 * 1024 * 1024
    sendfile: Annotated[
        bool,
        Setting(
            texts.SENDFILE,
            "Do not let the kernel send files by itself (sendfile).",
            flags=("--no-sendfile",),
            env="SENDFILE",
            worker_classes=classes.OWN_HTTP,
        ),
    ] = True
    header_map: Annotated[
        str,
        Setting(
            texts.choice("drop", "refuse", "dangerous"),
            "What to do with header names that have an underscore and could pass for others: drop the field, "
            "refuse the request, or, dangerous, take them.",
            flags=("--header-map",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = "drop"
    forwarder_headers: Annotated[
        tuple[str, ...],
        Setting(
            http.HEADER_NAMES,
            "Names with an underscore that peers in forwarded_allow_ips may send all the same.",
            flags=("--forwarder-headers",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = ("SCRIPT_NAME", "PATH_INFO")
    root_path: Annotated[
        str,
        Setting(
            texts.TEXT,
            "Path that the app is mounted at: an ASGI app's root_path, or SCRIPT_NAME unless a proxy or the "
            "environment says it.",
            flags=("--root-path",),
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = ""
    strip_header_spaces: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Take a header whose name has spaces behind it, without them. Unsafe: proxies may disagree.",
            flags=("--strip-header-spaces",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = False
    permit_obsolete_folding: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Take header fields that go over several lines. Unsafe: proxies may disagree.",
            flags=("--permit-obsolete-folding",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = False
    permit_unconventional_http_method: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Take methods in lower case, or of unusual length.",
            flags=("--permit-unconventional-http-method",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = False
    permit_unconventional_http_version: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Take versions below HTTP/1.0 as if they were that, and above HTTP/1.1 as if they were that.",
            flags=("--permit-unconventional-http-version",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = False
    casefold_http_method: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Read the method get as GET; in HTTP it is another method.",
            flags=("--casefold-http-method",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = False
    forwarded_allow_ips: Annotated[
        tuple[str, ...],
        Setting(
            addresses.NETWORKS,
            "Proxies whose secure_scheme_headers and forwarder_headers count: addresses and networks "
            "separated by commas, or * for all. Peers on Unix sockets always do.",
            flags=("--forwarded-allow-ips",),
            env="FORWARDED_ALLOW_IPS",
            worker_classes=classes.NOT_MEINHELD,
        ),
    ] = ("127.0.0.1", "::1")
    secure_scheme_headers: Annotated[
        dict[str, str],
        Setting(
            http.HEADER_VALUES,
            "Headers, with the value of each, by which a proxy marks a request that came to it by https.",
            worker_classes=classes.OWN_HTTP,
        ),
    ] = msgspec.field(default_factory=SECURE_SCHEME_HEADERS.copy)
    proxy_protocol: Annotated[
        str,
        Setting(
            addresses.PROXY_MODE,
            "Take the client's address from the PROXY protocol's header, version v1, v2, or both with auto, "
            "which the flag alone means too.",
            flags=("--proxy-protocol",),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = "off"
    proxy_allow_ips: Annotated[
        tuple[str, ...],
        Setting(
            addresses.NETWORKS,
            "Proxies that may send a PROXY header: addresses and networks, or * for all. Peers on Unix "
            "sockets always may.",
            flags=("--proxy-allow-from", "--proxy-allow-ips"),
            worker_classes=classes.OWN_HTTP,
        ),
    ] = ("127.0.0.1", "::1")
