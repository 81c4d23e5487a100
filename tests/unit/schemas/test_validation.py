"""Validation errors: worded for the author of the entry, and without the invalid value."""

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from schemas import Encoding, EntryError, SessionEntry, TurnConfig, decode_audio, decode_session
from schemas.audio import Fields
from schemas.validation import describe_type, from_validation_error

GOOD = {b"session": b"call-1", b"encoding": b"pcm_s16le", b"sample_rate": b"16000"}
ID = "1 to 128 of A-Z a-z 0-9 . _ : -; one id per call, a UUID say"
RATE = "a whole number from 8000 to 192000 Hz"
ENCODINGS = "one of pcm_s16le, pcm_s32le, pcm_f16le, pcm_f32le, pcm_mulaw, pcm_alaw"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Meta(ge=1, le=9)], "a whole number from 1 to 9"),
        (Annotated[int, Meta(ge=1, le=9, description="Hz")], "a whole number from 1 to 9 Hz"),
        (Annotated[int, Meta(ge=1, le=10**9)], "a whole number from 1 to 1000000000"),
        (int, "a whole number"),
        (Annotated[int, Meta(ge=0)], "a whole number of at least 0"),
        (Annotated[float, Meta(gt=0)], "a number above 0"),
        (float | None, "a number"),
        (Annotated[float, Meta(ge=0.5, le=11_200)] | None, "a number from 0.5 to 11200"),
        (Annotated[str, Meta(min_length=1, max_length=8)] | None, "text of 1 to 8 characters"),
        (Annotated[str, Meta(max_length=8)], "text of at most 8 characters"),
        (Annotated[str, Meta(pattern="^a$", description="an a")], "an a"),
        (Annotated[tuple[str, ...], Meta(max_length=3)], "a JSON array of at most 3 texts"),
        (dict[str, object], "a JSON object"),
        (Literal["lane", "session"], "one of lane, session"),
        (Encoding, ENCODINGS),
        (bool, "true or false"),
        (str, "text"),
    ],
)
def test_type_description(kind: object, words: str) -> None:
    assert describe_type(kind) == words


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({b"session": b"a b"}, f"field `session`: must be {ID}"),
        ({b"lane": b"a/b"}, "field `lane`: must be 1 to 32 of A-Z a-z 0-9 _ -"),
        ({b"out": b"both"}, "field `out`: must be one of lane, session"),
        ({b"encoding": b"mp3"}, f"field `encoding`: must be {ENCODINGS}"),
        ({b"sample_rate": b"7999"}, f"field `sample_rate`: must be {RATE}"),
        ({b"sample_rate": b"16k"}, f"field `sample_rate`: must be {RATE}"),
        ({b"sample_rate": b"9" * 5_000}, f"field `sample_rate`: must be {RATE}"),
        ({b"model": b""}, "field `model`: must be text of 1 to 128 characters"),
        ({b"keyterms": b"[1]"}, "field `keyterms`: must be a JSON array of at most 100 texts"),
        ({b"keyterms": b"{}"}, "field `keyterms`: must be a JSON array of at most 100 texts"),
        ({b"keyterms": b"Ink"}, "field `keyterms`: is not JSON: invalid character (byte 0)"),
        ({b"metadata": b"[]"}, "field `metadata`: must be a JSON object"),
        ({b"metadata": b"{"}, "field `metadata`: is not JSON: input data was truncated"),
        ({b"metadata": b'{"a":1e999}'}, "field `metadata`: is not JSON: number out of range"),
        (
            {b"turn_end_threshold": b"7"},
            "field `turn_end_threshold`: must be a number from 0.05 to 0.5",
        ),
        (
            {b"turn_end_timeout_ms": b"soon"},
            "field `turn_end_timeout_ms`: must be a number from 640 to 11200 milliseconds",
        ),
    ],
)
def test_error_states_allowed_values(fields: dict[bytes, bytes], sentence: str) -> None:
    with pytest.raises(EntryError) as caught:
        decode_session(GOOD | fields)
    assert str(caught.value) == sentence


def test_error_of_missing_field() -> None:
    with pytest.raises(EntryError) as caught:
        decode_session({name: value for name, value in GOOD.items() if name != b"sample_rate"})
    assert str(caught.value) == f"field `sample_rate`: is missing; it must be {RATE}"


@given(
    st.text() | st.sampled_from(["Expected `x` - at `$.", "Object missing required field `"]),
    st.text() | st.sampled_from([*SessionEntry.__struct_fields__, "lane`", "lane[0]`", "[...]`"]),
    st.sampled_from([SessionEntry, TurnConfig]),
)
def test_any_msgspec_error_is_converted(what: str, where: str, kind: type[msgspec.Struct]) -> None:
    fault = from_validation_error(msgspec.ValidationError(what + where), kind)
    assert fault.field in {"", *kind.__struct_fields__}
    assert fault.message


_SECRET = "sk_car_Zq7"


@given(
    st.sampled_from(SessionEntry.__struct_fields__ + TurnConfig.__struct_fields__),
    st.sampled_from(["{}", '"{}"', '["{}"]', '[{{"{}":1}}]', '{{"{}":', '{{"a":["{}]}}', "\x00{}"]),
)
def test_error_omits_invalid_value(field: str, form: str) -> None:
    value = form.format(_SECRET).encode()
    for read, fields in (
        (decode_session, GOOD | {field.encode(): value}),
        (decode_audio, {b"config": b'{"%b":%b}' % (field.encode(), value)}),
        (decode_audio, {b"config": value}),
    ):
        assert _SECRET not in _error_of(read, fields)


def _error_of(read: Callable[[Fields], object], fields: Fields) -> str:
    try:
        read(fields)
    except EntryError as fault:
        return str(fault)
    return ""
