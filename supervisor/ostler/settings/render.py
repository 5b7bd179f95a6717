"""Settings for people: `--print-config`, and what the API shows."""

from typing import Any

from ostler.settings.kinds.numbers import show_workers
from ostler.settings.load import Loaded
from ostler.settings.table import rows
from ostler.terminal import one_line

# What is put into the app's environment is often a secret.
_PAIRS = ("raw_env", "raw_paste_global_conf")
_HIDDEN = "..."
# Parts of a `logconfig_dict` whose entries may have any argument, such as a password, and the keys of
# these entries that are not hidden.
_OPEN_PARTS = ("handlers", "filters", "formatters")
_SHOWN = frozenset(
    "() class level formatter filters handlers name stream filename mode encoding delay maxBytes backupCount "
    "when interval utc atTime capacity format fmt datefmt style validate facility".split()
)
_OTHER_PARTS = ("version", "incremental", "disable_existing_loggers", "root", "loggers")


def print_config(loaded: Loaded) -> str:
    """One line per setting: name, value as Python writes it, and where it came from.

    After the settings come the hooks, then what has no effect, each sorted by name.
    """
    lines = [
        _line(name, repr(shown(name, getattr(loaded.settings, name))), loaded.origins.get(name, "default"))
        for name in sorted(rows())
    ]
    lines += [_line(name, "hook", place) for name, place in sorted(loaded.hooks.items())]
    lines += [
        _line(name, value, f"{loaded.origins[name]}, without effect")
        for name, value in sorted(loaded.ignored.items())
    ]
    return "\n".join(lines)


def _line(name: str, value: str, origin: str) -> str:
    return one_line(f"{name:<24} = {value:<40} # {origin}")


def shown(name: str, value: Any) -> Any:
    """A setting's value without the secrets in it."""
    if name in _PAIRS:
        return tuple(f"{pair.partition('=')[0]}={_HIDDEN}" for pair in value)
    if name == "logconfig_dict":
        return {part: _shown_part(part, given) for part, given in value.items()}
    return show_workers(value) if isinstance(value, tuple) and name == "workers" else value


def _shown_part(part: str, given: Any) -> Any:
    if part in _OTHER_PARTS:
        return given
    if part not in _OPEN_PARTS or not isinstance(given, dict):
        return _HIDDEN
    return {
        name: {key: value if key in _SHOWN else _HIDDEN for key, value in entry.items()}
        if isinstance(entry, dict)
        else _HIDDEN
        for name, entry in given.items()
    }
