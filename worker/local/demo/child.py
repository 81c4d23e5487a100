"""A process of the demo: it writes to a log, and never outlives us."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.abc

import worker
from worker.errors import TurnbusError

_TAIL_LINES: Final = 8

# The command replaces the shell, so that its pid and exit code are those of our child. Beside it
# stays a watcher: when we die, whatever the way, our end of its pipe closes, and it kills its
# process group, of which the command is the other member. A line on the pipe sends it away.
_LAUNCH: Final = """
exec 3<&0 </dev/null
{ read -r _ || kill -s KILL 0; } <&3 &
exec "$@" 3<&-
"""


class Child:
    """One running `turnbus` command; `start` makes one.

    It has a session of its own: Ctrl-C in our terminal is ours to deal with.
    """

    def __init__(self, name: str, process: anyio.abc.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._stop_requested = False

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        module: str = "worker",
        printed: Path | None = None,
    ) -> AsyncIterator[Self]:
        """Run `turnbus COMMAND` until the block ends; then it is killed.

        `module` takes the place of `worker` in `python -m worker COMMAND`. What it writes to
        standard output goes to `printed`; to the log, if there is none.
        """
        watched, leash = os.pipe()
        errors = _create(log)
        output = os.dup(errors) if printed is None else _create(printed)
        try:
            process = await anyio.open_process(
                ["/bin/sh", "-c", _LAUNCH, name, sys.executable, "-m", module, *command],
                stdin=watched,
                stdout=output,
                stderr=errors,
                # `-m` looks into the working directory first: it must find this very package.
                cwd=Path(worker.__file__).parent.parent,
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(leash)
            raise
        finally:
            os.close(watched)
            os.close(output)
            os.close(errors)
        child = cls(name, process, log)
        try:
            yield child
        finally:
            with anyio.CancelScope(shield=True):
                child.kill()
                await process.wait()
            # A broken pipe: the watcher was ended along with its group.
            with contextlib.suppress(BrokenPipeError):
                os.write(leash, b"go\n")
            os.close(leash)

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process.returncode is None

    def kill(self) -> None:
        """End it as a crash would, with SIGKILL."""
        self._stop_requested = True
        if self.running:
            self._process.kill()

    async def stop(self, patience_s: float) -> None:
        """End it as an operator would, with SIGTERM; wait for its end, but not for ever."""
        self._stop_requested = True
        if self.running:
            self._process.terminate()
            with anyio.move_on_after(patience_s):
                await self._process.wait()

    def text(self) -> str:
        """Return what it wrote so far."""
        return self._log.read_text("utf-8", "replace")

    def tail(self) -> str:
        """Return the last lines it wrote, indented."""
        lines = self.text().splitlines()[-_TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (nothing)"

    async def guard(self) -> None:
        """Wait for its end, as long as it takes; raise TurnbusError unless we told it to."""
        code = await self._process.wait()
        if not self._stop_requested:
            if not shutil.disk_usage(self._log.parent).free:
                raise TurnbusError(
                    f"{self.name} stopped: the disk of {self._log.parent} is full; "
                    "make room, or set TMPDIR to another directory"
                )
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            raise TurnbusError(
                f"{self.name} stopped by itself ({how}); it last wrote:\n{self.tail()}"
            )


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
