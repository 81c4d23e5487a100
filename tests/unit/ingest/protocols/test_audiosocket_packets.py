"""AudioSocket's packets: any types, any splits, any bytes."""

import struct
import uuid
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ingest.protocols.checks import check_records
from worker.ingest.protocols.audiosocket import (
    DTMF,
    ERROR,
    HANGUP,
    MAX_EARLY_DIGITS,
    MAX_PACKET_BYTES,
    RATES,
    UUID,
    AudioSocket,
)
from worker.ingest.records import Audio, CallInput, Ended, Marked, ProtocolError, Started

CALL = uuid.UUID("40325ec2-5efd-4bd3-805f-53576e581d13")


def packet(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BH", kind, len(payload)) + payload


OPENING = packet(UUID, CALL.bytes)
FRAME = bytes(range(250)) + bytes(70)


def parse(*pieces: bytes) -> list[Any]:
    parser = AudioSocket()
    records = [record for piece in pieces for record in parser.feed(piece)]
    if parser.error is not None:
        raise parser.error
    return records


def test_call_is_uuid_audio_digits_and_hangup() -> None:
    wire = OPENING + packet(0x10, FRAME) + packet(DTMF, b"5") + packet(HANGUP) + packet(0x10, b"x")
    started, *rest = parse(wire)
    assert started.sessions[0].session == str(CALL)
    assert started.sessions[0].sample_rate == 8_000
    assert rest == [Audio(FRAME), Marked({"dtmf": "5"}), Ended()]


@pytest.mark.parametrize("kind", RATES)
def test_first_audio_decides_the_rate(kind: int) -> None:
    started, _ = parse(OPENING + packet(kind, FRAME))
    assert started.sessions[0].sample_rate == RATES[kind]


@pytest.mark.parametrize("payload", [b"", b"\x01"])
def test_error_packet_ends_the_call(payload: bytes) -> None:
    assert parse(OPENING + packet(ERROR, payload)) == [Ended()]


def test_unknown_types_and_digits_are_skipped() -> None:
    odd = packet(0x02, b"xyz") + packet(0x20, FRAME) + packet(DTMF, b"\xff") + packet(DTMF, b"12")
    assert parse(OPENING + odd + packet(0x12, b"") + packet(0x12, FRAME))[1:] == [Audio(FRAME)]


def test_early_digits_follow_the_start() -> None:
    digits = packet(DTMF, b"1") * (MAX_EARLY_DIGITS + 10)
    _, *rest = parse(OPENING + digits + packet(0x10, FRAME))
    assert rest == [Marked({"dtmf": "1"})] * MAX_EARLY_DIGITS + [Audio(FRAME)]


@pytest.mark.parametrize(
    ("wire", "line"),
    [
        (packet(0x10, FRAME), "before the UUID"),
        (packet(UUID, b"short"), "16 bytes"),
        (packet(UUID), "16 bytes"),
        (OPENING + packet(UUID, bytes(16)), "second UUID"),
        (OPENING + packet(0x10, FRAME) + packet(0x12, FRAME), "from 8000 to 16000 Hz"),
    ],
)
def test_unusable_packet_has_a_clear_line(wire: bytes, line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        parse(wire)


def test_unusable_packet_keeps_what_came_before() -> None:
    parser = AudioSocket()
    wire = OPENING + packet(0x10, FRAME) + packet(DTMF, b"5") + packet(0x12, FRAME)
    _, *rest = parser.feed(wire + packet(0x10, FRAME))
    assert rest == [Audio(FRAME), Marked({"dtmf": "5"})]
    assert parser.ended
    assert "from 8000 to 16000 Hz" in str(parser.error)
    assert parser.feed(packet(0x10, FRAME)) == []


def test_repeated_uuid_is_ignored() -> None:
    assert parse(OPENING * 2) == []


@given(st.lists(st.integers(0, 1_100)))
def test_splits_do_not_matter(cuts: list[int]) -> None:
    wire = OPENING + packet(DTMF, b"#") + packet(0x12, FRAME) * 2 + packet(7, b"x") + packet(HANGUP)
    places = [0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]
    assert parse(*(wire[a:b] for a, b in pairwise(places))) == parse(wire)


@given(st.data())
def test_any_bytes_are_records_or_error(data: st.DataObject) -> None:
    kinds = st.sampled_from([*RATES, HANGUP, UUID, DTMF, ERROR, 0x42])
    packets = st.builds(packet, kinds, st.binary(max_size=20) | st.just(CALL.bytes))
    pieces = data.draw(st.lists(packets | st.binary(max_size=40), max_size=8))
    if data.draw(st.booleans()):
        pieces.insert(0, OPENING)
    parser = AudioSocket()
    records: list[CallInput] = []
    for piece in pieces:
        records += parser.feed(piece)
        assert len(parser._rest) < MAX_PACKET_BYTES
    check_records(records)
    assert isinstance((records or [Ended()])[0], Started | Ended)
