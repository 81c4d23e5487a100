"""Published clients of the provider, each in its own environment with its own pins."""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Final, NamedTuple

import anyio

from worker.errors import TurnbusError

_INSTALL_TIMEOUT_S: Final = 600.0
_DONE: Final = "ready"
_PROGRAMS: Final = Path(__file__).with_name("clients")


class NotInstalled(TurnbusError):  # noqa: N818 - becomes a row of the report
    """A client could not be installed."""


def cache() -> Path:
    """Return the directory of the environments, according to the XDG base directories."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "turnbus" / "peers"


class Environment:
    """Environment of one requirement, `name[extra]==version`; `install` creates it."""

    def __init__(self, requirement: str, *others: str, home: Path | None = None) -> None:
        name = re.sub(r"\[.*\]", "", requirement).replace("==", "-")
        home = (home or cache()) / f"{name}-{sys.implementation.cache_tag}"
        self.home: Final = home.absolute()
        self.python: Final = self.home / "bin" / "python"
        self._requirements = (requirement, *others)

    @property
    def installed(self) -> bool:
        """Whether the installation is complete."""
        return (self.home / _DONE).exists()

    async def install(self) -> None:
        """Install with uv if it is installed, else with venv and pip.

        It runs outside of a project, whose constraints uv would apply.
        Raises NotInstalled if that fails or takes longer than ten minutes.
        """
        for command in self._commands():
            try:
                with anyio.fail_after(_INSTALL_TIMEOUT_S):
                    done = await anyio.run_process(
                        command, cwd=self.home.anchor, check=False, stdout=PIPE, stderr=STDOUT
                    )
            except TimeoutError:
                raise NotInstalled(f"took longer than {_INSTALL_TIMEOUT_S:g} s") from None
            except OSError as error:
                raise NotInstalled(f"{command[0]}: {error.strerror}") from None
            if done.returncode:
                said = done.stdout.decode("utf-8", "replace").strip().splitlines()
                raise NotInstalled(said[-1].strip() if said else f"exit code {done.returncode}")
        (self.home / _DONE).touch()

    def _commands(self) -> list[list[str]]:
        home, python = str(self.home), str(self.python)
        if uv := _uv():
            return [
                [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, home],
                [*uv, "pip", "install", "--quiet", "--python", python, *self._requirements],
            ]
        return [
            [sys.executable, "-m", "venv", "--clear", home],
            [python, "-m", "pip", "install", "--quiet", *self._requirements],
        ]


def _uv() -> list[str]:
    if found := shutil.which("uv"):
        return [found]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else []


class PublishedClient(NamedTuple):
    """A client: its requirement for pip, and the program that drives it."""

    requirement: str
    program: Path

    @property
    def name(self) -> str:
        """Name and version."""
        package, _, version = self.requirement.partition("==")
        return f"{package.partition('[')[0]} {version}"

    @property
    def environment(self) -> Environment:
        """Environment, with the event loop that the worker has in its bench."""
        return Environment(self.requirement, "uvloop")


PUBLISHED: Final = (
    PublishedClient("cartesia[websockets]==4.2.0", _PROGRAMS / "sdk.py"),
    PublishedClient("livekit-plugins-cartesia==1.8.9", _PROGRAMS / "livekit_plugin.py"),
    PublishedClient("pipecat-ai[cartesia]==1.14.0", _PROGRAMS / "pipecat_service.py"),
)
