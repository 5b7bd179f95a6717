"""The settings table: one row per setting.

A row is one annotated field of `Settings`. Its annotation carries all that is known of the setting, and
from it are made: the command line's flags and `--help`, the keys of configuration files, validation,
`--print-config` and the API's view of the configuration. The field's name is the key in a file, and
gunicorn's name wherever gunicorn has the setting.
"""

import enum
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, get_type_hints

import msgspec

from ostler.settings import classes, kinds
from ostler.settings.kinds import Kind


class TakesEffect(enum.Enum):
    """When a changed value counts."""

    LIVE = "live"
    GENERATION = "generation"  # with the next reload's workers
    RESTART = "restart"


LIVE, GENERATION, RESTART = TakesEffect.LIVE, TakesEffect.GENERATION, TakesEffect.RESTART


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting besides its type and default.

    Args:
        kind: how values are read.
        help: one line for `--help`.
        flags: spellings on the command line; empty for settings of files alone.
        takes_effect: when a change counts.
        env: environment variable that gives a default.
    """

    kind: Kind
    help: str
    flags: tuple[str, ...] = ()
    takes_effect: TakesEffect = GENERATION
    env: str | None = None
    name: str = field(default="", compare=False)
    default: Any = field(default=None, compare=False)


SYSLOG_FACILITIES = (
    *("auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "syslog", "user", "uucp"),
    *(f"local{number}" for number in range(8)),
)
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
# What one LOG_LEVEL variable for several programs may say: Python's other names, and uvicorn's.
LOG_LEVEL_ALIASES = {"warn": "warning", "fatal": "critical", "notset": "debug", "trace": "debug"}
# What proxies say of a request that came to them by https; gunicorn's default.
SECURE_SCHEME_HEADERS = {
    "X-FORWARDED-PROTOCOL": "ssl",
    "X-FORWARDED-PROTO": "https",
    "X-FORWARDED-SSL": "on",
}
DEFAULT_ACCESS_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one generation, checked and typed."""

    wsgi_app: Annotated[
        str | None,
        Setting(
            kinds.OPTIONAL_TEXT,
            "The WSGI app: MODULE:NAME, MODULE:NAME.ATTRIBUTE or MODULE:FACTORY(). The same as the argument.",
        ),
    ] = None
    bind: Annotated[
        tuple[str, ...],
        Setting(
            kinds.ADDRESSES,
            "Address to listen on: HOST:PORT, [V6]:PORT, unix:PATH or fd://N. May be given several times. "
            "The environment's PORT means 0.0.0.0:PORT, which others can reach.",
            ("-b", "--bind"),
            env="PORT",
        ),
    ] = ("127.0.0.1:8000",)
    backlog: Annotated[
        int,
        Setting(kinds.COUNT, "How many connections may wait to be accepted.", ("--backlog",)),
    ] = 2048
    reuse_port: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Let other programs listen on the same ports (SO_REUSEPORT).",
            ("--reuse-port",),
            RESTART,
        ),
    ] = False
    workers: Annotated[
        int | tuple[int, int],
        Setting(
            kinds.WORKERS,
            "Number of workers; 'auto' is twice the usable CPUs plus one; in a range such as 2..16 the load "
            "decides.",
            ("-w", "--workers"),
            LIVE,
            env="WEB_CONCURRENCY",
        ),
    ] = 1
    worker_class: Annotated[
        str,
        Setting(
            kinds.Kind(classes.canonical, "CLASS"),
            "Kind of worker: sync, gthread (threads), gevent, eventlet, meinheld, asgi, or one of a package; "
            "gunicorn's and uvicorn's names for them work.",
            ("-k", "--worker-class"),
        ),
    ] = "sync"
    threads: Annotated[
        int,
        Setting(
            kinds.THREADS,
            "Threads of each worker, 256 at most; more than one makes a sync worker a gthread one.",
            ("--threads",),
        ),
    ] = 1
    max_requests: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "Recycle a worker after this many requests; 0 is never.",
            ("--max-requests",),
        ),
    ] = 0
    max_requests_jitter: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "Add a random number up to this to each worker's max_requests.",
            ("--max-requests-jitter",),
        ),
    ] = 0
    max_age: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "Recycle a worker that has served this long; 0 is never.",
            ("--max-age",),
            LIVE,
        ),
    ] = 0.0
    max_age_jitter: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "Add a random time up to this to each worker's max_age.",
            ("--max-age-jitter",),
            LIVE,
        ),
    ] = 0.0
    max_memory: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "Recycle a worker whose own memory (USS) stays above this, e.g. 300M; 0 is never.",
            ("--max-memory",),
            LIVE,
        ),
    ] = 0
    max_surge: Annotated[
        str,
        Setting(
            kinds.SURGE,
            "How many workers more than wanted may exist while some are replaced: a number, or a share of "
            "the fleet, which is always one at least.",
            ("--max-surge",),
            LIVE,
        ),
    ] = "25%"
    boot_parallelism: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "How many workers may boot at once; 0 is one for each usable CPU, two at least.",
            ("--boot-parallelism",),
            LIVE,
        ),
    ] = 0
    warmup_request: Annotated[
        tuple[kinds.WarmupRequest, ...],
        Setting(
            kinds.WARMUP,
            "Request such as /health or 'HEAD /' that a worker sends to itself before it takes connections; "
            "an answer of 500 or more means that it can't serve. May be given several times.",
            ("--warmup-request",),
        ),
    ] = ()
    canary_time: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long the first worker of a reload must live before others are replaced.",
            ("--canary-time",),
            LIVE,
        ),
    ] = 0.5
    probation: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long after a reload it can still be rolled back by itself; 0 is not at all.",
            ("--probation",),
            LIVE,
        ),
    ] = 10.0
    rollback_crashes: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "Roll a reload back if so many of its workers crash on probation; 0 is never.",
            ("--rollback-crashes",),
            LIVE,
        ),
    ] = 2
    rollback_error_rate: Annotated[
        float,
        Setting(
            kinds.SHARE,
            "Roll a reload back if the share of its answers with a status of 500 or more exceeds the one "
            "before by this much, e.g. 5%; 0 is never.",
            ("--rollback-error-rate",),
            LIVE,
        ),
    ] = 0.0
    refork_after: Annotated[
        tuple[int, ...],
        Setting(
            kinds.COUNTS,
            "After so many requests a worker becomes the zygote of all others; further numbers count from "
            "each time on. Not by default.",
            ("--refork-after",),
            LIVE,
        ),
    ] = ()
    autoscale_utilisation: Annotated[
        float,
        Setting(
            kinds.PART,
            "With a range of workers: the share of their time that workers should be busy.",
            ("--autoscale-utilisation",),
            LIVE,
        ),
    ] = 0.7
    autoscale_queue_wait: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "With a range of workers: requests that wait longer than this for a worker want more of them.",
            ("--autoscale-queue-wait",),
            LIVE,
        ),
    ] = 0.05
    autoscale_cooldown: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "With a range of workers: how long the load must have been low before a worker is taken away.",
            ("--autoscale-cooldown",),
            LIVE,
        ),
    ] = 60.0
    timeout: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "A request that takes longer is logged with its stack and ended (504); if that fails its worker "
            "is replaced. 0 is never.",
            ("-t", "--timeout"),
            LIVE,
        ),
    ] = 30.0
    graceful_timeout: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long a draining worker may finish requests before it is ended.",
            ("--graceful-timeout",),
            LIVE,
        ),
    ] = 30.0
    boot_timeout: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long a worker or a fork server may take to load the app; 0 is forever.",
            ("--boot-timeout",),
            LIVE,
        ),
    ] = 120.0
    timeout_grace: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long after its time-out a request may still end by itself before its worker is ended.",
            ("--timeout-grace",),
            LIVE,
        ),
    ] = 2.0
    timeout_soft: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "At its time-out do not end a request by an exception in the app first, but replace its worker "
            "at once.",
            ("--no-timeout-soft",),
            LIVE,
        ),
    ] = True
    queue_timeout: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "Answer 503 to requests that have waited longer than this for a worker; 0 is never.",
            ("--queue-timeout",),
        ),
    ] = 0.0
    keepalive: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long an idle connection is kept for the next request; 0 closes after each answer.",
            ("--keep-alive",),
        ),
    ] = 2.0
    worker_connections: Annotated[
        int,
        Setting(
            kinds.POSITIVE,
            "How many connections a worker keeps open at most. Idle ones, then those that send or read "
            "slowest, make room for others.",
            ("--worker-connections",),
        ),
    ] = 1000
    limit_connections_per_address: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "How many connections a worker keeps open from one client address, or from one /64 network of "
            "IPv6; more are closed at once. It counts the address that a PROXY header gives; clients behind "
            "another proxy share the proxy's address. 0 is no limit. Not in meinheld workers.",
            ("--limit-connections-per-address",),
        ),
    ] = 0
    limit_request_line: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "Longest request line, in bytes; 0 is as long as a request's head may be at all.",
            ("--limit-request-line",),
        ),
    ] = 4094
    limit_request_fields: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "Most header fields of a request; 0 is as many as fit into a request's head.",
            ("--limit-request-fields",),
        ),
    ] = 100
    limit_request_field_size: Annotated[
        int,
        Setting(
            kinds.COUNT,
            "Longest header field, in bytes; 0 is as long as a request's head may be at all.",
            ("--limit-request-field-size", "--limit-request-field_size"),
        ),
    ] = 8190
    limit_request_body: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "Largest body of a request, e.g. 10M; a larger one is refused with 413. 0 is no limit.",
            ("--limit-request-body",),
        ),
    ] = 0
    header_timeout: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long a client may take to send a request's head, from its first byte on; 0 is forever.",
            ("--header-timeout",),
        ),
    ] = 15.0
    body_timeout: Annotated[
        float,
        Setting(
            kinds.SECONDS,
            "How long a client that sends a body may pause, having sent more than body_min_rate before; with "
            "body_min_rate 0, how long it may take to send all of it. 0 is forever.",
            ("--body-timeout",),
        ),
    ] = 30.0
    body_min_rate: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "Bytes per second at which a client must send a body, on average and from its third second on; "
            "0: body_timeout is all it gets.",
            ("--body-min-rate",),
        ),
    ] = 500
    buffer_request: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "How much of a request's body is kept in memory; what is longer goes to a temporary file.",
            ("--buffer-request",),
        ),
    ] = 512 * 1024
    tmp_upload_dir: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "Folder of temporary files for bodies and answers; by default the system's.",
            ("--tmp-upload-dir",),
        ),
    ] = None
    stream_request: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Call the app when a request's head is there; it reads the body while it comes.",
            ("--stream-request",),
        ),
    ] = False
    buffer_response: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "How much of an answer is kept in memory for a client that is slow to read.",
            ("--buffer-response",),
        ),
    ] = 1024 * 1024
    buffer_response_file: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "How much more of it is kept in a temporary file before the app must wait; 0 is no file.",
            ("--buffer-response-file",),
        ),
    ] = 1024 * 1024 * 1024
    sendfile: Annotated[
        bool,
        Setting(
            kinds.SENDFILE,
            "Do not let the kernel send files by itself (sendfile).",
            ("--no-sendfile",),
            env="SENDFILE",
        ),
    ] = True
    header_map: Annotated[
        str,
        Setting(
            kinds.choice("drop", "refuse", "dangerous"),
            "What to do with header names that have an underscore and could pass for others: drop the field, "
            "refuse the request, or, dangerous, take them.",
            ("--header-map",),
        ),
    ] = "drop"
    forwarder_headers: Annotated[
        tuple[str, ...],
        Setting(
            kinds.HEADER_NAMES,
            "Names with an underscore that peers in forwarded_allow_ips may send all the same.",
            ("--forwarder-headers",),
        ),
    ] = ("SCRIPT_NAME", "PATH_INFO")
    root_path: Annotated[
        str,
        Setting(
            kinds.TEXT,
            "Path that the app is mounted at: an ASGI app's root_path, or SCRIPT_NAME unless a proxy or the "
            "environment says it.",
            ("--root-path",),
        ),
    ] = ""
    strip_header_spaces: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Take a header whose name has spaces behind it, without them. Unsafe: proxies may disagree.",
            ("--strip-header-spaces",),
        ),
    ] = False
    permit_obsolete_folding: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Take header fields that go over several lines. Unsafe: proxies may disagree.",
            ("--permit-obsolete-folding",),
        ),
    ] = False
    permit_unconventional_http_method: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Take methods in lower case, or of unusual length.",
            ("--permit-unconventional-http-method",),
        ),
    ] = False
    permit_unconventional_http_version: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Take versions below HTTP/1.0 as if they were that, and above HTTP/1.1 as if they were that.",
            ("--permit-unconventional-http-version",),
        ),
    ] = False
    casefold_http_method: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Take get for GET; HTTP says that it is another method.",
            ("--casefold-http-method",),
        ),
    ] = False
    forwarded_allow_ips: Annotated[
        tuple[str, ...],
        Setting(
            kinds.NETWORKS,
            "Proxies whose secure_scheme_headers and forwarder_headers count: addresses and networks "
            "separated by commas, or * for all. Peers on Unix sockets always do.",
            ("--forwarded-allow-ips",),
            env="FORWARDED_ALLOW_IPS",
        ),
    ] = ("127.0.0.1", "::1")
    secure_scheme_headers: Annotated[
        dict[str, str],
        Setting(
            kinds.HEADER_VALUES,
            "Headers, with the value of each, by which a proxy says that a request came to it by https.",
        ),
    ] = msgspec.field(default_factory=SECURE_SCHEME_HEADERS.copy)
    proxy_protocol: Annotated[
        str,
        Setting(
            kinds.PROXY_MODE,
            "Take the client's address from the PROXY protocol's header, version v1, v2, or both with auto, "
            "which the flag alone means too.",
            ("--proxy-protocol",),
        ),
    ] = "off"
    proxy_allow_ips: Annotated[
        tuple[str, ...],
        Setting(
            kinds.NETWORKS,
            "Proxies that may send a PROXY header: addresses and networks, or * for all. Peers on Unix "
            "sockets always may.",
            ("--proxy-allow-from", "--proxy-allow-ips"),
        ),
    ] = ("127.0.0.1", "::1")
    certfile: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "Serve https with the certificate (PEM, with its chain) in this file; reread at each reload.",
            ("--certfile",),
        ),
    ] = None
    keyfile: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "The certificate's private key (PEM); not needed if it is in certfile.",
            ("--keyfile",),
        ),
    ] = None
    ca_certs: Annotated[
        str | None,
        Setting(kinds.PATH, "Authorities (PEM) that clients' certificates must be from.", ("--ca-certs",)),
    ] = None
    cert_reqs: Annotated[
        str,
        Setting(
            kinds.VERIFICATION,
            "Whether clients must show a certificate; 0, 1, 2 are none, optional, required.",
            ("--cert-reqs",),
        ),
    ] = "none"
    ciphers: Annotated[
        str | None,
        Setting(
            kinds.OPTIONAL_TEXT,
            "Ciphers for TLS 1.2, as OpenSSL's cipher list; by default Python's choice.",
            ("--ciphers",),
        ),
    ] = None
    ssl_minimum_version: Annotated[
        str,
        Setting(
            kinds.TLS_VERSION,
            "Oldest version of TLS that clients may speak.",
            ("--ssl-minimum-version",),
        ),
    ] = "TLSv1.2"
    socket_mode: Annotated[
        str | None,
        Setting(
            kinds.MODE,
            "Mode of Unix sockets in octal, e.g. 0660; by default all who reach the folder may connect, but "
            "for what umask says.",
            ("--socket-mode",),
        ),
    ] = None
    socket_owner: Annotated[
        str | None,
        Setting(
            kinds.OWNER,
            "Owner of Unix sockets: USER, USER:GROUP or :GROUP; by default the workers' (user, group).",
            ("--socket-owner",),
        ),
    ] = None
    preload_app: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Load the app once per generation, before workers are forked.",
            ("--preload",),
        ),
    ] = False
    chdir: Annotated[
        str | None,
        Setting(kinds.PATH, "Change to this folder before the app is loaded.", ("--chdir",)),
    ] = None
    pythonpath: Annotated[
        tuple[str, ...],
        Setting(
            kinds.PATHS,
            "Folders to put at the front of the module search path, separated by commas.",
            ("--pythonpath",),
        ),
    ] = ()
    raw_env: Annotated[
        tuple[str, ...],
        Setting(kinds.ENVIRONMENT, "Set an environment variable for the app.", ("-e", "--env")),
    ] = ()
    paste: Annotated[
        str | None,
        Setting(
            kinds.OPTIONAL_TEXT,
            "Load the app from a PasteDeploy file, e.g. production.ini or production.ini#admin.",
            ("--paste", "--paster"),
        ),
    ] = None
    raw_paste_global_conf: Annotated[
        tuple[str, ...],
        Setting(
            kinds.ENVIRONMENT,
            "Set a variable of the PasteDeploy file's [DEFAULT] section.",
            ("--paste-global",),
        ),
    ] = ()
    reload: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "For development: reload when a file of the app changes.",
            ("--reload",),
        ),
    ] = False
    reload_engine: Annotated[
        str,
        Setting(
            kinds.choice("auto", "poll", "inotify"),
            "How changes are noticed: auto asks the kernel; poll is for network file systems.",
            ("--reload-engine",),
        ),
    ] = "auto"
    reload_extra_files: Annotated[
        tuple[str, ...],
        Setting(
            kinds.PATHS,
            "More files to watch with --reload; folders and patterns such as conf/*.yaml are fine.",
            ("--reload-extra-file",),
        ),
    ] = ()
    spew: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "For development: log every line of Python that the app runs.",
            ("--spew",),
        ),
    ] = False
    asgi_loop: Annotated[
        str,
        Setting(
            kinds.choice("auto", "asyncio", "uvloop"),
            "Event loop of asgi workers; auto is uvloop if it is installed.",
            ("--asgi-loop",),
        ),
    ] = "auto"
    asgi_lifespan: Annotated[
        str,
        Setting(
            kinds.choice("auto", "on", "off"),
            "Whether an ASGI app is told of start and end; auto asks it.",
            ("--asgi-lifespan",),
        ),
    ] = "auto"
    websocket_max_message_size: Annotated[
        int,
        Setting(
            kinds.SIZE,
            "Largest message of a websocket in asgi workers.",
            ("--websocket-max-message-size",),
        ),
    ] = 16 * 1024 * 1024
    user: Annotated[
        str | None,
        Setting(
            kinds.ACCOUNT,
            "User that workers and fork server run as (name or number); the supervisor keeps its own.",
            ("-u", "--user"),
            RESTART,
        ),
    ] = None
    group: Annotated[
        str | None,
        Setting(
            kinds.ACCOUNT,
            "Group that they run as; by default the user's.",
            ("-g", "--group"),
            RESTART,
        ),
    ] = None
    initgroups: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Give workers all groups that the user is in.",
            ("--initgroups",),
            RESTART,
        ),
    ] = False
    umask: Annotated[
        str,
        Setting(
            kinds.UMASK,
            "Umask of fork server, workers and Unix sockets: octal if it begins with 0, as in 022, else "
            "decimal. 0 leaves it as it is, but for sockets.",
            ("-m", "--umask"),
        ),
    ] = "0000"
    proc_name: Annotated[
        str | None,
        Setting(
            kinds.OPTIONAL_TEXT,
            "Name of this instance, for process titles and the control socket; by default the app's.",
            ("-n", "--name"),
            RESTART,
        ),
    ] = None
    pidfile: Annotated[
        str | None,
        Setting(kinds.PATH, "Write the supervisor's pid to this file.", ("-p", "--pid"), RESTART),
    ] = None
    daemon: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Detach from the terminal once it serves; if it can't start the exit code says so.",
            ("-D", "--daemon"),
            RESTART,
        ),
    ] = False
    enable_stdio_inheritance: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "With --daemon: keep standard output and error, and write without buffering.",
            ("-R", "--enable-stdio-inheritance"),
            RESTART,
        ),
    ] = False
    loglevel: Annotated[
        str,
        Setting(
            kinds.choice(*LOG_LEVELS, aliases=LOG_LEVEL_ALIASES),
            "Least important messages to log.",
            ("--log-level",),
        ),
    ] = "info"
    log_format: Annotated[
        str,
        Setting(
            kinds.choice("auto", "console", "json"),
            "console for people, json for programs; auto is console on a terminal and json otherwise.",
            ("--log-format",),
            RESTART,
        ),
    ] = "auto"
    errorlog: Annotated[
        str,
        Setting(
            kinds.LOG_FILE,
            "File for the log; - is standard error.",
            ("--error-logfile", "--log-file"),
            RESTART,
        ),
    ] = "-"
    capture_output: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Send what the app prints to the errorlog.",
            ("--capture-output",),
        ),
    ] = False
    accesslog: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "File for the access log; - is standard output. Off by default.",
            ("--access-logfile",),
        ),
    ] = None
    access_log_format: Annotated[
        str,
        Setting(kinds.TEXT, "Format of a line in the access log.", ("--access-logformat",)),
    ] = DEFAULT_ACCESS_FORMAT
    disable_redirect_access_to_syslog: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "With --log-syslog: not for the access log.",
            ("--disable-redirect-access-to-syslog",),
        ),
    ] = False
    logconfig: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "File for logging.config.fileConfig; its loggers gunicorn.error and gunicorn.access are ours.",
            ("--log-config",),
        ),
    ] = None
    logconfig_dict: Annotated[
        dict[str, Any],
        Setting(
            kinds.PLAIN_DICT,
            "The same as a dictionary for logging.config.dictConfig.",
        ),
    ] = msgspec.field(default_factory=dict)
    logconfig_json: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "The same as a JSON file of such a dictionary.",
            ("--log-config-json",),
        ),
    ] = None
    syslog: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Send the logs to syslog as well.",
            ("--log-syslog",),
            RESTART,
        ),
    ] = False
    syslog_addr: Annotated[
        str,
        Setting(
            kinds.SYSLOG_ADDRESS,
            "Where syslog is: unix://PATH, unix://PATH#stream, udp://HOST:PORT or tcp://HOST:PORT.",
            ("--log-syslog-to",),
            RESTART,
        ),
    ] = "udp://localhost:514"
    syslog_prefix: Annotated[
        str | None,
        Setting(
            kinds.OPTIONAL_TEXT,
            "What syslog lines begin with; by default the app's name.",
            ("--log-syslog-prefix",),
            RESTART,
        ),
    ] = None
    syslog_facility: Annotated[
        str,
        Setting(
            kinds.choice(*SYSLOG_FACILITIES),
            "Syslog's facility.",
            ("--log-syslog-facility",),
            RESTART,
        ),
    ] = "user"
    statsd_host: Annotated[
        str | None,
        Setting(
            kinds.STATSD_ADDRESS,
            "Send metrics to this statsd: HOST:PORT or unix://PATH.",
            ("--statsd-host",),
        ),
    ] = None
    statsd_prefix: Annotated[
        str,
        Setting(
            kinds.TEXT,
            "What names of statsd metrics begin with.",
            ("--statsd-prefix",),
        ),
    ] = ""
    dogstatsd_tags: Annotated[
        str,
        Setting(
            kinds.TEXT,
            "Tags of all statsd metrics, separated by commas, as DogStatsD takes them.",
            ("--dogstatsd-tags",),
        ),
    ] = ""
    enable_backlog_metric: Annotated[
        bool,
        Setting(
            kinds.SWITCH,
            "Send the number of connections that wait to be accepted to statsd.",
            ("--enable-backlog-metric",),
        ),
    ] = False
    control_socket: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "Path of the control socket; by default NAME.sock in the runtime directory.",
            ("--control-socket",),
            RESTART,
        ),
    ] = None
    control_socket_disable: Annotated[
        bool,
        Setting(kinds.SWITCH, "Do not open a control socket.", ("--no-control-socket",), RESTART),
    ] = False
    control_socket_mode: Annotated[
        str,
        Setting(
            kinds.SOCKET_MODE,
            "Mode of the control socket in octal. Whom it lets in may read and operate, the app's user only "
            "read; administration is for the daemon's own user and root.",
            ("--control-socket-mode",),
            RESTART,
        ),
    ] = "0600"
    control_bind: Annotated[
        str | None,
        Setting(
            kinds.OPTIONAL_TEXT,
            "Also serve the control API and the dashboard on this loopback address, e.g. 127.0.0.1:8001.",
            ("--control-bind",),
            RESTART,
        ),
    ] = None
    control_token_file: Annotated[
        str | None,
        Setting(
            kinds.PATH,
            "File with the bearer token for control_bind; by default a new token is written beside the "
            "control socket.",
            ("--control-token-file",),
            RESTART,
        ),
    ] = None


@cache
def rows() -> dict[str, Setting]:
    """The table by name, in its own order."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = {
        info.name: info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
        for info in msgspec.structs.fields(Settings)
    }
    table = {}
    for name, hint in hints.items():
        (setting,) = (extra for extra in hint.__metadata__ if isinstance(extra, Setting))
        table[name] = Setting(
            setting.kind,
            setting.help,
            setting.flags,
            setting.takes_effect,
            setting.env,
            name,
            defaults[name],
        )
    return table
