"""The provider's messages: known types exactly, unknown types without harm."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cartesia
from schemas.cartesia import (
    KNOWN,
    Close,
    Config,
    Connected,
    Error,
    ServerMessage,
    TurnEagerEnd,
    TurnEnd,
    TurnResume,
    TurnSettings,
    TurnStart,
    TurnUpdate,
    UnknownMessage,
    decode_message,
    encode_message,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type":"connected","request_id":"r"}', Connected(request_id="r")),
        ('{"type":"turn.start","request_id":"r"}', TurnStart(request_id="r")),
        (
            '{"type":"turn.update","transcript":" Hi ","request_id":"r"}',
            TurnUpdate(transcript=" Hi ", request_id="r"),
        ),
        (
            '{"type":"turn.eager_end","transcript":"Hi.","request_id":"r"}',
            TurnEagerEnd(transcript="Hi.", request_id="r"),
        ),
        ('{"type":"turn.resume","request_id":"r"}', TurnResume(request_id="r")),
        (
            '{"type":"turn.end","transcript":"","request_id":"r"}',
            TurnEnd(transcript="", request_id="r"),
        ),
        (
            '{"type":"error","title":"t","message":"m","error_code":"c","status_code":400,"doc_url":"d"}',
            Error(title="t", message="m", error_code="c", status_code=400, doc_url="d"),
        ),
        ('{"type":"turn.update"}', TurnUpdate()),
        ('{"type":"turn.end","transcript":null}', TurnEnd()),
        ('{"type":"error"}', Error()),
        ('{"type":"error","status_code":null,"error_code":null}', Error()),
        ('{"type":"error","request_id":null,"title":null,"message":null}', Error()),
        ('{"type":"turn.start"}', TurnStart()),
        ('{"turn_id":7,"type":"turn.start","words":[{"a":1}]}', TurnStart()),
        ('{"type":"turn.sigh","depth":{"a":[1]}}', UnknownMessage("turn.sigh")),
        ('{"type":""}', UnknownMessage("")),
    ],
)
def test_message_is_decoded(text: str, message: ServerMessage) -> None:
    assert decode_message(text) == message
    assert decode_message(text.encode()) == message


@given(st.text().filter(lambda kind: kind not in KNOWN), st.text())
def test_unknown_type_is_harmless(kind: str, value: str) -> None:
    text = msgspec.json.encode({"type": kind, "transcript": value, "request_id": [value]})
    assert decode_message(text) == UnknownMessage(kind)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pong",
        "{",
        "[]",
        "{}",
        '{"type":1}',
        '{"type":"turn.end","transcript":1}',
    ],
)
def test_invalid_message_is_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_message(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Close(), '{"type":"close"}'),
        (Config(TurnSettings()), '{"type":"config","turn":{}}'),
        (
            Config(TurnSettings(start_threshold=0.8, end_timeout_ms=640)),
            '{"type":"config","turn":{"start_threshold":0.8,"end_timeout_ms":640}}',
        ),
    ],
)
def test_command_is_encoded(message: cartesia.Close | cartesia.Config, text: str) -> None:
    assert encode_message(message) == text
