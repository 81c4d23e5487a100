"""The committed JSON Schemas are those of the code."""

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


def test_none_is_missing_or_left_over() -> None:
    assert {path.name for path in DIRECTORY.iterdir()} == GENERATED.keys()


@pytest.mark.parametrize("name", GENERATED)
def test_committed_is_generated(name: str) -> None:
    advice = "run `turnbus schema --write schemas/json`"
    assert (DIRECTORY / name).read_bytes() == GENERATED[name], advice


@pytest.mark.parametrize("name", GENERATED)
def test_every_reference_resolves(name: str) -> None:
    document = msgspec.json.decode(GENERATED[name])
    targets = {f"#/$defs/{definition}" for definition in document["$defs"]}
    assert set(references(document)) <= targets


def test_write(tmp_path: Path) -> None:
    paths = write(tmp_path / "new" / "place")
    assert {path.name: path.read_bytes() for path in paths} == GENERATED
