"""The main path, end to end: raw XADDs in, turn events out, nothing left behind."""

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionStarted,
    TurnEnd,
    TurnUpdate,
    decode_turn_entry,
)
from tests.support.harness import ON_EACH_BUS, PCM16, Harness, check_order, kinds, words
from tests.support.polling import PATIENCE_S, eventually, no_longer
from worker.local.emulator.engines.base import AudioFormat
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.emulator.server import TurnsServer

ENCODINGS = ["pcm_s16le", "pcm_s32le", "pcm_f16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw"]


@ON_EACH_BUS
async def test_raw_xadds_in_and_xreadgroup_out(harness: Harness) -> None:
    producer, consumer = harness.producer, harness.consumer
    turns = f"{harness.prefix}:{{0}}:turns"
    await consumer.xgroup_create(turns, "mine", id="0", mkstream=True)
    async with harness.worker():
        await producer.xadd(
            f"{harness.prefix}:sessions",
            {"session": "call-1", "encoding": "pcm_s16le", "sample_rate": "16000"},
        )
        sound = (
            synthesize_words([1, 2, 3], PCM16)
            + synthesize_silence(1_000, PCM16)
            + synthesize_words([4, 5], PCM16)
        )
        for at in range(0, len(sound), 3_200):
            await producer.xadd(
                f"{harness.prefix}:{{0}}:audio:call-1", {"audio": sound[at : at + 3_200]}
            )
        await producer.xadd(f"{harness.prefix}:{{0}}:audio:call-1", {"end": "1"})
        events: list[Event] = []
        with anyio.fail_after(PATIENCE_S):
            while not events or not isinstance(events[-1], SessionEnded):
                reply: Any = await consumer.xreadgroup("mine", "me", {turns: ">"}, block=500)
                for _, rows in reply:
                    for entry, fields in rows:
                        events.append(decode_turn_entry(fields).event)
                        await consumer.xack(turns, "mine", entry)
    check_order(events)
    assert words(events) == [1, 2, 3, 4, 5]
    assert [event.transcript for event in events if isinstance(event, TurnEnd)] == [
        "w1 w2 w3",
        " w4 w5",
    ]
    assert kinds(events)[:2] == ["session.started", "turn.start"]


async def test_keys_left_by_an_ended_session(harness: Harness, redis: Redis) -> None:
    async with harness.worker(retention_s=600) as worker:
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("call-1")
        await no_longer(lambda: len(worker.running), "the session")
    assert await redis.xlen(f"{harness.prefix}:sessions") == 0
    assert (await redis.xpending(f"{harness.prefix}:sessions", "workers"))["pending"] == 0
    assert await redis.get(harness.audio_key("call-1")) == b"ended"
    state = f"{harness.prefix}:{{0}}:state:call-1"
    assert await redis.hget(state, "status") == b"ended"
    assert 0 < await redis.ttl(harness.audio_key("call-1")) <= 600
    assert 0 < await redis.ttl(state) <= 600
    assert await redis.exists(f"{harness.prefix}:workers") == 0
    assert await redis.xinfo_consumers(f"{harness.prefix}:sessions", "workers") == []


async def test_six_encodings_at_once(harness: Harness) -> None:
    async with harness.worker():
        for number, encoding in enumerate(ENCODINGS):
            audio = AudioFormat(encoding, 8_000 if number % 2 else 16_000)
            await harness.announce(encoding, audio)
            sound = (
                synthesize_words([number, 7], audio)
                + synthesize_silence(600, audio)
                + synthesize_words([8], audio)
            )
            await harness.play(encoding, sound, sizes=(1_601, 333), pause_s=0)
        events = await harness.until_ended(*ENCODINGS)
    for number, encoding in enumerate(ENCODINGS):
        check_order(events[encoding])
        assert words(events[encoding]) == [number, 7, 8]


async def test_audio_may_come_before_its_announcement(harness: Harness) -> None:
    async with harness.worker():
        await harness.play("call-1", synthesize_words([1, 2], PCM16), pause_s=0)
        await harness.announce("call-1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2]


@pytest.mark.parametrize("with_audio", [True, False])
async def test_end_without_audio(harness: Harness, stt: TurnsServer, with_audio: bool) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        if with_audio:  # half a sample, which cannot be sent
            await harness.append("call-1", audio=b"\0")
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert kinds(events) == ["session.started", "session.ended"]
    assert len(stt.connections) == 0


async def test_end_in_the_entry_of_the_last_audio(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", audio=synthesize_words([1, 2], PCM16), end="1")
        await harness.append("call-1", audio=synthesize_words([3], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2], "audio after the end is not the session's"


async def test_metadata_and_session_stream(harness: Harness, expected_leftovers: list[str]) -> None:
    expected_leftovers.append("{0}:turns:call-1")
    async with harness.worker():
        await harness.announce("call-1", out="session", metadata='{"caller":"anna"}')
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("call-1")
    own = f"{harness.prefix}:{{0}}:turns:call-1"
    rows: Any = await harness.consumer.xrange(own)
    events = [decode_turn_entry(fields).event for _, fields in rows]
    check_order(events)
    assert isinstance(events[0], SessionStarted)
    assert events[0].metadata == {"caller": "anna"}
    assert await harness.redis.ttl(own) > 0


async def test_lanes_are_separate_and_listed(
    harness: Harness, expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["{west}:*"]
    async with harness.worker():
        await harness.announce("call-1", lane="west")
        key = f"{harness.prefix}:{{west}}:audio:call-1"
        await harness.producer.xadd(key, {"audio": synthesize_words([1], PCM16), "end": "1"})
        events = []
        async for event in harness.events(lane="west"):
            events.append(event)
            if isinstance(event, SessionEnded):
                break
    assert words(events) == [1]
    assert await harness.consumer.smembers(f"{harness.prefix}:lanes") == {b"west"}


async def test_traceparent_is_propagated(harness: Harness) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with harness.worker():
        await harness.announce("call-1", traceparent=given)
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("call-1")
    rows: Any = await harness.consumer.xrange(f"{harness.prefix}:{{0}}:turns")
    assert {fields[b"traceparent"].split(b"-")[1] for _, fields in rows} == {
        b"0af7651916cd43dd8448eb211c80319c"
    }


async def test_producer_stops_inside_a_turn(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        ended = await harness.until("call-1", TurnEnd)
        assert isinstance(ended, TurnEnd)
        assert (ended.transcript, ended.reason) == ("w1 w2", "model")
        await harness.play("call-1", synthesize_words([3], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert events[-1].audio_ms == 600, "filler is not the session's audio"


async def test_session_without_audio_ends_idle(harness: Harness) -> None:
    async with harness.worker(session_idle_s=1.0):
        await harness.announce("call-1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert isinstance(events[-1], SessionEnded)
    assert events[-1].reason == "idle"


async def test_producer_vanishes(harness: Harness, redis: Redis) -> None:
    async with harness.worker(park_s=1.0, session_idle_s=2.0):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1, 2], PCM16), end=False)
        events = (await harness.until_ended("call-1"))["call-1"]
        await no_longer(lambda: redis.xlen(f"{harness.prefix}:sessions"), "the session")
    check_order(events)
    assert words(events) == [1, 2]
    (end,) = [event for event in events if isinstance(event, TurnEnd)]
    assert end.reason == "model", "its turn is ended by silence, not by the end of the session"
    assert isinstance(events[-1], SessionEnded)
    assert (events[-1].reason, events[-1].turns) == ("idle", 1)
    assert await redis.get(harness.audio_key("call-1")) == b"ended"


async def test_audio_never_announced_is_left_alone(harness: Harness, redis: Redis) -> None:
    await harness.append("stray", audio=synthesize_words([9], PCM16))
    async with harness.worker(park_s=0.5, session_idle_s=1.0):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.append("stray", audio=synthesize_words([9], PCM16))
        await harness.until_ended("call-1")
    assert await redis.xlen(harness.audio_key("stray")) == 2
    assert await redis.ttl(harness.audio_key("stray")) == -1
    assert not await redis.exists(f"{harness.prefix}:{{0}}:state:stray")
    rows: Any = await harness.consumer.xrange(f"{harness.prefix}:{{0}}:turns")
    assert {decode_turn_entry(fields).event.session for _, fields in rows} == {"call-1"}
    assert await harness.dead() == []


async def test_parked_session_resumes_with_audio(harness: Harness, stt: TurnsServer) -> None:
    async with harness.worker(park_s=1.0):
        await harness.announce("call-1")
        await harness.play(
            "call-1",
            synthesize_words([1], PCM16) + synthesize_silence(700, PCM16),
            pause_s=0,
            end=False,
        )
        await eventually(
            lambda: stt.connections and not stt.open_connections, "the socket to be closed"
        )
        await harness.play("call-1", synthesize_words([2], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert events[-1].connection == 2


async def test_repeated_and_missing_chunks(harness: Harness) -> None:
    sound = synthesize_words(range(1, 5), PCM16)
    quarter = len(sound) // 4
    async with harness.worker():
        await harness.announce("call-1")
        for seq, word in ((7, 1), (7, 1), (8, 2), (7, 1), (8, 2), (10, 4)):
            chunk = sound[(word - 1) * quarter : word * quarter]
            await harness.append("call-1", audio=chunk, seq=str(seq), src="p1")
        await harness.append("call-1", end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2, 4]
    gaps = [event for event in events if isinstance(event, AudioGap)]
    assert [(gap.missing_ms, gap.reason) for gap in gaps] == [(200, "producer")]


async def test_config_change_reaches_the_provider_mid_session(
    harness: Harness, stt: TurnsServer
) -> None:
    async with harness.worker():
        await harness.announce("call-1", turn_end_timeout_ms="2000")
        await harness.append("call-1", config='{"turn_end_threshold":0.2}')
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1]
    assert any(isinstance(event, TurnUpdate) for event in events)
