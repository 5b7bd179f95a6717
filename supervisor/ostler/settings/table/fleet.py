"""Workers: how many, of what class, when they are replaced, how long they may take."""

from typing import Annotated

from ostler.osapi.cpus import usable_cpus
from ostler.settings import classes
from ostler.settings.kinds import http, numbers, texts
from ostler.settings.kinds.kind import Kind
from ostler.settings.table.listening import ListeningRows
from ostler.settings.table.row import LIVE, RESTART, Setting


def _number(workers: int | tuple[int, int]) -> dict[str, int | None]:
    least, most = workers if isinstance(workers, tuple) else (workers, None)
    return {"workers": least, "workers_most": most}


def _surge(max_surge: str) -> dict[str, int | float]:
    number = int(max_surge.removesuffix("%"))
    if max_surge.endswith("%"):
        return {"max_surge": 1, "max_surge_share": number / 100}
    return {"max_surge": number, "max_surge_share": 0.0}


def _boots(boot_parallelism: int) -> dict[str, int | bool]:
    return {
        "boot_parallelism": boot_parallelism or max(2, usable_cpus()),
        "boot_when_idle": not boot_parallelism,
    }


class FleetRows(ListeningRows, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    workers: Annotated[
        int | tuple[int, int],
        Setting(
            numbers.WORKERS,
            "Number of workers; 'auto' is twice the usable CPUs plus one; in a range such as 2..16 the load "
            "decides.",
            flags=("-w", "--workers"),
            takes_effect=LIVE,
            env="WEB_CONCURRENCY",
            policy=_number,
        ),
    ] = 1
    worker_class: Annotated[
        str,
        Setting(
            Kind(classes.canonical, "CLASS"),
            "Kind of worker: sync, gthread (threads), gevent, eventlet, meinheld, asgi, or one of a package; "
            "gunicorn's and uvicorn's names for them work.",
            flags=("-k", "--worker-class"),
        ),
    ] = "sync"
    threads: Annotated[
        int,
        Setting(
            numbers.THREADS,
            "Threads of each worker, 256 at most; more than one makes a sync worker a gthread one.",
            flags=("--threads",),
            worker_classes=classes.THREADED,
        ),
    ] = 1
    max_requests: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Recycle a worker after this many requests; 0 is never.",
            flags=("--max-requests",),
        ),
    ] = 0
    max_requests_jitter: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Add a random number up to this to each worker's max_requests.",
            flags=("--max-requests-jitter",),
        ),
    ] = 0
    max_age: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "Recycle a worker that has served this long; 0 is never.",
            flags=("--max-age",),
            policy="max_age",
            gunicorn=None,
        ),
    ] = 0.0
    max_age_jitter: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "Add a random time up to this to each worker's max_age.",
            flags=("--max-age-jitter",),
            policy="max_age_jitter",
            gunicorn=None,
        ),
    ] = 0.0
    max_memory: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "Recycle a worker whose own memory (USS) stays above this, e.g. 300M; 0 is never.",
            flags=("--max-memory",),
            takes_effect=LIVE,
            policy="max_memory",
            gunicorn=None,
        ),
    ] = 0
    max_surge: Annotated[
        str,
        Setting(
            numbers.SURGE,
            "How many workers more than wanted may exist while some are replaced: a number, or a share of "
            "the fleet, which is always one at least.",
            flags=("--max-surge",),
            takes_effect=LIVE,
            policy=_surge,
            gunicorn=None,
        ),
    ] = "25%"
    boot_parallelism: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "How many workers may boot at once; 0 is one for each usable CPU, two at least, and one more for "
            "each CPU that is idle while they boot.",
            flags=("--boot-parallelism",),
            takes_effect=LIVE,
            policy=_boots,
            gunicorn=None,
        ),
    ] = 0
    warmup_request: Annotated[
        tuple[http.WarmupRequest, ...],
        Setting(
            http.WARMUP,
            "Request such as /health or 'HEAD /' that a worker sends to itself before it takes connections; "
            "an answer of 500 or more means that it can't serve. May be given several times.",
            flags=("--warmup-request",),
            gunicorn=None,
        ),
    ] = ()
    boot_retries: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "How often to load the app again, after growing pauses, if it can't be loaded at the start; then "
            "the daemon ends.",
            flags=("--boot-retries",),
            takes_effect=RESTART,
            policy="boot_retries",
            gunicorn=None,
        ),
    ] = 0
    canary_time: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long the first worker of a reload must live before others are replaced.",
            flags=("--canary-time",),
            takes_effect=LIVE,
            policy="canary_time",
            gunicorn=None,
        ),
    ] = 0.5
    probation: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long after a reload it can still be rolled back by itself; 0 is not at all.",
            flags=("--probation",),
            takes_effect=LIVE,
            policy="probation",
            gunicorn=None,
        ),
    ] = 10.0
    keep_generations: Annotated[
        int,
        Setting(
            numbers.KEPT,
            "With 1 the generation before a reload is kept after its probation, until the next reload, for "
            "`ctl rollback`.",
            flags=("--keep-generations",),
            takes_effect=LIVE,
            policy="keep_generations",
            gunicorn=None,
        ),
    ] = 0
    rollback_crashes: Annotated[
        int,
        Setting(
            numbers.COUNT,
            "Roll a reload back if so many of its workers crash on probation; 0 is never.",
            flags=("--rollback-crashes",),
            takes_effect=LIVE,
            policy="rollback_crashes",
            gunicorn=None,
        ),
    ] = 2
    rollback_error_rate: Annotated[
        float,
        Setting(
            numbers.SHARE,
            "Roll a reload back if the share of its answers with a status of 500 or more exceeds the one "
            "before by this much, e.g. 5%; 0 is never.",
            flags=("--rollback-error-rate",),
            takes_effect=LIVE,
            policy="rollback_error_rate",
            gunicorn=None,
        ),
    ] = 0.0
    refork_after: Annotated[
        tuple[int, ...],
        Setting(
            numbers.COUNTS,
            "After so many requests a worker becomes the zygote of all others; further numbers count from "
            "each time on. Not by default.",
            flags=("--refork-after",),
            takes_effect=LIVE,
            policy="refork_after",
            gunicorn=None,
        ),
    ] = ()
    autoscale_utilisation: Annotated[
        float,
        Setting(
            numbers.PART,
            "With a range of workers: the share of their time that workers should be busy.",
            flags=("--autoscale-utilisation",),
            takes_effect=LIVE,
            policy="autoscale_utilisation",
            gunicorn=None,
        ),
    ] = 0.7
    autoscale_queue_wait: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "With a range of workers: if requests wait longer than this for a worker, workers are added.",
            flags=("--autoscale-queue-wait",),
            takes_effect=LIVE,
            policy="autoscale_queue_wait",
            gunicorn=None,
        ),
    ] = 0.05
    autoscale_cooldown: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "With a range of workers: how long the load must have been low before a worker is taken away.",
            flags=("--autoscale-cooldown",),
            takes_effect=LIVE,
            policy="autoscale_cooldown",
            gunicorn=None,
        ),
    ] = 60.0
    timeout: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "A request whose app makes no progress for longer (sends no part of its answer) is logged with "
            "its stack and ended (504); if that fails its worker is replaced. Waiting for the client does "
            "not count. 0 is never.",
            flags=("-t", "--timeout"),
            takes_effect=LIVE,
        ),
    ] = 30.0
    timeout_grace: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long after its time-out a request may still end by itself before its worker is ended.",
            flags=("--timeout-grace",),
            takes_effect=LIVE,
            policy="timeout_grace",
            gunicorn=None,
        ),
    ] = 2.0
    timeout_soft: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "At its time-out do not end a request by an exception in the app first, but replace its worker "
            "at once.",
            flags=("--no-timeout-soft",),
            takes_effect=LIVE,
            policy="timeout_soft",
            gunicorn=None,
        ),
    ] = True
    limit_request_time: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long a request may take in all from the call of the app on, whatever progress it makes and "
            "whatever time it has asked for; then it is ended like one that is over its timeout. Not for "
            "websockets. 0 is no limit.",
            flags=("--limit-request-time",),
            takes_effect=LIVE,
            gunicorn=None,
        ),
    ] = 0.0
    graceful_timeout: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long a draining worker may finish requests before it is ended.",
            flags=("--graceful-timeout",),
            takes_effect=LIVE,
            policy="graceful_timeout",
        ),
    ] = 30.0
    shutdown_delay: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long to serve on after SIGTERM before the workers drain, while /readyz answers 503 and "
            "agent_check drain: load balancers need this time to notice.",
            flags=("--shutdown-delay",),
            takes_effect=LIVE,
            policy="shutdown_delay",
            gunicorn=None,
        ),
    ] = 0.0
    boot_timeout: Annotated[
        float,
        Setting(
            numbers.SECONDS,
            "How long a worker or a fork server may take to load the app; 0 is forever.",
            flags=("--boot-timeout",),
            takes_effect=LIVE,
            policy="boot_timeout",
            gunicorn=None,
        ),
    ] = 120.0
