"""All that can be set: one row per setting in `table`, from which everything else is derived."""

from ostler.settings.load import Loaded, load
from ostler.settings.table import Setting, Settings, TakesEffect, rows

__all__ = ["Loaded", "Setting", "Settings", "TakesEffect", "load", "rows"]
