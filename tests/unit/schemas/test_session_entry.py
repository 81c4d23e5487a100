"""Session entries: what a producer writes and a worker reads, and errors for invalid ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import (
    Encoding,
    EntryError,
    SessionEntry,
    TurnConfig,
    decode_session,
    encode_session,
)
from schemas.audio import (
    MAX_KEYTERMS,
    MAX_NESTING,
    MAX_PROVIDERS,
    session_id,
    session_lane,
    session_provider,
)

LEAST = {b"session": b"call-1", b"encoding": b"pcm_s16le", b"sample_rate": b"16000"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
configs = st.builds(
    TurnConfig,
    turn_start_threshold=st.none() | st.floats(0.81, 0.9),
    turn_eager_end_threshold=st.none() | st.floats(0.51, 0.8),
    turn_end_threshold=st.none() | st.floats(0.05, 0.5),
    turn_end_timeout_ms=st.none() | st.floats(640, 11_200),
)
entries = st.builds(
    SessionEntry,
    session=st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True),
    encoding=st.sampled_from(Encoding),
    sample_rate=st.integers(8_000, 192_000),
    lane=st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True),
    out=st.sampled_from(["lane", "session"]),
    model=st.none() | st.text(min_size=1, max_size=128),
    provider=st.none() | st.sampled_from(["cartesia", "flux"]),
    providers=st.lists(st.sampled_from(["cartesia", "flux"]), max_size=MAX_PROVIDERS).map(tuple),
    language=st.none() | st.from_regex(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}", fullmatch=True),
    keyterms=st.lists(st.text(max_size=12), max_size=MAX_KEYTERMS).map(tuple),
    config=configs,
    metadata=st.dictionaries(st.text(max_size=3), json_values, max_size=3),
    traceparent=st.none() | st.text(max_size=128),
    tracestate=st.none() | st.text(max_size=1_024),
)


def on_the_wire(entry: SessionEntry) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in encode_session(entry).items()}


@given(entries)
def test_session_entry_round_trip(entry: SessionEntry) -> None:
    assert decode_session(on_the_wire(entry)) == entry


def test_required_fields_are_sufficient() -> None:
    entry = decode_session(LEAST)
    assert entry == SessionEntry(session="call-1", encoding=Encoding.PCM_S16LE, sample_rate=16_000)
    assert on_the_wire(entry) == LEAST


@given(st.dictionaries(st.binary(max_size=8).map(lambda name: b"x-" + name), st.binary()))
def test_unknown_fields_are_ignored(own: dict[bytes, bytes]) -> None:
    assert decode_session(own | LEAST) == decode_session(LEAST)


@given(
    st.dictionaries(
        st.sampled_from(SessionEntry.__struct_fields__ + TurnConfig.__struct_fields__).map(
            str.encode
        ),
        st.binary(max_size=20)
        | st.sampled_from(
            [b"null", b"nan", b"1e999", b"{}", b"[]", b"-1", b'["\xff"]', b'{"\xff":1}']
        ),
    )
)
def test_any_fields_are_entry_or_error(fields: dict[bytes, bytes]) -> None:
    try:
        entry = decode_session(fields | {b"encoding": b"pcm_alaw"})
    except EntryError:
        return
    assert decode_session(on_the_wire(entry)) == entry


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({b"session": b""}, "session", "malformed"),
        ({b"session": b"a b"}, "session", "malformed"),
        ({b"session": b"{a}"}, "session", "malformed"),
        ({b"session": b"x" * 129}, "session", "malformed"),
        ({b"session": b"\xff"}, "session", "malformed"),
        ({b"encoding": b"mp3"}, "encoding", "encoding"),
        ({b"encoding": b""}, "encoding", "encoding"),
        ({b"encoding": b"\xff"}, "encoding", "malformed"),
        ({b"sample_rate": b"7999"}, "sample_rate", "malformed"),
        ({b"sample_rate": b"192001"}, "sample_rate", "malformed"),
        ({b"sample_rate": b"16k"}, "sample_rate", "malformed"),
        ({b"lane": b"a/b"}, "lane", "malformed"),
        ({b"lane": b"x" * 33}, "lane", "malformed"),
        ({b"out": b"both"}, "out", "malformed"),
        ({b"model": b""}, "model", "malformed"),
        ({b"keyterms": b"not json"}, "keyterms", "malformed"),
        ({b"keyterms": b'"word"'}, "keyterms", "malformed"),
        ({b"keyterms": b"[1]"}, "keyterms", "malformed"),
        ({b"keyterms": b"[" + b",".join([b'""'] * 101) + b"]"}, "keyterms", "malformed"),
        ({b"keyterms": b'["' + b"x" * 1_201 + b'"]'}, "keyterms", "malformed"),
        ({b"metadata": b"[]"}, "metadata", "malformed"),
        ({b"metadata": b"{"}, "metadata", "malformed"),
        ({b"metadata": b'{"a":"\xff"}'}, "metadata", "malformed"),
        ({b"metadata": b'{"a":' + b"[" * 32 + b"]" * 32 + b"}"}, "metadata", "malformed"),
        ({b"metadata": b'{"a":' + b"[" * 1_500 + b"]" * 1_500 + b"}"}, "metadata", "malformed"),
        ({b"metadata": b'{"a":"' + b"x" * 4_096 + b'"}'}, "metadata", "too_large"),
        ({b"turn_start_threshold": b"high"}, "turn_start_threshold", "malformed"),
        ({b"turn_start_threshold": b"0.95"}, "turn_start_threshold", "malformed"),
        ({b"turn_eager_end_threshold": b"nan"}, "turn_eager_end_threshold", "malformed"),
        ({b"turn_end_threshold": b"0.04"}, "turn_end_threshold", "malformed"),
        ({b"turn_end_timeout_ms": b"639"}, "turn_end_timeout_ms", "malformed"),
        (
            {b"turn_start_threshold": b"0.6", b"turn_end_threshold": b"0.5"}
            | {b"turn_eager_end_threshold": b"0.6"},
            "turn_eager_end_threshold",
            "malformed",
        ),
        ({b"traceparent": b"x" * 129}, "traceparent", "malformed"),
        ({b"tracestate": b"x" * 1_025}, "tracestate", "malformed"),
        ({b"x-%d" % number: b"" for number in range(1_000)}, "", "too_large"),
    ],
)
def test_error_names_field_and_reason(fields: dict[bytes, bytes], field: str, reason: str) -> None:
    with pytest.raises(EntryError) as caught:
        decode_session(LEAST | fields)
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("written", "providers"),
    [
        (b'["flux","cartesia"]', ("flux", "cartesia")),
        (b"flux, cartesia", ("flux", "cartesia")),
        (b"flux", ("flux",)),
        (b"[]", ()),
    ],
)
def test_providers_are_json_or_separated_by_commas(
    written: bytes, providers: tuple[str, ...]
) -> None:
    assert decode_session(LEAST | {b"providers": written}).providers == providers


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (b"provider", b"deepgram", "must be one of cartesia, flux"),
        (b"providers", b"cartesia,deepgram", "must be a list of cartesia, flux"),
        (b"providers", b"", "must be a list of cartesia, flux"),
        (b"providers", b'["deepgram"]', "must be a list of cartesia, flux"),
        (b"language", b"english!", "must be a BCP 47 language tag: en, de-CH"),
        (b"language", b"", "must be a BCP 47 language tag: en, de-CH"),
        (b"language", b"en\n", "must be a BCP 47 language tag: en, de-CH"),
    ],
)
def test_unknown_provider_is_refused_with_the_list(
    field: bytes, value: bytes, message: str
) -> None:
    with pytest.raises(EntryError) as caught:
        decode_session(LEAST | {field: value})
    assert (caught.value.field, caught.value.message) == (field.decode(), message)


def test_deepest_metadata_is_accepted() -> None:
    nested = b'{"a":' + b"[" * (MAX_NESTING - 1) + b"]" * (MAX_NESTING - 1) + b"}"
    assert decode_session(LEAST | {b"metadata": nested}).metadata["a"] is not None


@pytest.mark.parametrize("field", sorted(LEAST))
def test_missing_required_field_is_refused(field: bytes) -> None:
    with pytest.raises(EntryError) as caught:
        decode_session({name: value for name, value in LEAST.items() if name != field})
    assert (caught.value.field, caught.value.reason) == (field.decode(), "missing")


@pytest.mark.parametrize(
    ("fields", "session", "lane"),
    [
        ({b"session": b"s", b"lane": b"eu", b"encoding": b"mp3"}, "s", "eu"),
        ({b"session": b"a b"}, None, "0"),
        ({b"session": b"\xff", b"lane": b"\xff"}, None, None),
        ({b"lane": b""}, None, None),
        ({}, None, "0"),
    ],
)
def test_refused_entry_has_readable_session_and_lane(
    fields: dict[bytes, bytes], session: str | None, lane: str | None
) -> None:
    assert session_id(fields) == session
    assert session_lane(fields) == lane


@pytest.mark.parametrize(
    ("fields", "provider"),
    [
        ({}, ""),
        ({b"provider": b"flux", b"encoding": b"mp3"}, "flux"),
        ({b"provider": b"flux", b"providers": b"cartesia"}, "flux"),
        ({b"providers": b"flux, cartesia"}, "flux"),
        ({b"providers": b'["cartesia"]'}, "cartesia"),
        ({b"providers": b"[]"}, ""),
        ({b"providers": b"[1"}, ""),
        ({b"providers": b"flux,whisper"}, ""),
        ({b"provider": b"whisper"}, ""),
        ({b"provider": b"\xff"}, ""),
    ],
)
def test_refused_entry_has_the_provider_that_it_names(
    fields: dict[bytes, bytes], provider: str
) -> None:
    assert session_provider(fields) == provider


@pytest.mark.parametrize(("raw", "words"), [(b"1", True), (b"true", True), (b"0", False)])
def test_words_are_asked_for_by_a_flag(raw: bytes, words: bool) -> None:
    required = {b"session": b"s", b"encoding": b"pcm_s16le", b"sample_rate": b"8000"}
    entry = decode_session(required | {b"words": raw})
    assert entry.words is words
    assert encode_session(entry).get("words") == ("1" if words else None)
