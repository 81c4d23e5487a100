"""What a producer's session appends, chunk by chunk."""

from worker.bench.producer import AUDIO, LoadSession, RecoverySession
from worker.bench.speech import Start
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words

APPEND = (b"XADD", b"stt:{0}:audio:call-1", b"*")


def _chunks(session: RecoverySession, count: int) -> list[dict[bytes, bytes]]:
    """Append the next chunks on a clock that begins at 1,000; return their fields."""
    entries = []
    for _ in range(count):
        verb, key, entry_id, *fields = session.next()
        assert (verb, key, entry_id) == APPEND
        entries.append(dict(zip(fields[::2], fields[1::2], strict=True)))
        session.appended(1_000 + session.appended_ms)
    return entries


def _sound(entries: list[dict[bytes, bytes]]) -> bytes:
    return b"".join(entry[b"audio"] for entry in entries)


def _session(chunk_ms: int = 150) -> RecoverySession:
    return RecoverySession("call-1", APPEND, chunk_ms)


def test_session_appends_queued_words_then_silence() -> None:
    session = _session()
    assert list(session.say(2)) == [0, 1]
    session.pause(100)
    assert list(session.say(1)) == [2]
    assert session.queued_ms == 700
    sound = (
        synthesize_words([0, 1], AUDIO)
        + synthesize_silence(100, AUDIO)
        + synthesize_words([2], AUDIO)
        + synthesize_silence(200, AUDIO)
    )
    assert _sound(_chunks(session, 6)) == sound
    assert session.said_ms == {0: 1_300, 1: 1_450, 2: 1_750}
    assert not session.torn
    assert session.appended_ms == session.queued_ms == 900
    assert not session.ended


def test_session_ends_session_with_last_chunk() -> None:
    session = _session()
    session.say(1)
    session.end()
    assert [entry.get(b"end") for entry in _chunks(session, 2)] == [None, b"1"]
    assert session.ended


def test_session_completes_word_it_has_begun() -> None:
    session = _session()
    session.say(5)
    _chunks(session, 2)  # the session has begun the second word
    session.stop_audio()
    assert session.words == 2
    assert list(session.say(1)) == [2]
    begun = len(synthesize_words([1], AUDIO)) // 2
    assert _sound(_chunks(session, 2)) == synthesize_words([1, 2], AUDIO)[begun:]
    assert session.said_ms.keys() == {0, 1, 2}


def test_session_stops_between_words() -> None:
    session = _session(chunk_ms=200)
    session.say(5)
    _chunks(session, 2)
    session.stop_audio()
    assert session.words == 2
    assert _sound(_chunks(session, 1)) == synthesize_silence(200, AUDIO)


def test_late_chunk_splits_its_word() -> None:
    session = _session()
    session.say(2)
    for at_ms in (1_000, 1_500, 2_100, 3_000):  # the last two chunks are late
        session.next()
        session.appended(at_ms)
    assert session.torn == {1}


def test_load_session_reports_its_late_speech_chunks() -> None:
    session = LoadSession(
        "call-1", APPEND, Start(slot=0, silent_chunks=2), [(b"audio", b"")] * 9, 9
    )
    for at_ms in (0, 900, 1_000, 1_501, 1_600, 2_100):
        session.appended(at_ms)
    assert session.late_chunks(500) == [1]
    assert session.late_chunks(499) == [1, 3]
