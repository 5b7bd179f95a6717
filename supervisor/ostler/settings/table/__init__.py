"""The settings table: one row per setting, in one file per subject.

A row is one annotated field. Its annotation (`Setting`) holds all that is known of the setting, and all else
is made from it: the command line's flags and `--help`, the keys of configuration files, validation,
`--print-config`, the API's view of the configuration, the fleet's policy, and the warning about settings
that the worker class does not use. The field's name is the key in a file, and gunicorn's name wherever
gunicorn has the setting.

`Settings` is a flat struct. Its rows come from a chain of base classes, one per file, because msgspec builds
structs from one base only.
"""

from functools import cache
from typing import Any, get_type_hints

import msgspec

from ostler.settings.table.control import ControlRows
from ostler.settings.table.row import GENERATION, LIVE, RESTART, Setting, TakesEffect

__all__ = [
    "GENERATION",
    "LIVE",
    "RESTART",
    "Setting",
    "Settings",
    "TakesEffect",
    "not_in_gunicorn",
    "policy_fields",
    "rows",
    "without_effect",
]


class Settings(ControlRows, frozen=True, kw_only=True):
    """The settings of one generation, checked and typed."""


@cache
def rows() -> dict[str, Setting]:
    """The table by name, in its own order."""
    hints = get_type_hints(Settings, include_extras=True)
    table = {}
    for info in msgspec.structs.fields(Settings):
        (setting,) = (extra for extra in hints[info.name].__metadata__ if isinstance(extra, Setting))
        default = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
        table[info.name] = setting.of_field(info.name, default)
    return table


@cache
def not_in_gunicorn() -> frozenset[str]:
    """Settings that gunicorn does not have.

    A file for gunicorn may call variables of its own so, and gunicorn's flags, when they are shortened, must
    stay as unambiguous beside them as they were.
    """
    return frozenset(name for name, row in rows().items() if row.gunicorn is None)


def policy_fields(settings: Settings) -> dict[str, Any]:
    """The fields of the fleet's policy that follow from the settings, as arguments of `FleetPolicy`."""
    found: dict[str, Any] = {}
    for name, row in rows().items():
        found.update(row.policy_fields(getattr(settings, name)))
    return found


def without_effect(settings: Settings, worker_class: str) -> list[str]:
    """Settings that are not at their defaults and mean nothing to one of our worker classes, by its name."""
    return [
        name
        for name, row in rows().items()
        if row.worker_classes and worker_class not in row.worker_classes
        if getattr(settings, name) != row.default
    ]
