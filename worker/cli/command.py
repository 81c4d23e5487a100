"""Shared code of the commands of `turnbus`, each of which is a module.

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
import msgspec
from anyio.abc import TaskStatus
from msgspec import inspect

from worker.errors import TooFewFilesError, TurnbusError, leaves
from worker.printable import printable, without_keys
from worker.settings import KEY_ADVICE, Settings, load
from worker.values import from_text

log = logging.getLogger(__name__)

EVENT_LOOP_DESCRIPTORS = 12
"""Minimum free descriptors before a command starts an event loop."""

T = TypeVar("T")
P = TypeVar("P", bound=msgspec.Struct)
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
HelpFormatter = argparse.RawDescriptionHelpFormatter


class Parser(argparse.ArgumentParser):
    """A parser that requires full option names and prints no API key."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        # An abbreviation may match another option: `--api-key` matches `--api-key-file`.
        super().__init__(allow_abbrev=False, **options)

    def parse_args(  # type: ignore[override]  # of the overloads, only what is used
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Parse a command line; exit with 2 if it is invalid."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(_about_unknown(unknown))
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error; exit with 2."""
        super().error(without_keys(printable(message)))


def _about_unknown(arguments: Sequence[str]) -> str:
    """Describe unknown arguments. The value of an option may be a secret."""
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

    The help shows `about` and `examples` with their line breaks.
    """
    parser = subparsers.add_parser(
        name, description=about, epilog=_examples(examples), formatter_class=HelpFormatter
    )
    parser.set_defaults(run=run)
    return parser


def program_parser(
    program: str, run: Callable[[argparse.Namespace], int], *, about: str, examples: str
) -> Parser:
    """Return the parser of a separate program, in the format of a command."""
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
        help="TOML file with settings; TURNBUS_* variables override it",
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


def add_plan_options(
    parser: argparse.ArgumentParser, plan: type[msgspec.Struct], metavar: str, /, **about: str
) -> None:
    """Add an option for each of these fields of a plan, with the field's type and default."""
    fields = {field.name: field for field in msgspec.structs.fields(plan)}
    for name, text in about.items():
        field = fields[name]
        parser.add_argument(
            "--" + name.replace("_", "-"),
            metavar=metavar,
            type=argument_type(field.type, _range(field.type)),
            default=field.default,
            help=text if field.default is None else f"{text} (default %(default)g)",
        )


def plan_of(arguments: argparse.Namespace, plan: type[P]) -> P:
    """Return a plan with the values of its options."""
    return plan(**{name: getattr(arguments, name) for name in plan.__struct_fields__})


def _range(kind: object) -> str:
    """Describe the range of a number's type, as a phrase after "must be"."""
    info = inspect.type_info(kind)
    if isinstance(info, inspect.UnionType):
        info = info.types[0]
    if not isinstance(info, inspect.IntType | inspect.FloatType):
        raise TypeError(f"{kind} is not a number")
    if info.multiple_of:
        return f"a multiple of {info.multiple_of} up to {info.le}"
    if info.le is not None:
        return f"{info.ge} to {info.le}"
    if info.ge is not None:
        return f"{info.ge} or more"
    return "a whole number" if info.gt is None else f"more than {info.gt}"


def choice(text: str) -> str:
    """Normalize one of several names: an argparse `type` for use with `choices`."""
    return text.strip().lower()


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run an async command on asyncio, with uvloop if it is installed.

    An exception group is replaced by its first error if it holds one, or only errors that fit in a
    line. SIGINT cancels `main` and raises KeyboardInterrupt after cleanup; a second SIGINT does not
    wait. A command may install its own SIGINT handler. An ignored SIGINT, as in the background of a
    script, stays ignored. Raises `TooFewFilesError` if no event loop can run.
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
    """Raise `TooFewFilesError` if descriptors for an event loop are missing: uvloop would abort."""
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
    """SIGINT was received. KeyboardInterrupt itself would skip the cleanup of an event loop."""


async def _interruptible(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main`; on SIGINT cancel its scope.

    asyncio alone calls `Task.cancel` once. redis-py awaits `asyncio.timeout(0)` before each
    command, which sometimes takes that for its own timeout, so Ctrl-C would have no effect. A scope
    cancels repeatedly.
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
