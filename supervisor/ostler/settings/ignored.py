"""gunicorn's settings that have no effect here: they are accepted, and one warning gives the alternatives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ostler.errors import InvalidValue
from ostler.settings.kinds.kind import shown


@dataclass(frozen=True, slots=True)
class Ignored:
    """One such setting.

    Args:
        name: gunicorn's.
        advice: why it is without effect, or what to do instead; follows "NAME: without effect: ".
        flags: spellings on the command line.
        switch: the flag takes no value.
        several: the flag may be given more than once.
        silent: values without a warning: they ask for what Ostler does anyway.
        refused: values that are an error, because the server would not do what its clients need.
    """

    name: str
    advice: str
    flags: tuple[str, ...] = ()
    switch: bool = False
    several: bool = False
    silent: tuple[Any, ...] = (None, "", False, 0, ())
    refused: tuple[str, ...] = ()

    def matters(self, value: Any) -> bool:
        """Whether a value, an object of a file or text of the command line, is worth a warning."""
        return _text(value) not in map(_text, self.silent)


def _text(value: Any) -> str:
    """A value as it is written on the command line, in lower case; classes by their dotted name."""
    try:
        if isinstance(value, type):
            value = f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        return str(value).strip().lower()
    except Exception:  # noqa: BLE001 - a number of thousands of digits, or an object of the file's own
        return shown(value)


def find(given: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, str]:
    """The given settings that have no effect, with their values as text.

    Raises:
        SettingError: for the first that is refused.
    """
    found = {}
    for name, ignored in IGNORED.items():
        if name in given and ignored.matters(given[name]):
            if _text(given[name]) in ignored.refused:
                raise InvalidValue(name, f"{ignored.advice}; got {shown(given[name])}", origins.get(name, ""))
            found[name] = shown(given[name])
    return found


def warning(found: Mapping[str, str], origins: Mapping[str, str]) -> str:
    """One line that names each, with advice; equal advice is given once."""
    by_advice: dict[str, list[str]] = {}
    for name in found:
        by_advice.setdefault(IGNORED[name].advice, []).append(f"{name} ({origins[name]})")
    return "without effect: " + "; ".join(f"{', '.join(names)}: {text}" for text, names in by_advice.items())


_DIRTY = "there are no dirty workers; let a task queue (Celery, RQ, Dramatiq) do what takes long"
_HTTP2 = "HTTP/1.1 is what Ostler speaks; let nginx, HAProxy or Caddy in front of it speak HTTP/2 to clients"
_TLS = "TLS handshakes never make other clients wait here, and an end without close_notify is no error"

IGNORED = {
    ignored.name: ignored
    for ignored in (
        Ignored(
            "worker_tmp_dir",
            "heartbeats are in shared memory, not in files",
            ("--worker-tmp-dir",),
            silent=(None, "", "/dev/shm", "/dev/shm/", "/run/shm"),  # noqa: S108 - nothing is written there
        ),
        Ignored(
            "protocol",
            "only http is spoken; in nginx write proxy_pass http://... in the place of uwsgi_pass",
            ("--protocol",),
            silent=(None, "", "http"),
            refused=("uwsgi",),
        ),
        Ignored(
            "ssl_version",
            "the oldest version of TLS that is spoken is 1.2; ssl_minimum_version can ask for a newer one",
            ("--ssl-version",),
            # SSLv23 and TLS, in text and as the numbers of Python's ssl.PROTOCOL_...: what both sides know.
            silent=(
                *(None, "", 2, 16, 17, "SSLv23", "TLS", "TLS_SERVER"),
                *("PROTOCOL_SSLv23", "PROTOCOL_TLS", "PROTOCOL_TLS_SERVER"),
            ),
        ),
        Ignored(
            "do_handshake_on_connect", _TLS, ("--do-handshake-on-connect",), switch=True, silent=(True, False)
        ),
        Ignored(
            "suppress_ragged_eofs", _TLS, ("--suppress-ragged-eofs",), switch=True, silent=(None, True, False)
        ),
        Ignored(
            "http_parser",
            "requests are parsed by httptools",
            ("--http-parser",),
            silent=(None, "auto", "fast"),
        ),
        Ignored("http_protocols", _HTTP2, ("--http-protocols",), silent=(None, "h1", ["h1"], ("h1",))),
        Ignored("http2_cleartext", _HTTP2, ("--http2-cleartext",), silent=(None, "off", False)),
        Ignored(
            "http2_max_concurrent_streams", _HTTP2, ("--http2-max-concurrent-streams",), silent=(None, 100)
        ),
        Ignored("http2_initial_window_size", _HTTP2, ("--http2-initial-window-size",), silent=(None, 65535)),
        Ignored("http2_max_frame_size", _HTTP2, ("--http2-max-frame-size",), silent=(None, 16384)),
        Ignored(
            "http2_max_header_list_size", _HTTP2, ("--http2-max-header-list-size",), silent=(None, 65536)
        ),
        Ignored(
            "uwsgi_allow_ips",
            "the uwsgi protocol is not spoken",
            ("--uwsgi-allow-from",),
            silent=(None, "", "127.0.0.1,::1", ["127.0.0.1", "::1"]),
        ),
        Ignored(
            "asgi_disconnect_grace_period",
            "an ASGI app is notified at once when its client has disconnected",
            ("--asgi-disconnect-grace-period",),
            silent=(None, 3),
        ),
        Ignored("dirty_apps", _DIRTY, ("--dirty-app",), several=True, silent=(None, [], ())),
        Ignored("dirty_workers", _DIRTY, ("--dirty-workers",), silent=(None, 0)),
        Ignored("dirty_timeout", _DIRTY, ("--dirty-timeout",), silent=(None, 300)),
        Ignored("dirty_threads", _DIRTY, ("--dirty-threads",), silent=(None, 1)),
        Ignored("dirty_graceful_timeout", _DIRTY, ("--dirty-graceful-timeout",), silent=(None, 30)),
        Ignored("on_dirty_starting", _DIRTY, silent=()),
        Ignored("dirty_post_fork", _DIRTY, silent=()),
        Ignored("dirty_worker_init", _DIRTY, silent=()),
        Ignored("dirty_worker_exit", _DIRTY, silent=()),
        Ignored(
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
        Ignored("check_config", "ask for it on the command line: --check-config", silent=(None, False)),
        Ignored("print_config", "ask for it on the command line: --print-config", silent=(None, False)),
    )
}
