"""TLS: its versions, and whether clients must show a certificate."""

from typing import Any

from ostler.settings.kinds.kind import Kind, shown
from ostler.settings.kinds.texts import text

# Names for ssl.CERT_NONE, CERT_OPTIONAL and CERT_REQUIRED, which are 0, 1, 2, also in gunicorn's files.
_VERIFICATION = ("none", "optional", "required")


def _verification(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_VERIFICATION):
        return _VERIFICATION[value]
    name = "none" if value is None else str(value).strip().lower()
    name = name.removeprefix("ssl.").removeprefix("cert_")
    if name in ("0", "1", "2"):
        return _VERIFICATION[int(name)]
    if name not in _VERIFICATION:
        raise ValueError(f"expected one of {', '.join(_VERIFICATION)} (or 0, 1, 2), got {shown(value)}")
    return name


VERIFICATION = Kind(_verification, "|".join(_VERIFICATION))

# By number, too: 771 and 772 stand for them in TLS itself and in ssl.TLSVersion.
_VERSIONS = {"1.2": "TLSv1.2", "771": "TLSv1.2", "1.3": "TLSv1.3", "772": "TLSv1.3"}


def _version(value: Any) -> str:
    name = str(int(value)) if isinstance(value, int) else text(value).lower()
    for prefix in ("ssl.", "tlsversion.", "tlsv", "tls"):
        name = name.removeprefix(prefix)
    version = _VERSIONS.get(name.replace("_", "."))
    if version is None:
        raise ValueError(f"expected TLSv1.2 or TLSv1.3, got {shown(value)}")
    return version


TLS_VERSION = Kind(_version, "TLSv1.2|TLSv1.3")
