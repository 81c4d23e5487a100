"""Frames that carry audio, and frames of the provider, against the parser of websockets."""

import asyncio
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol, State
from websockets.uri import parse_uri

from worker.stt.frames import MAX_MESSAGE_BYTES, FrameWriter, LenientProtocol, split_texts
from worker.stt.websocket import WebSocketClient

LIMITS = (0, 1, 125, 126, 127, 65_535, 65_536, 200_000)


def _read(data: bytes) -> list[Frame]:
    server = Protocol(SERVER)
    server.receive_data(data)
    return [event for event in server.events_received() if isinstance(event, Frame)]


@given(st.lists(st.binary(max_size=300) | st.sampled_from(LIMITS).map(bytes), max_size=5))
def test_written_frame_is_parsed(payloads: list[bytes]) -> None:
    writer = FrameWriter()
    frames = _read(b"".join(map(writer.binary, payloads)))
    assert [bytes(frame.data) for frame in frames] == payloads
    assert all(frame.opcode is Opcode.BINARY and frame.fin for frame in frames)


def test_masks_are_not_reused() -> None:
    writer = FrameWriter()
    masks = [writer.binary(b"")[2:] for _ in range(3_000)]
    assert all(len(mask) == 4 for mask in masks)
    assert len(set(masks)) > 2_990  # two of them can be equal by chance


# -- frames of the provider


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, length_bytes: int = 0, mask: bool = False
) -> bytes:
    """Return a frame; its length has at least `length_bytes` bytes after the first."""
    size = len(payload)
    if size >= 65_536 or length_bytes == 8:
        length, rest = 127, size.to_bytes(8, "big")
    elif size >= 126 or length_bytes == 2:
        length, rest = 126, size.to_bytes(2, "big")
    else:
        length, rest = size, b""
    head = bytes([opcode | (0x80 if fin else 0), length | (0x80 if mask else 0)])
    return head + rest + (bytes(4) if mask else b"") + payload


SIZES = (0, 1, 125, 126, 127, 300, 65_535, 65_536, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES + 1)
PAYLOADS = (
    st.text(max_size=20).map(str.encode)
    | st.binary(max_size=20)
    | st.sampled_from(SIZES).map(lambda size: b"x" * size)
)
CONTROL = (
    st.builds(frame, st.just(0x9), st.binary(max_size=125))
    | st.builds(frame, st.just(0xA), st.integers(0, 12).map(lambda number: b"%d" % number))
    | st.builds(frame, st.just(0xA), st.binary(max_size=3))
)
WHOLE = st.builds(
    frame, st.sampled_from((0x1, 0x1, 0x1, 0x2)), PAYLOADS, length_bytes=st.sampled_from((0, 2, 8))
)


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """A message of several frames, with control frames between them."""
    parts = draw(st.lists(PAYLOADS, min_size=2, max_size=4))
    data = frame(draw(st.sampled_from((0x1, 0x2))), parts[0], fin=False)
    for number, part in enumerate(parts[1:], 2):
        data += b"".join(draw(st.lists(CONTROL, max_size=2)))
        data += frame(0x0, part, fin=number == len(parts))
    return data


ENDS = st.sampled_from(
    (
        frame(0x8, b""),
        frame(0x8, b"\x03\xe8"),
        frame(0x8, b"\x03\xf3Bye!"),
        frame(0x8, b"\x03\xf3\xff"),
        frame(0x8, b"\x03"),
        frame(0x1, b"masked", mask=True),
        frame(0x1, b"unfinished", fin=False),
        frame(0x0, b"not begun"),
        frame(0x3, b"unknown opcode"),
        frame(0x41, b"reserved bit"),
        frame(0x9, bytes(126)),
        frame(0x1, b"cut off")[:4],
    )
)


class Observed(NamedTuple):
    """All that can be seen of a socket after the same bytes."""

    messages: list[tuple[bytes, str, int]]
    answers: list[Frame]
    pongs: int
    open_after: list[bool]
    state: State
    close_code: int | None
    close_reason: str | None
    error: str


class _Written(asyncio.Transport):
    """Stores what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        pass


def _observe(pieces: list[bytes], *, split: bool) -> Observed:
    """Pass bytes to a socket; without `split` every byte goes to the parser of websockets."""
    protocol = LenientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
    socket, written = WebSocketClient(protocol, {}), _Written()
    socket._transport = written
    socket.send_ping(9)
    messages: list[tuple[bytes, str, int]] = []
    socket._handle = lambda data, defect, _, waiting: messages.append((data, defect, waiting))
    open_after = []
    for piece in pieces:
        if not split:
            socket._between_messages = False
        socket.data_received(piece)
        open_after.append(socket.open)
    socket.connection_lost(None)
    return Observed(
        messages,
        _read(written.data),
        socket.pongs_received,
        open_after,
        protocol.state,
        protocol.close_code,
        protocol.close_reason,
        repr(protocol.parser_exc),
    )


@settings(deadline=None, max_examples=200)
@given(
    frames=st.lists(WHOLE | WHOLE | fragmented() | CONTROL, max_size=8),
    end=st.just(b"") | ENDS,
    after=st.lists(WHOLE, max_size=2),
    cuts=st.lists(st.floats(0, 1, exclude_max=True), max_size=8),
    small=st.booleans(),
)
def test_split_messages_equal_parsed_ones(
    frames: list[bytes], end: bytes, after: list[bytes], cuts: list[float], small: bool
) -> None:
    data = b"".join([*frames, end, *after])
    places = sorted({int(cut * len(data)) for cut in cuts})
    if small and len(data) < 2_000:
        places = [*range(1, len(data))]  # byte by byte
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]
    assert _observe(pieces, split=True) == _observe(pieces, split=False)


@pytest.mark.parametrize(
    ("data", "expected", "end"),
    [
        (b"", [], 0),
        (b"\x81", [], 0),
        (b"\x81\x00", [b""], 2),
        (b"\x81\x01a\x81\x01b\x81", [b"a", b"b"], 6),
        (b"\x81\x01a\x89\x00\x81\x01b", [b"a"], 3),
        (b"\x81\x7e\x00", [], 0),
        (b"\x81\x7e\x01\x00" + bytes(255), [], 0),
        (b"\x81\x7e\x01\x00" + bytes(257), [bytes(256)], 260),
        (b"\x81\x7f" + (1).to_bytes(8, "big") + b"a", [], 0),
        (b"\x81\x81\x00\x00\x00\x00a", [], 0),
        (b"\x01\x01a", [], 0),
        (b"\x82\x01a", [], 0),
        (b"\xc1\x01a", [], 0),
    ],
)
def test_only_whole_text_frames_are_split(data: bytes, expected: list[bytes], end: int) -> None:
    texts: list[bytes] = []
    assert (split_texts(data, texts), texts) == (end, expected)


def test_protocol_is_between_messages_only_at_frame() -> None:
    protocol = LenientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN, max_size=None)
    data = frame(0x2, b"ab") + frame(0x1, b"c", fin=False) + frame(0x9, b"") + frame(0x0, b"d")
    between = [protocol.between_messages]
    for at in range(len(data)):
        protocol.receive_data(data[at : at + 1])
        between.append(protocol.between_messages)
    assert [at for at, value in enumerate(between) if value] == [0, 4, 12]
    protocol.receive_data(frame(0x8, b"\x03\xe8"))
    assert not protocol.between_messages
    connecting = LenientProtocol(parse_uri("ws://127.0.0.1/"), max_size=None)
    assert not connecting.between_messages
