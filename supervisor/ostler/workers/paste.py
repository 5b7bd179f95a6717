"""Loads the app of a PasteDeploy file; `settings.pastefile` reads the other parts of such a file."""

import os
from typing import cast

from ostler.settings.pastefile import file_name, global_conf
from ostler.settings.table import Settings
from ostler.workers.load_errors import AppLoadError, raised
from ostler.wsgi.exchange import App
from ostler.wsgi.interruption import QuitWorker


def load_paste(settings: Settings) -> App:
    """The app of the file that `paste` names.

    Raises:
        AppLoadError: with the traceback if code of the app or of the file raised.
    """
    from paste.deploy import loadapp

    spec = settings.paste or ""
    name = spec.partition("#")[2] or None
    variables = global_conf(settings)
    try:
        app = loadapp(f"config:{file_name(spec)}", name, relative_to=os.getcwd(), global_conf=variables)  # noqa: PTH109
    except QuitWorker:
        raise
    except BaseException as error:
        raise raised(spec, error) from error
    if not callable(app):
        raise AppLoadError(f"paste: {spec!r} is not callable but {type(app).__name__}")
    return cast("App", app)
