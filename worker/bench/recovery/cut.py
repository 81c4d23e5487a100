"""Measures how much later a turn ends if its socket is reset inside the turn."""

from collections.abc import Iterator
from itertools import chain
from typing import Final, NamedTuple

import anyio

from schemas.turns import TurnEnd
from worker.bench.recovery.harness import RecoveryHarness, until
from worker.bench.recovery.plan import RecoveryPlan
from worker.bench.recovery.producer import ProducerSession
from worker.errors import TurnbusError
from worker.local.emulator.engines.script import words_of
from worker.local.emulator.engines.script_words import WORD_MS

TURN_MS: Final = 6_000
CUT_MS: Final = 3_000
"""Time of the cut after the start of the turn."""

SILENCE_MS: Final = 8_000
PAUSE_MS: Final = 300
"""Pause inside a turn: the provider sends an eager end, then a resume."""

PHRASE: Final = 7

_AFTER_MS: Final = 1_200
_STAGGER_S: Final = 0.25
_PERIOD_MS: Final = 5_000
"""Period over which the starts of speech are spread: the interval of pings and silent commits."""


class CutScenario(NamedTuple):
    """Speech before and in the turn that is cut."""

    name: str
    label: str
    quiet: bool
    """Whether the turn follows `SILENCE_MS` of silence, not another turn."""
    pauses: bool
    """Whether pauses of `PAUSE_MS` separate phrases of `PHRASE` words."""


_TALKING: Final = "turn after turn"
_QUIET: Final = f"after {SILENCE_MS / 1_000:g} s of silence"
_PAUSES: Final = f"pauses of {PAUSE_MS} ms"

SCENES: Final = (
    CutScenario("cut_talking", f"{_TALKING}, no pauses", quiet=False, pauses=False),
    CutScenario("cut_talking_pauses", f"{_TALKING}, {_PAUSES}", quiet=False, pauses=True),
    CutScenario("cut_quiet", f"{_QUIET}, no pauses", quiet=True, pauses=False),
    CutScenario("cut_quiet_pauses", f"{_QUIET}, {_PAUSES}", quiet=True, pauses=True),
)


class CutResult(NamedTuple):
    """Results of the cuts of one scenario, a value per trial."""

    later_ms: list[float]
    """Delay of `turn.end` of the cut session relative to its twin."""
    uncut_ms: list[float]
    """Delay from the last word of the turn to its `turn.end`, without a cut."""


class _Take(NamedTuple):
    """A session, the last word of the measured turn, and the start of that turn."""

    line: ProducerSession
    last: int
    begins_ms: int


async def cut(
    rig: RecoveryHarness, plan: RecoveryPlan, scene: CutScenario, name: str
) -> tuple[CutResult, list[ProducerSession]]:
    """Run each trial of a scenario twice in parallel: with a cut, and without."""
    pairs: list[tuple[_Take, _Take]] = []
    async with (
        rig.worker(f"{name}-w", 2 * plan.trials, proxied=True),
        anyio.create_task_group() as cutting,
    ):
        for trial in range(plan.trials):
            lead_ms = trial * _PERIOD_MS // plan.trials
            lines = [rig.producer.open(f"{name}-{kind}-{trial:04}") for kind in ("cut", "twin")]
            one, twin = (_speak(line, scene, lead_ms) for line in lines)
            pairs.append((one, twin))
            cutting.start_soon(_cut, rig, one)
            await anyio.sleep(_STAGGER_S)
        await rig.all_ended(take.line for take in chain(*pairs))
    uncut = [_delay_ms(rig, twin, sockets=1) for _, twin in pairs]
    with_cut = [_delay_ms(rig, one, sockets=2) for one, _ in pairs]
    later = [cut_ms - twin_ms for cut_ms, twin_ms in zip(with_cut, uncut, strict=True)]
    return CutResult(later, uncut), [take.line for take in chain(*pairs)]


def _speak(line: ProducerSession, scene: CutScenario, lead_ms: int) -> _Take:
    line.pause(lead_ms)
    for after_ms in (SILENCE_MS,) if scene.quiet else (_AFTER_MS, _AFTER_MS):
        line.say(5)
        line.pause(after_ms)
    begins_ms = line.queued_ms
    last = -1
    for words, pause_ms in _phrases(scene):
        last = line.say(words)[-1]
        line.pause(pause_ms)
    line.pause(_AFTER_MS)
    line.say(2)
    line.pause(_AFTER_MS)
    line.end()
    return _Take(line, last, begins_ms)


def _phrases(scene: CutScenario) -> Iterator[tuple[int, int]]:
    """Yield words and the pause after them, together `TURN_MS` to within a word."""
    rest_ms = TURN_MS
    phrase_ms = PHRASE * WORD_MS + PAUSE_MS
    while scene.pauses and rest_ms > phrase_ms:
        yield PHRASE, PAUSE_MS
        rest_ms -= phrase_ms
    yield rest_ms // WORD_MS, 0


async def _cut(rig: RecoveryHarness, take: _Take) -> None:
    at_ms = take.begins_ms + CUT_MS
    await until(
        lambda: take.line.appended_ms >= at_ms, f"{take.line.session} did not send its audio"
    )
    rig.link(take.line).cut()


def _delay_ms(rig: RecoveryHarness, take: _Take, *, sockets: int) -> float:
    """Return the delay from the append of the turn's last word to its end."""
    logged = rig.history.logged[take.line.session]
    if logged[-1].event.connection != sockets:
        raise TurnbusError(
            f"{take.line.session} had {logged[-1].event.connection} sockets instead of {sockets}"
        )
    for at_ms, event in logged:
        if isinstance(event, TurnEnd) and take.last in words_of(event.transcript):
            return at_ms - take.line.said_ms[take.last]
    raise TurnbusError(f"{take.line.session}: no ended turn contains word {take.last}")
