"""TLS: what a user may write, and the text of a refusal."""

import ssl
from typing import Any

import pytest

from ostler.settings.kinds import tls
from ostler.settings.kinds.kind import Kind
from tests.unit.settings.kinds.checks import assert_becomes, assert_refused


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (tls.VERIFICATION, 0, "none"),
        (tls.VERIFICATION, "1", "optional"),
        (tls.VERIFICATION, ssl.CERT_REQUIRED, "required"),
        (tls.VERIFICATION, "CERT_REQUIRED", "required"),
        (tls.VERIFICATION, "ssl.CERT_OPTIONAL", "optional"),
        (tls.VERIFICATION, "Required", "required"),
        (tls.VERIFICATION, None, "none"),
        (tls.TLS_VERSION, "TLSv1.2", "TLSv1.2"),
        (tls.TLS_VERSION, "tls1.3", "TLSv1.3"),
        (tls.TLS_VERSION, "TLSv1_3", "TLSv1.3"),
        (tls.TLS_VERSION, "1.2", "TLSv1.2"),
        (tls.TLS_VERSION, ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        (tls.TLS_VERSION, ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    assert_becomes(kind, given, value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (tls.VERIFICATION, 3, "expected one of none, optional, required (or 0, 1, 2), got 3"),
        (tls.VERIFICATION, True, "expected one of none"),
        (tls.VERIFICATION, "maybe", "expected one of none"),
        (tls.TLS_VERSION, "TLSv1.1", "expected TLSv1.2 or TLSv1.3, got 'TLSv1.1'"),
        (tls.TLS_VERSION, ssl.TLSVersion.MINIMUM_SUPPORTED, "expected TLSv1.2 or TLSv1.3"),
        (tls.TLS_VERSION, 1.2, "expected text, got 1.2"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    assert_refused(kind, given, problem)
