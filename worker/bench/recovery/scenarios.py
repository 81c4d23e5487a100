"""Faults of a recovery benchmark, and how soon sessions continue after each."""

import signal
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

import anyio

from schemas.keys import GROUP
from schemas.turns import TurnEnd, TurnUpdate
from worker.bench.plan import RecoveryPlan
from worker.bench.producer import RecoverySession
from worker.bench.recovery.harness import RecoveryHarness, until
from worker.errors import TurnbusError
from worker.local.emulator.engines.script import words_of
from worker.local.emulator.engines.script_words import WORD_MS
from worker.local.process import ChildProcess

TURN_MS: Final = 6_000
CUT_MS: Final = 3_000
"""Time of the cut after the start of the turn."""

SILENCE_MS: Final = 8_000
PAUSE_MS: Final = 300
"""Pause inside a turn: the provider sends an eager end, then a resume."""

PHRASE_WORDS: Final = 7

_END_OF_TURN_MS: Final = 1_200
_STAGGER_S: Final = 0.25
_PERIOD_MS: Final = 5_000
"""Period over which the starts of speech are spread: the interval of pings and silent commits."""

_QUEUED_WORDS: Final = 1_000
"""Number of queued words: enough that the turn stays open until the producer stops it."""

_PUBLISHED_WORDS: Final = 5
"""Minimum number of words published before the kill."""

_POLL_S: Final = 0.01

Measured = tuple[dict[str, list[float]], list[RecoverySession]]
"""Milliseconds by measure, as in the report, and the sessions of a scenario."""


async def kill(harness: RecoveryHarness, plan: RecoveryPlan) -> Measured:
    """Kill a worker while another one runs.

    Measures the times until the STT server accepted the replacement socket of each session, and
    until it received audio on it.
    """
    count = plan.kill_sessions
    async with harness.worker("kill-a", count) as owner:
        sessions = await harness.open_sessions("kill", count)
        for session in sessions:
            session.say(_QUEUED_WORDS)
        async with harness.standby_worker("kill-b", count):
            failure = "a turn did not begin"
            await until(lambda: _least(harness, sessions, TurnUpdate) >= _PUBLISHED_WORDS, failure)
            killed_at = time.monotonic()
            owner.signal(signal.SIGKILL)
            sockets = await harness.replacements(sessions, killed_at)
            for session in sessions:
                session.stop_audio()
                session.pause(1_000)
                session.end()
            await harness.all_ended(sessions)
    connected = [(socket.opened_at - killed_at) * 1_000 for socket in sockets]
    audio_at = [socket.first_audio_at or socket.opened_at for socket in sockets]
    return {
        "kill_connected": connected,
        "kill_audio": [(at - killed_at) * 1_000 for at in audio_at],
    }, sessions


async def drain(harness: RecoveryHarness, plan: RecoveryPlan) -> Measured:
    """Stop a worker while another one runs.

    Measures the times until the process exited, until the last session had an owner again, and
    until the last session sent audio again.
    """
    count = plan.drain_sessions
    async with harness.worker("drain-a", count) as owner:
        sessions = await harness.open_sessions("drain", count)
        for session in sessions:
            session.say(2)
        await until(lambda: _least(harness, sessions, TurnEnd) > 0, "a turn did not end")
        async with harness.standby_worker("drain-b", count):
            began = time.monotonic()
            owner.signal(signal.SIGTERM)
            times: dict[str, float] = {}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_exit, owner, times)
                tasks.start_soon(_owned, harness, "drain-b-", count, times)
                sockets = await harness.replacements(sessions, began)
            for session in sessions:
                session.say(2)
                session.pause(1_000)
                session.end()
            await harness.all_ended(sessions)
    times["connected"] = max(socket.first_audio_at or socket.opened_at for socket in sockets)
    return {f"drain_{what}": [(at - began) * 1_000] for what, at in times.items()}, sessions


def _least(
    harness: RecoveryHarness, sessions: list[RecoverySession], kind: type[TurnUpdate | TurnEnd]
) -> int:
    """Return the least number of events of a kind that a session has."""
    return min(
        sum(isinstance(event, kind) for event in harness.events(session)) for session in sessions
    )


async def _exit(owner: ChildProcess, times: dict[str, float]) -> None:
    """Wait until the process exits. Raises TurnbusError if the exit code is not 0."""
    if code := await owner.wait():
        raise TurnbusError(f"{owner.name} exited with {code}; its last log lines:\n{owner.tail()}")
    times["exit"] = time.monotonic()


async def _owned(
    harness: RecoveryHarness, successor: str, count: int, times: dict[str, float]
) -> None:
    """Wait until the pending list assigns every session to the other worker."""
    owned = 0
    while owned < count:
        await anyio.sleep(_POLL_S)
        pending: Any = await harness.redis.xpending(harness.keys.sessions, GROUP)
        owned = sum(
            consumer["pending"]
            for consumer in pending["consumers"]
            if consumer["name"].decode().startswith(successor)
        )
    times["owned"] = time.monotonic()


class CutScenario(NamedTuple):
    """Speech before and in the turn that is cut."""

    name: str
    label: str
    quiet: bool
    """Whether the turn follows `SILENCE_MS` of silence, not another turn."""
    pauses: bool
    """Whether pauses of `PAUSE_MS` separate phrases of `PHRASE_WORDS` words."""


_TALKING: Final = "turn after turn"
_QUIET: Final = f"after {SILENCE_MS / 1_000:g} s of silence"
_PAUSES: Final = f"pauses of {PAUSE_MS} ms"

CUT_SCENARIOS: Final = (
    CutScenario("cut_talking", f"{_TALKING}, no pauses", quiet=False, pauses=False),
    CutScenario("cut_talking_pauses", f"{_TALKING}, {_PAUSES}", quiet=False, pauses=True),
    CutScenario("cut_quiet", f"{_QUIET}, no pauses", quiet=True, pauses=False),
    CutScenario("cut_quiet_pauses", f"{_QUIET}, {_PAUSES}", quiet=True, pauses=True),
)


class _CutSession(NamedTuple):
    """A session, the last word of the measured turn, and the start of that turn."""

    session: RecoverySession
    last: int
    begins_ms: int


async def cut(harness: RecoveryHarness, plan: RecoveryPlan, scenario: CutScenario) -> Measured:
    """Run each trial of a scenario twice in parallel: with a cut, and without.

    Measures how much later `turn.end` of a session with a cut is, and the delay from the last word
    of the turn to its `turn.end` without a cut.
    """
    name = scenario.name.replace("_", "-")
    pairs: list[tuple[_CutSession, _CutSession]] = []
    async with (
        harness.worker(f"{name}-w", 2 * plan.trials, proxied=True),
        anyio.create_task_group() as cutting,
    ):
        for trial in range(plan.trials):
            lead_ms = trial * _PERIOD_MS // plan.trials
            sessions = [
                harness.producer.open(f"{name}-{kind}-{trial:04}") for kind in ("cut", "twin")
            ]
            one, twin = (_queue_speech(session, scenario, lead_ms) for session in sessions)
            pairs.append((one, twin))
            cutting.start_soon(_cut, harness, one)
            await anyio.sleep(_STAGGER_S)
        await harness.all_ended(each.session for each in chain(*pairs))
    uncut = [_delay_ms(harness, twin, sockets=1) for _, twin in pairs]
    with_cut = [_delay_ms(harness, one, sockets=2) for one, _ in pairs]
    later = [cut_ms - twin_ms for cut_ms, twin_ms in zip(with_cut, uncut, strict=True)]
    return {scenario.name: later, "uncut": uncut}, [each.session for each in chain(*pairs)]


def _queue_speech(session: RecoverySession, scenario: CutScenario, lead_ms: int) -> _CutSession:
    session.pause(lead_ms)
    for after_ms in (SILENCE_MS,) if scenario.quiet else (_END_OF_TURN_MS, _END_OF_TURN_MS):
        session.say(5)
        session.pause(after_ms)
    begins_ms = session.queued_ms
    last = -1
    for words, pause_ms in _phrases(scenario):
        last = session.say(words)[-1]
        session.pause(pause_ms)
    session.pause(_END_OF_TURN_MS)
    session.say(2)
    session.pause(_END_OF_TURN_MS)
    session.end()
    return _CutSession(session, last, begins_ms)


def _phrases(scenario: CutScenario) -> Iterator[tuple[int, int]]:
    """Yield words and the pause after them, together `TURN_MS` to within a word."""
    rest_ms = TURN_MS
    phrase_ms = PHRASE_WORDS * WORD_MS + PAUSE_MS
    while scenario.pauses and rest_ms > phrase_ms:
        yield PHRASE_WORDS, PAUSE_MS
        rest_ms -= phrase_ms
    yield rest_ms // WORD_MS, 0


async def _cut(harness: RecoveryHarness, trial: _CutSession) -> None:
    at_ms = trial.begins_ms + CUT_MS
    await until(
        lambda: trial.session.appended_ms >= at_ms, f"{trial.session.name} did not send its audio"
    )
    harness.link(trial.session).cut()


def _delay_ms(harness: RecoveryHarness, trial: _CutSession, *, sockets: int) -> float:
    """Return the delay from the append of the turn's last word to its end."""
    logged = harness.event_log.logged[trial.session.name]
    if logged[-1].event.connection != sockets:
        raise TurnbusError(
            f"{trial.session.name} had {logged[-1].event.connection} sockets instead of {sockets}"
        )
    for at_ms, event in logged:
        if isinstance(event, TurnEnd) and trial.last in words_of(event.transcript):
            return at_ms - trial.session.said_ms[trial.last]
    raise TurnbusError(f"{trial.session.name}: no ended turn contains word {trial.last}")
