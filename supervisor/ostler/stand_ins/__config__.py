"""The configuration file in a process that `multiprocessing` has spawned, evaluated again.

There the file's functions and classes are unpickled, which imports their module. In fork servers and workers
that module is the evaluated file itself (`ostler.settings.configfile`), and this one is never imported.
"""

import os
from pathlib import Path

if "OSTLER_CONFIG_FILE" not in os.environ:
    raise ModuleNotFoundError(f"No module named {__name__!r}: there is no configuration file", name=__name__)
__file__ = os.environ["OSTLER_CONFIG_FILE"]
exec(compile(Path(__file__).read_bytes(), __file__, "exec"))  # noqa: S102 - this is what the format is
