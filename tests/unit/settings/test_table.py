"""What is derived from the rows: the fleet's policy, and the settings that a worker class does not use."""

import pytest
from msgspec.structs import fields

from ostler.daemon.settings_to_policy import fleet_policy
from ostler.fleet.model import FleetPolicy
from ostler.settings import load, rows
from ostler.settings.classes import BUILT_IN
from ostler.settings.table import policy_fields, without_effect

# Set by `daemon.settings_to_policy`, not by a row.
_NOT_SETTINGS = {"drain_grace", "fork_server_grace"}


def test_rows_give_each_field_of_the_policy() -> None:
    """In a running daemon each field comes from a row, not from the model's default,
    and no two rows give the same field.
    """
    names = [name for row in rows().values() for name in row.policy_fields(row.default)]
    assert len(names) == len(set(names))
    assert set(names) | _NOT_SETTINGS == {field.name for field in fields(FleetPolicy)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"workers": "3"}, {"workers": 3, "workers_most": None}),
        ({"workers": "2..5"}, {"workers": 2, "workers_most": 5}),
        ({"max_surge": "2"}, {"max_surge": 2, "max_surge_share": 0.0}),
        ({"max_surge": "50%"}, {"max_surge": 1, "max_surge_share": 0.5}),
        ({"boot_parallelism": "3"}, {"boot_parallelism": 3}),
        ({"preload_app": True}, {"preload": True}),
        ({"graceful_timeout": "7"}, {"graceful_timeout": 7.0, "drain_grace": 1.0}),
        ({"max_age": "9"}, {"max_age": 9.0}),
    ],
)
def test_what_a_value_is_to_the_fleet(given: dict[str, object], expected: dict[str, object]) -> None:
    policy = fleet_policy(load(given, {}, None, lambda: 2))
    assert {name: getattr(policy, name) for name in expected} == expected


def test_boot_parallelism_depends_on_the_cpus() -> None:
    """0, the default, means at least two."""
    assert policy_fields(load({}, {}, None, lambda: 2).settings)["boot_parallelism"] >= 2


def test_names_of_worker_classes() -> None:
    """Rows name only existing classes."""
    assert all(row.worker_classes <= set(BUILT_IN) for row in rows().values())


@pytest.mark.parametrize(
    ("worker_class", "expected"),
    [
        ("sync", ["asgi_loop"]),
        ("gthread", ["asgi_loop"]),
        ("gevent", ["asgi_loop", "threads"]),
        ("meinheld", ["asgi_loop", "threads", "queue_timeout", "limit_request_line"]),
        ("asgi", ["threads", "queue_timeout", "limit_request_line", "limit_request_body"]),
    ],
)
def test_settings_without_effect(worker_class: str, expected: list[str]) -> None:
    """Settings that are set and that the class does not use; `keepalive` is used by all."""
    given = {
        "asgi_loop": "asyncio",
        "threads": "2",
        "queue_timeout": "3",
        "limit_request_line": "99",
        "limit_request_body": "99",
        "keepalive": "9",
    }
    settings = load(given, {}, None, lambda: 2).settings
    assert sorted(without_effect(settings, worker_class)) == sorted(expected)
