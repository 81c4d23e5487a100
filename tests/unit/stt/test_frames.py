"""Frames that carry audio, parsed by the server side of websockets."""

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

from worker.stt.frames import FrameWriter

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
