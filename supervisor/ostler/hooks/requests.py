"""pre_request and post_request: around the app, within the request's deadline.

Without such hooks a worker uses the plain `Exchange`, at no extra cost.
"""

import itertools
from typing import Any

from ostler.hooks.calling import HookFunctions, failure
from ostler.hooks.objects import HookArgument, HookWorker
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App, Exchange
from ostler.wsgi.interruption import DeadlineExceeded, QuitWorker, interruptible

_SPECIAL = {"CONTENT_TYPE", "CONTENT_LENGTH"}


class HookRequest(HookArgument):
    """`req`.

    Attributes:
        method, uri, path, query, fragment, scheme: of the request line, undecoded; a fragment is never sent.
        version: (1, 0) or (1, 1).
        headers: (NAME, value) in their order; the app sees headers that a hook adds, and not those it
        removes. remote_addr: (host, port) of the client; peer_addr: of the other end of the connection, which
        may be
            a proxy. Both are strings if that is no address of an IP network.
        body: `wsgi.input`.
    """

    _called = "req"

    def __init__(self, exchange: Exchange, environ: Environ) -> None:
        request = exchange._request
        line = request.line
        self.method = line.method
        self.uri = line.raw_uri
        target = line.raw_uri
        if not target.startswith("/") and "://" in target:
            target = "/" + target.partition("://")[2].partition("/")[2]
        self.path, _, self.query = target.partition("?")
        self.fragment = ""
        self.version = (int(line.protocol[5]), int(line.protocol[7]))
        self.scheme = environ["wsgi.url_scheme"]
        self.headers = [
            (name.decode("latin-1").upper(), value.decode("latin-1")) for name, value in request.headers
        ]
        self.trailers: list[tuple[str, str]] = []
        self.body = environ["wsgi.input"]
        peer = getattr(exchange._transport, "peer", "")
        self.peer_addr: Any = peer[:2] if isinstance(peer, tuple) else ""
        host, port = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT", "")
        self.remote_addr: Any = (host, int(port)) if port.isdecimal() else host or self.peer_addr
        self._keep_alive = exchange.keep_alive

    def should_close(self) -> bool:
        return not self._keep_alive


class HookResponse(HookArgument):
    """`resp`: the answer, also if the server made it.

    Attributes:
        status: e.g. `200 OK`; status_code: its number; headers: those of the app; sent: bytes of the
            body; response_length: of Content-Length, or None.
    """

    _called = "resp"

    def __init__(self, exchange: Exchange, req: HookRequest) -> None:
        self.req = req
        self.status = exchange.status
        self.status_code = exchange.code
        self.headers = exchange.headers
        self.headers_sent = exchange.head_sent
        self.sent = exchange.sent
        self.response_length = exchange._length
        self._closes = not exchange.keep_alive

    def should_close(self) -> bool:
        return self._closes


class RequestHooks:
    """Calls the hooks about requests in one worker, in the thread that serves the request.

    Attributes:
        begun: number of requests that the app was called for.
    """

    def __init__(self, caller: HookFunctions, worker: HookWorker) -> None:
        self._caller = caller
        self._worker = worker
        self._pre = caller.functions.get("pre_request")
        self._post = caller.functions.get("post_request")
        self._numbers = itertools.count(1)
        self.begun = 0

    @property
    def wanted(self) -> bool:
        return self._pre is not None or self._post is not None

    def exchange(self) -> type[Exchange]:
        """`Exchange`, or a subclass that calls the hooks, if there are any."""
        if not self.wanted:
            return Exchange
        hooks = self

        class HookedExchange(Exchange):
            # Here as well: post_request is called when Exchange.run has returned.
            @interruptible
            def run(self, app: App, environ: Environ) -> None:
                req = HookRequest(self, environ)

                def app_with_hook(environ: Environ, start_response: Any) -> Any:
                    # Within the app's call: its exceptions and its time are handled like the app's.
                    hooks.before(req, environ)
                    return app(environ, start_response)

                try:
                    super().run(app_with_hook, environ)
                finally:
                    hooks.after(req, environ, HookResponse(self, req))

        return HookedExchange

    def before(self, req: HookRequest, environ: Environ) -> None:
        """Call pre_request; its exceptions are passed on."""
        if self._pre is not None:
            fields = req.headers[:]
            self._pre(self._worker, req)
            if req.headers != fields:
                _copy_changes(environ, fields, req.headers)
        self.begun = next(self._numbers)

    def after(self, req: HookRequest, environ: Environ, resp: HookResponse) -> None:
        """Call post_request; its exceptions are logged, as the answer is sent.

        Hooks may have changed how many requests count, or how many there are to be.
        """
        try:
            if self._post is not None:
                self._post(self._worker, req, environ, resp)
            self._worker.retire_if_due()
        except (QuitWorker, DeadlineExceeded):
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it must not end the worker
            self._caller.log_failure("post_request", failure("post_request", error))


def _copy_changes(environ: Environ, before: list[tuple[str, str]], after: list[tuple[str, str]]) -> None:
    """Copy the header fields that a hook has added or removed to the environ."""
    for name, _ in before:
        if all(other != name for other, _ in after):
            environ.pop(_variable(name), None)
    for name, value in after:
        if (name, value) not in before:
            environ[_variable(name)] = str(value)


def _variable(name: str) -> str:
    variable = name.upper().replace("-", "_")
    return variable if variable in _SPECIAL else f"HTTP_{variable}"
