"""A rejected entry leaves Redis only once its dead letter is there."""

import anyio
import pytest

from schemas.keys import GROUP, Keys
from schemas.turns import DeadLetter
from tests.support.harness import PCM16, Harness, words
from tests.support.polling import eventually, no_longer
from worker import worker
from worker.bus.dead_letters import DeadLetterWriter
from worker.local.emulator.engines.script import synthesize_words

BAD_ENTRIES = [
    ("encoding", {"session": "bad", "encoding": "mp3", "sample_rate": "16000"}),
    ("missing", {"encoding": "pcm_s16le", "sample_rate": "16000"}),
    ("ended", {"session": "call-1", "encoding": "pcm_s16le", "sample_rate": "16000"}),
]


class _Hold:
    """Holds dead letters back, as a Redis server that is not available does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: list[DeadLetter] = []
        self.over = anyio.Event()
        write = DeadLetterWriter._write

        async def hold(writer: DeadLetterWriter, dead: DeadLetter) -> str:
            self.held.append(dead)
            await self.over.wait()
            return await write(writer, dead)

        monkeypatch.setattr(DeadLetterWriter, "_write", hold)


async def _play(harness: Harness, session: str) -> None:
    await harness.announce(session)
    await harness.play(session, synthesize_words([1], PCM16), pause_s=0)
    events = await harness.until_ended(session)
    assert words(events[session]) == [1]


@pytest.mark.parametrize(("reason", "fields"), BAD_ENTRIES, ids=[name for name, _ in BAD_ENTRIES])
async def test_next_worker_rejects_what_the_last_could_not_record(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, reason: str, fields: dict[str, str]
) -> None:
    sessions = Keys(harness.prefix).sessions
    hold = _Hold(monkeypatch)
    async with harness.worker(drain_s=0.0, max_sessions=1):
        await _play(harness, "call-1")
        bad = await harness.announce_as({**fields})
        await eventually(lambda: hold.held, "the dead letter")
        await _play(harness, "call-2")  # a bad entry delays no session
    (pending,) = await harness.redis.xpending_range(sessions, GROUP, "-", "+", 2)
    assert pending["message_id"] == bad.encode()
    assert await harness.redis.xlen(sessions) == 1
    assert await harness.dead() == []
    hold.over.set()
    async with harness.worker(lease_ms=2_000):
        (dead,) = await eventually(harness.dead, "the dead letter")
        await no_longer(lambda: harness.redis.xlen(sessions), "the rejected entry")
    assert (dead[b"id"].decode(), dead[b"reason"].decode()) == (bad, reason)


async def test_worker_writes_its_last_dead_letters_when_it_stops(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, wait_written = _Hold(monkeypatch), DeadLetterWriter.wait_written

    async def wait(dead_letters: DeadLetterWriter) -> None:
        hold.over.set()
        await wait_written(dead_letters)

    monkeypatch.setattr(DeadLetterWriter, "wait_written", wait)
    async with harness.worker():
        await harness.append("call-1", note="no audio")
        await _play(harness, "call-1")
        assert hold.held
        assert await harness.dead() == []
    assert [each[b"reason"] for each in await harness.dead()] == [b"empty"]


async def test_dead_letter_that_stays_unwritten_is_logged(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "DEAD_LETTERS_TIMEOUT_S", 0.0)
    _Hold(monkeypatch)
    async with harness.worker():
        await harness.append("call-1", note="no audio")
        await _play(harness, "call-1")
    (line,) = (text for text in caplog.messages if "rejected" in text)
    assert line.endswith("(empty); not kept: the worker stopped first")
    assert await harness.dead() == []
