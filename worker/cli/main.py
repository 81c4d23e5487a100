"""The `turnbus` command.

Exit codes: 0 ok, 1 failed (one line on stderr says why), 2 bad usage or settings, 130 interrupted.

This module imports what Python has loaded anyway, and the rest inside `main`: Ctrl-C while modules
are imported, the first tenths of a second, would otherwise end in a traceback.
"""

import os
import sys

TYPE_CHECKING = False  # `typing` itself takes longer to import than all else here
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence

# Each is a module of `worker.cli` (with `_` for `-`) that has `add_parser(subparsers)`. Only
# the one that was asked for is imported: help should not wait for a Redis client or a recognizer.
_COMMANDS = {
    "run": "the worker: take sessions, transcribe their audio, publish their turns",
    "demo": "everything on this machine: real speech in, turns out, live",
    "push": "send a sound file or raw audio into a session, in real time",
    "watch": "follow turns as they are published",
    "sessions": "who owns which session, how late and how far it is",
    "drain": "empty one worker: it hands its sessions on and takes no new ones",
    "dead": "entries that were refused, and why; announce one again",
    "end": "end one session, as its producer would",
    "check": "settings, Redis, rights and the API key: fit to run?",
    "stt-server": "the local turns server, wire-compatible with the service",
    "bench": "what a worker costs on this machine, and how late its turns are",
    "schema": "print or write the JSON Schemas of everything on the bus",
}

_LOCAL_PARTS = {"av", "numpy", "onnxruntime", "psutil", "rich", "soxr"}
"""Modules that only `turnbus[local]` brings."""

_EPILOG = """\
Settings are environment variables TURNBUS_*, or a TOML file given with --config.

examples:
  turnbus check
  turnbus push call.wav --session call-1
  turnbus watch --session call-1
"""


def main(
    argv: "Sequence[str] | None" = None,
    make_parser: "Callable[[Sequence[str]], ArgumentParser] | None" = None,
) -> int:
    """Run the command line and return its exit code.

    Without `argv` it is that of the process, whose standard streams are set up first. Programs
    beside `turnbus` pass what makes their own parser; its defaults name `run`.
    """
    if os.getpid() == 1:
        _exit_on_sigterm()
    try:
        if argv is not None:
            return _run(argv, make_parser or _parser)
        from worker import standard_streams

        standard_streams.set_up()
        return _run(sys.argv[1:], make_parser or _parser)
    except KeyboardInterrupt:
        return 130


def _exit_on_sigterm() -> None:
    """End on SIGTERM, until a command has its own way: a container's first process ignores it else.

    One that is told to stop while it starts would go on, take sessions, and be killed.
    """
    import signal

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _run(argv: "Sequence[str]", make_parser: "Callable[[Sequence[str]], ArgumentParser]") -> int:
    """Run the command line; word what goes wrong."""
    from worker.errors import OutputFailedError, SettingsError, TurnbusError
    from worker.extras import how_to_install

    try:
        return _run_command(argv, make_parser)
    except SettingsError as error:
        for fault in error.faults:
            _say(fault)
        return 2
    except OutputFailedError as error:
        if not error.reader_is_gone:
            _say(str(error))
        return 1
    except TurnbusError as error:
        _say(str(error))
        return 1
    except OSError as error:
        import logging

        logging.getLogger(__name__).debug("the command failed", exc_info=error)
        _say(_in_words(error))
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _LOCAL_PARTS:
            raise
        _say(f"this command needs {error.name}; {how_to_install('local')}")
        return 1


def _run_command(
    argv: "Sequence[str]", make_parser: "Callable[[Sequence[str]], ArgumentParser]"
) -> int:
    """Run the command; have written all of its output when it ends, by `SystemExit` too."""
    from worker import otel
    from worker.standard_streams import escape_non_ascii

    otel.tidy(os.environ)
    try:
        arguments = make_parser(argv).parse_args(argv)
        if getattr(arguments, "json", False):
            escape_non_ascii(sys.stdout)
        code: int = arguments.run(arguments)
    finally:
        sys.stdout.flush()
    return code


def _say(fault: str) -> None:
    """Print a line about what went wrong, which may quote what others wrote."""
    from worker.printable import printable, without_keys

    lines = map(printable, without_keys(fault).split("\n"))
    print("turnbus:", "\n".join(lines), file=sys.stderr)


def _in_words(error: OSError) -> str:
    """Word an error of the operating system that nothing else has worded."""
    if "No usable temporary directory" in str(error.strerror):
        return (
            "there is no temporary directory that can be written, or its disk is full; "
            "set TMPDIR to one"
        )
    what = "" if error.filename is None else f"{error.filename}: "
    return what + (error.strerror or str(error) or type(error).__name__)


def _parser(argv: "Sequence[str]") -> "ArgumentParser":
    from importlib import import_module
    from importlib.metadata import version

    from worker.cli.command import HelpFormatter, Parser

    parser = Parser(
        prog="turnbus",
        description="Live audio in on Redis Streams, speech turns out.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"turnbus {version('turnbus')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        if name == asked:
            import_module(f"worker.cli.{name.replace('-', '_')}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser
