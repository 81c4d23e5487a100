"""The `turnbus` command.

Exit codes: 0 ok, 1 failed (reason on stderr), 2 bad usage or settings, 130 interrupted.

This module imports only what Python has already loaded, and the rest inside `main`. Otherwise
Ctrl-C during the imports, the first tenths of a second, would print a traceback.
"""

import os
import sys

TYPE_CHECKING = False  # `typing` itself takes longer to import than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from worker.cli.command import Command, Parser

# `stt-server` is the class `SttServer` in the module `worker.cli.stt_server`; `_OPERATIONS` share
# one. Only the requested one is imported: help should not wait for a Redis client or a recognizer.
_COMMANDS = {
    "run": "run a worker: take sessions, transcribe their audio, publish their turns",
    "ingest": "run a gateway: sockets of carriers, PBXs and browsers become sessions",
    "demo": "run everything on this machine: real speech in, turns out, live",
    "dev": "run everything on this machine until Ctrl-C, with a page to speak to",
    "push": "send a sound file or raw audio into a session, in real time",
    "watch": "follow turns as they are published",
    "sessions": "list sessions: owner, state, lag, turns",
    "drain": "empty one worker: it releases its sessions and takes no new ones",
    "dead": "list rejected entries and the reasons; announce one again",
    "end": "end one session, as its producer would",
    "token": "print a token by which a client opens one session at the gateway",
    "check": "check the settings, Redis, its permissions and the API key",
    "stt-server": "run the local turns server, wire-compatible with the provider",
    "bench": "measure what a worker costs on this machine, and how late its turns are",
    "schema": "print or write the JSON Schemas of entries, events and records",
}

_OPERATIONS = {"sessions", "drain", "dead", "end"}

_LOCAL_PARTS = {"av", "numpy", "onnxruntime", "psutil", "rich", "soxr"}
"""Modules that only `turnbus[local]` installs."""

_EPILOG = """\
Settings are environment variables TURNBUS_*, or a TOML file given with --config.

examples:
  turnbus check
  turnbus push call.wav --session call-1
  turnbus watch --session call-1
"""


def main(
    argv: "Sequence[str] | None" = None,
    make_parser: "Callable[[Sequence[str]], Parser] | None" = None,
) -> int:
    """Run the command line and return its exit code.

    Without `argv`, it sets up the standard streams and uses the arguments of the process. Other
    programs pass `make_parser`.
    """
    if os.getpid() == 1:
        _exit_on_sigterm()
    try:
        if argv is None:
            from worker import standard_streams

            standard_streams.set_up()
            argv = sys.argv[1:]
        return _run(argv, make_parser or _parser)
    except KeyboardInterrupt:
        return 130


def _exit_on_sigterm() -> None:
    """Exit on SIGTERM until a command installs its own handler.

    The first process of a container ignores SIGTERM by default. A worker that is stopped while it
    starts would continue, take sessions, and be killed.
    """
    import signal

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _run(argv: "Sequence[str]", make_parser: "Callable[[Sequence[str]], Parser]") -> int:
    """Run the command line and report its errors."""
    from worker.errors import OutputFailedError, SettingsError, TurnbusError
    from worker.text import install_hint

    try:
        return _run_command(argv, make_parser)
    except SettingsError as error:
        for line in error.problems:
            _report(line)
        return 2
    except TurnbusError as error:
        if not (isinstance(error, OutputFailedError) and error.reader_is_gone):
            _report(str(error))
        return 1
    except OSError as error:
        import logging

        logging.getLogger(__name__).debug("the command failed", exc_info=error)
        _report(_describe(error))
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _LOCAL_PARTS:
            raise
        _report(f"this command needs {error.name}; {install_hint('local')}")
        return 1


def _run_command(argv: "Sequence[str]", make_parser: "Callable[[Sequence[str]], Parser]") -> int:
    """Run the command and flush its output, also on `SystemExit`."""
    from worker.standard_streams import escape_non_ascii
    from worker.telemetry.environment import clean_variables

    clean_variables(os.environ)
    try:
        command = make_parser(argv).parse_command(argv)
        if getattr(command, "json", False):
            escape_non_ascii(sys.stdout)
        return command.run()
    finally:
        sys.stdout.flush()


def _report(message: str) -> None:
    """Print an error message, which may quote untrusted text."""
    from worker.text import printable, without_keys

    lines = map(printable, without_keys(message).split("\n"))
    print("turnbus:", "\n".join(lines), file=sys.stderr)


def _describe(error: OSError) -> str:
    """Describe an operating system error that no other code has described."""
    if "No usable temporary directory" in str(error.strerror):
        return "no temporary directory is writable, or its disk is full; set TMPDIR"
    what = "" if error.filename is None else f"{error.filename}: "
    return what + (error.strerror or str(error) or type(error).__name__)


def _parser(argv: "Sequence[str]") -> "Parser":
    from importlib import import_module
    from importlib.metadata import version

    from worker.cli.command import Parser

    parser = Parser(
        prog="turnbus",
        description="Live audio in on Redis Streams, speech turns out.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"turnbus {version('turnbus')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    requested = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        if name == requested:
            module = "operations" if name in _OPERATIONS else name.replace("-", "_")
            command: type[Command] = getattr(
                import_module(f"worker.cli.{module}"), name.title().replace("-", "")
            )
            command.add_to(subparser)
    return parser
