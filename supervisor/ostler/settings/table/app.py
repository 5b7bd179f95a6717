"""The app: where it is, how it is loaded, and what helps while it is written."""

from typing import Annotated

from ostler.settings import classes
from ostler.settings.kinds import numbers, texts
from ostler.settings.table.http import HttpRows
from ostler.settings.table.row import Setting


class AppRows(HttpRows, frozen=True, kw_only=True):
    """Rows of `Settings`."""

    wsgi_app: Annotated[
        str | None,
        Setting(
            texts.APP,
            "The WSGI app: MODULE:NAME, MODULE:NAME.ATTRIBUTE or MODULE:FACTORY(). The same as the argument.",
        ),
    ] = None
    preload_app: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "Load the app once per generation, before workers are forked.",
            flags=("--preload",),
            policy="preload",
        ),
    ] = False
    chdir: Annotated[
        str | None,
        Setting(
            texts.PATH,
            "Change to this folder before the app is loaded.",
            flags=("--chdir",),
        ),
    ] = None
    pythonpath: Annotated[
        tuple[str, ...],
        Setting(
            texts.PATHS,
            "Folders to put at the front of the module search path, separated by commas.",
            flags=("--pythonpath",),
        ),
    ] = ()
    raw_env: Annotated[
        tuple[str, ...],
        Setting(
            texts.ENVIRONMENT,
            "Set an environment variable for the app.",
            flags=("-e", "--env"),
        ),
    ] = ()
    env_file: Annotated[
        tuple[str, ...],
        Setting(
            texts.PATHS,
            "Set the environment variables of a file with lines NAME=VALUE; it is read again at each reload.",
            flags=("--env-file",),
            gunicorn=None,
        ),
    ] = ()
    paste: Annotated[
        str | None,
        Setting(
            texts.OPTIONAL_TEXT,
            "Load the app from a PasteDeploy file, e.g. production.ini or production.ini#admin.",
            flags=("--paste", "--paster"),
        ),
    ] = None
    raw_paste_global_conf: Annotated[
        tuple[str, ...],
        Setting(
            texts.ENVIRONMENT,
            "Set a variable of the PasteDeploy file's [DEFAULT] section.",
            flags=("--paste-global",),
        ),
    ] = ()
    reload: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "For development: reload when a file of the app changes.",
            flags=("--reload",),
        ),
    ] = False
    reload_engine: Annotated[
        str,
        Setting(
            texts.choice("auto", "poll", "inotify"),
            "How changes are detected: auto asks the kernel; poll is for network file systems.",
            flags=("--reload-engine",),
        ),
    ] = "auto"
    reload_extra_files: Annotated[
        tuple[str, ...],
        Setting(
            texts.PATHS,
            "More files to watch with --reload; folders and patterns such as conf/*.yaml are fine.",
            flags=("--reload-extra-file",),
        ),
    ] = ()
    spew: Annotated[
        bool,
        Setting(
            texts.SWITCH,
            "For development: log every line of Python that the app runs.",
            flags=("--spew",),
        ),
    ] = False
    asgi_loop: Annotated[
        str,
        Setting(
            texts.choice("auto", "asyncio", "uvloop"),
            "Event loop of asgi workers; auto is uvloop if it is installed.",
            flags=("--asgi-loop",),
            worker_classes=classes.ASGI,
        ),
    ] = "auto"
    asgi_lifespan: Annotated[
        str,
        Setting(
            texts.choice("auto", "on", "off"),
            "Whether an ASGI app gets the lifespan events startup and shutdown; auto tries it.",
            flags=("--asgi-lifespan",),
            worker_classes=classes.ASGI,
        ),
    ] = "auto"
    websocket_max_message_size: Annotated[
        int,
        Setting(
            numbers.SIZE,
            "Largest message of a websocket in asgi workers.",
            flags=("--websocket-max-message-size",),
            worker_classes=classes.ASGI,
        ),
    ] = 16 * 1024 * 1024
