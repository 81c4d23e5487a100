"""Build hook of hatchling: compiles the worker's core with mypyc into the wheel, if asked to.

`TURNBUS_COMPILE=1 pip install .` needs a C compiler. Without the variable the wheel is pure Python,
and so is every editable install. The wheel contains the sources in both cases. Its modules are
listed in `pyproject.toml`.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds extension modules to a wheel if `TURNBUS_COMPILE` is 1."""

    def dependencies(self) -> list[str]:
        """Return what the build needs: mypyc reads the types of the worker's dependencies too."""
        if not _requested():
            return []
        return [*self.config["compiler"], *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the modules."""
        if version == "editable" or not _requested():
            return
        self._directory = Path(tempfile.mkdtemp(prefix="turnbus-"))
        root = self._directory / "lib"
        modules = _listed(Path(self.root), self.config)
        _compile(modules, root, self._directory)
        found = {str(path): path.relative_to(root).as_posix() for path in root.rglob("*.*")}
        build_data["force_include"].update(found)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary files."""
        if hasattr(self, "_directory"):
            shutil.rmtree(self._directory)


def _requested() -> bool:
    return os.environ.get("TURNBUS_COMPILE", "") == "1"


def _listed(root: Path, config: dict[str, Any]) -> list[str]:
    """Return the paths of the modules to compile, relative to the root of the sources."""
    compiled = {path for pattern in config["compiled"] for path in root.glob(pattern)}
    interpreted = {root / path for path in config["interpreted"]}
    return sorted(path.relative_to(root).as_posix() for path in compiled - interpreted)


def _compile(modules: list[str], into: Path, temporary: Path) -> None:
    """Compile modules of the working directory to extension modules."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    extensions = mypycify(
        [f"--cache-dir={temporary / 'cache'}", *modules],
        debug_level="0",
        target_dir=str(temporary / "c"),
        group_name="worker.compiled",
    )
    package = Distribution({"name": "turnbus", "ext_modules": extensions})
    command = package.get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(into), str(temporary / "objects")
    command.ensure_finalized()
    command.run()
