"""Bad input is rejected with a published reason and does not affect other sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from schemas.keys import Keys
from schemas.turns import SessionEnded, SessionError, SessionStarted, TurnEnd
from tests.support.acl import PASSWORD, as_user
from tests.support.harness import PCM16, Harness, check_order, kinds, words
from tests.support.polling import eventually, no_longer
from worker.local.emulator.engines.script import synthesize_words

GOOD = {"session": "bad", "encoding": "pcm_s16le", "sample_rate": "16000"}

BAD_SESSIONS = [
    ({**GOOD, "encoding": "mp3"}, "encoding", "encoding", True),
    ({**GOOD, "sample_rate": "fast"}, "malformed", "sample_rate", True),
    ({"session": "bad", "encoding": "pcm_s16le"}, "missing", "sample_rate", True),
    ({**GOOD, "keyterms": "Ink"}, "malformed", "keyterms", True),
    ({**GOOD, "turn_end_threshold": "7"}, "malformed", "turn_end_threshold", True),
    ({**GOOD, "metadata": f'"{"x" * 5_000}"'}, "too_large", "metadata", True),
    ({**GOOD, "session": "no spaces"}, "malformed", "session", False),
    ({"encoding": "pcm_s16le", "sample_rate": "16000"}, "missing", "session", False),
    ({"hello": "world"}, "missing", "session", False),
    ({**GOOD, "metadata": "[" * 2_000 + "]" * 2_000}, "malformed", "metadata", True),
    # Nested as deeply as Python can parse, and too deeply to be encoded further down the stack.
    ({**GOOD, "metadata": '{"a":' + "[" * 900 + "]" * 900 + "}"}, "malformed", "metadata", True),
    ({**GOOD, "metadata": b'{"a":"\xff"}'}, "malformed", "metadata", True),
]


@pytest.mark.parametrize(("fields", "reason", "field", "known"), BAD_SESSIONS)
async def test_bad_session_entry(
    harness: Harness, fields: dict[str, str | bytes], reason: str, field: str, known: bool
) -> None:
    async with harness.worker():
        bad = await harness.announce_as(fields)
        await harness.announce("good")
        await harness.play("good", synthesize_words([1], PCM16), pause_s=0)
        events = await harness.until_ended("good", *(["bad"] if known else []))
    assert words(events["good"]) == [1]
    (dead,) = await harness.dead()
    assert dead[b"id"].decode() == bad
    assert dead[b"reason"].decode() == reason
    assert f"`{field}`" in dead[b"detail"].decode()
    if known:
        error, ended = events["bad"]
        assert isinstance(error, SessionError)
        assert isinstance(ended, SessionEnded)
        assert (error.seq, error.fatal, ended.seq, ended.reason) == (1, True, 2, "error")
        assert field in error.message
        assert await harness.redis.get(harness.audio_key("bad")) == b"ended"
    assert await harness.redis.xlen(f"{harness.prefix}:sessions") == 0


async def test_log_and_dead_letter_refer_to_each_other(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness.worker():
        bad = await harness.announce_as({**GOOD, "encoding": "mp3"})
        await eventually(lambda: "rejected" in caplog.text, "the refusal")
    rows: Any = await harness.redis.xrange(f"{harness.prefix}:dead")
    ((kept, fields),) = rows
    assert fields[b"id"].decode() == bad
    (line,) = (text for text in caplog.messages if "rejected" in text)
    assert line.startswith(
        f"bad: rejected entry {bad} of {harness.prefix}:sessions: field `encoding`"
    )
    assert line.endswith(f"`turnbus dead` has it as {kept.decode()}")


async def test_dead_key_of_another_type_is_logged_once(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    await harness.redis.set(f"{harness.prefix}:dead", "another program's")
    async with harness.worker():
        for number in range(2):
            await harness.announce_as({**GOOD, "session": f"bad-{number}", "encoding": "mp3"})
        await harness.announce("good")
        await harness.play("good", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("good", "bad-0", "bad-1"))["good"]
        assert words(events) == [1]
        await eventually(lambda: "bad-1: rejected" in caplog.text, "the second refusal")
        await harness.redis.delete(f"{harness.prefix}:dead")
        await harness.announce_as({**GOOD, "session": "bad-2", "encoding": "mp3"})
        await eventually(harness.dead, "the dead letter")
    (error,) = (each.message for each in caplog.records if each.levelname == "ERROR")
    assert error.startswith(
        "cannot write dead letters, rejected entries are only logged (ResponseError: WRONGTYPE"
    )
    assert len([text for text in caplog.messages if "; not kept: ResponseError: WR" in text]) == 2


BAD_AUDIO = [
    ({"sound": b"\0\0"}, "empty", ""),
    ({"audio": bytes(256 * 1024 + 1)}, "too_large", "audio"),
    ({"audio": b"\0\0", "seq": "first"}, "malformed", "seq"),
    ({"config": "{"}, "malformed", "config"),
    ({"config": '{"volume":11}'}, "malformed", "config"),
    ({"config": "[" * 100_000}, "malformed", "config"),
    ({"config": b'{"\xff":1}'}, "malformed", "config"),
    ({"audio": b"\0\0", "seq": "9" * 400}, "malformed", "seq"),
]


@pytest.mark.parametrize(("fields", "reason", "field"), BAD_AUDIO)
async def test_bad_audio_entry(
    harness: Harness, fields: dict[str, bytes | str], reason: str, field: str
) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), end=False)
        await harness.append("call-1", **fields)
        await harness.play("call-1", synthesize_words([2], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert (error.code, error.fatal) == (f"audio_{reason}", False)
    (dead,) = await harness.dead()
    assert dead[b"session"] == b"call-1"
    assert dead[b"reason"].decode() == reason
    assert not field or f"`{field}`" in dead[b"detail"].decode()
    assert b"audio" not in dead, "rejected audio is never stored"


async def test_valid_fields_of_a_bad_audio_entry_are_used(harness: Harness) -> None:
    """An invalid field does not discard the audio beside it or the end of the session."""
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append(
            "call-1", audio=synthesize_words([1], PCM16), seq="0", src="a", config="{"
        )
        await harness.append("call-1", audio=synthesize_words([2], PCM16), seq="2", src="a")
        await harness.append(
            "call-1", audio=synthesize_words([3], PCM16), seq="3", src="s" * 129, end=""
        )
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2, 3]
    errors = [event for event in events if isinstance(event, SessionError)]
    assert [(error.code, error.fatal) for error in errors] == [
        ("audio_malformed", False),
        ("audio_too_large", False),
    ]
    assert kinds(events).count("audio.gap") == 1
    assert [fields[b"reason"] for fields in await harness.dead()] == [b"malformed", b"too_large"]
    assert isinstance(events[-1], SessionEnded)
    assert events[-1].reason == "end"


async def test_reused_session_id_is_rejected(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("call-1")
        again = await harness.announce("call-1")
        dead = await eventually(harness.dead, "the dead letter")
    assert dead[0][b"id"].decode() == again
    assert dead[0][b"reason"] == b"ended"


async def test_session_announced_twice(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), end=False)
        await harness.announce("call-1")
        dead = await eventually(harness.dead, "the dead letter")
        await harness.play("call-1", synthesize_words([2], PCM16))
        events = (await harness.until_ended("call-1"))["call-1"]
    assert dead[0][b"reason"] == b"duplicate"
    assert kinds(events).count("session.started") == 1
    assert words(events) == [1, 2]


async def test_audio_key_that_is_not_a_stream(harness: Harness) -> None:
    async with harness.worker():
        await harness.redis.set(harness.audio_key("call-2"), "not a stream")
        await harness.announce("call-1")
        await harness.announce("call-2")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        dead = await eventually(harness.dead, "the dead letter")
    assert words(events) == [1]
    assert dead[0][b"session"] == b"call-2"


async def test_settings_rejected_by_the_provider(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1", model="ink-whisper")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.announce("call-2")
        await harness.play("call-2", synthesize_words([1], PCM16), pause_s=0)
        events = await harness.until_ended("call-1", "call-2")
    (error,) = [event for event in events["call-1"] if isinstance(event, SessionError)]
    assert (error.code, error.status, error.fatal) == ("model_not_found", 400, True)
    assert not any(isinstance(event, TurnEnd) for event in events["call-1"])
    assert words(events["call-2"]) == [1]
    (dead,) = await harness.dead()
    assert dead[b"session"] == b"call-1"


async def test_settings_that_conflict_with_current_settings(harness: Harness) -> None:
    async with harness.worker():
        await harness.announce("call-1")
        await harness.append("call-1", config='{"turn_eager_end_threshold":0.35}')
        await harness.append(
            "call-1", audio=synthesize_words([1], PCM16), config='{"turn_end_threshold":0.4}'
        )
        await harness.append("call-1", audio=synthesize_words([2], PCM16), end="1")
        events = (await harness.until_ended("call-1"))["call-1"]
    check_order(events)
    assert words(events) == [1, 2]
    (error,) = [event for event in events if isinstance(event, SessionError)]
    assert "must be below" in error.message
    assert not error.fatal
    assert [dead[b"session"] for dead in await harness.dead()] == [b"call-1"]


async def test_unknown_fields_are_ignored(harness: Harness) -> None:
    async with harness.worker():
        written: dict[Any, Any] = {**GOOD, "session": "call-1", b"\xff\xfe": b"\x00\xff"}
        await harness.producer.xadd(f"{harness.prefix}:sessions", written)
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1]


@pytest.mark.parametrize("key", ["{0}:state:call-2", "{0}:turns:call-2"])
@pytest.mark.parametrize("encoding", ["pcm_s16le", "mp3"])
async def test_session_keys_of_an_unexpected_type(
    harness: Harness, key: str, encoding: str, expected_leftovers: list[str]
) -> None:
    expected_leftovers.append("{0}:turns:call-2")
    await harness.redis.set(f"{harness.prefix}:{key}", "another program's")
    await harness.redis.hset(f"{harness.prefix}:workers", "alien", '{"a":1}')
    async with harness.worker():
        await harness.announce_as(
            {**GOOD, "session": "call-2", "out": "session", "encoding": encoding}
        )
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        dead = await eventually(harness.dead, "the dead letter")
        await no_longer(lambda: harness.redis.xlen(f"{harness.prefix}:sessions"), "the session")
    assert words(events) == [1]
    assert dead[0][b"session"] == b"call-2"
    await harness.redis.hdel(f"{harness.prefix}:workers", "alien")


async def _set_user(harness: Harness, *rules: str) -> None:
    await harness.redis.execute_command(  # type: ignore[no-untyped-call]
        "ACL SETUSER", harness.prefix, *rules
    )


@asynccontextmanager
async def _user(harness: Harness, *rules: str) -> AsyncIterator[str]:
    """Create a Redis user for this test and yield the URL that connects as that user."""
    await _set_user(harness, "on", f">{PASSWORD}", "+@all", f"&{harness.prefix}:*", *rules)
    try:
        yield as_user(harness.redis_url, harness.prefix)
    finally:
        await harness.redis.acl_deluser(harness.prefix)


_OWN = (
    *("sessions", "lanes", "dead", "workers", "gate", "*:gate}:holders", "sweep"),
    *("*:sessions}:lost", "search", "{0}:*"),
)


async def test_lost_session_on_a_forbidden_lane(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker cannot read the session's state to restore it, and must keep running."""
    keys = Keys(harness.prefix)
    lost: Any = {"status": "live", "entry": "1-1", "run": "1-1", "fields": "{}"}
    await harness.redis.hset(keys.state("secret", "call-2"), mapping=lost)
    await harness.redis.zadd(keys.lost, {"1-1": 1})
    async with (
        _user(harness, *(f"~{harness.prefix}:{key}" for key in _OWN)) as url,
        harness.worker(redis_url=url) as worker,
    ):
        await no_longer(lambda: harness.redis.exists(keys.lost), "the lost entry to be found")
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.context.stats.internal_errors.total() == 0
    assert words(events) == [1]
    assert "1 state of sessions cannot be read: NoPermissionError" in caplog.text
    await harness.redis.delete(keys.state("secret", "call-2"))


async def test_lane_the_worker_has_no_rights_on(harness: Harness) -> None:
    async with (
        _user(harness, *(f"~{harness.prefix}:{key}" for key in _OWN)) as url,
        harness.worker(redis_url=url) as worker,
    ):
        denied = await harness.announce("call-2", lane="secret")
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        dead = await eventually(harness.dead, "the dead letter")
        await no_longer(lambda: harness.redis.xlen(f"{harness.prefix}:sessions"), "the session")
        assert worker.readiness.ready
    assert words(events) == [1]
    assert [(fields[b"id"].decode(), fields[b"reason"]) for fields in dead] == [
        (denied, b"unusable")
    ]
    assert b"may not use the keys of lane secret" in dead[0][b"detail"]


async def test_lane_whose_rights_are_revoked(
    harness: Harness, expected_leftovers: list[str]
) -> None:
    expected_leftovers += ["{secret}:*"]
    own = [f"~{harness.prefix}:{key}" for key in _OWN]
    async with (
        _user(harness, *own, f"~{harness.prefix}:{{secret}}:*") as url,
        harness.worker(redis_url=url) as worker,
    ):
        await harness.announce("call-2", lane="secret")
        await harness.announce("call-1")
        await harness.until("call-1", SessionStarted)
        await eventually(lambda: len(worker.running) == 2, "both sessions")
        await _set_user(harness, "resetkeys", *own)
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        await harness.producer.xadd(f"{harness.prefix}:{{secret}}:audio:call-2", {"audio": b"00"})
        dead = await eventually(harness.dead, "the dead letter")
        await no_longer(lambda: harness.redis.xlen(f"{harness.prefix}:sessions"), "the session")
        assert worker.readiness.ready
    assert words(events) == [1]
    assert [(fields[b"session"], fields[b"reason"]) for fields in dead] == [
        (b"call-2", b"unusable")
    ]


async def test_worker_waits_for_a_missing_right(harness: Harness) -> None:
    async with (
        _user(harness, f"~{harness.prefix}:*", "-xreadgroup", "resetchannels") as url,
        harness.worker(redis_url=url) as worker,
    ):
        await eventually(lambda: worker.health.unfit, "a worker that lacks a right")
        (reason,) = worker.readiness.reasons
        assert reason == f"redis: grant this user, on keys {harness.prefix}:*: XREADGROUP"
        await _set_user(harness, "+xreadgroup")
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        assert worker.readiness.ready
    assert words(events) == [1]


async def test_worker_waits_while_the_password_is_wrong(harness: Harness) -> None:
    async with _user(harness, f"~{harness.prefix}:*") as url:
        await _set_user(harness, "resetpass", ">other")
        async with harness.worker(redis_url=url) as worker:
            await no_longer(lambda: worker.health.up, "Redis")
            assert worker.readiness.reasons[0].startswith("redis: AuthenticationError: ")
            await _set_user(harness, f">{PASSWORD}")
            await harness.announce("call-1")
            await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
            events = (await harness.until_ended("call-1"))["call-1"]
    assert words(events) == [1]


async def test_missing_subscribe_right_is_logged_once(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        _user(harness, f"~{harness.prefix}:*", "resetchannels") as url,
        harness.worker(redis_url=url) as worker,
    ):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([1], PCM16), pause_s=0)
        await harness.until_ended("call-1")
        assert worker.readiness.ready
    assert len([line for line in caplog.messages if "grant the Redis user the ch" in line]) == 1
