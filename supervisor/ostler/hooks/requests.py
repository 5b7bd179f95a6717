"""pre_request and post_request: around the app, within the request's deadline.

A worker whose configuration file has neither serves with the plain `Exchange` and pays nothing.
"""

import itertools
from typing import Any

from ostler.hooks.calling import Calls, failure
from ostler.hooks.objects import Known, Worker
from ostler.wsgi.environ import Environ
from ostler.wsgi.exchange import App, DeadlineExceeded, Exchange, QuitWorker, interruptible

_SPECIAL = {"CONTENT_TYPE", "CONTENT_LENGTH"}


class HookRequest(Known):
    """`req`.

    Attributes:
        method, uri, path, query, fragment, scheme: of the request line, undecoded; a fragment is never sent.
        version: (1, 0) or (1, 1).
        headers: (NAME, value) in their order; what a hook adds or takes away the app sees, too.
        remote_addr: (host, port) of the client; peer_addr: of who is at the other end of the connection,
            which is a proxy perhaps. Both are a text if that is no address of an IP network.
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


class HookResponse(Known):
    """`resp`: what was answered, also if it was not the app that said so.

    Attributes:
        status: e.g. `200 OK`; status_code: its number; headers: as the app gave them; sent: bytes of the
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


class Requests:
    """Calls the hooks about requests in one worker.

    Attributes:
        begun: requests that were given to the app.
    """

    def __init__(self, calls: Calls, worker: Worker) -> None:
        self._calls = calls
        self._worker = worker
        self._pre = calls.functions.get("pre_request")
        self._post = calls.functions.get("post_request")
        self._numbers = itertools.count(1)
        self.begun = 0

    @property
    def wanted(self) -> bool:
        return self._pre is not None or self._post is not None

    def exchange(self) -> type[Exchange]:
        """`Exchange`, or if there are hooks one that calls them."""
        if not self.wanted:
            return Exchange
        hooks = self

        class HookedExchange(Exchange):
            # Here as well: post_request is called when Exchange.run has returned.
            @interruptible
            def run(self, app: App, environ: Environ) -> None:
                req = HookRequest(self, environ)

                def prepared(environ: Environ, start_response: Any) -> Any:
                    # Here, so that what it raises is answered as the app's mistakes are, and in time.
                    hooks.before(req, environ)
                    return app(environ, start_response)

                try:
                    super().run(prepared, environ)
                finally:
                    hooks.after(req, environ, HookResponse(self, req))

        return HookedExchange

    def before(self, req: HookRequest, environ: Environ) -> None:
        """Raises whatever pre_request raises."""
        if self._pre is not None:
            fields = req.headers[:]
            self._pre(self._worker, req)
            if req.headers != fields:
                _take_over(environ, fields, req.headers)
        self.begun = next(self._numbers)

    def after(self, req: HookRequest, environ: Environ, resp: HookResponse) -> None:
        """What post_request raises is logged: the answer is out."""
        if self._post is None:
            return
        try:
            self._post(self._worker, req, environ, resp)
        except (QuitWorker, DeadlineExceeded):
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it must not end the worker
            self._calls.tell("post_request", failure("post_request", error))


def _take_over(environ: Environ, before: list[tuple[str, str]], after: list[tuple[str, str]]) -> None:
    """Let the app see the fields that a hook has added, and no more those that it has taken away."""
    for name, _ in before:
        if all(other != name for other, _ in after):
            environ.pop(_variable(name), None)
    for name, value in after:
        if (name, value) not in before:
            environ[_variable(name)] = str(value)


def _variable(name: str) -> str:
    variable = name.upper().replace("-", "_")
    return variable if variable in _SPECIAL else f"HTTP_{variable}"
