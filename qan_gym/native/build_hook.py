"""The build hook of hatchling: a wheel carries the compiled kernels if they compile, else it is pure Python.

An installation never fails for want of a compiler; it says so, and the package takes its PyTorch path.
"""

import importlib.util
import platform
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("qan_gym") / "native"


class KernelsHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is not installed where types are checked
    """Compiles the kernels for wheels and editable installs; in place for the latter."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling's `BuildHookInterface`; version is "standard" or "editable"."""
        if self.target_name != "wheel":
            return
        build = _load(Path(self.root) / FOLDER / "build.py")
        self._aside = tempfile.TemporaryDirectory()
        library = build.LIBRARY if version == "editable" else Path(self._aside.name) / build.LIBRARY.name
        try:
            build.build(library)
        except (build.BuildError, OSError) as error:
            self.app.display_warning(f"qan-gym is installed without its C kernels, which makes it slower: {error}")
            return
        if version != "editable":
            build_data["force_include"][str(library)] = (FOLDER / build.LIBRARY.name).as_posix()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform_tag()}"  # ctypes loads it: it has nothing of a Python version's ABI

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the library that was built aside; the wheel has it."""
        if self.target_name == "wheel":
            self._aside.cleanup()


def _load(path: Path) -> ModuleType:
    """A module by its path: the package that it belongs to cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("qan_gym_native_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform_tag() -> str:
    """Of this machine, as in a wheel's name; a Python for two architectures compiles for the one that it runs on."""
    tag = sysconfig.get_platform().replace("universal2", platform.machine())
    return tag.replace("-", "_").replace(".", "_")
