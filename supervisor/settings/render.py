"""Settings for people: `--print-config`."""

from supervisor.settings.kinds import show_workers
from supervisor.settings.load import Loaded
from supervisor.settings.table import rows


def print_config(loaded: Loaded) -> str:
    """One line per setting: name, value as Python writes it, and where it came from."""
    lines = []
    for name in sorted(rows()):
        value = getattr(loaded.settings, name)
        if name == "workers" and isinstance(value, tuple):
            value = show_workers(value)
        lines.append(f"{name:<24} = {value!r:<40} # {loaded.origins.get(name, 'default')}")
    return "\n".join(lines)
