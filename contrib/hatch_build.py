"""What is built when Ostler is installed or packed: the dashboard and the C extension.

Each of them may be missing: then there is a warning, and the server works without it.
"""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        root = Path(self.root)
        self._dashboard = _load(root / "web" / "build_dashboard.py").Dashboard(
            root, self.app.display_info, self.app.display_warning
        )
        self._dashboard.build()
        if self.target_name != "wheel":
            return
        native = _load(root / "supervisor" / "native" / "build_native.py")
        if (extension := native.build(root, self.app.display_warning)) is not None:
            # Other Pythons' builds may lie beside it.
            build_data["artifacts"].append(extension.relative_to(root).as_posix())
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        self._dashboard.packed()


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
