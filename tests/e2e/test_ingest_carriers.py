"""What carriers send reaches the audio streams byte for byte, through a gateway process."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

import anyio
import pytest

from schemas import Encoding
from tests.support.carriers import (
    LEFT_BEHIND,
    Message,
    TwilioStream,
    carried,
    noise,
    replay,
    send_in_pieces,
)
from tests.support.gateway import gateway
from tests.support.harness import Harness
from worker.ingest.protocols.asterisk import FORMATS
from worker.ingest.protocols.audiosocket import RATES

PIECES = pytest.mark.parametrize("piece_bytes", [65_536, 1_000, 1])
"""Sizes of a write: frames together, frames cut, and byte by byte."""


@pytest.fixture(autouse=True)
def without_worker(expected_leftovers: list[str]) -> None:
    """No worker runs, so the streams stay as the gateway wrote them."""
    expected_leftovers += LEFT_BEHIND


def cut(sound: bytes, size: int) -> Sequence[bytes]:
    return [sound[at : at + size] for at in range(0, len(sound), size)]


@PIECES
async def test_twilio_tracks_arrive_unchanged(
    piece_bytes: int, harness: Harness, tmp_path: Path
) -> None:
    call = TwilioStream("MZ0a1", "inbound", "outbound")
    inbound, outbound = noise(160 * 37, 1), noise(160 * 37, 2)
    messages = [*call.opening(tenant="shop")]
    for at, (theirs, own) in enumerate(zip(cut(inbound, 160), cut(outbound, 160), strict=True)):
        messages += [call.media(theirs, "inbound"), call.media(own, "outbound")]
        if at == 12:
            messages += [call.dtmf("#"), call.mark("greeting")]
    messages.append(call.stop())
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        replay(ingest, "/twilio", messages, piece_bytes=piece_bytes),
    ):
        caller = await carried(harness, "MZ0a1")
        callee = await carried(harness, "MZ0a1.outbound")
    assert caller.audio == inbound
    assert callee.audio == outbound
    assert caller.marks == [(160 * 13, {"dtmf": "#"}), (160 * 13, {"mark": "greeting"})]
    assert callee.marks == []
    for leg, track in ((caller, "inbound"), (callee, "outbound")):
        about = leg.announced
        assert (about.encoding, about.sample_rate) == (Encoding.PCM_MULAW, 8_000)
        assert about.group == "CA0a1"
        assert about.metadata["track"] == track
        assert about.metadata["tenant"] == "shop"
        # 100 ms; a slow machine sends less when the time for the rest is over.
        assert max(len(entry.audio) for entry in leg.entries) <= 800


async def test_twilio_lost_socket_keeps_its_audio(harness: Harness, tmp_path: Path) -> None:
    call = TwilioStream("MZ0a2")
    sound = noise(160 * 23)
    messages = [*call.opening(), *map(call.media, cut(sound, 160))]
    async with gateway(harness, tmp_path / "log", grace_s="0") as ingest:
        async with replay(ingest, "/twilio", messages):
            pass  # the connection ends without `stop` and without a close frame
        assert (await carried(harness, "MZ0a2")).audio == sound


def media_start(name: str) -> Mapping[str, object]:
    encoding, sample_rate = FORMATS[name]
    return {
        "event": "MEDIA_START",
        "connection_id": "media_connection1",
        "channel": "WebSocket/turnbus/0x7f1",
        "channel_id": "pbx1-1764390000.42",
        "format": name,
        "optimal_frame_size": sample_rate // 50 * encoding.width,
        "ptime": 20,
        "channel_variables": {"CALLERID": "15550100"},
    }


def as_json(event: Mapping[str, object]) -> str:
    return json.dumps(event)


def as_line(event: Mapping[str, object]) -> str:
    """Return the older form of a control message."""
    name, *others = event.items()
    values = " ".join(f"{key}:{value}" for key, value in others if key != "channel_variables")
    return f"{name[1]} {values}"


@PIECES
@pytest.mark.parametrize("write", [as_json, as_line])
@pytest.mark.parametrize("codec", ["ulaw", "slin16"])
async def test_asterisk_audio_arrives_unchanged(
    write: Callable[[Mapping[str, object]], str],
    codec: str,
    piece_bytes: int,
    harness: Harness,
    tmp_path: Path,
) -> None:
    encoding, sample_rate = FORMATS[codec]
    frame = sample_rate // 50 * encoding.width
    sound = noise(frame * 23)
    audio = cut(sound, frame)
    key = {"event": "DTMF_END", "channel_id": "pbx1-1764390000.42", "digit": "5"}
    messages: list[Message] = [write(media_start(codec)), *audio[:8], write(key), *audio[8:]]
    query = urlencode({"tenant": "shop", "group": "call-1"})
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        replay(
            ingest,
            f"/asterisk?{query}",
            messages,
            piece_bytes=piece_bytes,
            subprotocol="media",
            close=True,
        ) as chosen,
    ):
        leg = await carried(harness, "pbx1-1764390000.42")
    assert chosen == "media"
    assert leg.audio == sound
    assert leg.marks == [(8 * frame, {"dtmf": "5"})]
    about = leg.announced
    assert (about.encoding, about.sample_rate) == (encoding, sample_rate)
    assert about.group == "call-1"
    assert about.metadata["tenant"] == "shop"


@pytest.mark.parametrize(("kind", "sample_rate"), RATES.items())
async def test_audiosocket_arrives_unchanged(
    kind: int, sample_rate: int, harness: Harness, tmp_path: Path
) -> None:
    call_id = uuid.uuid4()
    frame = sample_rate // 50 * 2
    sound = noise(frame * 7, kind)
    packets = [packet(0x01, call_id.bytes)]
    packets += [packet(kind, each) for each in cut(sound, frame)]
    packets.insert(5, packet(0x03, b"9"))
    packets.append(packet(0x00, b""))
    piece_bytes = 1 if sample_rate <= 16_000 else 1_021
    options = ("--audiosocket", "127.0.0.1:0")
    async with gateway(harness, tmp_path / "log", *options) as ingest:
        await ingest.logged("AudioSocket on")
        async with await anyio.connect_tcp("127.0.0.1", ingest.audiosocket_port) as stream:
            await send_in_pieces(stream, b"".join(packets), piece_bytes)
            leg = await carried(harness, str(call_id))
    assert leg.audio == sound
    assert leg.marks == [(4 * frame, {"dtmf": "9"})]
    about = leg.announced
    assert (about.encoding, about.sample_rate) == (Encoding.PCM_S16LE, sample_rate)


def packet(kind: int, payload: bytes) -> bytes:
    return bytes([kind]) + len(payload).to_bytes(2, "big") + payload


@PIECES
@pytest.mark.parametrize("subprotocol", [None, "audio.drachtio.org"])
@pytest.mark.parametrize("channels", [1, 2])
async def test_freeswitch_audio_arrives_unchanged(
    channels: int, subprotocol: str | None, piece_bytes: int, harness: Harness, tmp_path: Path
) -> None:
    legs = [noise(320 * 23, channel) for channel in range(channels)]
    mixed = b"".join(
        leg[at : at + 2] for at in range(0, len(legs[0]), 2) for leg in legs
    )  # samples of the channels in turn
    audio = cut(mixed, 320 * channels)
    first = {"session": "fs-1", "sample_rate": 8000, "channels": channels, "tenant": "shop"}
    messages: list[Message] = [json.dumps(first), *audio[:8], '{"dtmf":"5"}', *audio[8:]]
    names = ["fs-1"] if channels == 1 else ["fs-1-a", "fs-1-b"]
    async with (
        gateway(harness, tmp_path / "log") as ingest,
        replay(
            ingest,
            "/freeswitch",
            messages,
            piece_bytes=piece_bytes,
            subprotocol=subprotocol,
            close=True,
        ) as chosen,
    ):
        seen = [await carried(harness, name) for name in names]
    assert chosen == subprotocol
    assert [leg.audio for leg in seen] == legs
    assert seen[0].marks == [(320 * 8, {"dtmf": "5"})]
    for leg in seen:
        about = leg.announced
        assert (about.encoding, about.sample_rate) == (Encoding.PCM_S16LE, 8_000)
        assert about.metadata["tenant"] == "shop"
        assert about.group == ("fs-1" if channels == 2 else None)
