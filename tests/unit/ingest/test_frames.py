"""Whole messages are split from bytes as the library's parser would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

from worker.ingest.frames import FastServerProtocol, split_messages

MAX_BYTES = 70_000

texts = st.text(max_size=200).map(lambda text: (Opcode.TEXT, text.encode()))
binaries = st.one_of(st.binary(max_size=200), st.integers(0, 69_000).map(bytes)).map(
    lambda content: (Opcode.BINARY, content)
)


def serialized(kind: Opcode, content: bytes, *, fin: bool = True) -> bytes:
    return Frame(kind, content, fin).serialize(mask=True)


def content(kind: Opcode, data: bytes) -> str | bytes:
    return data.decode() if kind is Opcode.TEXT else data


@given(st.lists(st.one_of(texts, binaries), max_size=5), st.integers(0, 300))
def test_whole_messages_are_split(sent: list[tuple[Opcode, bytes]], missing: int) -> None:
    parts = [serialized(*each) for each in sent]
    data = b"".join(parts)
    data = data[: len(data) - missing] if missing < len(data) else data
    messages, end = split_messages(data, MAX_BYTES)
    assert messages == [content(*each) for each in sent[: len(messages)]]
    assert end == sum(map(len, parts[: len(messages)]))


@given(st.binary(max_size=300))
def test_any_bytes_give_messages_or_are_left(data: bytes) -> None:
    messages, end = split_messages(data, MAX_BYTES)
    assert 0 <= end <= len(data)
    assert bool(messages) == bool(end)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (0x81, b"\xff"),  # not UTF-8
        (0x01, b"a"),  # a fragment
        (0xC1, b"a"),  # a reserved bit
        (0x80, b"a"),  # a continuation
        (0x89, b"a"),
        (0x88, b"\x03\xe8"),
        (0x82, bytes(MAX_BYTES + 1)),
    ],
)
def test_other_frames_are_left_to_the_library(kind: int, payload: bytes) -> None:
    first = serialized(Opcode.BINARY, b"x")
    other = bytes([kind]) + serialized(Opcode.BINARY, payload)[1:]
    assert split_messages(first + other, MAX_BYTES) == ([b"x"], len(first))


def test_unmasked_frame_is_left_to_the_library() -> None:
    assert split_messages(Frame(Opcode.TEXT, b"abcdefgh").serialize(mask=False), 10) == ([], 0)


def test_message_above_the_limit_is_left_to_the_library() -> None:
    assert split_messages(serialized(Opcode.BINARY, bytes(11)), 10) == ([], 0)


REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def is_between_after(data: bytes, protocol: FastServerProtocol) -> bool:
    protocol.receive_data(data)
    return protocol.between_messages


def test_position_between_messages_is_known() -> None:
    protocol = FastServerProtocol()
    assert not is_between_after(REQUEST, protocol)
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    *parts, last = (bytes([byte]) for byte in serialized(Opcode.BINARY, b"abc"))
    assert not [part for part in parts if is_between_after(part, protocol)]
    assert is_between_after(last, protocol)
    assert not is_between_after(serialized(Opcode.TEXT, b"a", fin=False), protocol)
    assert not is_between_after(serialized(Opcode.PING, b""), protocol)
    assert is_between_after(serialized(Opcode.CONT, b"b"), protocol)
    assert not is_between_after(serialized(Opcode.CLOSE, b"\x03\xe8"), protocol)
