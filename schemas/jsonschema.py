"""JSON Schemas of entries, events and records, generated from the structs into `schemas/json/`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from schemas.audio import AudioEntry, SessionEntry
from schemas.turns import DeadLetter, Event, TurnEntry, WorkerRecord

DIRECTORY = Path(__file__).parent / "json"

_ROOTS: dict[str, Any] = {
    "session-entry": SessionEntry,
    "audio-entry": AudioEntry,
    "turn-entry": TurnEntry,
    "turn-event": Event,
    "dead-entry": DeadLetter,
    "worker-record": WorkerRecord,
}

_ABOUT = {
    "session-entry": "Fields of an entry on `stt:sessions`, decoded. On the wire every value is a "
    "string; `keyterms`, `providers` and `metadata` are JSON; the settings of `config` are fields "
    "of their own.",
    "audio-entry": "Fields of an entry on `stt:{LANE}:audio:SESSION`, decoded. On the wire `audio` "
    "is raw bytes (base64 only in this JSON form), `config` is JSON, `end` is any value.",
    "turn-entry": "Fields of an entry on `stt:{LANE}:turns`; `event` is JSON on the wire.",
    "turn-event": "The JSON in field `event` of an entry on `stt:{LANE}:turns`.",
    "dead-entry": "Fields of an entry on `stt:dead`, as strings.",
    "worker-record": "The JSON values of the hash `stt:workers`.",
}


def generate() -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of every schema."""
    for name, root in _ROOTS.items():
        (schema,), components = msgspec.json.schema_components(
            (root,), ref_template="#/$defs/{name}"
        )
        document = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": name,
            "description": _ABOUT[name],
            **schema,
            "$defs": components,
        }
        yield f"{name}.json", msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write(directory: Path = DIRECTORY) -> list[Path]:
    """Write every schema below `directory` and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in generate():
        path = directory / name
        path.write_bytes(content)
        paths.append(path)
    return paths
