"""One track: frames become numbered chunks; nothing is lost or repeated without a count."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from schemas import AudioEntry, Encoding, SessionEntry, TurnConfig
from schemas.audio import MAX_AUDIO_BYTES
from worker.ingest.counters import IngestCounters
from worker.ingest.records import Audio
from worker.ingest.track import MAX_CONTROL_BYTES, MAX_CONTROLS, MAX_HELD_FRAMES, Track

MULAW = SessionEntry(session="s", encoding=Encoding.PCM_MULAW, sample_rate=8_000)
WIDE = SessionEntry(session="s", encoding=Encoding.PCM_S32LE, sample_rate=8_000)
FRAME = 160
CHUNK = 800


def track(entry: SessionEntry = MULAW, *, buffer_s: float = 30.0) -> Track:
    return Track(entry, "src", IngestCounters(), buffer_s=buffer_s)


def frame(value: int, *, at_ms: int | None = None, number: int | None = None) -> Audio:
    return Audio(bytes([value % 256]) * FRAME, at_ms=at_ms, number=number)


def taken(track: Track) -> list[AudioEntry]:
    return track.take(1_000_000)


def values(entries: list[AudioEntry]) -> list[int]:
    audio = b"".join(entry.audio for entry in entries)
    return list(audio[::FRAME])


def test_frames_become_numbered_chunks() -> None:
    it = track()
    for at in range(10):
        it.audio(frame(at), at * 0.02)
    entries = taken(it)
    assert [(entry.seq, entry.src, len(entry.audio)) for entry in entries] == [
        (0, "src", CHUNK),
        (1, "src", CHUNK),
    ]
    assert values(entries) == list(range(10))
    assert it.due is None


def test_large_frame_becomes_several_chunks() -> None:
    it = track()
    it.audio(Audio(bytes(2_000)), 0.0)
    assert [len(entry.audio) for entry in taken(it)] == [CHUNK, CHUNK]
    it.flush_due(0.1)
    assert [(entry.seq, len(entry.audio)) for entry in taken(it)] == [(2, 400)]


def test_partial_chunk_is_flushed_when_due() -> None:
    it = track()
    it.audio(frame(1), 5.0)
    assert it.due == 5.1
    it.audio(frame(2), 5.05)
    it.flush_due(5.09)
    assert taken(it) == []
    it.flush_due(5.1)
    assert [len(entry.audio) for entry in taken(it)] == [2 * FRAME]
    assert it.due is None


def test_samples_stay_whole() -> None:
    it = track(WIDE)
    it.audio(Audio(b"abcdef"), 0.0)
    it.flush_due(1.0)
    assert [entry.audio for entry in taken(it)] == [b"abcd"]
    it.audio(Audio(b"gh"), 1.0)
    assert it.due == 1.1
    it.flush_due(1.1)
    assert [entry.audio for entry in taken(it)] == [b"efgh"]


def test_half_a_sample_at_the_end_is_counted() -> None:
    it = track(WIDE)
    it.audio(Audio(b"abcdef"), 0.0)
    it.end(0.0)
    assert [entry.audio for entry in taken(it)] == [b"abcd", b""]
    assert it.dropped_bytes == 2


def test_controls_stand_behind_the_audio_so_far() -> None:
    it = track()
    it.audio(frame(1), 0.0)
    it.mark({"dtmf": "5"})
    it.turn_end()
    it.audio(frame(2), 0.0)
    it.configure(TurnConfig(turn_end_timeout_ms=2_000))
    it.end(0.0)
    assert taken(it) == [
        AudioEntry(audio=frame(1).audio, seq=0, src="src"),
        AudioEntry(mark={"dtmf": "5"}, seq=1, src="src"),
        AudioEntry(turn_end=True, seq=2, src="src"),
        AudioEntry(audio=frame(2).audio, seq=3, src="src"),
        AudioEntry(config=TurnConfig(turn_end_timeout_ms=2_000)),
        AudioEntry(end=True),
    ]
    assert it.finished


def test_controls_wait_for_the_first_audio() -> None:
    it = track()
    it.mark({"a": 1})
    assert not it.ready
    assert taken(it) == []
    it.audio(Audio(bytes(CHUNK)), 0.0)
    assert [entry.mark for entry in taken(it)] == [{"a": 1}, None]


def test_track_without_audio_appends_nothing() -> None:
    it = track()
    it.mark({"a": 1})
    it.end(0.0)
    assert it.finished
    assert taken(it) == []


def test_nothing_follows_the_end() -> None:
    it = track()
    it.audio(frame(1), 0.0)
    it.end(0.0)
    it.end(0.0)
    it.audio(frame(2), 0.0)
    it.mark({})
    assert values(taken(it)) == [1]
    assert taken(it) == []
    assert it.dropped_bytes == FRAME


def test_numbered_frames_are_put_in_order() -> None:
    it = track()
    for number in (1, 3, 2, 2, 5, 4, 1):
        it.audio(frame(number, number=number), 0.0)
    it.end(0.0)
    assert values(taken(it)) == [1, 2, 3, 4, 5]
    assert it.dropped_bytes == 2 * FRAME


def test_first_frames_are_put_in_order() -> None:
    it = track()
    for number in (3, 2, 1, 4):
        it.audio(frame(number, number=number), 0.0)
    it.end(0.0)
    assert values(taken(it)) == [1, 2, 3, 4]
    assert it.dropped_bytes == 0


def test_track_that_begins_later_waits_once() -> None:
    it = track()
    it.audio(frame(50, number=50), 0.0)
    it.flush_due(0.1)
    for number in range(51, 60):
        it.audio(frame(number, number=number), 0.1)
        assert it._held_due is None
    it.end(0.1)
    assert values(taken(it)) == [*range(50, 60)]


def test_missing_frame_delays_others_up_to_the_limit() -> None:
    it = track()
    it.audio(frame(1, number=1), 0.0)
    it.audio(frame(3, number=3), 0.05)
    it.flush_due(0.1)
    assert values(taken(it)) == [1]
    it.flush_due(0.2)
    it.audio(frame(2, number=2), 0.2)
    it.flush_due(0.35)
    assert values(taken(it)) == [3]
    assert it.dropped_bytes == FRAME


def test_burst_behind_a_missing_frame_is_not_held() -> None:
    it = track()
    it.audio(frame(1, number=1), 0.0)
    for number in range(3, 40):
        it.audio(frame(number, number=number), 0.0)
    it.end(0.0)
    assert values(taken(it)) == [1, *range(3, 40)]


def test_held_frames_are_limited_in_number() -> None:
    it = track()
    it.audio(Audio(b"a", number=1), 0.0)
    for number in range(3, 4 + MAX_HELD_FRAMES):
        it.audio(Audio(b"b", number=number), 0.0)
    it.mark({})
    assert len(taken(it)[0].audio) == 2 + MAX_HELD_FRAMES


def test_nonsense_number_loses_nothing() -> None:
    it = track()
    now = 0.0
    for number in (1, 2, 10**9, *range(3, 30)):
        it.audio(frame(number, number=number), now)
        now += 0.02
    it.end(now)
    found = values(taken(it))
    assert [value for value in found if value != 10**9 % 256] == [*range(1, 30)]
    assert it.dropped_bytes == 0


def test_resumed_track_counts_frames_anew() -> None:
    it = track()
    it.audio(frame(7, number=7, at_ms=9_000), 0.0)
    it.resume(1.0)
    it.audio(frame(1, number=1, at_ms=0), 1.0)
    it.end(1.0)
    assert [entry.seq for entry in taken(it)] == [0, 1, None]


def test_missing_time_skips_whole_chunks() -> None:
    it = track()
    it.audio(frame(1, at_ms=0), 0.0)
    it.audio(frame(2, at_ms=20 + 350), 0.0)
    it.audio(frame(3, at_ms=390), 0.0)
    it.end(0.0)
    entries = taken(it)
    assert [entry.seq for entry in entries] == [0, 4, None]
    assert values(entries) == [1, 2, 3]


def test_jitter_and_odd_clocks_make_no_hole() -> None:
    for times in (
        (500, 519, 560, 545, 599),  # jitter
        (10**6, 5, 25, 45),  # a step back
        (0, 4 * 3_600_000, 4 * 3_600_000 + 20),  # a step of four hours
        (0, -(10**18), 10**18, 0),
    ):
        it = track()
        for at, at_ms in enumerate(times):
            it.audio(frame(at, at_ms=at_ms), 0.0)
        it.end(0.0)
        seqs = [entry.seq for entry in taken(it) if entry.seq is not None]
        assert seqs == [*range(len(seqs))], times


def test_oldest_audio_is_dropped_and_leaves_a_hole() -> None:
    it = track(buffer_s=1.0)
    for value in range(5 * 15):
        it.audio(frame(value), 0.0)
        if value == 7:
            it.mark({"a": 1})
    it.flush_due(1.0)
    entries = taken(it)
    assert entries[0] == AudioEntry(mark={"a": 1}, seq=2, src="src")
    assert sum(len(entry.audio) for entry in entries) <= 8_000
    assert [entry.seq for entry in entries[1:]] == [*range(7, 17)]
    kept = sum(len(entry.audio) for entry in entries)
    assert it.dropped_bytes == 75 * FRAME - kept


def test_oldest_controls_are_dropped_and_the_end_is_kept() -> None:
    it = track(buffer_s=0.1)
    for value in range(MAX_CONTROLS + 5):
        it.audio(Audio(bytes([value % 256])), 0.0)
        it.mark({"n": value})
    it.end(0.0)
    entries = taken(it)
    marks = [entry.mark["n"] for entry in entries if entry.mark]
    assert marks == [*range(5, MAX_CONTROLS + 5)]
    assert entries[-1] == AudioEntry(end=True)


def test_large_marks_are_bounded_while_they_wait() -> None:
    it = track()
    size = len(b'{"n":"00000","text":""}') + 4_000
    for value in range(MAX_CONTROLS):
        it.mark({"n": f"{value:05}", "text": "x" * 4_000})
    it.audio(frame(1), 0.0)
    it.end(0.0)
    kept = [entry.mark["n"] for entry in taken(it) if entry.mark]
    assert len(kept) == MAX_CONTROL_BYTES // size
    assert kept[-1] == f"{MAX_CONTROLS - 1:05}"
    assert it._counters.controls_dropped == MAX_CONTROLS - len(kept)
    assert it._control_bytes == 0


def test_no_chunk_is_too_large_for_workers() -> None:
    entry = SessionEntry(session="s", encoding=Encoding.PCM_S32LE, sample_rate=192_000)
    it = Track(entry, "src", IngestCounters(), chunk_ms=1_000)
    it.audio(Audio(bytes(1_000_000)), 0.0)
    it.end(0.0)
    sizes = [len(entry.audio) for entry in taken(it)]
    assert sum(sizes) == 1_000_000
    assert max(sizes) == MAX_AUDIO_BYTES


def test_closed_track_takes_no_more() -> None:
    it = track()
    it.audio(frame(1), 0.0)
    it.close()
    it.audio(frame(2), 0.0)
    it.mark({})
    it.end(0.0)
    assert it.finished
    assert taken(it) == []
    assert it.dropped_bytes == 2 * FRAME


steps = st.lists(
    st.one_of(
        st.tuples(st.just("audio"), st.integers(0, 3_000)),
        st.tuples(st.sampled_from(["mark", "turn_end", "config", "flush", "take", "resume"])),
        st.tuples(st.just("missing"), st.integers(-300, 5_000)),
    ),
    max_size=60,
)


@given(steps, st.booleans())
def test_any_interleaving_keeps_order_and_counts_losses(
    plan: list[tuple[str, int]], timed: bool
) -> None:
    """Each 32-bit sample holds its position, so a repeat, a loss or a swap shows."""
    it = track(WIDE, buffer_s=0.5)
    fed, at_ms, now, marks = bytearray(), 0.0, 0.0, 0
    entries: list[AudioEntry] = []
    for name, *rest in plan:
        now += 0.03
        match name:
            case "audio":
                size = rest[0]
                first = len(fed) // 4
                text = b"".join(n.to_bytes(4, "big") for n in range(first, first + size // 4 + 2))
                skip = len(fed) % 4
                piece = text[skip : skip + size]
                it.audio(Audio(piece, at_ms=int(at_ms) if timed else None), now)
                fed += piece
                at_ms += size / 32
            case "missing":
                at_ms += rest[0]
            case "mark":
                it.mark({"n": marks})
                marks += 1
            case "turn_end":
                it.turn_end()
            case "config":
                it.configure(TurnConfig())
            case "flush":
                it.flush_due(now)
            case "resume":
                it.resume(now)
            case _:
                entries += it.take(3)
        assert it._waiting_bytes <= 16_000
        assert len(it._partial) <= 3_200
    it.end(now)
    entries += it.take(10_000)
    audio = [entry for entry in entries if entry.audio]
    assert sum(len(entry.audio) for entry in audio) + it.dropped_bytes == len(fed)
    positions = [fed.find(entry.audio) for entry in audio if len(entry.audio) >= 8]
    assert -1 not in positions
    assert all(before < after for before, after in pairwise(positions))
    seqs = [entry.seq for entry in audio if entry.seq is not None]
    assert len(seqs) == len(audio)
    assert all(before < after for before, after in pairwise(seqs))
    assert all(len(entry.audio) % 4 == 0 and entry.src == "src" for entry in audio)
    if it.has_audio:
        assert [entry.mark["n"] for entry in entries if entry.mark] == [*range(marks)]
        assert entries[-1].end


@given(
    st.lists(
        st.tuples(
            st.integers(-5, 700) | st.integers(-(10**12), 10**12),
            st.none() | st.integers(-(10**15), 10**15),
            st.integers(0, 400),
            st.floats(0, 0.2),
        ),
        max_size=80,
    )
)
def test_any_numbers_and_times_are_survived(
    frames: list[tuple[int, int | None, int, float]],
) -> None:
    it = track()
    now = 0.0
    for number, at_ms, size, passed_s in frames:
        now += passed_s
        it.audio(Audio(bytes(size), at_ms=at_ms, number=number), now)
        assert len(it._held) <= MAX_HELD_FRAMES
        assert it._held_bytes <= CHUNK + 400
        it.flush_due(now)
        assert it.due is None or it.due >= now
    it.end(now)
    entries = taken(it)
    assert sum(len(entry.audio) for entry in entries) + it.dropped_bytes == sum(
        size for _, _, size, _ in frames
    )
    seqs = [entry.seq for entry in entries if entry.seq is not None]
    assert all(before < after for before, after in pairwise(seqs))
