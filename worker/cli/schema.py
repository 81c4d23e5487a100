"""`turnbus schema`: print or write the JSON Schemas of entries, events and records."""

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
from msgspec import Raw

from schemas.jsonschema import generate, write
from worker.cli.command import Command, Option
from worker.errors import TurnbusError


class Schema(Command):
    """Print the JSON Schemas of bus entries and turn events, as one object by name.

    examples:
      turnbus schema | jq '."turn-event"'
      turnbus schema --write schemas/json
    """

    write: Annotated[Path | None, Option("write a file for each instead", "DIR", parse=Path)] = None
    json: ClassVar[bool] = True

    def run(self) -> int:
        """Print or write the schemas."""
        if self.write is None:
            documents = {name.removesuffix(".json"): Raw(text) for name, text in generate()}
            print(msgspec.json.format(msgspec.json.encode(documents)).decode())
            return 0
        try:
            paths = write(self.write)
        except OSError as error:
            raise TurnbusError(f"{self.write}: cannot be written: {error.strerror}") from error
        print(*paths, sep="\n")
        return 0
