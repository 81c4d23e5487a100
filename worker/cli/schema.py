"""`turnbus schema`: print or write the JSON Schemas of everything on the bus."""

from argparse import Namespace
from pathlib import Path

import msgspec
from msgspec import Raw

from schemas.jsonschema import generate, write
from worker.cli.command import Subparsers, add_command
from worker.errors import TurnbusError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "schema",
        run,
        about="Print the JSON Schemas of bus entries and turn events, as one object by name.",
        examples="turnbus schema | jq '.\"turn-event\"'\nturnbus schema --write schemas/json",
    )
    parser.set_defaults(json=True)
    parser.add_argument("--write", type=Path, metavar="DIR", help="write a file for each instead")


def run(arguments: Namespace) -> int:
    """Print or write the schemas."""
    if arguments.write is None:
        documents = {name.removesuffix(".json"): Raw(text) for name, text in generate()}
        print(msgspec.json.format(msgspec.json.encode(documents)).decode())
        return 0
    try:
        paths = write(arguments.write)
    except OSError as error:
        raise TurnbusError(f"{arguments.write}: cannot be written: {error.strerror}") from error
    for path in paths:
        print(path)
    return 0
