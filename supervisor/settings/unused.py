"""gunicorn's settings that have no meaning here: they are taken, and one warning says what to do instead."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Unused:
    """One such setting.

    Args:
        name: gunicorn's.
        advice: why it is without effect, or what to do instead; follows "NAME: without effect: ".
        flags: spellings on the command line.
        switch: the flag takes no value.
        silent: values that nobody needs to be told of: they ask for what is the case anyway.
    """

    name: str
    advice: str
    flags: tuple[str, ...] = ()
    switch: bool = False
    silent: tuple[Any, ...] = (None, "", False, 0, ())


_DIRTY = "there are no dirty workers; let a task queue (Celery, RQ, Dramatiq) do what takes long"
_HTTP2 = "HTTP/1.1 is what Ostler speaks; let nginx, HAProxy or Caddy in front of it speak HTTP/2 to clients"
_TLS = "TLS handshakes never make other clients wait here, and ends without goodbye are no errors"

UNUSED = {
    unused.name: unused
    for unused in (
        Unused("worker_tmp_dir", "heartbeats are in shared memory, not in files", ("--worker-tmp-dir",)),
        Unused("ssl_version", "use ssl_minimum_version", ("--ssl-version",), silent=(None, 2, 16, 17, "TLS")),
        Unused(
            "do_handshake_on_connect", _TLS, ("--do-handshake-on-connect",), switch=True, silent=(True, False)
        ),
        Unused("suppress_ragged_eofs", _TLS, ("--suppress-ragged-eofs",), switch=True, silent=(True, False)),
        Unused(
            "http_parser",
            "requests are parsed by httptools",
            ("--http-parser",),
            silent=(None, "auto", "fast"),
        ),
        Unused("http_protocols", _HTTP2, ("--http-protocols",), silent=(None, "h1", ["h1"], ("h1",))),
        Unused("http2_cleartext", _HTTP2, ("--http2-cleartext",), silent=(None, "off", False)),
        Unused(
            "http2_max_concurrent_streams", _HTTP2, ("--http2-max-concurrent-streams",), silent=(None, 100)
        ),
        Unused("http2_initial_window_size", _HTTP2, ("--http2-initial-window-size",), silent=(None, 65535)),
        Unused("http2_max_frame_size", _HTTP2, ("--http2-max-frame-size",), silent=(None, 16384)),
        Unused("http2_max_header_list_size", _HTTP2, ("--http2-max-header-list-size",), silent=(None, 65536)),
        Unused("uwsgi_allow_ips", "the uwsgi protocol is not spoken", ("--uwsgi-allow-from",)),
        Unused(
            "asgi_disconnect_grace_period",
            "uvicorn tells an ASGI app at once that its client is gone",
            ("--asgi-disconnect-grace-period",),
            silent=(None, 3),
        ),
        Unused("dirty_apps", _DIRTY, ("--dirty-app",), silent=(None, [], ())),
        Unused("dirty_workers", _DIRTY, ("--dirty-workers",)),
        Unused("dirty_timeout", _DIRTY, ("--dirty-timeout",), silent=(None, 300)),
        Unused("dirty_threads", _DIRTY, ("--dirty-threads",), silent=(None, 1)),
        Unused("dirty_graceful_timeout", _DIRTY, ("--dirty-graceful-timeout",), silent=(None, 30)),
        Unused("on_dirty_starting", _DIRTY),
        Unused("dirty_post_fork", _DIRTY),
        Unused("dirty_worker_init", _DIRTY),
        Unused("dirty_worker_exit", _DIRTY),
        Unused(
            "logger_class",
            "loggers of gunicorn's need gunicorn; use logconfig_dict, whose loggers gunicorn.error and "
            "gunicorn.access take our lines, log_format = 'json', or statsd_host",
            ("--logger-class",),
            silent=(
                None,
                "",
                "gunicorn.glogging.Logger",
                "simple",
                "egg:gunicorn#simple",
                "gunicorn.instrument.statsd.Statsd",
            ),
        ),
        Unused("default_proc_name", "use proc_name", silent=(None, "gunicorn")),
    )
}
