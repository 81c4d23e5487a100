"""The official SDK, in an environment of its own: it pins another major version of websockets."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SDK = "cartesia[websockets]==4.2.0"


def _install_commands(home: Path) -> list[list[str]]:
    python = str(_python(home))
    if uv := shutil.which("uv"):
        tool = [uv]
    elif importlib.util.find_spec("uv"):
        tool = [sys.executable, "-m", "uv"]
    else:
        return [
            [sys.executable, "-m", "venv", "--clear", str(home)],
            [python, "-m", "pip", "install", "--quiet", SDK],
        ]
    return [
        [*tool, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)],
        [*tool, "pip", "install", "--quiet", "--python", python, SDK],
    ]


def _python(home: Path) -> Path:
    return home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


@pytest.fixture(scope="session")
def sdk_python(pytestconfig: pytest.Config) -> Path:
    """The Python that has the SDK; built once and kept in pytest's cache.

    A build that fails fails the tests: that the SDK works is what they are to show.
    """
    cache = pytestconfig.cache
    assert cache is not None, "the cache plugin is off; the SDK needs a place to live in"
    home = cache.mkdir(f"{SDK.replace('[websockets]==', '-')}-{sys.implementation.cache_tag}")
    ready = home / "ready"
    if not ready.exists():
        terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")
        for command in _install_commands(home):
            if terminal is not None:
                terminal.write_line(f"building the SDK's environment: {' '.join(command)}")
            subprocess.run(command, check=True, timeout=300)
        ready.touch()
    return _python(home)
