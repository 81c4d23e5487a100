"""The base of the commands of `turnbus`, their options, and how they run.

A command is a struct: its docstring is the help, and its fields are the options.
"""

import argparse
import errno
import importlib.util
import inspect
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias, TypeVar, get_args, get_origin

import anyio
import msgspec
from anyio.abc import TaskStatus
from msgspec.structs import FieldInfo, fields

from schemas.validation import describe_type
from worker.errors import TurnbusError, leaves
from worker.settings import KEY_ADVICE
from worker.text import printable, without_keys
from worker.values import choices, from_text

log = logging.getLogger(__name__)

EVENT_LOOP_DESCRIPTORS = 12
"""Minimum free descriptors before a command starts an event loop."""

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """An option, the last of the annotations of a command's field.

    `parse` reads a value, and raises ValueError; without it, the type of the field does. The help
    shows the default of the field, if that is a number or a text and `help` has none.
    """

    help: str
    metavar: str | None = None
    group: str | None = None
    choices: Iterable[str] | None = None
    parse: Callable[[str], object] | None = None


class Argument(Option):
    """A positional argument."""


Config: TypeAlias = Annotated[
    Path | None,
    Option("TOML file with settings; TURNBUS_* variables override it", "FILE", parse=Path),
]


class Parser(argparse.ArgumentParser):
    """A parser that requires full option names and prints no API key."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        # An abbreviation may match another option: `--api-key` matches `--api-key-file`.
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def parse_command(self, argv: Sequence[str]) -> "Command":
        """Return the command of a command line; exit with 2 if it is invalid."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(_about_unknown(unknown))
        command: type[Command] = arguments.command
        return command(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in vars(arguments).items()
                if name in command.__struct_fields__
            }
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error; exit with 2."""
        super().error(without_keys(printable(message)))


def _about_unknown(arguments: Sequence[str]) -> str:
    """Describe unknown arguments. The value of an option may be a secret."""
    options = [each.partition("=")[0] for each in arguments if each.startswith("-")]
    if any(option.endswith("api-key") for option in options):
        return f"{options[0]}: a key is not an option; {KEY_ADVICE}"
    return f"unrecognized arguments: {' '.join(options or arguments)}"


class Command(msgspec.Struct):
    """Base of the commands."""

    def run(self) -> int:
        """Run the command and return the exit code."""
        raise NotImplementedError

    @classmethod
    def parser(cls, program: str) -> Parser:
        """Return the parser of this command as a separate program."""
        parser = Parser(prog=program)
        cls.add_to(parser)
        return parser

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add the help and the options to a parser."""
        about, _, examples = inspect.cleandoc(cls.__doc__ or "").partition("examples:\n")
        parser.description, parser.epilog = about.rstrip(), f"examples:\n{examples}"
        parser.set_defaults(command=cls)
        groups: dict[str | None, argparse._ActionsContainer] = {None: parser}
        for field in sorted(fields(cls), key=lambda field: field.name not in cls.__annotations__):
            option: Option = field.type.__metadata__[-1]
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            _add_option(groups[option.group], field, option)


def _add_option(to: argparse._ActionsContainer, field: FieldInfo, option: Option) -> None:
    """Add an option. If it is not on the command line, the default of its field applies."""
    kind = field.type.__origin__
    several = get_origin(kind) is tuple
    how: dict[str, Any] = {"help": _help(option, field.default)}
    if kind in (bool, bool | None):
        how["action"] = "store_true" if field.default is False else argparse.BooleanOptionalAction
    else:
        how["metavar"] = option.metavar
        how["type"] = _reader(get_args(kind)[0] if several else field.type, option)
        how["choices"] = option.choices or choices(field.type)
    if isinstance(option, Argument):
        if not field.required:
            how |= {"nargs": "*" if several else "?", "default": field.default}
        to.add_argument(field.name, **how)
        return
    if several:
        how["action"] = "append"
    name = f"--{field.name.replace('_', '-')}"
    to.add_argument(name, required=field.required, default=argparse.SUPPRESS, **how)


def _help(option: Option, default: object) -> str:
    unsaid = isinstance(default, bool | tuple | None) or default is msgspec.NODEFAULT
    if unsaid or "(default" in option.help:
        return option.help
    return f"{option.help} (default {f'{default:g}' if isinstance(default, float) else default})"


def _reader(kind: Any, option: Option) -> Callable[[str], object]:  # noqa: ANN401 - a type
    """Return an argparse `type` that reads a value of an option."""

    def read(text: str) -> object:
        try:
            return option.parse(text) if option.parse else from_text(text, kind)
        except ValueError as error:
            fault = str(error) if option.parse else f"must be {describe_type(kind)}"
            raise argparse.ArgumentTypeError(fault) from None

    return read


def print_json(*values: object) -> None:
    """Print each value as a line of JSON."""
    for value in values:
        print(msgspec.json.encode(value).decode(), flush=True)


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run an async command on asyncio, with uvloop if it is installed.

    An exception group is replaced by its first error if it holds one, or only errors that fit in a
    line. SIGINT cancels `main` and raises KeyboardInterrupt after cleanup; a second SIGINT does not
    wait. A command may install its own SIGINT handler. An ignored SIGINT, as in the background of a
    script, stays ignored. Raises `TurnbusError` if no event loop can run.
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
    """Raise `TurnbusError` if descriptors for an event loop are missing: uvloop would abort."""
    opened: list[int] = []
    try:
        while len(opened) < EVENT_LOOP_DESCRIPTORS:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        advice = "raise the limit of open files (ulimit -n)"
        raise TurnbusError(f"this command cannot run: {error.strerror}; {advice}") from error
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
