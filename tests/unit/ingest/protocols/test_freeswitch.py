"""mod_audio_stream and mod_audio_fork: metadata, one and two channels, any other messages."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import Encoding
from tests.unit.ingest.protocols.checks import json_values, mutations, queries, run
from worker.ingest.protocols.freeswitch import SUBPROTOCOL, FreeSwitch
from worker.ingest.records import Audio, Marked, ProtocolError, Started

FIRST: dict[str, Any] = {
    "session": "call-1",
    "sample_rate": 16_000,
    "channels": 2,
    "metadata": {"tenant": "acme"},
    "keyterms": ["Redis"],
    "turn_end_threshold": 0.3,
    "from": "+4930",
}


def parse(*messages: str | bytes | dict[str, Any], query: Any = None) -> list[Any]:
    parser = FreeSwitch(query or {})
    records: list[Any] = []
    for message in messages:
        if isinstance(message, bytes):
            records += parser.binary(message)
        else:
            records += parser.text(message if isinstance(message, str) else json.dumps(message))
    return records


def test_first_text_sets_the_sessions() -> None:
    started = parse(FIRST)[0]
    left, right = started.sessions
    assert (left.session, right.session) == ("call-1-a", "call-1-b")
    assert left.group == right.group == "call-1"
    assert (left.encoding, left.sample_rate) == (Encoding.PCM_S16LE, 16_000)
    assert (left.keyterms, left.config.turn_end_threshold) == (("Redis",), 0.3)
    assert left.metadata == right.metadata == {"tenant": "acme", "from": "+4930"}


def test_token_stays_out_of_the_metadata() -> None:
    (session,) = parse({"token": "secret", "a": 1}, query={"token": ["secret"]})[0].sessions
    assert session.metadata == {"a": 1}


def test_given_group_stays() -> None:
    assert {each.group for each in parse(FIRST | {"group": "g"})[0].sessions} == {"g"}


def test_url_sets_what_the_text_lacks() -> None:
    query = {"session": ["url"], "rate": ["16000"], "channels": ["1"], "metadata": ['{"a":1}']}
    (session,) = parse({"session": "text", "note": "x"}, query=query)[0].sessions
    assert (session.session, session.sample_rate) == ("text", 16_000)
    assert session.metadata["note"] == "x"


def test_text_rate_goes_before_url_rate() -> None:
    (session,) = parse({"rate": 8_000}, query={"sample_rate": ["16000"]})[0].sessions
    assert session.sample_rate == 8_000


def test_audio_alone_is_8_khz_mono() -> None:
    started, audio = parse(b"\x01\x02")
    (session,) = started.sessions
    assert (session.sample_rate, session.group) == (8_000, None)
    assert audio == Audio(b"\x01\x02")


def test_text_that_is_no_json_does_not_start_the_call() -> None:
    assert parse("hello", "[1]", "{") == []


def test_later_texts_are_marks() -> None:
    texts: list[Any] = [
        {"dtmf": "5"},
        {"note": 1},
        {"dtmf": 5},
        "hello",
        "[1]",
        {"big": "x" * 5_000},
    ]
    assert parse(FIRST, *texts)[1:] == [
        Marked({"dtmf": "5"}),
        Marked({"note": 1}),
        Marked({"dtmf": 5}),
    ]


@given(st.lists(st.tuples(*[st.integers(-(2**15), 2**15 - 1)] * 2), max_size=50), st.data())
def test_channels_are_split_wherever_messages_are(
    samples: list[tuple[int, int]], data: st.DataObject
) -> None:
    wire = b"".join(struct.pack("<hh", *pair) for pair in samples)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    audio = parse(FIRST, *pieces)[1:]
    for track in (0, 1):
        got = b"".join(each.audio for each in audio if each.track == track)
        assert got == b"".join(struct.pack("<h", pair[track]) for pair in samples)


@pytest.mark.parametrize(
    ("message", "query", "line"),
    [
        (FIRST | {"channels": 3}, {}, "channels"),
        (FIRST | {"channels": "many"}, {}, "channels"),
        (FIRST | {"sample_rate": "fast"}, {}, "field `sample_rate`"),
        (FIRST | {"sample_rate": 4_000}, {}, "field `sample_rate`"),
        (FIRST | {"session": "a b"}, {}, "field `session`"),
        (FIRST | {"session": 7}, {}, "field `session`"),
        (FIRST | {"session": "x" * 127}, {}, "field `session`"),
        (FIRST | {"metadata": [1]}, {}, "`metadata`"),
        (FIRST | {"note": "x" * 5_000}, {}, "field `metadata`"),
        (b"xx", {"metadata": ["{"]}, "`metadata`"),
        (b"xx", {"rate": ["1"]}, "field `sample_rate`"),
    ],
)
def test_unusable_start_has_a_clear_line(message: Any, query: Any, line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        parse(message, query=query)


@pytest.mark.parametrize(("offered", "accepted"), [([SUBPROTOCOL], SUBPROTOCOL), ([], None)])
def test_subprotocol_is_echoed_if_offered(offered: list[str], accepted: str | None) -> None:
    assert FreeSwitch({}, offered).subprotocol == accepted


@given(
    queries,
    st.lists(
        mutations(FIRST, {"dtmf": "5"}) | json_values.map(json.dumps) | st.text() | st.binary(),
        max_size=6,
    ),
)
def test_any_messages_are_records_or_error(
    query: dict[str, list[str]], messages: list[str | bytes]
) -> None:
    run(lambda: FreeSwitch(query), messages)
    records = run(lambda: FreeSwitch({}), [json.dumps(FIRST), *messages])
    assert isinstance(records[0], Started)
