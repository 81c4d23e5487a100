"""Turn boundaries in synthetic calls, in pictures and for any history.

A call is bursts of tone (words) with pauses between, on a line with noise. The provider, as
documented, sends `turn.start` a little after a sound began and `turn.end` after a silence, both
late. The worker knows only what it had sent when they arrived.
"""

import re
from collections.abc import Sequence
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.audio import Encoding
from tests.docs.pages import section
from tests.unit.core.exchange import ALONE, Span
from tests.unit.core.loudness import loudness
from worker.core.levels import FRAME_MS, frame_bytes
from worker.core.send_log import RESOLUTION_S, SendLog, SendPosition
from worker.core.turn_boundary import (
    CERTAIN_BURST,
    KEPT_LEAD_IN_MS,
    LAG_WINDOW_TURNS,
    LOOKBACK_MS,
    MIN_BURST,
    MIN_END_PAUSE_MS,
    MIN_LAG_TURNS,
    MIN_SPEECH_MS,
    Arrival,
    Boundary,
    Burst,
    History,
    ProviderLag,
    SentAudio,
    find_end,
    find_pause,
    find_resume,
    find_start,
    onset_frames,
    pause_frames,
    quiet_level,
    resumed_frame,
    sent_audio,
    silences,
)
from worker.local.pcm import encode


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


def real_time(until_ms: float, bytes_per_ms: float) -> SendLog:
    """Return the log of a socket that sends in real time."""
    log = SendLog()
    steps = int(until_ms / (RESOLUTION_S * 1000))
    for at in (RESOLUTION_S * step for step in range(steps + 1)):
        log.add(at, round(at * 1000 * bytes_per_ms), 0)
    return log


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
        lag_s: float | None = None
        for words in self.words:
            started = self._sent_at(words[0][0]) + service.sure + service.lag + next(extra)
            ended = self._sent_at(words[-1][1]) + service.waits + service.lag + next(extra)
            turn = self._history(started, cuts)
            onsets = find_start(turn).onsets
            turn = turn._replace(onsets=onsets, open_until=onsets[0].sent if onsets else 0)
            for before, after in pairwise(words):
                if after[0] - before[1] >= service.eager:
                    resumed = self._sent_at(after[0]) + service.sure + service.lag
                    then = self._history(resumed, cuts)
                    open_until = find_resume(then._replace(open_until=turn.open_until))
                    turn = turn._replace(open_until=open_until)
            worded = self._sent_at(words[-1][1]) + service.lag + service.unheard
            last = self._history(ended, cuts)
            end = find_end(
                turn._replace(
                    arrival=last.arrival,
                    audio=last.audio,
                    last_change=round(min(worded, ended) * self.bytes_per_ms),
                    previous_lag_s=lag_s,
                )
            )
            lag_s = end.lag_s
            assert lag_s is not None
            cuts.append(end.position / self.bytes_per_ms)
        return cuts

    def _sent_at(self, ms: float) -> float:
        """Return how much had been sent at a moment of the call."""
        return ms + sum(filler for where, filler in self._fillers if where < ms)

    def _history(self, sent: float, cuts: Sequence[float]) -> History:
        """Return what is known once so many milliseconds were sent, before the turn began."""
        fed, sent_fillers = sent, []
        for where, filler in self._fillers:
            if where < fed:
                so_far = min(filler, fed - where)
                sent_fillers.append((self._byte(where), round(so_far)))
                fed -= so_far
        start = self._byte(max(cuts[-1] if cuts else 0.0, fed - LOOKBACK_MS))
        position = SendPosition(sent / 1000, round(sent * self.bytes_per_ms), self._byte(fed))
        arrival = Arrival(position, position.at, ALONE)
        audio = sent_audio(
            loudness(self.audio[start : self._byte(fed)], self.encoding, self.rate),
            start,
            frame_bytes(self.encoding, self.rate),
            [filler for filler in sent_fillers if filler[0] >= start],
            position.socket_bytes,
            real_time(sent, self.bytes_per_ms),
        )
        return History(arrival, audio, arrival, (), 0, 0, None, None, None)

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


# -- calls as pictures: a column is 50 ms

STEP_MS = 50
SOUND, SILENCE, FILLER = "#_~"


class Picture(NamedTuple):
    """What was sent and received on a socket, and where its only turn was cut.

    Messages are in the column in which they arrive: `S` is `turn.start`, `U` is the last update
    with new words, `P` is `turn.eager_end`, `R` is `turn.resume`, `E` is `turn.end`. Without `U`,
    the end has new words. A message after `<---` arrived in a burst, and no other message where
    `-` is. A byte is 1 ms.
    """

    audio: str
    messages: str
    cut: str
    """A `^` in the middle of the pause that was chosen."""
    usual_lag_s: float | None = None
    waiting: int = 0
    begins: bool = False
    in_burst: int = CERTAIN_BURST
    """Number of messages in a burst."""

    def history(self, message: str) -> History:
        """Return what is known when a message arrives, before its turn began."""
        log = SendLog()
        session = 0
        for column, mark in enumerate(self.audio, 1):
            session += STEP_MS * (mark != FILLER)
            log.add(column * STEP_MS / 1000, column * STEP_MS, session)
        arrival = self._arrival(message, log)
        sent = self.audio[: arrival.sent.socket_bytes // STEP_MS]
        levels = [5_000 * (mark == SOUND) for mark in sent if mark != FILLER for _ in range(5)]
        fillers = [
            (found.start() * STEP_MS - STEP_MS * sent[: found.start()].count(FILLER), found)
            for found in re.finditer(f"{FILLER}+", sent)
        ]
        audio = sent_audio(
            levels,
            0,
            FRAME_MS,
            [(position, STEP_MS * len(found[0])) for position, found in fillers],
            arrival.sent.socket_bytes,
            log,
        )
        return History(arrival, audio, arrival, (), 0, 0, None, self.usual_lag_s, None)

    def _arrival(self, message: str, log: SendLog) -> Arrival:
        found = re.search(f"(<-*)?{message}", self.messages)
        assert found
        burst = ALONE
        if found[1]:
            burst = Burst(found.start() * STEP_MS / 1000, self.in_burst, self.waiting)
        sent = log.moment((found.end() - 1) * STEP_MS / 1000)
        return Arrival(sent, sent.at, burst._replace(waiting=self.waiting))

    @property
    def last(self) -> History:
        """What is known when the turn's end arrives."""
        last = self.history("E")
        if "S" in self.messages:
            start = self.history("S")
            onsets = find_start(start).onsets
            open_until = onsets[0].sent if onsets else 0
            last = last._replace(start=start.arrival, onsets=onsets, open_until=open_until)
        if "R" in self.messages:
            resumed = self.history("R")._replace(open_until=last.open_until)
            last = last._replace(open_until=find_resume(resumed))
        if "P" in self.messages:
            last = last._replace(eager_end_at=self.messages.index("P") * STEP_MS)
        changed = "U" if "U" in self.messages else "E"
        return last._replace(last_change=self.messages.index(changed) * STEP_MS)

    @property
    def boundary(self) -> Boundary:
        return find_end(self.last, begins=self.begins)

    @property
    def marked(self) -> int:
        """Session byte at which the column of the mark begins."""
        before = self.audio[: self.cut.index("^")]
        return STEP_MS * (len(before) - before.count(FILLER))


def _documented() -> Picture:
    """Return the picture in the documentation."""
    lines = section("architecture.md", "The turn boundary").split("```")[1].splitlines()
    rows = {line[:10].strip(): line[10:] for line in lines}
    return Picture(rows["audio"], rows["received"], rows["cut"])


PICTURES = {
    "the documented turn": _documented(),
    "the pause after the only sound": Picture(
        "_____######____________",
        "         S        E    ",
        "              ^        ",
    ),
    "the pause that fits the lag of the start": Picture(
        "_____######______######______________######__",
        "         S                      E            ",
        "                           ^                 ",
    ),
    "an earlier pause if both messages were late": Picture(
        "_____######______######_____________",
        "             S          E           ",
        "              ^                     ",
    ),
    "a pause before more sound if the end was late": Picture(
        "_____######__________________######____________",
        "         S     U                     E         ",
        "                    ^                          ",
    ),
    "a short silence is between words": Picture(
        "_____######___######__######____________",
        "         S                         E    ",
        "                               ^        ",
    ),
    "the first pause after the last change": Picture(
        "_____######__________######__________######________",
        "         S     U                           E       ",
        "                ^                                  ",
    ),
    "a change excludes the pause before it": Picture(
        "_____######__________######__________######________",
        "         S               U                 E       ",
        "                                ^                  ",
    ),
    "an inner pause at the lag of a late start": Picture(
        "_____######______######_________",
        "                    S         E ",
        "              ^                 ",
    ),
    "a resume excludes the pause before it": Picture(
        "_____######______######_________",
        "                    S R       E ",
        "                          ^     ",
    ),
    "a pause that began after the last change": Picture(
        "_____######____________####__________",
        "          S             U       E    ",
        "                             ^       ",
    ),
    "an eager end excludes the pause after it": Picture(
        "_____######____________####__________",
        "          S             UP      E    ",
        "                 ^                   ",
    ),
    "filler is silence": Picture(
        "_____######~~~~~~~~~~",
        "         S         E ",
        "           ^         ",
    ),
    # The turn's sound is not known, as if it were before the lookback.
    "the last pause at the lag of most providers": Picture(
        "####________####________##____",
        "                          E   ",
        "                    ^         ",
        waiting=1,
    ),
    "the last pause at a low usual lag": Picture(
        "####________####________##____",
        "                          E   ",
        "                    ^         ",
        usual_lag_s=0.2,
        waiting=1,
    ),
    "an inner pause at a high usual lag": Picture(
        "####________####________##____",
        "                          E   ",
        "        ^                     ",
        usual_lag_s=0.9,
        waiting=1,
    ),
    # The end was delayed in a burst: every pause since fits the lag of the start.
    "the first of equally likely pauses": Picture(
        "_____######________####________######____",
        "          S    <-------------------E     ",
        "               ^                         ",
        usual_lag_s=0.2,
        waiting=1,
    ),
    "the provider received hardly enough of the next sound": Picture(
        "_____######________##_____________",
        "          S <-------------E       ",
        "               ^                  ",
        usual_lag_s=0.2,
    ),
    "the next sound was not announced": Picture(
        "_____######________####____________",
        "          S <----------------E     ",
        "                          ^        ",
        usual_lag_s=0.2,
    ),
    "the next sound may be announced by an unread message": Picture(
        "_____######________####____________",
        "          S <----------------E     ",
        "               ^                   ",
        usual_lag_s=0.2,
        waiting=1,
    ),
    "the next sound was announced": Picture(
        "_____######________####____________",
        "          S <----------------E     ",
        "               ^                   ",
        usual_lag_s=0.2,
        begins=True,
    ),
    "the next sound began shortly before": Picture(
        "_____######________#_____",
        "          S              E",
        "               ^         ",
        usual_lag_s=0.2,
        begins=True,
    ),
    "the next sound began just before, and the lag is unknown": Picture(
        "_####_____####__________##",
        "  S           U          E",
        "                   ^      ",
        begins=True,
    ),
    "the next sound is over, and the lag is unknown": Picture(
        "_____####_________####_____",
        "              S   U       E",
        "             ^             ",
        begins=True,
    ),
    "the next sound is not announced yet at so high a lag": Picture(
        "_____######________##______________________________",
        "            <---------------------S<---------------E",
        "               ^                                   ",
        usual_lag_s=1.4,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_turn_in_picture_is_cut_at_mark(name: str) -> None:
    picture = PICTURES[name]
    assert 0 <= picture.boundary.position - picture.marked < STEP_MS


DELAYED_START = Picture(
    "__################______#######__________",
    "{start:>25}                E",  # `turn.start` arrives 1.05 s after its sound
    "",
    waiting=1,
)
INNER, LAST = 21, 36


@pytest.mark.parametrize(
    ("start", "usual_lag_s", "in_burst", "chosen"),
    [
        ("S", 0.2, 1, INNER),  # the provider was that late
        ("<-----------------------S", 0.2, MIN_BURST, LAST),  # possible, but unusual
        ("<-----------------------S", None, CERTAIN_BURST, LAST),
        ("<-----------------------S", None, MIN_BURST, INNER),  # not enough evidence
        ("<-----------------------S", 1.0, MIN_BURST, INNER),
        ("<--S", None, CERTAIN_BURST, INNER),
    ],
)
def test_delayed_start_is_recognised(
    start: str, usual_lag_s: float | None, in_burst: int, chosen: int
) -> None:
    messages = DELAYED_START.messages.format(start=start)
    picture = DELAYED_START._replace(
        messages=messages, usual_lag_s=usual_lag_s, in_burst=in_burst, cut=" " * chosen + "^"
    )
    assert 0 <= picture.boundary.position - picture.marked < STEP_MS


def test_message_may_have_arrived_since_a_stall_began() -> None:
    late_start = DELAYED_START._replace(
        messages=DELAYED_START.messages.format(start="S"), usual_lag_s=0.2
    ).last
    stalled = late_start.start._replace(earliest_at=0.2)
    assert find_end(late_start).position // STEP_MS == INNER
    assert find_end(late_start._replace(start=stalled)).position // STEP_MS == LAST
    late_end = Picture(
        "_____######________####____________",
        "          S              <---E     ",
        "",
        usual_lag_s=0.2,
        waiting=1,
    ).last
    stalled = late_end.arrival._replace(earliest_at=0.5)
    assert find_end(late_end).position == 1_300
    assert find_end(late_end._replace(arrival=stalled)).position == 750


def test_sound_without_later_pause_has_no_lag() -> None:
    before = Picture("____######", "       S  E", "")
    assert before.boundary == Boundary(200 // 2, 0.05, None, lookback_suffices=False)
    no_pause = Picture("##########", "   S      E", "")
    assert no_pause.boundary == Boundary(500, None, None, lookback_suffices=False)
    after = Picture("____######____", "       S      E", "", usual_lag_s=9.0)
    assert after.boundary.lag_s is not None


@pytest.mark.parametrize(
    ("messages", "usual_lag_s", "lookback_suffices"),
    [
        ("      S        E", 0.1, True),
        ("      S        E", 0.3, False),
        ("      S        E", None, False),
        ("      S   <----E", 0.1, False),  # the delay may hide an earlier pause
        ("      S    E    ", 0.1, False),  # the silence is too short
        ("      S                          E", 0.1, True),  # the producer stopped
    ],
)
def test_lookback_suffices_at_usual_lag(
    messages: str, usual_lag_s: float | None, lookback_suffices: bool
) -> None:
    picture = Picture("__######____________", messages, "", usual_lag_s=usual_lag_s)
    assert picture.boundary.lag_s == pytest.approx(0.15)
    assert picture.boundary.lookback_suffices is lookback_suffices


def test_end_is_unusual_if_lag_changed() -> None:
    picture = Picture("__######______######", "      S             E", "", usual_lag_s=0.1)
    assert picture.boundary.lag_s == pytest.approx(0.15)
    assert not picture.boundary.lookback_suffices


def test_lookback_is_too_short_if_pause_began_before_it() -> None:
    picture = Picture("____________", "        E", "", usual_lag_s=0.1)
    assert picture.boundary == Boundary(200, 0.05, 0.1, lookback_suffices=False)


@pytest.mark.parametrize(
    ("audio", "messages", "usual_lag_s", "lookback_suffices", "lead_in_until"),
    [
        ("__________######", "              S", 0.2, True, 200),
        ("__________######", "              S", 0.5, False, 0),  # it began before
        ("__________######", "              S", None, False, 0),
        ("_____######_____", "         S     ", 0.2, True, 0),
        ("________________", "              S", 0.2, False, 0),
        ("##________######", "              S", 0.2, False, 0),  # it may have begun before
        ("##############__", "      S", 0.2, False, 0),
        ("___####____#####", "               S", 0.5, False, 0),  # or with the second sound
        ("__________######", "      <-------S", 0.2, False, 200),
    ],
)
def test_start_follows_its_lead_in(
    audio: str,
    messages: str,
    usual_lag_s: float | None,
    lookback_suffices: bool,
    lead_in_until: int,
) -> None:
    start = find_start(Picture(audio, messages, "", usual_lag_s=usual_lag_s).history("S"))
    assert (start.lookback_suffices, start.lead_in_until) == (lookback_suffices, lead_in_until)


@pytest.mark.parametrize(
    ("audio", "messages", "usual_lag_s", "position"),
    [
        ("_____######_______", "         S       E", 0.1, 700),
        ("_____######_______", "         S       E", None, None),
        ("_____######_______", "                 E", 0.1, None),
        ("###########_______", "                 E", 0.1, None),
        ("_____######______######_______", "         S                    E", 0.1, None),
        ("_____######______######_______", "         S     U              E", 0.1, None),
        # A session's threshold may let a pause propose an end that is too short to end a turn.
        ("_____######___######_______", "         S                E", 0.1, None),
        ("_____######__######_______", "         S               E", 0.1, 1100),
    ],
)
def test_pause_inside_turn_is_found_if_certain(
    audio: str, messages: str, usual_lag_s: float | None, position: int | None
) -> None:
    assert find_pause(Picture(audio, messages, "", usual_lag_s=usual_lag_s).last) == position


@pytest.mark.parametrize(
    ("messages", "before", "open_until", "found"),
    [
        ("                      R", 500, 0, 850),
        ("                      R", 600, 0, 850),  # the lookback begins in the silence
        ("             <--------R", 500, 0, 850),
        (" <--------------------R", 500, 0, 0),  # the silence may lie before the lookback
        (" <--------------------R", 500, 400, 850),  # there is no silence in between
        ("                      R", 500, 905, 905),
    ],
)
def test_resume_follows_silence_in_lookback(
    messages: str, before: int, open_until: int, found: int
) -> None:
    """`before` is the audio before the lookback, in milliseconds."""
    history = Picture("_____######______######___", messages, "", usual_lag_s=0.1).history("R")
    frames = before // FRAME_MS
    audio = history.audio._replace(
        silent=history.audio.silent[frames:],
        positions=history.audio.positions[frames:],
        first=history.audio.byte_of(frames),
    )
    assert find_resume(history._replace(audio=audio, open_until=open_until)) == found


# -- any history

RUNS = st.lists(
    st.tuples(st.sampled_from(SOUND + SILENCE * 2 + FILLER), st.integers(1, 12)), max_size=12
)
LAGS_S = st.none() | st.sampled_from([0.0, 0.1, 0.3, 0.8])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Return what is known when a message arrives, whatever was sent and received before."""
    audio = "".join(mark * length for mark, length in draw(RUNS.filter(bool)))
    end = draw(st.integers(1, len(audio)))
    start = draw(st.integers(0, end - 1))
    messages = list(" " * (end + 1))
    messages[start], messages[end] = "S", "E"
    for column in draw(st.sampled_from([(), (start,), (end,), (start, end)])):
        after = draw(st.integers(0, column))
        between = range(after + 1, column)
        if all(messages[at] == " " for at in between) and messages[after] == " ":
            messages[after] = "<"
            for at in between:
                messages[at] = "-"
    picture = Picture(
        audio,
        "".join(messages),
        "",
        draw(LAGS_S),
        waiting=draw(st.integers(0, 2)),
        in_burst=draw(st.integers(1, 4)),
    )
    return picture.last._replace(
        last_change=STEP_MS * draw(st.integers(0, end)),
        open_until=draw(st.integers(0, end * STEP_MS)),
        previous_lag_s=draw(LAGS_S),
    )


def _frames_at(history: History, position: int) -> list[int]:
    positions = history.audio.positions
    return [frame for frame in range(len(positions)) if positions[frame] == position]


@given(histories(), st.booleans())
def test_cut_is_in_silence_or_after_everything_sent(history: History, begins: bool) -> None:
    end = find_end(history, begins=begins)
    if pause_frames(history.audio.silent):
        frames = _frames_at(history, end.position)
        runs = silences(history.audio.silent)
        assert any(start <= frame < over for frame in frames for start, over in runs)
        assert end.speech_ended_at is not None
        assert end.speech_ended_at <= history.arrival.sent.at + STEP_MS / 1000
    else:
        assert end == Boundary(
            history.arrival.sent.session_bytes, None, None, lookback_suffices=False
        )
    assert 0 <= end.position <= history.arrival.sent.session_bytes


@given(histories(), st.booleans(), st.integers(0, 500))
def test_cut_does_not_precede_that_of_earlier_change(
    history: History, begins: bool, later: int
) -> None:
    changed = history._replace(last_change=history.last_change + later)
    assert find_end(changed, begins=begins).position >= find_end(history, begins=begins).position


@given(histories())
def test_cut_is_not_later_if_next_turn_begins(history: History) -> None:
    assert find_end(history, begins=True).position <= find_end(history).position


@given(histories(), st.data())
def test_cut_does_not_precede_silence_of_resume(history: History, data: st.DataObject) -> None:
    history = history._replace(last_change=history.arrival.sent.socket_bytes)
    pauses = pause_frames(history.audio.silent)
    assume(pauses)
    start, _ = data.draw(st.sampled_from(pauses))
    resumed = history._replace(open_until=history.audio.byte_of(start))
    assert find_end(resumed).position >= history.audio.positions[start]


@given(histories(), st.integers(0, 500), st.booleans())
def test_cut_is_not_later_after_eager_end(
    history: History, eager_end_at: int, begins: bool
) -> None:
    proposed = history._replace(eager_end_at=eager_end_at)
    assert find_end(proposed, begins=begins).position <= find_end(history, begins=begins).position


@given(histories())
def test_certain_pause_is_where_turn_would_end(history: History) -> None:
    pause = find_pause(history)
    assert pause in (None, find_end(history).position)


@given(histories())
def test_usual_end_has_the_usual_lag(history: History) -> None:
    end = find_end(history)
    if end.lookback_suffices:
        assert end.lag_s == pytest.approx(history.usual_lag_s, abs=0.101)


@given(histories())
def test_resumed_turn_is_open_until_audio_sent(history: History) -> None:
    open_until = find_resume(history)
    assert history.open_until <= open_until <= history.arrival.sent.socket_bytes


@given(histories())
def test_lead_in_ends_before_any_sound(history: History) -> None:
    start = find_start(history)
    assert [onset.sent for onset in start.onsets] == [
        history.audio.byte_of(frame) for frame in onset_frames(history.audio.silent)
    ]
    if start.lead_in_until:
        first, *_ = _frames_at(history, start.lead_in_until)
        assert first <= onset_frames(history.audio.silent)[0] - KEPT_LEAD_IN_MS // FRAME_MS


# -- the usual lag


def test_lag_is_unknown_at_first() -> None:
    lag = ProviderLag()
    for _ in range(MIN_LAG_TURNS - 1):
        lag.observe(0.2)
        assert lag.seconds is None
    lag.observe(0.2)
    assert lag.seconds == 0.2


def test_delayed_events_do_not_count() -> None:
    lag = ProviderLag()
    for nth in range(LAG_WINDOW_TURNS):
        lag.observe(5.0 if nth % 3 == 0 else 0.2)
    assert lag.seconds == 0.2


def test_lag_estimate_follows_change() -> None:
    lag = ProviderLag()
    for _ in range(LAG_WINDOW_TURNS):
        lag.observe(0.2)
    for _ in range(LAG_WINDOW_TURNS // 2 + 1):
        lag.observe(0.9)
    assert lag.seconds == 0.9


def test_lag_of_earlier_worker_is_initial_estimate() -> None:
    lag = ProviderLag()
    lag.seed(None)
    lag.seed(0.9)
    lag.seed(0.1)
    assert lag.seconds == 0.9
    for _ in range(MIN_LAG_TURNS):
        lag.observe(0.2)
    assert lag.seconds == 0.2


# -- silence


def _sent(
    levels: Sequence[int], fillers: Sequence[tuple[int, int]] = (), position: int = 0
) -> SentAudio:
    frames = len(levels) + sum(filler_ms for _, filler_ms in fillers) // FRAME_MS
    return sent_audio(levels, position, 160, fillers, frames * 160, SendLog())


def _drawn(picture: str) -> bytes:
    return bytes(mark == "_" for mark in picture.replace(" ", ""))


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
        (f"####{'_' * 10}####{'_' * 15}####", 0, 33),  # the first long silence
        (f"####{'_' * 10}####{'_' * 14}####", 0, 14),
        ("", -1, -1),
    ],
)
def test_turn_is_open_until_sound_of_its_resume(picture: str, open_at: int, until: int) -> None:
    assert resumed_frame(_drawn(picture), open_at) == until


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
    assert onset_frames(_drawn(picture)) == found


def test_pauses_are_long_or_longest() -> None:
    enough = MIN_END_PAUSE_MS // FRAME_MS
    long, short = "_" * enough, "_" * (enough - 1)
    assert pause_frames(_drawn(f"{long}####{short}####{long}_")) == [
        (0, enough),
        (2 * enough + 7, 3 * enough + 8),
    ]
    assert pause_frames(_drawn(f"###_###{short}###__")) == [(7, 6 + enough)]
    assert pause_frames(_drawn("####")) == []


def test_filler_is_found_without_other_silence() -> None:
    steady = [13_000] * 100  # a second without a pause
    audio = _sent(steady, [(3_200, 300), (16_000, 500)])
    assert audio.silent == _drawn("#" * 20 + "_" * 30 + "#" * 80 + "_" * 50)


def test_line_without_pause_has_no_noise_level() -> None:
    assert onset_frames(_sent([13_000] * 40).silent) == [0]


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


@given(st.lists(st.integers(0, 32_767), max_size=100), st.data())
def test_sent_audio_has_every_frame_in_order(levels: list[int], data: st.DataObject) -> None:
    start = 160 * data.draw(st.integers(0, 9))
    places = st.tuples(
        st.integers(start, start + 160 * len(levels)), st.integers(1, 9).map(lambda n: 100 * n)
    )
    fillers = sorted(data.draw(st.lists(places, max_size=4, unique_by=lambda place: place[0])))
    audio = _sent(levels, fillers, start)
    filler = sum(filler_ms for _, filler_ms in fillers) // FRAME_MS
    assert len(audio.silent) == len(audio.positions) == len(levels) + filler
    assert [*audio.positions] == sorted(audio.positions)
    assert audio.byte_of(0) == 0
    assert sum(audio.silent) >= filler


@given(st.lists(st.booleans()))
def test_silences_cover_every_silent_frame(frames: list[bool]) -> None:
    silent = bytes(frames)
    runs = silences(silent)
    covered = {frame for start, end in runs for frame in range(start, end)}
    assert covered >= {frame for frame, quiet in enumerate(silent) if quiet}
    assert all(silent[start] and silent[end - 1] for start, end in runs)
    least = MIN_SPEECH_MS // FRAME_MS
    assert all(after[0] - before[1] >= least for before, after in pairwise(runs))
    assert set(pause_frames(silent)) <= set(runs)
    assert all(end in onset_frames(silent) for _, end in runs if end < len(silent))
