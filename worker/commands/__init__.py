"""The commands of `turnbus`, a module each, and what they share.

A command module has `add_parser(subparsers)`, which ends in `add_command`.
"""

import argparse
import importlib.util
import os
import signal
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import anyio
import msgspec
from anyio.abc import TaskStatus

from worker.settings import Settings, load

T = TypeVar("T")
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
HelpFormatter = argparse.RawDescriptionHelpFormatter


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    about: str,
    examples: str,
) -> argparse.ArgumentParser:
    """Add the parser of one command; `run` takes the parsed arguments and returns the exit code.

    `about` and `examples` are shown with the line breaks they have.
    """
    parser = subparsers.add_parser(
        name,
        description=about,
        epilog="examples:\n" + textwrap.indent(examples.strip(), "  "),
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, for commands that call `read_settings`."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with settings; TURNBUS_* variables win over it",
    )


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Load the settings. Raises `SettingsError`."""
    return load(os.environ, arguments.config)


def argument_type(kind: object, must_be: str) -> Callable[[str], object]:
    """Return an argparse `type` that reads a value of the msgspec type `kind`."""

    def convert(text: str) -> object:
        try:
            value: object = msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError:
            raise argparse.ArgumentTypeError(f"must be {must_be}") from None
        return value

    return convert


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run an async command on asyncio, with uvloop where it is installed.

    A lone error in a task group is raised as itself. SIGINT cancels `main` and raises
    KeyboardInterrupt once it has cleaned up; a second one does not wait for that. A command that
    receives SIGINT itself from some point on is left alone from there; where SIGINT is ignored, as
    in the background of a script, it stays so.
    """
    uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        return anyio.run(_interruptible, main, backend_options={"use_uvloop": uvloop})
    except _InterruptError:
        raise KeyboardInterrupt from None
    except BaseExceptionGroup as group:
        raise _sole(group) from group


class _InterruptError(Exception):
    """SIGINT came. In an event loop KeyboardInterrupt itself would not be cleaned up after."""


async def _interruptible(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main`; on SIGINT cancel its scope.

    Left to itself, asyncio would call `Task.cancel` once, and `asyncio.timeout(0)`, which redis-py
    awaits before each command, now and then takes that for its own timeout: Ctrl-C without effect.
    A scope cancels until it is obeyed.
    """
    async with anyio.create_task_group() as tasks:

        async def listen(*, task_status: TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT) as signals:
                task_status.started()
                await anext(signals)
            tasks.cancel_scope.cancel()

        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            await tasks.start(listen)
        result = await main()
        tasks.cancel_scope.cancel()
        return result
    raise _InterruptError


def _sole(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
