"""Settings for people: `--print-config`."""

from typing import Any

from supervisor.settings.kinds import show_workers
from supervisor.settings.load import Loaded
from supervisor.settings.table import rows

# What is put into the app's environment is often a secret.
_PAIRS = ("raw_env", "raw_paste_global_conf")


def print_config(loaded: Loaded) -> str:
    """One line per setting: name, value as Python writes it, and where it came from.

    Behind the settings stand the hooks and what is without effect, each sorted by name.
    """
    lines = [
        _line(name, repr(_shown(name, getattr(loaded.settings, name))), loaded.origins.get(name, "default"))
        for name in sorted(rows())
    ]
    lines += [_line(name, "hook", place) for name, place in sorted(loaded.hooks.items())]
    lines += [
        _line(name, value, f"{loaded.origins[name]}, without effect")
        for name, value in sorted(loaded.unused.items())
    ]
    return "\n".join(lines)


def _line(name: str, value: str, origin: str) -> str:
    return f"{name:<24} = {value:<40} # {origin}"


def _shown(name: str, value: Any) -> Any:
    if name in _PAIRS:
        return tuple(f"{pair.partition('=')[0]}=..." for pair in value)
    return show_workers(value) if isinstance(value, tuple) and name == "workers" else value
