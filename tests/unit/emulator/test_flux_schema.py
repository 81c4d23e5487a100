"""Messages of Flux as clients decode them, beside those that the local server encodes."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import flux
from worker.local.emulator.engines.base import Word
from worker.local.emulator.messages import problem_of
from worker.local.emulator.providers import flux_messages as twin
from worker.local.emulator.turn_info import TurnInfo


def encoder() -> twin.FluxEncoder:
    return twin.FluxEncoder("id", word_times=True, trigger=True, languages=("en",))


def test_encoded_turn_is_decoded() -> None:
    words = (Word("Hello,", 0.1, 0.4, 0.9), Word("you", 0.5, 0.7))
    info = TurnInfo("turn.end", "Hello, you", words, 1.25, 0.8, "timeout", 3, 0.05)
    decoded = flux.decode_message(encoder().turn_info(info))
    assert isinstance(decoded, flux.TurnInfo)
    assert (decoded.event, decoded.trigger, decoded.turn_index) == ("EndOfTurn", "timeout", 3)
    assert (decoded.audio_window_start, decoded.audio_window_end) == (0.05, 1.25)
    assert (decoded.transcript, decoded.languages) == ("Hello, you", ("en",))
    assert flux.decode_words(decoded) == (
        flux.Word("Hello,", 0.9, 0.1, 0.4),
        flux.Word("you", 1.0, 0.5, 0.7),
    )


def test_other_encoded_messages_are_decoded() -> None:
    encode = encoder()
    now = twin.Configuration(twin.Thresholds(None, 0.7, 5_000), ("a",))
    decoded = [
        flux.decode_message(data)
        for data in (
            encode.connected(),
            encode.configured(now),
            encode.not_configured("INVALID_THRESHOLD", "no"),
            encode.warning("CODE", "text"),
            encode.error(problem_of(500)),
        )
    ]
    assert [each.sequence_id for each in decoded if isinstance(each, flux.Message)] == [*range(5)]
    assert decoded[1] == flux.ConfigureSuccess(
        sequence_id=1,
        request_id="id",
        thresholds=flux.Thresholds(eot_threshold=0.7, eot_timeout_ms=5_000),
        keyterms=("a",),
        language_hints=(),
        numerals=False,
    )
    assert isinstance(decoded[2], flux.ConfigureFailure)
    assert isinstance(decoded[3], flux.ServerWarning)
    assert isinstance(decoded[4], flux.Error)
    assert (decoded[4].code, decoded[4].request_id) == ("INTERNAL_SERVER_ERROR", None)


@pytest.mark.parametrize(
    ("message", "command"),
    [
        (flux.CloseStream(), twin.CloseStream()),
        (flux.ForceEndTurn(), twin.ForceEndTurn()),
        (
            flux.Configure(thresholds=flux.Thresholds(eot_threshold=0.8), keyterms=()),
            twin.Configure(twin.ConfigureThresholds(eot_threshold=0.8), keyterms=()),
        ),
    ],
)
def test_encoded_command_is_decoded(
    message: flux.CloseStream | flux.ForceEndTurn | flux.Configure, command: twin.Command
) -> None:
    assert twin.decode_command(flux.encode_message(message)) == command


@pytest.mark.parametrize("words", ["", ',"words":null', ',"words":[]', ',"words":[{}]'])
def test_turn_without_words_is_decoded(words: str) -> None:
    decoded = flux.decode_message(f'{{"type":"TurnInfo"{words}}}')
    assert isinstance(decoded, flux.TurnInfo)
    assert flux.decode_words(decoded) == ((flux.Word(),) if "{" in words else ())


def test_unknown_message_is_no_error() -> None:
    assert flux.decode_message('{"type":"Metadata","x":1}') == flux.UnknownMessage("Metadata")


@pytest.mark.parametrize("data", ["", "{}", "[]", "x", '{"type":"TurnInfo","turn_index":"a"}'])
def test_invalid_message_is_refused(data: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        flux.decode_message(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values),
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["event", "words", "turn_index", "transcript", "thresholds", "code", "trigger"]
    ),
    JSON,
)


@given(st.sampled_from([*flux.KNOWN, "Other"]), FIELDS)
def test_any_json_is_decoded_or_refused(kind: str, fields: dict[str, object]) -> None:
    try:
        decoded = flux.decode_message(json.dumps({**fields, "type": kind}))
        if isinstance(decoded, flux.TurnInfo):
            flux.decode_words(decoded)
    except msgspec.DecodeError:
        return


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        flux.decode_message(data)
    except msgspec.DecodeError:
        return
