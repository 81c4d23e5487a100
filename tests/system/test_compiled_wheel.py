"""The wheel with the compiled core: it is built and installed, and the tests on it pass.

They are the tests of the core, and of the gateway, which the image runs from the same wheel.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.compiled import HOOK, PYPROJECT, ROOT, compiled_modules
from tests.system.deploy.container import need_compiler

TESTS = (
    *("tests/unit/core", "tests/unit/session", "tests/unit/stt"),
    *("tests/redis/test_audio_reader.py", "tests/redis/test_committer.py", "tests/simulation"),
    "tests/e2e/test_session_path.py",
    *("tests/unit/ingest", "tests/e2e/test_ingest_carriers.py"),
)

ON_SOURCES = (
    "tests/unit/core/test_picture.py",  # it copies trackers and reads all their attributes
    "tests/simulation/test_fleet.py",  # its mutants replace parts of the core
    # They replace the publisher, whose type compiled code checks.
    *("tests/simulation/test_calls.py", "tests/simulation/test_call_report.py"),
    *("tests/unit/session/test_turn_times.py", "tests/unit/session/test_last_words.py"),
    *("tests/simulation/fleet", "tests/simulation/redis", "tests/simulation/virtual"),
    "tests/simulation/replay",
)
"""Tests that need the sources, or that do not concern the compiled modules."""

_FILES = """
import importlib, sys
print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep="\\n")
"""


def _run(*words: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        words, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the compiled wheel; return an interpreter that has it and the tests' packages."""
    need_compiler()
    directory = tmp_path_factory.mktemp("compiled")
    _run(sys.executable, "-m", "venv", directory / "venv", cwd=directory)
    python = directory / "venv" / "bin" / "python"
    (packages,) = (directory / "venv" / "lib").glob("python*/site-packages")
    # Without its .pth files: turnbus itself is not found there.
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")
    pins = PYPROJECT["tool"]["uv"]["build-constraint-dependencies"]
    tools = [each for each in pins if not each.startswith("editables")]
    _run(python, "-m", "pip", "install", "-q", *tools, cwd=directory)
    wheel = ("-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(directory))
    _run(python, "-m", "pip", "wheel", *wheel, str(ROOT), cwd=directory, TURNBUS_COMPILE="1")
    (built,) = directory.glob("*.whl")
    assert "-none-any" not in built.name
    _run(python, "-m", "pip", "install", "-q", "--no-deps", built, cwd=directory)
    return python


def _files(python: Path, modules: list[Path], cwd: Path) -> list[str]:
    """Return the file that each module is loaded from."""
    names = [".".join(path.with_suffix("").parts) for path in modules]
    return _run(python, "-c", _FILES, *names, cwd=cwd).splitlines()


@pytest.mark.slow
def test_installed_core_is_compiled(python: Path, tmp_path: Path) -> None:
    compiled = _files(python, compiled_modules(), tmp_path)
    extension = sysconfig.get_config_var("EXT_SUFFIX")
    assert [file for file in compiled if not file.endswith(extension)] == []
    interpreted = _files(python, [Path(path) for path in HOOK["interpreted"]], tmp_path)
    assert [file for file in interpreted if not file.endswith(".py")] == []
    environment = python.parents[1]
    assert all(Path(file).is_relative_to(environment) for file in [*compiled, *interpreted])
    form = _run(python, "-c", "from worker import build; print(build.form())", cwd=tmp_path)
    assert form.strip() == "compiled"


@pytest.mark.slow
def test_compiled_core_passes_its_tests(python: Path, tmp_path: Path) -> None:
    for name in ("tests", "deploy", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    skipped = [f"--ignore={path}" for path in ON_SOURCES]
    _run(python, "-m", "pytest", "-q", *skipped, *TESTS, cwd=tmp_path)
