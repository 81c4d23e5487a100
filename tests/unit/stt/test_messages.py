"""Damaged messages of the provider: every readable part is used."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cartesia import (
    Connected,
    Error,
    ServerMessage,
    TurnEagerEnd,
    TurnEnd,
    TurnStart,
    TurnUpdate,
    UnknownMessage,
)
from worker.stt.messages import read_message

DEEP = "[" * 50_000
DIGITS = "9" * 5_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r'{"type":"turn.update","transcript":"hi \ud83d"}', TurnUpdate(transcript="hi \ufffd")),
        (r'{"type":"turn.update","transcript":"\udc00 hi"}', TurnUpdate(transcript="\ufffd hi")),
        (r'{"type":"turn.end","transcript":"\ud83d\ude00\ud83d"}', TurnEnd(transcript="😀\ufffd")),
        ('{"type":"turn.end","transcript":"a\nb"}', TurnEnd(transcript="a\nb")),
        ('{"type":"turn.end","transcript":"a","x":NaN}', TurnEnd(transcript="a")),
        ('{"type":"turn.end","x":-Infinity,"transcript":"a"}', TurnEnd(transcript="a")),
        ('{"type":"turn.end","x":undefined,"transcript":"a"}', TurnEnd(transcript="a")),
        ('{"type":"turn.end","transcript":NaN}', TurnEnd()),
        ('{"type":"turn.end","transcript":5}', TurnEnd()),
        ('{"type":"turn.end","transcript":["a"]}', TurnEnd()),
        ('{"type":"turn.end","transcript":{"text":"a"}}', TurnEnd()),
        ('{"type":"turn.end","transcript":"a","request_id":7}', TurnEnd(transcript="a")),
        ('{"type":"turn.start","request_id":{"a":[1,2]}}', TurnStart()),
        ('{"type":"connected","request_id":null,"expires":NaN}', Connected()),
        ('{"type":"turn.end","transcript":"a","transcript":"b","x":NaN}', TurnEnd(transcript="b")),
        ('{"type":"turn.end","type":"turn.start"}', TurnStart()),
        ('{"type":"turn.end","transcript":"a"} {"type":"turn.start"}', TurnEnd(transcript="a")),
        ('\ufeff{"type":"turn.end","transcript":"a"}', TurnEnd(transcript="a")),
        ('{"type":"turn.end" "transcript":"a"}', TurnEnd(transcript="a")),
        ('{"type":"turn.end","transcript":"a",}', TurnEnd(transcript="a")),
        ('{"type":"turn.eager_end","transcript":"a"', TurnEagerEnd(transcript="a")),
        ('{"type":"turn.eager_end","transcript":"a', TurnEagerEnd()),
        ('{"type":"turn.end","x":' + DEEP + ',"transcript":"a"}', TurnEnd()),
        (
            '{"type":"turn.end","x":' + DEEP + DEEP.replace("[", "]") + ',"transcript":"a"}',
            TurnEnd(transcript="a"),
        ),
        ('{"transcript":"a","x":"],}","type":"turn.end","y":[NaN,"]"', TurnEnd(transcript="a")),
        ('{"type":"error","status_code":"429","message":"m"}', Error(status_code=429, message="m")),
        ('{"type":"error","status_code":503.0}', Error(status_code=503)),
        ('{"type":"error","status_code":true}', Error()),
        ('{"type":"error","status_code":NaN,"title":"t"}', Error(title="t")),
        ('{"type":"error","status_code":1e400,"title":"t"}', Error(title="t")),
        ('{"type":"error","status_code":-1,"title":"t"}', Error(title="t")),
        ('{"type":"error","status_code":' + DIGITS + ',"title":"t"}', Error(title="t")),
        ('{"type":"error","status_code":99999999999999999999,"title":"t"}', Error(title="t")),
        ('{"type":"error","message":{"detail":"m"},"error_code":5}', Error()),
        ('{"type":"turn.sigh","x":NaN}', UnknownMessage("turn.sigh")),
    ],
)
def test_readable_fields_are_used(text: str, message: ServerMessage) -> None:
    found, defect = read_message(text.encode())
    assert found == message
    assert defect


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "pong",
        "{",
        "{}",
        "[]",
        "null",
        "5",
        "NaN",
        '"turn.end"',
        '[{"type":"turn.end"}]',
        '{"type":1}',
        '{"type":null}',
        '{"type":["turn.end"]}',
        '{"Type":"turn.end"}',
        '{"transcript":"a"}',
        '{"data":{"type":"turn.end"}}',
        "{'type':'turn.end'}",
        DEEP,
        '{"a":' * 10_000,
        "\x00",
        "\ufffd" * 100,
    ],
)
def test_message_without_type_is_ignored(text: str) -> None:
    found, defect = read_message(text.encode())
    assert found is None
    assert defect


def test_valid_message_has_no_defect() -> None:
    for text in ('{"type":"turn.end","transcript":" a ","x":[1]}', '{"type":"new"}'):
        assert read_message(text.encode())[1] == ""


SECRET = "sk_car_secret"


@pytest.mark.parametrize(
    "text",
    [
        f'{{"type":"turn.end","transcript":["{SECRET}"]}}',
        f'{{"type":"turn.end","type":"turn.start","x":"{SECRET}"}}',
        f'{{"type":"turn.end","transcript":"{SECRET}',
        f'{SECRET}{{"type":"turn.end"}}',
        f'{{"type":"turn.end","{SECRET}":NaN}}',
    ],
)
def test_defect_omits_message_content(text: str) -> None:
    assert SECRET not in read_message(text.encode())[1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
TYPES = ["connected", "turn.start", "turn.update", "turn.eager_end", "turn.end", "error", "else"]


@given(
    kind=st.sampled_from(TYPES),
    fields=st.dictionaries(
        st.sampled_from(["transcript", "request_id", "status_code", "message", "x"]), VALUES
    ),
    cut=st.integers(0, 200),
    put=st.text(max_size=3),
)
def test_any_damaged_message_can_be_published(
    kind: str, fields: dict[str, Any], cut: int, put: str
) -> None:
    text = json.dumps({"type": kind, **fields})
    for damaged in (text, text[:cut], text[:cut] + put + text[cut:], put + text):
        message = read_message(damaged.encode())[0]
        if message is not None:
            msgspec.json.encode(message)
    whole = read_message(text.encode())[0]
    assert whole is not None
    transcript = fields.get("transcript")
    if isinstance(transcript, str) and isinstance(whole, TurnUpdate | TurnEagerEnd | TurnEnd):
        assert whole.transcript == transcript


@given(st.text())
def test_any_text_is_decoded(text: str) -> None:
    read_message(text.encode())
