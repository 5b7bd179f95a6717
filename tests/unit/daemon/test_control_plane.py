"""Loading the control server."""

import ssl

import pytest

from ostler.daemon import control_plane


def test_certificates_are_left_out_of_loading_alone() -> None:
    def fails() -> None:
        with control_plane._no_certificates():
            assert ssl.create_default_context().get_ca_certs() == []
            raise ImportError

    before = ssl.SSLContext.load_default_certs
    with pytest.raises(ImportError):
        fails()
    assert ssl.SSLContext.load_default_certs is before
