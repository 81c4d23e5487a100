"""Turn boundaries of stalled calls: when audio and messages are sent, and where turns are cut."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest

from schemas.audio import AudioEntry, Encoding
from tests.simulation.lines import LATER, Line, boundary_of
from tests.simulation.speech import AUDIO, BYTES_PER_MS
from worker.core.ledger import Ledger
from worker.core.send_limits import Pacer
from worker.event_loop import StallDetector
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.session.sender import AudioSender
from worker.telemetry.counters import Counters


class Sent(NamedTuple):
    """The worker sends the session's audio up to a millisecond of it."""

    at: float
    ms: int


class Message(NamedTuple):
    """The provider's message arrives, with this many waiting behind it."""

    at: float
    kind: str
    text: str = ""
    waiting: int = 0


def _cut(
    sound: bytes,
    call: Sequence[Sent | Message],
    slept: tuple[float, float],
    usual_lag_s: float | None,
) -> int:
    """Return the millisecond at which the last turn is cut.

    The worker stalled once, between two seconds of the call.
    """
    ledger = Ledger(Encoding.PCM_S16LE.width)
    sender = AudioSender(Encoding.PCM_S16LE, AUDIO.sample_rate, ledger, Pacer(0), Counters())
    sender.attach(Line(), LATER)
    stalls = StallDetector(LATER + slept[0])
    boundary = boundary_of(sender, stalls, usual_lag_s)
    boundary.reset(LATER)
    stalls.tick(LATER + slept[1])
    cut = None
    for count, step in enumerate(sorted(call, key=lambda step: step.at), 1):
        if isinstance(step, Sent):
            audio = sound[sender.socket_bytes : step.ms * BYTES_PER_MS]
            ledger.admit(f"{count}-0", AudioEntry(audio=audio))
            sender.enqueue(audio)
            sender.drain(LATER + step.at)
            continue
        arrival = sender.send_log.moment(LATER + step.at)
        boundary.on_message(arrival, step.waiting)
        match step.kind:
            case "turn.start":
                boundary.on_start(arrival)
            case "turn.resume":
                boundary.on_resume(arrival)
            case "early end":
                boundary.on_transcript(step.text, arrival)
                boundary.on_early_end(arrival)
            case _:
                boundary.on_transcript(step.text, arrival)
        if step.kind == "turn.eager_end":
            boundary.on_eager_end(arrival)
        if step.kind == "turn.end":
            cut = boundary.find_end(arrival) // BYTES_PER_MS
    assert cut is not None
    return cut


def _live(until_ms: int) -> Iterator[Sent]:
    """Send audio in real time, in chunks of 50 ms."""
    return (Sent(ms / 1_000 + 0.02, ms) for ms in range(50, until_ms + 1, 50))


PAUSE_MS = 300


@pytest.mark.parametrize("usual_lag_s", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize(
    "before",
    [[], [5], [20], [1, 20], [20, 1], [5, 5, 5], [1] * 12],
    ids=lambda before: "+".join(map(str, before)) or "none",
)
def test_worker_stalls_in_a_pause_inside_a_turn(before: list[int], usual_lag_s: float) -> None:
    """After the stall the worker sends faster than real time and receives messages in bursts.

    The burst that contains `turn.end` fits the inner pause as well as the final one. Only the
    `turn.resume` distinguishes them. `before` is the number of words before each earlier pause. The
    start of the turn is out of the window at its end, and may be by its first pause.
    """
    sound, ms = bytearray(synthesize_silence(400, AUDIO)), 400
    call: list[Sent | Message] = [Message(0.68, "turn.start")]
    text = ""
    for count in before:
        sound += synthesize_words(range(count), AUDIO) + synthesize_silence(PAUSE_MS, AUDIO)
        ms += 200 * count + PAUSE_MS
        text += " so" * count
        call += [
            Message((ms - PAUSE_MS) / 1_000 + 0.16, "turn.update", text),
            Message(ms / 1_000 + 0.12, "turn.eager_end", text),
            Message(ms / 1_000 + 0.22, "turn.resume"),
        ]
    sound += (
        synthesize_words([20, 21, 22], AUDIO)
        + synthesize_silence(286, AUDIO)
        + synthesize_words([23], AUDIO)
        + synthesize_silence(2_143, AUDIO)
    )
    at, cut_from = ms / 1_000, ms + 886 + 200
    call += _live(ms)
    call += [
        Sent(at + sent_at, ms + until)
        for sent_at, until in [
            *[(0.04, 22), (0.13, 109), (0.16, 137), (0.23, 205), (0.28, 258), (0.36, 345)],
            *[(0.46, 440), (0.48, 460), (0.61, 586), (0.63, 609), (0.81, 793)],
            # The stall is over.
            *[(2.43, 979), (2.43, 1040), (2.45, 1097), (2.57, 1288), (2.60, 1321), (2.73, 1513)],
            *[(2.78, 1591), (2.80, 1622), (2.86, 1709)],
        ]
    ]
    call += [
        Message(at + 0.36, "turn.update", f"{text} twenty"),
        Message(at + 0.62, "turn.update", f"{text} twenty one"),
        Message(at + 0.78, "turn.update", f"{text} twenty one two"),
        Message(at + 2.5765, "turn.eager_end", f"{text} twenty one two", waiting=2),
        Message(at + 2.5765, "turn.resume", waiting=1),
        Message(at + 2.5787, "turn.update", f"{text} twenty one two three"),
        Message(at + 2.8669, "turn.eager_end", f"{text} twenty one two three"),
        Message(at + 2.9049, "turn.end", f"{text} twenty one two three"),
    ]
    cut = _cut(bytes(sound), call, (at + 0.82, at + 2.42), usual_lag_s)
    assert cut_from <= cut <= cut_from + 2_143


@pytest.mark.parametrize("usual_lag_s", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("pause_ms", [210, 228, 300, 400])
def test_link_stalls_over_a_pause_inside_a_turn(pause_ms: int, usual_lag_s: float) -> None:
    """The last transcript and the end of the turn arrive together, after a second without messages.

    Both pauses were sent in that second, or shortly before. If the turn had ended in the first
    pause, the word after it would have started another turn by now.
    """
    sound = (
        synthesize_silence(400, AUDIO)
        + synthesize_words([0], AUDIO)
        + synthesize_silence(60, AUDIO)
        + synthesize_words([1], AUDIO)
    )
    sound += synthesize_silence(pause_ms, AUDIO) + synthesize_words([2], AUDIO)
    ends_ms = 860 + pause_ms + 200
    sound += synthesize_silence(695, AUDIO) + synthesize_words([3], AUDIO)
    held_until = ends_ms / 1_000 + 0.48 + 0.2
    call: list[Sent | Message] = [
        *_live(ends_ms + 650),
        Message(0.60, "turn.start"),
        Message(0.78, "turn.update", "zero"),
        Message(1.02, "turn.update", "zero one"),
        Message(held_until, "turn.update", "zero one two"),
        Message(held_until + 0.026, "turn.eager_end", "zero one two"),
        Message(held_until + 0.027, "turn.end", "zero one two"),
    ]
    cut = _cut(sound, call, (0.0, 0.1), usual_lag_s)
    assert ends_ms <= cut <= ends_ms + 695


@pytest.mark.parametrize("usual_lag_s", [None, 0.05])
@pytest.mark.parametrize("waiting", [0, 1])
def test_turn_begins_after_an_early_end(usual_lag_s: float | None, waiting: int) -> None:
    """A replay ends a turn early, and commits nothing: its sound did not begin the next turn."""
    pause = synthesize_silence(400, AUDIO)
    sound = b"".join(synthesize_words([word], AUDIO) + pause for word in range(4))
    starts_at = 1.271 if waiting else 1.33
    call: list[Sent | Message] = [
        *_live(2_300),
        Message(0.08, "turn.start"),
        Message(0.23, "turn.update", "zero"),
        Message(0.43, "turn.eager_end", "zero"),
        Message(0.67, "turn.resume"),
        Message(0.83, "turn.update", "zero one"),
        Message(1.27, "early end", "zero one", waiting),
        Message(starts_at, "turn.start"),
        Message(1.43, "turn.update", "two"),
        Message(1.63, "turn.eager_end", "two"),
        Message(1.87, "turn.resume"),
        Message(2.03, "turn.update", "two three"),
        Message(2.23, "turn.eager_end", "two three"),
        Message(2.29, "turn.end", "two three"),
    ]
    cut = _cut(sound, call, (0.0, 0.01), usual_lag_s)
    assert 2_000 <= cut <= 2_400


def _cut_in_backlog(seed: int) -> tuple[int, int]:
    """Send a backlog at 1.5 times real time to a provider whose messages are late at random.

    Returns where the turn is cut and where the next one begins, in milliseconds after its last
    word.
    """
    rng = random.Random(seed)
    gap_ms = rng.choice([500, 600, 700, 900])
    sound = (
        synthesize_silence(400, AUDIO)
        + synthesize_words([0], AUDIO)
        + synthesize_silence(240, AUDIO)
        + synthesize_words([1], AUDIO)
        + synthesize_silence(gap_ms, AUDIO)
        + synthesize_words([2], AUDIO)
        + synthesize_silence(2_000, AUDIO)
    )
    chunk_ms, ends_ms = 100, 1_040
    call: list[Sent | Message] = [
        Sent(ms / 1_500, ms) for ms in range(chunk_ms, len(sound) // BYTES_PER_MS + 1, chunk_ms)
    ]
    at = 0.0
    for ms, kind, text in [
        (440, "turn.start", ""),
        (600, "turn.update", "zero"),
        (800, "turn.eager_end", "zero"),
        (880, "turn.resume", ""),
        (ends_ms, "turn.update", "zero one"),
        (ends_ms + 200, "turn.eager_end", "zero one"),
        (ends_ms + 480, "turn.end", "zero one"),
    ]:
        sent_at = -(-ms // chunk_ms) * chunk_ms / 1_500
        at = max(at + 0.001, sent_at + 0.15 + rng.choice([0, 0, 0.03, 0.1, 0.2, 0.3]))
        call.append(Message(at, kind, text))
    cut = _cut(sound, call, (0.0, 0.01), rng.choice([0.1, 0.2, 0.3]))
    return cut - ends_ms, gap_ms


def test_next_word_of_a_backlog_is_hardly_ever_cut_off() -> None:
    """The next turn's first word is sent before the end of this one arrives.

    An eager end shows which pause it is, unless it is late itself: those are counted here.
    """
    cuts = [_cut_in_backlog(seed) for seed in range(600)]
    assert all(cut >= 0 for cut, _ in cuts)
    assert sum(cut > gap_ms for cut, gap_ms in cuts) <= 4
