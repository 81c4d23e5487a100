"""Audio entries, and the turn settings they may carry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import AudioEntry, Encoding, EntryError, TurnConfig, decode_audio, encode_audio
from schemas.audio import MAX_AUDIO_BYTES, MAX_SRC_BYTES, parse_audio

configs = st.builds(
    TurnConfig,
    turn_start_threshold=st.none() | st.floats(0.81, 0.9),
    turn_eager_end_threshold=st.none() | st.floats(0.51, 0.8),
    turn_end_threshold=st.none() | st.floats(0.05, 0.5),
    turn_end_timeout_ms=st.none() | st.floats(640, 11_200),
)
entries = st.builds(
    AudioEntry,
    audio=st.binary(max_size=100),
    seq=st.none() | st.integers(-(10**18) + 1, 10**18 - 1),
    src=st.text(max_size=10),
    config=st.none() | configs,
    end=st.booleans(),
).filter(lambda entry: entry.audio or entry.config is not None or entry.end)


def on_the_wire(entry: AudioEntry) -> dict[bytes, bytes]:
    return {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in encode_audio(entry).items()
    }


@given(entries)
def test_audio_entry_round_trip(entry: AudioEntry) -> None:
    assert decode_audio(on_the_wire(entry)) == entry


@given(st.binary(min_size=1, max_size=100))
def test_audio_is_only_required_field(audio: bytes) -> None:
    assert decode_audio({b"audio": audio}) == AudioEntry(audio=audio)


@pytest.mark.parametrize("value", [b"", b"0", b"1", b"\xff"])
def test_end_can_have_any_value(value: bytes) -> None:
    assert decode_audio({b"end": value}) == AudioEntry(end=True)


@given(
    st.dictionaries(
        st.sampled_from([b"audio", b"seq", b"src", b"config", b"end", b"own"]),
        st.binary(max_size=20) | st.sampled_from([b"null", b"{}", b"[]", b"-1", b"1.5", b"1e3"]),
    )
)
def test_any_fields_are_entry_or_error(fields: dict[bytes, bytes]) -> None:
    try:
        entry = decode_audio(fields)
    except EntryError:
        return
    assert decode_audio(on_the_wire(entry)) == entry


def test_largest_chunk_is_accepted() -> None:
    assert len(decode_audio({b"audio": bytes(MAX_AUDIO_BYTES)}).audio) == MAX_AUDIO_BYTES


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({}, "", "empty"),
        ({b"audio": b""}, "", "empty"),
        ({b"seq": b"1", b"src": b"a"}, "", "empty"),
        ({b"audio": bytes(MAX_AUDIO_BYTES + 1)}, "audio", "too_large"),
        ({b"audio": bytes(MAX_AUDIO_BYTES + 1), b"seq": b"1"}, "audio", "too_large"),
        ({b"audio": b"x", b"seq": b"one"}, "seq", "malformed"),
        ({b"audio": b"x", b"seq": b"1.5"}, "seq", "malformed"),
        ({b"audio": b"x", b"seq": b"\xff"}, "seq", "malformed"),
        ({b"audio": b"x", b"src": b"\xff"}, "src", "malformed"),
        ({b"audio": b"x", b"src": bytes(129)}, "src", "too_large"),
        ({b"config": b"turn"}, "config", "malformed"),
        ({b"config": b"[]"}, "config", "malformed"),
        ({b"config": b'{"\xff":0.5}'}, "config", "malformed"),
        ({b"config": b'{"threshold":0.5}'}, "config", "malformed"),
        ({b"config": b'{"turn_start_threshold":"0.6"}'}, "turn_start_threshold", "malformed"),
        ({b"config": b'{"turn_end_timeout_ms":12000}'}, "turn_end_timeout_ms", "malformed"),
        (
            {b"config": b'{"turn_eager_end_threshold":0.4,"turn_end_threshold":0.4}'},
            "turn_end_threshold",
            "malformed",
        ),
    ],
)
def test_error_names_field_and_reason(fields: dict[bytes, bytes], field: str, reason: str) -> None:
    with pytest.raises(EntryError) as caught:
        decode_audio(fields)
    assert (caught.value.field, caught.value.reason) == (field, reason)


@pytest.mark.parametrize(
    ("fields", "usable", "fields_at_fault"),
    [
        ({b"end": b"", b"seq": b"one"}, AudioEntry(end=True), ["seq"]),
        ({b"end": b"", b"config": b"{"}, AudioEntry(end=True), ["config"]),
        (
            {b"audio": b"x", b"seq": b"3", b"src": b"a", b"config": b"[]"},
            AudioEntry(audio=b"x", seq=3, src="a"),
            ["config"],
        ),
        ({b"audio": b"x", b"seq": b"3", b"src": bytes(129)}, AudioEntry(audio=b"x"), ["src"]),
        (
            {b"audio": bytes(MAX_AUDIO_BYTES + 1), b"seq": b"x", b"config": b"x", b"end": b""},
            AudioEntry(end=True),
            ["audio", "seq", "config"],
        ),
    ],
)
def test_invalid_field_leaves_others_valid(
    fields: dict[bytes, bytes], usable: AudioEntry, fields_at_fault: list[str]
) -> None:
    entry, faults = parse_audio(fields)
    assert entry == usable
    assert [fault.field for fault in faults] == fields_at_fault


def test_largest_src_is_accepted() -> None:
    assert decode_audio({b"audio": b"x", b"src": b"s" * MAX_SRC_BYTES}).src == "s" * MAX_SRC_BYTES


@given(configs, configs)
def test_newer_settings_override_older_ones(older: TurnConfig, newer: TurnConfig) -> None:
    merged = older.merged(newer)
    for name in TurnConfig.__struct_fields__:
        expected = getattr(newer, name)
        assert getattr(merged, name) == (getattr(older, name) if expected is None else expected)


@pytest.mark.parametrize("encoding", Encoding)
def test_silence_is_one_sample(encoding: Encoding) -> None:
    assert len(encoding.silence) == encoding.width
