"""Ctrl-C on a command that does not handle signals itself."""

import signal
import subprocess
import sys

import pytest

_COMMAND = """
import asyncio
import os
import signal
import sys

import anyio

from worker.cli.command import run_async


async def command():
    try:
        {then}
        print("went on")
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
            print("cleaned up", flush=True)
            {after}
    return "done"


print(run_async(command))
"""

_INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"

# What redis-py awaits before each command. The signal comes just before it, where asyncio takes
# one `Task.cancel` for the expired timeout.
_IN_A_TIMEOUT = """
        pass
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(60)
        except TimeoutError:
            pass
        await anyio.sleep(1)
"""


def _run(then: str, *, after: str = "", ignored: bool = False) -> subprocess.CompletedProcess[str]:
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    code = _COMMAND.format(then=then.strip(), after=after)
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),  # an ignored SIGINT is inherited
    )


@pytest.mark.parametrize("then", ["await anyio.sleep(60)", _IN_A_TIMEOUT])
def test_interrupt_ends_command_after_cleanup(then: str) -> None:
    ended = _run(f"{_INTERRUPT}; {then}")
    assert ended.stdout == "cleaned up\n"
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr.endswith("KeyboardInterrupt\n")


def test_second_interrupt_skips_cleanup() -> None:
    ended = _run(
        f"{_INTERRUPT}; await anyio.sleep(60)",
        after=f"{_INTERRUPT}; await anyio.sleep(30); print('waited')",
    )
    assert ended.stdout == "cleaned up\n"
    assert ended.returncode == -signal.SIGINT


def test_ignored_interrupt_stays_ignored() -> None:
    ended = _run(f"{_INTERRUPT}; await anyio.sleep(0.1)", ignored=True)
    assert (ended.returncode, ended.stdout) == (0, "went on\ncleaned up\ndone\n")


def test_uninterrupted_command_returns_its_result() -> None:
    ended = _run("await anyio.sleep(0)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\ncleaned up\ndone\n", "")
