"""Which settings a reload has changed."""

from ostler.control.views import ChangeView
from ostler.settings.load import Loaded
from ostler.settings.render import shown
from ostler.settings.table import rows


def changed_settings(before: Loaded, after: Loaded) -> list[ChangeView]:
    """Settings whose values differ, in the table's order. Of a secret both values look the same."""
    return [
        ChangeView(name, shown(name, old), shown(name, new), row.takes_effect.value)
        for name, row in rows().items()
        if (old := getattr(before.settings, name)) != (new := getattr(after.settings, name))
    ]
