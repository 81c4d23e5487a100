"""Media Streams: the messages as Twilio documents them, and any others."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Encoding, TurnConfig
from tests.unit.ingest.protocols.checks import mutations, run
from worker.ingest.protocols.twilio import Twilio
from worker.ingest.records import Audio, Ended, Marked, ProtocolError, Started

FRAME = bytes(range(160))
CONNECTED = {"event": "connected", "protocol": "Call", "version": "1.0.0"}


def start(tracks: Any = ("inbound",), **parameters: Any) -> dict[str, Any]:
    return {
        "event": "start",
        "sequenceNumber": "1",
        "start": {
            "streamSid": "MZ18ad",
            "accountSid": "AC123",
            "callSid": "CA456",
            "tracks": list(tracks),
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": parameters,
        },
        "streamSid": "MZ18ad",
    }


def media(chunk: int = 1, track: str = "inbound", payload: bytes = FRAME) -> dict[str, Any]:
    return {
        "event": "media",
        "sequenceNumber": str(chunk + 1),
        "media": {
            "track": track,
            "chunk": str(chunk),
            "timestamp": str(5 + 20 * chunk),
            "payload": base64.b64encode(payload).decode(),
        },
        "streamSid": "MZ18ad",
    }


DTMF = {
    "event": "dtmf",
    "streamSid": "MZ18ad",
    "sequenceNumber": "5",
    "dtmf": {"track": "inbound_track", "digit": "5"},
}
MARK = {"event": "mark", "sequenceNumber": "4", "streamSid": "MZ18ad", "mark": {"name": "label"}}
STOP = {
    "event": "stop",
    "sequenceNumber": "5",
    "streamSid": "MZ18ad",
    "stop": {"accountSid": "AC123", "callSid": "CA456"},
}


def parse(*messages: dict[str, Any]) -> list[Any]:
    parser = Twilio()
    return [record for message in messages for record in parser.text(json.dumps(message))]


def test_documented_messages_are_records() -> None:
    started, *rest = parse(CONNECTED, start(), media(1), media(2), DTMF, MARK, STOP)
    (session,) = started.sessions
    assert (session.session, session.group) == ("MZ18ad", "CA456")
    assert (session.encoding, session.sample_rate) == (Encoding.PCM_MULAW, 8_000)
    assert session.metadata == {"call": "CA456", "account": "AC123", "track": "inbound"}
    assert rest == [
        Audio(FRAME, 0, at_ms=25, number=1),
        Audio(FRAME, 0, at_ms=45, number=2),
        Marked({"dtmf": "5"}),
        Marked({"mark": "label"}),
        Ended(),
    ]


def test_each_track_has_a_session_of_one_group() -> None:
    started, *rest = parse(start(["inbound", "outbound"]), media(), media(track="outbound"))
    assert [(each.session, each.group) for each in started.sessions] == [
        ("MZ18ad", "CA456"),
        ("MZ18ad.outbound", "CA456"),
    ]
    assert [each.metadata["track"] for each in started.sessions] == ["inbound", "outbound"]
    assert [audio.track for audio in rest] == [0, 1]


def test_outbound_track_alone_keeps_its_name() -> None:
    started, audio = parse(start(["outbound"]), media(track="outbound"))
    assert started.sessions[0].session == "MZ18ad.outbound"
    assert audio.track == 0


def test_parameters_set_fields_and_metadata() -> None:
    parameters = {
        "turnbus.session": "order-7",
        "turnbus.group": "desk",
        "turnbus.keyterms": "Cartesia, Redis ,",
        "turnbus.turn_end_threshold": "0.3",
        "turnbus.lane": "eu",
        "turnbus.model": "ink-2",
        "tenant": "acme",
        "call": "not this",
    }
    (session,) = parse(start(**parameters))[0].sessions
    assert (session.session, session.group) == ("order-7", "desk")
    assert (session.lane, session.model) == ("eu", "ink-2")
    assert session.keyterms == ("Cartesia", "Redis")
    assert session.config == TurnConfig(turn_end_threshold=0.3)
    assert (session.metadata["tenant"], session.metadata["call"]) == ("acme", "CA456")


def test_token_stays_out_of_the_metadata() -> None:
    (session,) = parse(start(token="secret", tenant="acme"))[0].sessions
    assert session.metadata.keys() == {"call", "account", "track", "tenant"}


def test_key_of_a_track_without_session_is_kept() -> None:
    assert parse(start(["outbound"]), DTMF)[1:] == [Marked({"dtmf": "5"}, 0)]
    other = {"event": "dtmf", "dtmf": {"track": "outbound_track", "digit": "5"}}
    assert parse(start(["inbound", "outbound"]), other)[1:] == [Marked({"dtmf": "5"}, 1)]


def test_keyterms_may_be_json() -> None:
    (session,) = parse(start(**{"turnbus.keyterms": '["a, b", "c"]'}))[0].sessions
    assert session.keyterms == ("a, b", "c")


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([start(**{"turnbus.lane": "a/b"})], "field `lane`"),
        ([start(**{"turnbus.turn_end_threshold": "high"})], "field `turn_end_threshold`"),
        ([start(**{"turnbus.keyterms": "[1"})], "field `keyterms`"),
        ([start(**{"turnbus.session": "a b"})], "field `session`"),
        ([start(**{"turnbus.lanes": "eu"})], "must be one of"),
        ([start(note="x" * 5_000)], "field `metadata`"),
        ([start(["inbound", "inbound"])], "start.tracks"),
        ([start(["sideways"])], "start.tracks"),
        ([start(), start()], "twice"),
        ([media()], "first message must be `start`"),
        ([DTMF], "first message must be `start`"),
        ([start(), media(track="outbound")], "start.tracks"),
        ([start(), {"event": "media"}], "lacks the field `media`"),
        ([start(), {"event": "media", "media": {"payload": "?"}}], "base64"),
        ([start(), {"event": "media", "media": {"payload": "", "chunk": "one"}}], "chunk"),
        ([{}], "event"),
    ],
)
def test_unusable_message_has_a_clear_line(messages: list[dict[str, Any]], line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        parse(*messages)


@pytest.mark.parametrize(
    "form",
    [
        {"encoding": "audio/opus"},
        {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 2},
    ],
)
def test_other_media_format_is_refused(form: dict[str, Any]) -> None:
    message = start()
    message["start"]["mediaFormat"] = form
    with pytest.raises(ProtocolError, match="media format") as caught:
        parse(message)
    assert caught.value.close_code == 1003


def test_binary_message_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        Twilio().binary(b"x")
    assert caught.value.close_code == 1003


@pytest.mark.parametrize(
    "message", [{"event": "new", "media": 1}, {"event": "new"}, media(payload=b"")]
)
def test_unknown_event_and_empty_audio_are_ignored(message: dict[str, Any]) -> None:
    assert parse(start(), message)[1:] == []


def test_nothing_follows_stop() -> None:
    assert parse(start(), STOP, media(), STOP)[1:] == [Ended()]


def test_sequence_may_skip_and_repeat() -> None:
    audio = parse(start(), media(7), media(3), media(3))[1:]
    assert [each.number for each in audio] == [7, 3, 3]


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        Twilio().text('{"event":"media","media":' + "[" * 100_000)


@given(
    st.lists(
        mutations(CONNECTED, start(["inbound", "outbound"], a="b"), media(), DTMF, MARK, STOP)
        | st.text()
        | st.binary(),
        max_size=6,
    )
)
def test_any_messages_are_records_or_error(messages: list[str | bytes]) -> None:
    run(Twilio, [json.dumps(start(["inbound", "outbound"])), *messages])
    run(Twilio, messages)


@given(
    st.dictionaries(
        st.sampled_from(["turnbus.lane", "turnbus.keyterms", "turnbus.session", "turnbus.group"])
        | st.text(max_size=5),
        st.text(max_size=10),
    )
)
def test_any_parameters_are_records_or_error(parameters: dict[str, str]) -> None:
    records = run(Twilio, [json.dumps(start(**parameters))])
    assert not records or isinstance(records[0], Started)
