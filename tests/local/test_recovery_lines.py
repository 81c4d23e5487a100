"""What a line appends, chunk by chunk."""

from hiredis import Reader

from schemas import Keys
from worker.local.engines.script import hush, say
from worker.local.recovery.lines import AUDIO, Line


def _chunks(line: Line, count: int) -> tuple[list[dict[bytes, bytes]], list[list[int]]]:
    """Return the fields of the next entries, and the words that end in each."""
    entries, endings = [], []
    for _ in range(count):
        command, ending = line.next()
        reader = Reader()
        reader.feed(command)
        verb, key, entry_id, *fields = reader.gets()
        assert (verb, key, entry_id) == (b"XADD", b"stt:{0}:audio:call-1", b"*")
        entries.append(dict(zip(fields[::2], fields[1::2], strict=True)))
        endings.append(ending)
    return entries, endings


def _line(chunk_ms: int = 150) -> Line:
    return Line("call-1", Keys(), chunk_ms)


def test_what_is_queued_is_appended_in_order_and_then_silence() -> None:
    line = _line()
    assert list(line.say(2)) == [0, 1]
    line.pause(100)
    assert list(line.say(1)) == [2]
    assert line.queued_ms == 700
    entries, endings = _chunks(line, 6)
    sound = b"".join(entry[b"audio"] for entry in entries)
    assert sound == say([0, 1], AUDIO) + hush(100, AUDIO) + say([2], AUDIO) + hush(200, AUDIO)
    assert endings == [[], [0], [1], [], [2], []]
    assert line.appended_ms == line.queued_ms == 900
    assert not line.ended


def test_the_last_chunk_carries_the_end() -> None:
    line = _line()
    line.say(1)
    line.hang_up()
    entries, _ = _chunks(line, 2)
    assert [entry.get(b"end") for entry in entries] == [None, b"1"]
    assert line.ended


def test_a_word_that_was_begun_is_said_to_its_end() -> None:
    line = _line()
    line.say(5)
    _chunks(line, 2)  # the second word was begun
    line.fall_silent()
    assert line.words == 2
    assert list(line.say(1)) == [2]
    entries, endings = _chunks(line, 2)
    assert endings == [[1], [2]]
    begun = len(say([1], AUDIO)) // 2
    assert b"".join(entry[b"audio"] for entry in entries) == say([1, 2], AUDIO)[begun:]


def test_between_words_nothing_more_is_said() -> None:
    line = _line(chunk_ms=200)
    line.say(5)
    _chunks(line, 2)
    line.fall_silent()
    assert line.words == 2
    entries, _ = _chunks(line, 1)
    assert entries[0][b"audio"] == hush(200, AUDIO)
