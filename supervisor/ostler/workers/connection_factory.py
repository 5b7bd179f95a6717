"""Making connections: what the settings say about all connections of a worker, put together once."""

import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from ostler.http1.request import BodySink, Rules
from ostler.scoreboard.request_slot import RequestSlot
from ostler.settings.networks import Networks
from ostler.settings.table import Settings
from ostler.workers.addresses import host_of
from ostler.workers.connection import Connection, Limits
from ostler.workers.system_calls import SystemCalls
from ostler.wsgi.body import BufferedBody, StreamedBody


class ConnectionFactory:
    """Makes connections from sockets. Called only by the thread that polls.

    Args:
        calls, slot_at_hand, on_stays: see Connection.

    Attributes:
        limits: what connections may cost.
        new_body: makes the sink for a request's body.
    """

    def __init__(
        self,
        settings: Settings,
        calls: SystemCalls,
        slot_at_hand: Callable[[], RequestSlot | None],
        on_stays: Callable[[RequestSlot], object],
    ) -> None:
        self._calls = calls
        self._slot_at_hand = slot_at_hand
        self._on_stays = on_stays
        self._rules, self._trusting_rules = request_rules(settings)
        self._forwarders = Networks.parse(settings.forwarded_allow_ips)
        self._proxies = Networks.parse(settings.proxy_allow_ips)
        self._reads_proxy_headers = settings.proxy_protocol != "off"
        self.limits = Limits.of(settings)
        self.new_body = body_factory(settings)

    def make(self, sock: socket.socket, listener: str, peer: Any, proxied: bool = False) -> Connection:
        """A connection that no table knows yet; see Connection for the arguments."""
        trusted = host_of(peer) in self._forwarders
        rules = self._trusting_rules if trusted else self._rules
        return Connection(
            *(sock, listener, peer, rules, self.new_body, self.limits, monotonic_ns()),
            *(self._calls, self._slot_at_hand, self._on_stays),
            trusted=trusted,
            proxied=proxied,
        )

    def is_proxy(self, host: str) -> bool:
        """Whether a client with this address may send a PROXY header."""
        return self._reads_proxy_headers and host in self._proxies


def request_rules(settings: Settings) -> tuple[Rules, Rules]:
    """What any client may send, and what trusted proxies may send."""

    def rules(**more: Any) -> Rules:
        return Rules(
            limit_request_line=settings.limit_request_line,
            limit_request_fields=settings.limit_request_fields,
            limit_request_field_size=settings.limit_request_field_size,
            limit_request_body=settings.limit_request_body,
            header_map=settings.header_map,
            stream=settings.stream_request,
            body_in_memory=settings.buffer_request,
            permit_obsolete_folding=settings.permit_obsolete_folding,
            strip_header_spaces=settings.strip_header_spaces,
            permit_unconventional_http_method=settings.permit_unconventional_http_method,
            casefold_http_method=settings.casefold_http_method,
            permit_unconventional_http_version=settings.permit_unconventional_http_version,
            **more,
        )

    return rules(), rules(
        forwarder_headers=frozenset(name.lower().encode("latin-1") for name in settings.forwarder_headers),
        secure_scheme_headers={
            name.lower().encode("latin-1"): value.encode("latin-1")
            for name, value in settings.secure_scheme_headers.items()
        },
    )


def body_factory(settings: Settings) -> Callable[[], BodySink]:
    """A function that makes the sinks of bodies: streamed to the app, or received before it is called."""
    if settings.stream_request:
        return StreamedBody
    return lambda: BufferedBody(settings.buffer_request, settings.tmp_upload_dir)
