"""The commands of `turnbus`, a module each, and what they share.

A command module has `add_parser(subparsers)`, which ends in `add_command`.
"""

import argparse
import errno
import importlib.util
import logging
import os
import signal
import textwrap
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import anyio
from anyio.abc import TaskStatus

from worker.errors import TooFewFilesError, TurnbusError, leaves
from worker.printable import printable, without_keys
from worker.settings import KEY_ADVICE, Settings, load
from worker.values import from_text

log = logging.getLogger(__name__)

EVENT_LOOP_DESCRIPTORS = 12
"""Descriptors that a command must be able to open before it starts an event loop."""

T = TypeVar("T")
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
HelpFormatter = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """A parser that takes options by their whole names, and repeats no API key."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        # An abbreviation may be taken for another option: `--api-key` for `--api-key-file`.
        super().__init__(allow_abbrev=False, **options)

    def parse_args(  # type: ignore[override]  # of the overloads, only what is used
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse a command line; exit with 2 if that cannot be done."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(_about_unknown(unknown))
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong; exit with 2."""
        super().error(without_keys(printable(message)))


def _about_unknown(arguments: Sequence[str]) -> str:
    """Word arguments that are not known. What follows an option may be a secret."""
    options = [each.partition("=")[0] for each in arguments if each.startswith("-")]
    if any(option.endswith("api-key") for option in options):
        return f"{options[0]}: a key is not an option; {KEY_ADVICE}"
    return f"unrecognized arguments: {' '.join(options or arguments)}"


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
        name, description=about, epilog=_examples(examples), formatter_class=HelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def program_parser(
    program: str, run: Callable[[argparse.Namespace], int], *, about: str, examples: str
) -> Parser:
    """Return the parser of a program of its own, shown and run as a command is."""
    parser = Parser(
        prog=program, description=about, epilog=_examples(examples), formatter_class=HelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def _examples(lines: str) -> str:
    return "examples:\n" + textwrap.indent(lines.strip(), "  ")


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
            return from_text(text, kind)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {must_be}") from None

    return convert


def choice(text: str) -> str:
    """Return an argument that is one of several names: the argparse `type` beside `choices`."""
    return text.strip().lower()


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run an async command on asyncio, with uvloop where it is installed.

    What a task group raises is raised as itself if it is one error, or several that can each be
    reported in a line: then it is the first. SIGINT cancels `main` and raises
    KeyboardInterrupt once it has cleaned up; a second one does not wait for that. A command that
    receives SIGINT itself from some point on is left alone from there; where SIGINT is ignored, as
    in the background of a script, it stays so. Raises `TooFewFilesError` if no event loop can run.
    """
    _check_descriptors()
    uvloop = importlib.util.find_spec("uvloop") is not None
    try:
        return anyio.run(_interruptible, main, backend_options={"use_uvloop": uvloop})
    except _InterruptError:
        raise KeyboardInterrupt from None
    except BaseExceptionGroup as group:
        errors = leaves(group)
        if len(errors) > 1 and not all(isinstance(e, TurnbusError | OSError) for e in errors):
            raise
        log.debug("the command failed", exc_info=group)
        raise errors[0] from group


def _check_descriptors() -> None:
    """Raise `TooFewFilesError` without the descriptors of an event loop: uvloop would abort."""
    opened: list[int] = []
    try:
        while len(opened) < EVENT_LOOP_DESCRIPTORS:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        advice = "raise the limit of open files (ulimit -n)"
        raise TooFewFilesError(f"this command cannot run: {error.strerror}; {advice}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


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
