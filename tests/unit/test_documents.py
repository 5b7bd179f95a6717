"""Documents name what there is."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "contrib/docs/security.md"


def test_security_names_tests_that_exist() -> None:
    """Each row of the attack table names tests; all of them are there."""
    rows = re.findall(r"^\| .* \| (.*test_.*) \|$", SECURITY.read_text(), re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        source = ""
        for name in re.findall(r"`([^`]+)`", row):
            if name.endswith(".py"):
                path = ROOT / (name if "/" in name else f"tests/system/hostile/{name}")
                source = path.read_text()
            else:
                assert f"def {name}(" in source, f"{name} in: {row}"
