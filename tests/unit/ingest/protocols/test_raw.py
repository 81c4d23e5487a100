"""Any WebSocket client: parameters, audio, commands, and anything else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Encoding, TurnConfig
from tests.unit.ingest.protocols.checks import json_values, mutations, queries, run
from worker.ingest.protocols.raw import Raw
from worker.ingest.records import (
    Audio,
    Configured,
    Ended,
    Marked,
    ProtocolError,
    TurnEnded,
)

COMMAND = {
    "end": True,
    "turn_end": True,
    "mark": {"page": 2},
    "config": {"turn_end_threshold": 0.3},
}


def test_defaults_are_16_khz_mono() -> None:
    parser = Raw({})
    (session,) = parser.started.sessions
    assert (session.encoding, session.sample_rate) == (Encoding.PCM_S16LE, 16_000)
    assert len(session.session) == 36
    assert not parser.events
    assert parser.binary(b"\x01\x02\x03") == (parser.started, Audio(b"\x01\x02"))
    assert parser.binary(b"\x04") == (Audio(b"\x03\x04"),)


def test_parameters_set_the_session() -> None:
    query = {
        "session": ["call-1"],
        "encoding": ["pcm_mulaw"],
        "sample_rate": ["8000"],
        "lane": ["eu"],
        "group": ["g"],
        "model": ["m"],
        "keyterm": ["a, b", "c"],
        "turn_end_timeout_ms": ["700"],
        "metadata": ['{"tenant":"acme"}'],
        "events": ["1"],
        "token": ["secret"],
    }
    parser = Raw(query)
    (session,) = parser.started.sessions
    assert (session.session, session.lane, session.group, session.model) == (
        "call-1",
        "eu",
        "g",
        "m",
    )
    assert (session.encoding, session.sample_rate) == (Encoding.PCM_MULAW, 8_000)
    assert session.keyterms == ("a, b", "c")
    assert session.config == TurnConfig(turn_end_timeout_ms=700)
    assert session.metadata == {"tenant": "acme"}
    assert parser.events
    assert "secret" not in str(vars(parser))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"RIFF\x24\x00\x00\x00WAVE", "WAV"),
        (b"ID3\x04\x00", "MP3"),
        (b"fLaC\x00", "FLAC"),
        (b"OggS\x00\x02", "Ogg"),
        (b"\x1aE\xdf\xa3\x9f", "WebM"),
        (b"\x00\x00\x00\x20ftypisom", "MP4"),
    ],
)
def test_sound_file_is_refused(head: bytes, name: str) -> None:
    with pytest.raises(ProtocolError, match=f"this is a {name} file; send raw audio") as refused:
        Raw({}).binary(head)
    assert refused.value.close_code == 1003
    later = Raw({})
    later.binary(bytes(640))
    assert later.binary(head), "only the first message can be the head of a file"


def test_command_is_in_order_and_ends() -> None:
    parser = Raw({})
    records = parser.text(json.dumps(COMMAND))
    config = TurnConfig(turn_end_threshold=0.3)
    assert records[1:] == (Configured(config), Marked({"page": 2}), TurnEnded(), Ended())
    assert parser.text(json.dumps(COMMAND)) == parser.binary(b"xx") == ()


def test_command_concerns_both_channels() -> None:
    parser = Raw({"session": ["s"], "channels": ["2"]})
    assert [each.session for each in parser.started.sessions] == ["s-a", "s-b"]
    assert {each.group for each in parser.started.sessions} == {"s"}
    assert parser.binary(b"\x01\x02\x03\x04")[1:] == (Audio(b"\x01\x02"), Audio(b"\x03\x04", 1))
    assert parser.text('{"turn_end":true}') == (TurnEnded(), TurnEnded(1))


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ({"keyterns": ["a"]}, "no such parameter"),
        ({"encoding": ["mp3"]}, "field `encoding`"),
        ({"sample_rate": ["fast"]}, "field `sample_rate`"),
        ({"channels": ["3"]}, "channels"),
        ({"channels": ["2"], "encoding": ["pcm_alaw"]}, "two channels"),
        ({"session": ["a b"]}, "field `session`"),
        ({"metadata": ["[]"]}, "JSON object"),
        ({"metadata": ["{"]}, "`metadata`"),
        ({"events": ["yes"]}, "events"),
        ({"turn_end_threshold": ["0.9"]}, "field `turn_end_threshold`"),
    ],
)
def test_invalid_parameter_has_a_clear_line(query: dict[str, list[str]], line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        Raw(query)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("{}", "one of"),
        ('{"turn_end":false}', "one of"),
        ("hello", "not valid"),
        ("[]", "object"),
        ('{"marks":{}}', "unknown field"),
        ('{"mark":1}', "mark"),
        ('{"turn_end":"yes"}', "turn_end"),
        ('{"config":{"threshold":1}}', "field `config`"),
        ('{"config":{"turn_end_threshold":1}}', "field `turn_end_threshold`"),
        (json.dumps({"mark": {"a": "x" * 5_000}}), "field `mark`"),
        ('{"mark":{"a":' + "[" * 40 + "]" * 40 + "}}", "field `mark`"),
        ('{"mark":{"a":' + "[" * 100_000, "deep"),
    ],
)
def test_invalid_command_has_a_clear_line(message: str, line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        Raw({}).text(message)


def test_error_is_one_short_line() -> None:
    with pytest.raises(ProtocolError) as caught:
        Raw({}).text(json.dumps({"a\n\x1b[31m" + "x" * 10_000: 1}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_long_number_is_refused() -> None:
    with pytest.raises(ProtocolError, match="out of range"):
        Raw({}).text('{"mark":{"a":' + "1" * 5_000 + "}}")


@given(
    queries,
    st.lists(
        mutations(COMMAND, {"mark": {}}) | json_values.map(json.dumps) | st.text() | st.binary(),
        max_size=5,
    ),
)
def test_any_messages_are_records_or_error(
    query: dict[str, list[str]], messages: list[str | bytes]
) -> None:
    run(lambda: Raw(query), messages)
    run(lambda: Raw({}), messages)
    run(lambda: Raw({"channels": ["2"]}), messages)


@given(json_values)
def test_any_metadata_is_an_entry_or_error(value: Any) -> None:
    run(lambda: Raw({"metadata": [json.dumps(value)]}), [b"xx"])
