"""Published clients, each in its own environment, because their pins differ from turnbus's."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if sys.platform != "win32":
    import fcntl

INSTALL_TIMEOUT_S = 250


def _install_commands(home: Path, requirement: str) -> list[list[str]]:
    python = str(_python(home))
    if uv := shutil.which("uv"):
        tool = [uv]
    elif importlib.util.find_spec("uv"):
        tool = [sys.executable, "-m", "uv"]
    else:
        return [
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [python, "-m", "pip", "install", "--quiet", requirement],
        ]
    return [
        [*tool, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
        [*tool, "pip", "install", "--quiet", "--python", python, requirement],
    ]


def _python(home: Path) -> Path:
    return home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, for which other test processes may compete."""
    with path.open("w") as lock:
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


@pytest.fixture(scope="session")
def client_python(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """The Python that has a requirement installed; built once and kept in pytest's cache.

    A failed build fails the tests, because they must show that these clients work.
    """
    cache = pytestconfig.cache
    assert cache is not None, "the cache plugin is off; the clients need a place to live in"
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")

    def build(requirement: str) -> Path:
        name = re.sub(r"\[.*\]", "", requirement).replace("==", "-")
        home = cache.mkdir(f"{name}-{sys.implementation.cache_tag}")
        ready = home / "ready"
        with _locked(home.with_name(f"{home.name}.lock")):
            if not ready.exists():
                for command in _install_commands(home, requirement):
                    if terminal is not None:
                        terminal.write_line(f"building a client's environment: {' '.join(command)}")
                    # Not from here: uv would apply the constraints of `pyproject.toml`.
                    subprocess.run(command, check=True, cwd=home.anchor, timeout=INSTALL_TIMEOUT_S)
                ready.touch()
        return _python(home)

    return build
