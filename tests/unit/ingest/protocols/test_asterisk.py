"""chan_websocket: control messages in both forms, codecs, and any other messages."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Encoding
from schemas.audio import MAX_METADATA_BYTES
from tests.unit.ingest.protocols.checks import json_values, mutations, queries, run
from worker.ingest.protocols.asterisk import FORMATS, Asterisk, usable_id
from worker.ingest.records import Audio, Marked, ProtocolError, Started

START: dict[str, Any] = {
    "event": "MEDIA_START",
    "connection_id": "media_connection1",
    "channel": "WebSocket/turnbus/0x7f",
    "channel_id": "pbx1-123456789.999",
    "format": "slin16",
    "optimal_frame_size": 640,
    "ptime": 20,
    "channel_variables": {"TENANT": "acme", "EMPTY": "", "OBJECT": {}},
}
LINE = (
    "MEDIA_START connection_id:media_connection1 channel:WebSocket/turnbus/0x7f "
    "channel_id:pbx1-123456789.999 format:ulaw optimal_frame_size:160 ptime:20"
)
KEY = {"event": "DTMF_END", "channel_id": "pbx1-123456789.999", "digit": "#"}


def parse(*messages: str | bytes | dict[str, Any], query: Any = None) -> list[Any]:
    parser = Asterisk(query or {})
    records: list[Any] = []
    for message in messages:
        if isinstance(message, bytes):
            records += parser.binary(message)
        else:
            records += parser.text(message if isinstance(message, str) else json.dumps(message))
    return records


def test_documented_messages_are_records() -> None:
    started, *rest = parse(START, bytes(640), KEY, {"event": "STATUS", "state": "UP"}, bytes(640))
    (session,) = started.sessions
    assert session.session == "pbx1-123456789.999"
    assert (session.encoding, session.sample_rate) == (Encoding.PCM_S16LE, 16_000)
    assert session.metadata == {
        "channel": "WebSocket/turnbus/0x7f",
        "connection_id": "media_connection1",
        "TENANT": "acme",
    }
    assert rest == [Audio(bytes(640)), Marked({"dtmf": "#"}), Audio(bytes(640))]


@pytest.mark.parametrize("message", ['{"event":"STATUS","format":null}', '{"digit":5}', "{"])
def test_odd_message_does_not_end_the_call(message: str) -> None:
    assert parse(START, message, KEY)[1:] == [Marked({"dtmf": "#"})]
    with pytest.raises(ProtocolError):
        parse(message)


def test_legacy_lines_are_records() -> None:
    started, *rest = parse(LINE, bytes(160), "DTMF_END channel_id:x digit:5", "MEDIA_XOFF", "")
    assert started.sessions[0].session == "pbx1-123456789.999"
    assert started.sessions[0].encoding is Encoding.PCM_MULAW
    assert started.sessions[0].metadata["channel"] == "WebSocket/turnbus/0x7f"
    assert rest == [Audio(bytes(160)), Marked({"dtmf": "5"})]


@pytest.mark.parametrize("name", FORMATS)
def test_each_raw_codec_is_accepted(name: str) -> None:
    (session,) = parse(START | {"format": name})[0].sessions
    assert (session.encoding, session.sample_rate) == FORMATS[name]


@pytest.mark.parametrize("name", ["opus", "g729", "speex", ""])
def test_other_codec_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="slin16") as caught:
        parse(START | {"format": name})
    assert caught.value.close_code == 1003


def test_query_sets_fields_and_metadata() -> None:
    query = {
        "session": ["order-7"],
        "lane": ["eu"],
        "keyterm": ["a", "b"],
        "TENANT": ["other"],
        "token": ["secret"],
    }
    (session,) = parse(START, query=query)[0].sessions
    assert (session.session, session.lane, session.keyterms) == ("order-7", "eu", ("a", "b"))
    assert session.metadata["TENANT"] == "other"
    assert "secret" not in str(session)


def test_split_sample_is_kept_for_next_message() -> None:
    assert parse(START, b"\x01", b"\x02\x03", b"\x04")[1:] == [
        Audio(b"\x01\x02"),
        Audio(b"\x03\x04"),
    ]


def test_variables_without_room_are_left_out() -> None:
    variables = {"LONG": "x" * MAX_METADATA_BYTES, "SHORT": "y"}
    (session,) = parse(START | {"channel_variables": variables})[0].sessions
    assert "LONG" not in session.metadata
    assert session.metadata["SHORT"] == "y"


@pytest.mark.parametrize(
    ("messages", "query", "line"),
    [
        ([b"xx"], {}, "MEDIA_START"),
        ([KEY], {}, "MEDIA_START"),
        ([START, START], {}, "twice"),
        (["{"], {}, "not valid"),
        ([{"event": 1}], {}, "event"),
        (["MEDIA_START format:ulaw"], {}, "channel_id"),
        ([START], {"lane": ["a/b"]}, "field `lane`"),
        ([START], {"keyterm": ["a"], "keyterms": ["b"]}, "not both"),
        ([START], {"note": ["x" * MAX_METADATA_BYTES]}, "field `metadata`"),
    ],
)
def test_unusable_message_has_a_clear_line(messages: Any, query: Any, line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        parse(*messages, query=query)


@pytest.mark.parametrize(
    ("offered", "accepted"), [(["media"], "media"), (["x", "media"], "media"), ([], None)]
)
def test_subprotocol_is_echoed_if_offered(offered: list[str], accepted: str | None) -> None:
    assert Asterisk({}, offered).subprotocol == accepted


def test_usable_id_stays() -> None:
    assert usable_id("pbx1-123.9") == "pbx1-123.9"


@given(st.text(min_size=1, max_size=300))
def test_any_id_becomes_a_valid_session(name: str) -> None:
    records = run(lambda: Asterisk({}), [json.dumps(START | {"channel_id": name})])
    assert isinstance(records[0], Started)


def test_changed_ids_stay_distinct() -> None:
    assert len({usable_id(name) for name in ("a/b", "a b", "a-b", "x" * 129, "x" * 130)}) == 5


@given(
    queries,
    st.lists(mutations(START, KEY) | st.just(LINE) | st.text() | st.binary(), max_size=5),
    st.dictionaries(st.text(max_size=5), json_values),
)
def test_any_messages_are_records_or_error(
    query: dict[str, list[str]], messages: list[str | bytes], variables: dict[str, Any]
) -> None:
    run(lambda: Asterisk(query), messages)
    run(lambda: Asterisk({}), [json.dumps(START | {"channel_variables": variables}), *messages])
