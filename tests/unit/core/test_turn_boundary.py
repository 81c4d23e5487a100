"""Boundaries in synthetic calls: after the turn's sound and before the next, whatever the lag.

A call is bursts of tone (words) with pauses between, on a line with noise. The provider, as
documented, sends `turn.start` a little after a sound began and `turn.end` after a silence, both
late. The worker knows only what it had sent when they arrived.
"""

from collections.abc import Sequence
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.audio import Encoding
from tests.unit.core.loudness import loudness
from worker.core.levels import FRAME_MS, frame_bytes
from worker.core.turn_boundary import (
    LOOKBACK_MS,
    MIN_END_SILENCE_MS,
    SilenceMap,
    SilenceSpan,
    SpeechStart,
    best_candidate,
    quiet_level,
    silence_spans,
    silences,
    spans_after_last_word,
    speech_starts,
    timeline,
    turn_open_until,
)
from worker.local.pcm import encode

Span = tuple[float, float]


def _onset(sent: int, lag_s: float) -> SpeechStart:
    """A sound whose `turn.start` was not delayed."""
    return SpeechStart(sent, lag_s, lag_s)


class Service(NamedTuple):
    """How a recognizer decides, in milliseconds."""

    lag: float = 0.0
    sure: float = 40.0
    """Sound before `turn.start`."""
    waits: float = 480.0
    """Silence before `turn.end`."""
    unheard: float = float("inf")
    """Extra delay of the last word; infinite if it is never sent before the end."""
    eager: float = float("inf")
    """Silence before `turn.eager_end`; more sound causes `turn.resume`."""


SERVICE = Service()


class Call:
    """A producer's audio:

    turns of (word ms, pause ms) pairs; the last pause separates the turns.
    """

    def __init__(
        self,
        turns: Sequence[Sequence[Span]],
        *,
        encoding: Encoding = Encoding.PCM_S16LE,
        rate: int = 8_000,
        noise: float = 0.0,
        lead_ms: float = 700.0,
        coughs: Sequence[Span] = (),
    ) -> None:
        self.encoding, self.rate = encoding, rate
        self.words: list[list[Span]] = []
        self._fillers: list[Span] = []
        at = lead_ms
        for turn in turns:
            self.words.append([])
            for word, pause in turn:
                self.words[-1].append((at, at + word))
                at += word + pause
        samples = np.zeros(round((at + 6_000) * rate / 1000), np.float32)  # the line stays open
        time = np.arange(len(samples)) / rate
        tone = 0.2 * np.sin(2 * np.pi * 310 * time) * (1 + 0.5 * np.sin(2 * np.pi * 7 * time))
        for begin, end in [*coughs, *(word for words in self.words for word in words)]:
            span = slice(round(begin * rate / 1000), round(end * rate / 1000))
            samples[span] = tone[span]
        if noise:
            samples += np.random.default_rng(1).normal(0, noise, len(samples)).astype(np.float32)
        self.audio = encode(samples, encoding.value)
        self.bytes_per_ms = rate * encoding.width / 1000

    def cuts(
        self, service: Service = SERVICE, fillers: Sequence[Span] = (), late: Sequence[float] = ()
    ) -> list[float]:
        """Cut every turn; return milliseconds of the call.

        `fillers` are (millisecond of the call, milliseconds sent there); `late` is the extra delay
        of each start and end.
        """
        self._fillers = sorted(fillers)
        extra = chain(late, repeat(0.0))
        cuts: list[float] = []
        usual: float | None = None
        for words in self.words:
            started = self._sent_at(words[0][0]) + service.sure + service.lag + next(extra)
            ended = self._sent_at(words[-1][1]) + service.waits + service.lag + next(extra)
            look = self._look(started, cuts)
            began = [
                _onset(_sent(look, at, started), (len(look.silent) - at) * FRAME_MS / 1000)
                for at in speech_starts(look.silent)
            ]
            open_until = began[0].sent if began else 0
            for before, after in pairwise(words):
                if after[0] - before[1] >= service.eager:
                    resumed = self._sent_at(after[0]) + service.sure + service.lag
                    look = self._look(resumed, cuts)
                    open_at = max(-1, (open_until - _sent(look, 0, resumed)) // FRAME_MS)
                    over = _sent(look, turn_open_until(look.silent, open_at), resumed)
                    open_until = max(open_until, over)
            look = self._look(ended, cuts)
            worded = self._sent_at(words[-1][1]) + service.lag + service.unheard
            ends = spans_after_last_word(_pauses(look, ended), round(min(worded, ended)))
            ends = [end for end in ends if end.sent >= open_until] or ends
            pair = best_candidate(began, ends, usual)
            assert pair is not None
            usual = pair.lag_s
            cuts.append(pair.pause.middle / self.bytes_per_ms)
        return cuts

    def _sent_at(self, ms: float) -> float:
        """Return how much had been sent at a moment of the call."""
        return ms + sum(filler for where, filler in self._fillers if where < ms)

    def _look(self, sent: float, cuts: Sequence[float]) -> SilenceMap:
        """Return what is read again once so much was sent."""
        fed, sent_fillers = sent, []
        for where, filler in self._fillers:
            if where < fed:
                so_far = min(filler, fed - where)
                sent_fillers.append((self._byte(where), round(so_far)))
                fed -= so_far
        start = self._byte(max(cuts[-1] if cuts else 0.0, fed - LOOKBACK_MS))
        return timeline(
            loudness(self.audio[start : self._byte(fed)], self.encoding, self.rate),
            start,
            frame_bytes(self.encoding, self.rate),
            [filler for filler in sent_fillers if filler[0] >= start],
        )

    def _byte(self, ms: float) -> int:
        return round(ms * self.rate / 1000) * self.encoding.width

    def wrong(self, cuts: Sequence[float]) -> list[tuple[int, float, Span]]:
        """Return the cuts outside their range: turn, cut, and where it should be."""
        ends = [words[-1][1] for words in self.words]
        nexts = [words[0][0] for words in self.words[1:]] + [float("inf")]
        return [
            (turn, cut, (end, begin))
            for turn, (cut, end, begin) in enumerate(zip(cuts, ends, nexts, strict=True))
            if not end <= cut <= begin
        ]


def _sent(look: SilenceMap, frame: int, end: float) -> int:
    return round(end) - (len(look.silent) - frame) * FRAME_MS


def _pauses(look: SilenceMap, end: float) -> list[SilenceSpan]:
    count = len(look.silent)
    return [
        SilenceSpan(
            _sent(look, start, end),
            (count - over) * FRAME_MS / 1000,
            (count - min(start + MIN_END_SILENCE_MS // FRAME_MS, over)) * FRAME_MS / 1000,
            _sent(look, over, end),
            look.positions[(start + over) // 2],
            followed_s=(count - over) * FRAME_MS / 1000,
        )
        for start, over in silence_spans(look.silent)
    ]


LAGS = [0, 100, 300, 600, 1_000, 1_200]
WORDS = [(300, 400), (250, 300), (200, 600)]
CALL = [WORDS, [(180, 700)], [(150, 450), (400, 3_000)], [(200, 300), (150, 520)], WORDS]


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("encoding", list(Encoding))
def test_boundary_in_every_encoding_and_lag(encoding: Encoding, lag: float) -> None:
    call = Call(CALL, encoding=encoding)
    assert call.wrong(call.cuts(Service(lag))) == []


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("noise", [0.0005, 0.003, 0.015])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_boundary_with_noise_on_line(rate: int, noise: float, lag: float) -> None:
    call = Call(CALL, rate=rate, noise=noise)
    assert call.wrong(call.cuts(Service(lag))) == []


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("pause", [300, 350, 400, 450])
@pytest.mark.parametrize("last", [100, 150, 250, 500])
def test_boundary_is_not_in_pause_before_end(last: float, pause: float, lag: float) -> None:
    call = Call([[(300, pause), (last, 600)], [(200, 700)]] * 2)
    assert call.wrong(call.cuts(Service(lag))) == []


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("gap", [490, 600, 1_000, 3_000])
def test_boundary_of_consecutive_turns(gap: float, lag: float) -> None:
    call = Call([[(150, gap)], [(150, 200), (150, gap)], [(600, gap)]] * 2)
    assert call.wrong(call.cuts(Service(lag))) == []


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("sure", [60, 150, 200])
@pytest.mark.parametrize("waits", [220, 300, 800])
def test_boundary_with_different_providers(waits: float, sure: float, lag: float) -> None:
    inner = waits * 0.9
    call = Call([[(300, inner), (200, 1_000)], [(250, 900)], [(200, inner), (300, 1_000)]])
    assert call.wrong(call.cuts(Service(lag, sure, waits))) == []


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("into", [0, 10, 150, 300])
@pytest.mark.parametrize("filler", [100, 700, 5_000])
def test_filler_after_turn_is_silence(filler: float, into: float, lag: float) -> None:
    call = Call([[(300, 350), (250, 400)]] * 3)
    fillers = [(words[-1][1] + into, filler) for words in call.words]
    assert call.wrong(call.cuts(Service(lag), fillers)) == []


@pytest.mark.parametrize("lag", LAGS)
@pytest.mark.parametrize("into", [0, 10, 150, 300])
def test_filler_inside_turn_is_silence(into: float, lag: float) -> None:
    call = Call([[(300, 300), (250, 300), (200, 600)]] * 3)
    fillers = [(end + into, 150) for words in call.words for _, end in words[:-1]]
    assert call.wrong(call.cuts(Service(lag), fillers)) == []


@pytest.mark.parametrize("lag", LAGS)
def test_noise_before_turn_is_excluded_by_previous_lag(lag: float) -> None:
    """A cough half a second before each turn but the first, and an equal pause before its end."""
    turns = [[(200, 350), (300, 1_600)]] * 6
    calm = Call(turns)
    coughs = [(words[0][0] - 650, words[0][0] - 550) for words in calm.words[1:]]
    call = Call(turns, coughs=coughs)
    assert call.wrong(call.cuts(Service(lag))) == []


@pytest.mark.parametrize("lag", [0, 300, 1_000])
@pytest.mark.parametrize("late", [100, 200])
def test_boundary_with_occasional_late_events(late: float, lag: float) -> None:
    call = Call([[(200, 300), (300, 700)]] * 8)
    for pattern in ([late, 0.0], [0.0, late], [late, 0.0, 0.0, late], [0.0, 0.0, late, 0.0]):
        assert call.wrong(call.cuts(Service(lag), late=pattern * 4)) == []


@pytest.mark.parametrize("lag", [100, 300, 600])
@pytest.mark.parametrize("late", [600, 800, 1_000])
def test_boundary_is_not_in_pause_before_resume(late: float, lag: float) -> None:
    call = Call([[(400, 260), (180, 1_500)], [(200, 300), (300, 260), (200, 2_000)]] * 2)
    pattern = [late, 0.0] * 4  # starts are delayed, ends are not
    assert call.wrong(call.cuts(Service(lag), late=pattern)) != []
    assert call.wrong(call.cuts(Service(lag, eager=240), late=pattern)) == []


@pytest.mark.parametrize("lag", [100, 300, 600])
@pytest.mark.parametrize("late", [700, 1_000, 2_000])
def test_end_received_in_next_turn_covers_none_of_it(late: float, lag: float) -> None:
    call = Call([[(300, 700)], [(200, 300), (300, 900)], [(250, 800)]] * 2)
    pattern = [0.0, late] * 6
    assert call.wrong(call.cuts(Service(lag), late=pattern)) != []
    assert call.wrong(call.cuts(Service(lag, unheard=0), late=pattern)) == []


TURN = st.tuples(
    st.lists(st.tuples(st.integers(120, 700), st.integers(20, 450)), max_size=5),
    st.integers(120, 700),
    st.integers(490, 3_000),
).map(lambda parts: [*parts[0], (parts[1], parts[2])])


@settings(deadline=None)
@given(
    st.lists(TURN, min_size=1, max_size=4),
    st.integers(0, 1_200),
    st.integers(35, 190),
    st.integers(20, 480),
    st.integers(0, 600),
)
def test_boundary_of_any_call_at_constant_lag(
    turns: list[list[Span]], lag: int, sure: int, eager: int, unheard: int
) -> None:
    call = Call(turns)
    assert call.wrong(call.cuts(Service(lag, sure))) == []
    if sure + lag >= min(word + pause for *_, (word, pause) in turns):
        return  # a resume may arrive after the next turn began, and be assigned to its sound
    assert call.wrong(call.cuts(Service(lag, sure, eager=eager))) == []
    assert call.wrong(call.cuts(Service(lag, sure, eager=eager, unheard=unheard))) == []


# -- the parts


def _drawn(picture: str) -> list[bool]:
    return [mark == "_" for mark in picture.replace(" ", "")]


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        ("", []),
        ("####", []),
        ("____", [(0, 4)]),
        ("__####__", [(0, 2), (6, 8)]),
        ("__##__", [(0, 6)]),
        ("__###__", [(0, 2), (5, 7)]),
        ("__#_#__##__###_", [(0, 11), (14, 15)]),
        ("##___", [(2, 5)]),
    ],
)
def test_clicks_do_not_split_silence(picture: str, found: list[tuple[int, int]]) -> None:
    assert silences(_drawn(picture)) == found


@pytest.mark.parametrize(
    ("picture", "open_at", "until"),
    [
        ("__####____####", 2, 10),
        ("__####____####____####", 2, 10),
        ("__####____####____####", 10, 18),
        ("__####____####____", 10, 10),  # no sound followed
        ("####____####", 0, 8),
        ("____####", 0, 0),
        ("____####", -1, 4),
        ("", -1, -1),
    ],
)
def test_turn_is_open_until_sound_of_its_resume(picture: str, open_at: int, until: int) -> None:
    assert turn_open_until(_drawn(picture), open_at) == until


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        ("", []),
        ("____", []),
        ("####", [0]),
        ("####____####", [0, 8]),
        ("__####____####", [2, 10]),
        ("##____", [0]),
    ],
)
def test_onsets_are_found(picture: str, found: list[int]) -> None:
    assert speech_starts(_drawn(picture)) == found


def test_pauses_are_long_or_longest() -> None:
    enough = MIN_END_SILENCE_MS // FRAME_MS
    long, short = "_" * enough, "_" * (enough - 1)
    assert silence_spans(_drawn(f"{long}####{short}####{long}_")) == [
        (0, enough),
        (2 * enough + 7, 3 * enough + 8),
    ]
    assert silence_spans(_drawn(f"###_###{short}###__")) == [(7, 6 + enough)]
    assert silence_spans(_drawn("####")) == []


def test_filler_is_found_without_other_silence() -> None:
    steady = [13_000] * 100  # a second without a pause
    look = timeline(steady, 0, 160, [(3_200, 300), (16_000, 500)])
    assert look.silent == [False] * 20 + [True] * 30 + [False] * 80 + [True] * 50


def test_sound_without_later_pause_gives_no_pair() -> None:
    onset, pause = _onset(500, 0.2), SilenceSpan(400, 0.1, 0.5, 700, 7)
    assert best_candidate([onset], [], None) is None
    assert best_candidate([onset], [pause], 0.2) is None
    assert best_candidate([onset], [pause._replace(sent=501)], 9.0) is not None


@pytest.mark.parametrize(("usual_s", "chosen"), [(None, 2), (0.2, 2), (0.9, 1)])
def test_turn_without_known_sound_uses_usual_lag(usual_s: float | None, chosen: int) -> None:
    inner, last = SilenceSpan(1_000, 0.7, 0.9, 1_300, 1), SilenceSpan(2_000, 0.1, 0.3, 2_300, 2)
    pair = best_candidate([], [inner, last], usual_s)
    assert pair is not None
    assert pair.pause.middle == chosen


def test_first_of_equally_likely_pauses_is_chosen() -> None:
    held_up = [SilenceSpan(1_000, 0.0, 5.3, 1_300, 1), SilenceSpan(2_000, 0.0, 4.3, 2_300, 2)]
    pair = best_candidate([_onset(500, 0.2)], held_up, 0.2)
    assert pair is not None
    assert pair.pause.middle == 1


@pytest.mark.parametrize(
    ("followed_s", "lag_s", "chosen"),
    [
        (0.0, 0.2, "inner"),  # no sound follows it, or the unread audio decides
        (0.4, 0.2, "inner"),  # the provider has received hardly enough of it
        (0.5, 0.2, "last"),
        (3.0, 0.2, "last"),
        (3.0, 2.9, "inner"),  # the provider is that late
    ],
)
def test_pause_is_no_end_without_start_for_next_sound(
    followed_s: float, lag_s: float, chosen: str
) -> None:
    inner = SilenceSpan(1_000, 0.0, 5.3, 1_300, 1, followed_s=followed_s)
    last = SilenceSpan(2_000, 0.0, 4.3, 2_300, 2)
    pair = best_candidate([_onset(500, lag_s)], [inner, last], lag_s)
    assert pair is not None
    assert pair.pause is {"inner": inner, "last": last}[chosen]


def test_line_without_pause_has_no_noise_level() -> None:
    assert speech_starts(timeline([13_000] * 40, 0, 160, []).silent) == [0]


@pytest.mark.parametrize(
    ("least_s", "most_s", "usual_s", "chosen"),
    [
        (1.05, 1.05, 0.2, "inner"),  # the provider was that late
        (0.0, 1.05, 0.2, "last"),  # possible, but unusual
        (0.0, 1.05, None, "last"),
        (0.0, 1.05, 1.0, "inner"),
        (0.9, 1.05, None, "inner"),
    ],
)
def test_delayed_start_is_recognised(
    least_s: float, most_s: float, usual_s: float | None, chosen: str
) -> None:
    inner, last = SilenceSpan(1_000, 0.83, 0.94, 1_300, 1), SilenceSpan(2_000, 0.0, 0.3, 2_300, 2)
    pair = best_candidate([SpeechStart(0, least_s, most_s)], [inner, last], usual_s)
    assert pair is not None
    assert pair.pause is {"inner": inner, "last": last}[chosen]


@given(st.lists(st.integers(0, 32_767), min_size=1))
def test_quiet_level_exists(levels: list[int]) -> None:
    assert quiet_level(levels) >= 20


def test_short_word_on_noisy_line_is_above_quiet_level() -> None:
    noise = [70, 90, 100, 110, 130] * 60
    word = [900, 2_500, 2_800, 2_600, 700]
    level = quiet_level([*noise, *word])
    assert max(noise) < level < min(word)
    assert max(noise) < quiet_level(noise)
    assert max(noise) < quiet_level([*noise, 30_000])  # a click
