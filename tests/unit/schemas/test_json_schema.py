"""The committed JSON Schemas match the code."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from schemas.jsonschema import DIRECTORY, generate, write

GENERATED = dict(generate())


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_schemas_are_complete() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == GENERATED.keys()


@pytest.mark.parametrize("name", GENERATED)
def test_committed_schemas_match_code(name: str) -> None:
    advice = "run `turnbus schema --write schemas/json`"
    assert (DIRECTORY / name).read_bytes() == GENERATED[name], advice


@pytest.mark.parametrize("name", GENERATED)
def test_schema_references_resolve(name: str) -> None:
    document = msgspec.json.decode(GENERATED[name])
    targets = {f"#/$defs/{definition}" for definition in document["$defs"]}
    assert set(references(document)) <= targets


def test_schemas_are_written(tmp_path: Path) -> None:
    paths = write(tmp_path / "new" / "place")
    assert {path.name: path.read_bytes() for path in paths} == GENERATED
