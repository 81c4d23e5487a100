"""Session entries from what a producer says in text: URL parameters, or JSON of its own."""

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas import EntryError, SessionEntry, TurnConfig, decode_session
from worker.ingest.protocols import Query
from worker.ingest.protocols.messages import decode_json
from worker.ingest.records import ProtocolError

SETTINGS = frozenset(SessionEntry.__struct_fields__) - {
    "encoding",
    "sample_rate",
    "config",
    "metadata",
} | frozenset(TurnConfig.__struct_fields__)
"""Fields of a session entry that a producer may set by name; others come from the wire."""

SECRETS = frozenset({"token"})
"""Names whose values stay out of the metadata, which every consumer of events can read."""

_any_decoder = msgspec.json.Decoder(Any)


def split_query(query: Query) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split URL parameters into settings and others, without secrets.

    A repeated `keyterm` is a setting too. The last value of any other parameter counts.
    """
    settings: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, values in query.items():
        if not values or name in SECRETS:
            continue
        if name == "keyterm":
            if "keyterms" in query:
                raise ProtocolError("give either `keyterms` or `keyterm`, not both")
            settings["keyterms"] = list(values)
        else:
            (settings if name in SETTINGS else others)[name] = values[-1]
    return settings, others


def new_session(
    settings: Mapping[str, Any], metadata: Mapping[str, Any], encoding: str, sample_rate: object
) -> SessionEntry:
    """Return an entry that every worker accepts. Raises `ProtocolError` that names the field.

    Settings are texts or JSON values; `keyterms` may be a list that is separated by commas.
    """
    try:
        texts = {name: _text(value) for name, value in settings.items() if value is not None}
        if "keyterms" in texts:
            texts["keyterms"] = _keyterms(texts["keyterms"])
        texts |= {"encoding": encoding, "sample_rate": _text(sample_rate)}
        fields = {name.encode(): text.encode() for name, text in texts.items()}
        return decode_session(fields | {b"metadata": msgspec.json.encode(metadata)})
    except EntryError as error:
        raise ProtocolError(str(error)) from None
    except (RecursionError, UnicodeEncodeError):
        raise ProtocolError("a session field nests too deep or is not UTF-8") from None


def new_sessions(
    settings: Mapping[str, Any],
    metadata: Mapping[str, Any],
    encoding: str,
    sample_rate: object,
    channels: int,
) -> tuple[SessionEntry, ...]:
    """Return one session, or `ID-a` and `ID-b` of one group for two channels."""
    if channels == 1:
        return (new_session(settings, metadata, encoding, sample_rate),)
    session = settings["session"]
    if not isinstance(session, str):
        raise ProtocolError("field `session`: must be text")
    legs = [
        {"session": "", "group": session} | dict(settings) | {"session": f"{session}-{leg}"}
        for leg in "ab"
    ]
    return tuple(new_session(leg, metadata, encoding, sample_rate) for leg in legs)


def as_object(value: object, name: str) -> dict[str, Any]:
    """Return a JSON object that a URL holds as text. Raises `ProtocolError`."""
    if isinstance(value, str):
        value = decode_json(_any_decoder, value, f"`{name}`")
    if not isinstance(value, dict):
        raise ProtocolError(f"`{name}` must be a JSON object")
    return value


def count_channels(value: object) -> int:
    """Return a number of channels that is written as text or JSON. Raises `ProtocolError`."""
    for count in (1, 2):
        if value in (count, str(count)):
            return count
    raise ProtocolError("`channels` must be 1 or 2")


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _keyterms(text: str) -> str:
    """Return a list of keyterms as JSON."""
    if text.lstrip().startswith("["):
        return text
    terms = [term for part in text.split(",") if (term := part.strip())]
    return msgspec.json.encode(terms).decode()
