"""Logs, the access log, syslog and statsd."""

from typing import Annotated, Any

import msgspec

from ostler.settings.kinds import addresses, texts
from ostler.settings.table.process import ProcessRows
from ostler.settings.table.row import RESTART, Setting

SYSLOG_FACILITIES = (
    *("auth", "authpriv", "cron", "daemon", "ftp", "kern", "lpr", "mail", "news", "syslog", "user", "uucp"),
    *(f"local{number}" for number in range(8)),
)
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
# A LOG_LEVEL variable that several programs read may have Python's other names, and uvicorn's.
LOG_LEVEL_ALIASES = {"warn": "warning", "fatal": "critical", "notset": "debug", "trace": "debug"}
DEFAULT_ACCESS_FORMAT = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'


class LogRows(ProcessRows, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    loglevel: Annotated[
        str,
        Setting(
            texts.choice(*LOG_LEVELS, aliases=LOG_LEVEL_ALIASES),
            "Least important messages to log.",
            flags=("--log-level",),
        ),
    ] = "info"
    log_format: Annotated[
        str,
        Setting(
            texts.choice("auto", "console", "json", "gunicorn"),
            "console for people, json for programs, gunicorn for readers of gunicorn's log; auto is console "
            "on a terminal and json otherwise.",
            flags=("--log-format",),
            takes_effect=RESTART,
            gunicorn=None,
        ),
    ] = "auto"
    errorlog: Annotated[
        str,
        Setting(
            texts.LOG_FILE,
            "File for the log; - is standard error.",
            flags=("--error-logfile", "--log-file"),
            takes_effect=RESTART,
        ),
    ] = "-"
    capture_output: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Send what the app prints to the errorlog.",
            flags=("--capture-output",),
        ),
    ] = False
    accesslog: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "File for the access log; - is standard output. Off by default.",
            flags=("--access-logfile",),
        ),
    ] = None
    access_log_format: Annotated[
        str,
        Setting(
            texts.TEXT,
            "Format of a line in the access log, in gunicorn's atoms, or json for one JSON object per line.",
            flags=("--access-logformat", "--access-log-format"),
        ),
    ] = DEFAULT_ACCESS_FORMAT
    disable_redirect_access_to_syslog: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "With --log-syslog: not for the access log.",
            flags=("--disable-redirect-access-to-syslog",),
        ),
    ] = False
    logconfig: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "File for logging.config.fileConfig; its loggers gunicorn.error and gunicorn.access are ours.",
            flags=("--log-config",),
        ),
    ] = None
    logconfig_dict: Annotated[
        dict[str, Any],
        Setting(
            texts.PLAIN_DICT,
            "The same as a dictionary for logging.config.dictConfig.",
        ),
    ] = msgspec.field(default_factory=dict)
    logconfig_json: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "The same as a JSON file of such a dictionary.",
            flags=("--log-config-json",),
        ),
    ] = None
    syslog: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Send the logs to syslog as well.",
            flags=("--log-syslog",),
            takes_effect=RESTART,
        ),
    ] = False
    syslog_addr: Annotated[
        str,
        Setting(
            addresses.SYSLOG_ADDRESS,
            "Where syslog is: unix://PATH, unix://PATH#stream, udp://HOST:PORT or tcp://HOST:PORT.",
            flags=("--log-syslog-to",),
            takes_effect=RESTART,
        ),
    ] = "udp://localhost:514"
    syslog_prefix: Annotated[
        str | None,
        Setting(
            texts.OPTIONAL_TEXT,
            "Prefix of syslog lines; by default the app's name.",
            flags=("--log-syslog-prefix",),
            takes_effect=RESTART,
        ),
    ] = None
    syslog_facility: Annotated[
        str,
        Setting(
            texts.choice(*SYSLOG_FACILITIES),
            "Syslog's facility.",
            flags=("--log-syslog-facility",),
            takes_effect=RESTART,
        ),
    ] = "user"
    statsd_host: Annotated[
        str | None,
        Setting(
            addresses.STATSD_ADDRESS,
            "Send metrics to this statsd: HOST:PORT or unix://PATH.",
            flags=("--statsd-host",),
        ),
    ] = None
    statsd_prefix: Annotated[
        str,
        Setting(
            texts.TEXT,
            "Prefix of the names of statsd metrics.",
            flags=("--statsd-prefix",),
        ),
    ] = ""
    dogstatsd_tags: Annotated[
        str,
        Setting(
            texts.TEXT,
            "Tags of all statsd metrics, separated by commas, as DogStatsD takes them.",
            flags=("--dogstatsd-tags",),
        ),
    ] = ""
    enable_backlog_metric: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Send the number of connections that wait to be accepted to statsd.",
            flags=("--enable-backlog-metric",),
        ),
    ] = False
