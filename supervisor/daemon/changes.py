"""What a reload found changed in the settings, and how settings are shown to people."""

from typing import Any

from supervisor.control.views import ChangeView
from supervisor.settings.kinds import show_workers
from supervisor.settings.load import Loaded
from supervisor.settings.table import rows


def shown(name: str, value: Any) -> Any:
    """A setting's value for the API; what is put into the app's environment is often a secret."""
    if name in ("raw_env", "raw_paste_global_conf"):
        return [f"{pair.partition('=')[0]}=..." for pair in value]
    if name == "workers" and isinstance(value, tuple):
        return show_workers(value)
    return value


def changes(before: Loaded, after: Loaded) -> list[ChangeView]:
    """Settings whose values differ, in the table's order. Of a secret both values look the same."""
    return [
        ChangeView(name, shown(name, old), shown(name, new), row.takes_effect.value)
        for name, row in rows().items()
        if (old := getattr(before.settings, name)) != (new := getattr(after.settings, name))
    ]
