"""Turn events and the entries that carry them."""

from types import UnionType
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import (
    Encoding,
    Event,
    TurnEntry,
    decode_event,
    decode_turn_entry,
    encode_event,
    event_type,
)
from schemas.turns import EventBase, Usage

assert isinstance(Event, UnionType)
KINDS: tuple[Any, ...] = get_args(Event)
COMMON = set(EventBase.__struct_fields__)
OPTIONAL = {"group", "start_ms", "end_ms", "words", "usage"}


def values(kind: Any) -> "st.SearchStrategy[Any]":
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is Encoding:
        return st.sampled_from(Encoding)
    if isinstance(kind, UnionType) and msgspec.UnsetType in get_args(kind):
        (given_kind,) = set(get_args(kind)) - {msgspec.UnsetType}
        return values(given_kind) | st.just(msgspec.UNSET)
    if get_origin(kind) is tuple:
        return st.lists(values(get_args(kind)[0]), max_size=2).map(tuple)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return st.builds(kind, **{field.name: values(field.type) for field in fields})
    if kind == dict[str, Usage]:
        return st.dictionaries(st.text(max_size=3), values(Usage), max_size=2)
    if get_origin(kind) is dict:
        return st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.none())
    return {
        str: st.text(max_size=10),
        int: st.integers(0, 2**53),
        float: st.floats(0, 2**40),
        bool: st.booleans(),
    }[kind]


events: "st.SearchStrategy[Event]" = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(
        kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)}
    )
)


@given(events)
def test_event_round_trip(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


@given(events, st.none() | st.text(min_size=1, max_size=10))
def test_turn_entry_round_trip(event: Event, traceparent: str | None) -> None:
    fields = {
        b"session": event.session.encode(),
        b"type": event_type(event).encode(),
        b"event": encode_event(event),
    }
    if traceparent is not None:
        fields[b"traceparent"] = traceparent.encode()
    assert decode_turn_entry(fields) == TurnEntry(
        session=event.session, type=event_type(event), event=event, traceparent=traceparent
    )


@given(events)
def test_event_has_type_and_common_fields(event: Event) -> None:
    written = msgspec.json.decode(encode_event(event))
    assert written["type"] == event_type(event)
    assert written.keys() >= COMMON - {"group"}
    assert ("group" in written) == (event.group is not msgspec.UNSET)


def test_event_types() -> None:
    assert sorted(kind.__struct_config__.tag for kind in KINDS) == [
        "audio.gap",
        "session.ended",
        "session.error",
        "session.mark",
        "session.started",
        "turn.eager_end",
        "turn.end",
        "turn.resume",
        "turn.start",
        "turn.update",
    ]


@given(events, st.data())
def test_event_with_missing_field_is_refused(event: Event, data: st.DataObject) -> None:
    written = msgspec.json.decode(encode_event(event))
    del written[data.draw(st.sampled_from(sorted(written.keys() - OPTIONAL)))]
    with pytest.raises(msgspec.ValidationError):
        decode_event(msgspec.json.encode(written))


@given(events)
def test_fields_of_later_versions_are_ignored(event: Event) -> None:
    written = msgspec.json.decode(encode_event(event)) | {"later": [1]}
    assert decode_event(msgspec.json.encode(written)) == event


TURN_START = {
    b"session": b"s",
    b"type": b"turn.start",
    b"event": b'{"type":"turn.start","session":"s","run":"1-1","seq":1,"at":1,"audio_ms":0,'
    b'"provider":"p","request_id":"r","connection":1,"turn":0}',
}


@pytest.mark.parametrize("field", ["session", "type", "event"])
def test_entry_with_missing_field_is_refused(field: str) -> None:
    fields = dict(TURN_START)
    assert decode_turn_entry(fields).type == "turn.start"
    del fields[field.encode()]
    with pytest.raises(msgspec.ValidationError, match=field):
        decode_turn_entry(fields)


@pytest.mark.parametrize(
    "changed",
    [
        {b"session": b"\xff"},
        {b"event": b'{"type":"turn.start","session":"\xff"}'},
        {b"event": b'{"\xff":1}'},
        {b"event": b'{"type":"turn.start","later":' + b"[" * 100_000},
    ],
    ids=["session", "value", "name", "deep"],
)
def test_entry_with_invalid_utf8_is_refused(changed: dict[bytes, bytes]) -> None:
    fields = dict(TURN_START)
    with pytest.raises(msgspec.DecodeError):
        decode_turn_entry(fields | changed)
