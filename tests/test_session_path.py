"""The main path, end to end: raw XADDs in, turn events out, nothing left behind."""

from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from schemas.turns import (
    AudioGap,
    SessionEnded,
    SessionStarted,
    TurnEnd,
    TurnEvent,
    TurnUpdate,
    decode_turn_entry,
)
from tests.stage import ON_EACH_BUS, PCM16, Stage, check_order, kinds, words
from tests.waiting import PATIENCE_S, eventually, no_longer
from worker.local.engines.base import AudioFormat
from worker.local.engines.script import hush, say
from worker.local.server.server import TurnsServer

ENCODINGS = ["pcm_s16le", "pcm_s32le", "pcm_f16le", "pcm_f32le", "pcm_mulaw", "pcm_alaw"]


@ON_EACH_BUS
async def test_raw_xadds_in_and_xreadgroup_out(stage: Stage) -> None:
    producer, consumer = stage.producer, stage.consumer
    turns = f"{stage.prefix}:{{0}}:turns"
    await consumer.xgroup_create(turns, "mine", id="0", mkstream=True)
    async with stage.worker():
        await producer.xadd(
            f"{stage.prefix}:sessions",
            {"session": "call-1", "encoding": "pcm_s16le", "sample_rate": "16000"},
        )
        sound = say([1, 2, 3], PCM16) + hush(1_000, PCM16) + say([4, 5], PCM16)
        for at in range(0, len(sound), 3_200):
            await producer.xadd(
                f"{stage.prefix}:{{0}}:audio:call-1", {"audio": sound[at : at + 3_200]}
            )
        await producer.xadd(f"{stage.prefix}:{{0}}:audio:call-1", {"end": "1"})
        events: list[TurnEvent] = []
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


async def test_what_an_ended_session_leaves(stage: Stage, redis: Redis) -> None:
    async with stage.worker(retention_s=600) as worker:
        await stage.announce("call-1")
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        await stage.until_ended("call-1")
        await no_longer(lambda: len(worker.roster), "the session")
    assert await redis.xlen(f"{stage.prefix}:sessions") == 0
    assert (await redis.xpending(f"{stage.prefix}:sessions", "workers"))["pending"] == 0
    assert await redis.get(stage.audio_key("call-1")) == b"ended"
    state = f"{stage.prefix}:{{0}}:state:call-1"
    assert await redis.hget(state, "status") == b"ended"
    assert 0 < await redis.ttl(stage.audio_key("call-1")) <= 600
    assert 0 < await redis.ttl(state) <= 600
    assert await redis.exists(f"{stage.prefix}:workers") == 0
    assert await redis.xinfo_consumers(f"{stage.prefix}:sessions", "workers") == []


async def test_six_encodings_at_once(stage: Stage) -> None:
    async with stage.worker():
        for number, encoding in enumerate(ENCODINGS):
            audio = AudioFormat(encoding, 8_000 if number % 2 else 16_000)
            await stage.announce(encoding, audio)
            sound = say([number, 7], audio) + hush(600, audio) + say([8], audio)
            await stage.play(encoding, sound, sizes=(1_601, 333), pause_s=0)
        events = await stage.until_ended(*ENCODINGS)
    for number, encoding in enumerate(ENCODINGS):
        check_order(events[encoding])
        assert words(events[encoding]) == [number, 7, 8]


async def test_audio_may_come_before_its_announcement(stage: Stage) -> None:
    async with stage.worker():
        await stage.play("call-1", say([1, 2], PCM16), pause_s=0)
        await stage.announce("call-1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2]


@pytest.mark.parametrize("with_audio", [True, False])
async def test_end_without_audio(stage: Stage, stt: TurnsServer, with_audio: bool) -> None:
    async with stage.worker():
        await stage.announce("call-1")
        if with_audio:  # half a sample: nothing that could be sent
            await stage.append("call-1", audio=b"\0")
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert kinds(events) == ["session.started", "session.ended"]
    assert len(stt.connections) == 0


async def test_end_in_the_entry_of_the_last_audio(stage: Stage) -> None:
    async with stage.worker():
        await stage.announce("call-1")
        await stage.append("call-1", audio=say([1, 2], PCM16), end="1")
        await stage.append("call-1", audio=say([3], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2], "audio after the end is not the session's"


async def test_metadata_and_own_stream(stage: Stage, expected_leftovers: list[str]) -> None:
    expected_leftovers.append("{0}:turns:call-1")
    async with stage.worker():
        await stage.announce("call-1", out="session", metadata='{"caller":"anna"}')
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        await stage.until_ended("call-1")
    own = f"{stage.prefix}:{{0}}:turns:call-1"
    rows: Any = await stage.consumer.xrange(own)
    events = [decode_turn_entry(fields).event for _, fields in rows]
    check_order(events)
    assert isinstance(events[0], SessionStarted)
    assert events[0].metadata == {"caller": "anna"}
    assert await stage.redis.ttl(own) > 0


async def test_lanes_are_apart_and_listed(stage: Stage, expected_leftovers: list[str]) -> None:
    expected_leftovers += ["{west}:*"]
    async with stage.worker():
        await stage.announce("call-1", lane="west")
        key = f"{stage.prefix}:{{west}}:audio:call-1"
        await stage.producer.xadd(key, {"audio": say([1], PCM16), "end": "1"})
        events = []
        async for event in stage.events(lane="west"):
            events.append(event)
            if isinstance(event, SessionEnded):
                break
    assert words(events) == [1]
    assert await stage.consumer.smembers(f"{stage.prefix}:lanes") == {b"west"}


async def test_traceparent_is_passed_on(stage: Stage) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with stage.worker():
        await stage.announce("call-1", traceparent=given)
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        await stage.until_ended("call-1")
    rows: Any = await stage.consumer.xrange(f"{stage.prefix}:{{0}}:turns")
    assert {fields[b"traceparent"].split(b"-")[1] for _, fields in rows} == {
        b"0af7651916cd43dd8448eb211c80319c"
    }


async def test_a_producer_that_stops_inside_a_turn(stage: Stage) -> None:
    async with stage.worker():
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        ended = await stage.until("call-1", TurnEnd)
        assert isinstance(ended, TurnEnd)
        assert (ended.transcript, ended.reason) == ("w1 w2", "model")
        await stage.play("call-1", say([3], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3]
    assert events[-1].audio_ms == 600, "filler is not the session's audio"


async def test_a_session_without_audio_ends_idle(stage: Stage) -> None:
    async with stage.worker(session_idle_s=1.0):
        await stage.announce("call-1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert isinstance(events[-1], SessionEnded)
    assert events[-1].reason == "idle"


async def test_a_producer_that_vanishes(stage: Stage, redis: Redis) -> None:
    async with stage.worker(park_s=1.0, session_idle_s=2.0):
        await stage.announce("call-1")
        await stage.play("call-1", say([1, 2], PCM16), end=False)
        events = (await stage.until_ended("call-1"))["call-1"]
        await no_longer(lambda: redis.xlen(f"{stage.prefix}:sessions"), "the session")
    check_order(events)
    assert words(events) == [1, 2]
    (end,) = [event for event in events if isinstance(event, TurnEnd)]
    assert end.reason == "model", "its turn is ended by silence, not by the end of the session"
    assert isinstance(events[-1], SessionEnded)
    assert (events[-1].reason, events[-1].turns) == ("idle", 1)
    assert await redis.get(stage.audio_key("call-1")) == b"ended"


async def test_audio_that_was_never_announced_is_left_alone(stage: Stage, redis: Redis) -> None:
    await stage.append("stray", audio=say([9], PCM16))
    async with stage.worker(park_s=0.5, session_idle_s=1.0):
        await stage.announce("call-1")
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        await stage.append("stray", audio=say([9], PCM16))
        await stage.until_ended("call-1")
    assert await redis.xlen(stage.audio_key("stray")) == 2
    assert await redis.ttl(stage.audio_key("stray")) == -1
    assert not await redis.exists(f"{stage.prefix}:{{0}}:state:stray")
    rows: Any = await stage.consumer.xrange(f"{stage.prefix}:{{0}}:turns")
    assert {decode_turn_entry(fields).event.session for _, fields in rows} == {"call-1"}
    assert await stage.dead() == []


async def test_parks_without_audio_and_goes_on(stage: Stage, stt: TurnsServer) -> None:
    async with stage.worker(park_s=1.0):
        await stage.announce("call-1")
        await stage.play("call-1", say([1], PCM16) + hush(700, PCM16), pause_s=0, end=False)
        await eventually(
            lambda: stt.connections and not stt.open_connections, "the socket to be let go"
        )
        await stage.play("call-1", say([2], PCM16))
        events = (await stage.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    assert events[-1].connection == 2


async def test_repeated_and_missing_chunks(stage: Stage) -> None:
    sound = say(range(1, 5), PCM16)
    quarter = len(sound) // 4
    async with stage.worker():
        await stage.announce("call-1")
        for seq, word in ((7, 1), (7, 1), (8, 2), (7, 1), (8, 2), (10, 4)):
            chunk = sound[(word - 1) * quarter : word * quarter]
            await stage.append("call-1", audio=chunk, seq=str(seq), src="p1")
        await stage.append("call-1", end="1")
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [1, 2, 4]
    gaps = [event for event in events if isinstance(event, AudioGap)]
    assert [(gap.missing_ms, gap.reason) for gap in gaps] == [(200, "producer")]


async def test_config_reaches_the_service_mid_session(stage: Stage, stt: TurnsServer) -> None:
    async with stage.worker():
        await stage.announce("call-1", turn_end_timeout_ms="2000")
        await stage.append("call-1", config='{"turn_end_threshold":0.2}')
        await stage.play("call-1", say([1], PCM16), pause_s=0)
        events = (await stage.until_ended("call-1"))["call-1"]
    assert words(events) == [1]
    assert any(isinstance(event, TurnUpdate) for event in events)
