"""The changes of a reload as text, for `ctl reload` and for the log (after HUP)."""

from typing import Any

import msgspec

from ostler.control.views import ChangeView


def change(view: ChangeView) -> str:
    """`workers 4 -> 6`, `bind +127.0.0.1:8002`."""
    before, after = view.before, view.after
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        added = [f"+{value(item)}" for item in after if item not in before]
        gone = [f"-{value(item)}" for item in before if item not in after]
        what = " ".join([*added, *gone]) or "changed"
    elif before == after:
        what = "changed"  # a secret
    else:
        what = " -> ".join("not set" if side in (None, "") else value(side) for side in (before, after))
    late = ", which takes effect only after a restart" if view.takes_effect == "restart" else ""
    return f"{view.name} {what}{late}"


def value(setting: Any) -> str:
    """A setting's value in short: strings unchanged, other values as JSON."""
    if isinstance(setting, float):
        return f"{setting:g}"
    return setting if isinstance(setting, str) else msgspec.json.encode(setting).decode()
