"""What a producer's line appends, chunk by chunk."""

from schemas import Keys
from worker.bench.recovery.producer import AUDIO, ProducerSession
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words


def _chunks(line: ProducerSession, count: int) -> list[dict[bytes, bytes]]:
    """Append the next chunks on a clock that begins at 1,000; return their fields."""
    entries = []
    for _ in range(count):
        verb, key, entry_id, *fields = line.next()
        assert (verb, key, entry_id) == (b"XADD", b"stt:{0}:audio:call-1", b"*")
        entries.append(dict(zip(fields[::2], fields[1::2], strict=True)))
        line.appended(1_000 + line.appended_ms)
    return entries


def _sound(entries: list[dict[bytes, bytes]]) -> bytes:
    return b"".join(entry[b"audio"] for entry in entries)


def _line(chunk_ms: int = 150) -> ProducerSession:
    return ProducerSession("call-1", Keys(), chunk_ms)


def test_line_appends_queued_words_then_silence() -> None:
    line = _line()
    assert list(line.say(2)) == [0, 1]
    line.pause(100)
    assert list(line.say(1)) == [2]
    assert line.queued_ms == 700
    sound = (
        synthesize_words([0, 1], AUDIO)
        + synthesize_silence(100, AUDIO)
        + synthesize_words([2], AUDIO)
        + synthesize_silence(200, AUDIO)
    )
    assert _sound(_chunks(line, 6)) == sound
    assert line.said_ms == {0: 1_300, 1: 1_450, 2: 1_750}
    assert not line.torn
    assert line.appended_ms == line.queued_ms == 900
    assert not line.ended


def test_line_ends_session_with_last_chunk() -> None:
    line = _line()
    line.say(1)
    line.end()
    assert [entry.get(b"end") for entry in _chunks(line, 2)] == [None, b"1"]
    assert line.ended


def test_line_completes_word_it_has_begun() -> None:
    line = _line()
    line.say(5)
    _chunks(line, 2)  # the line has begun the second word
    line.stop_audio()
    assert line.words == 2
    assert list(line.say(1)) == [2]
    begun = len(synthesize_words([1], AUDIO)) // 2
    assert _sound(_chunks(line, 2)) == synthesize_words([1, 2], AUDIO)[begun:]
    assert line.said_ms.keys() == {0, 1, 2}


def test_line_stops_between_words() -> None:
    line = _line(chunk_ms=200)
    line.say(5)
    _chunks(line, 2)
    line.stop_audio()
    assert line.words == 2
    assert _sound(_chunks(line, 1)) == synthesize_silence(200, AUDIO)


def test_late_chunk_splits_its_word() -> None:
    line = _line()
    line.say(2)
    for at_ms in (1_000, 1_500, 2_100, 3_000):  # the last two chunks are late
        line.next()
        line.appended(at_ms)
    assert line.torn == {1}
