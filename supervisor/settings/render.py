"""Settings for people: `--print-config`."""

from supervisor.settings.load import Loaded
from supervisor.settings.table import rows


def print_config(loaded: Loaded) -> str:
    """One line per setting: name, value as Python writes it, and where it came from."""
    lines = []
    for name in sorted(rows()):
        value = getattr(loaded.settings, name)
        lines.append(f"{name:<24} = {value!r:<40} # {loaded.origins.get(name, 'default')}")
    return "\n".join(lines)
