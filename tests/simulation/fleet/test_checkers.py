"""The checkers accept a right session, and find each wrong one."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from schemas.turns import (
    AudioGap,
    Event,
    SessionEnded,
    SessionError,
    SessionStarted,
    TurnEnd,
    TurnStart,
    TurnUpdate,
)
from tests.chaos.script import ScriptedSession, Turn
from tests.simulation.fleet.checkers import Published, Sent, session_findings
from tests.simulation.fleet.plan import ALWAYS, Fault, FaultKind, FleetPlan, FleetSession
from worker.local.emulator.engines.base import AudioFormat

SESSION = FleetSession(
    at_s=0.0,
    script=ScriptedSession(
        name="call-0",
        audio=AudioFormat("pcm_s16le", 8_000),
        turns=(Turn((0,), 1_000, stalls=False),),
        seed="1",
    ),
)
PLAN = FleetPlan(seed=1, sessions=(SESSION,))


def events(*kinds: tuple[type[Event], dict[str, Any]], provider: str = "cartesia") -> list[Event]:
    made = []
    for seq, (kind, given) in enumerate(kinds, 1):
        common = {
            "session": "call-0",
            "run": "1-0",
            "seq": seq,
            "at": 1.0,
            "audio_ms": 0,
            "provider": provider,
            "request_id": "",
            "connection": 1,
        }
        tag = kind.__struct_config__.tag
        made.append(msgspec.convert({**common, **given, "type": tag}, kind))
    return made


STARTED = (
    SessionStarted,
    {"worker": "w", "metadata": {}, "encoding": "pcm_s16le", "sample_rate": 8_000},
)
BEGUN = (TurnStart, {"turn": 0})
ENDED = (SessionEnded, {"reason": "end", "turns": 1})


def turn_end(text: str) -> tuple[type[Event], dict[str, Any]]:
    return TurnEnd, {"turn": 0, "transcript": text, "reason": "model"}


def update(text: str) -> tuple[type[Event], dict[str, Any]]:
    return TurnUpdate, {"turn": 0, "transcript": text}


RIGHT = events(STARTED, BEGUN, update("w0"), turn_end("w0 w1"), ENDED)


def rules(sent: Sent, published: list[Event], own: list[Event] | None = None) -> list[str]:
    found = session_findings(PLAN, SESSION, sent, Published(published, own))
    return [finding.rule for finding in found]


def test_right_session_is_accepted() -> None:
    assert rules(Sent(), RIGHT, RIGHT) == []


@pytest.mark.parametrize(
    ("published", "found"),
    [
        (events(STARTED, BEGUN, turn_end("w0"), ENDED), ["lost"]),
        (events(STARTED, BEGUN, turn_end("w0 w1 w1"), ENDED), ["repeated"]),
        (events(STARTED, BEGUN, turn_end("w0 !1"), ENDED), ["lost", "damaged"]),
        (events(STARTED, BEGUN, turn_end("w0 w1")), ["stuck"]),
        ([], ["stuck"]),
        (events(STARTED, BEGUN, update("w0 w1"), turn_end("w0"), ENDED), ["lost", "shrunk"]),
    ],
)
def test_wrong_session_is_found(published: list[Event], found: list[str]) -> None:
    assert rules(Sent(), published) == found


def test_wrong_number_is_found() -> None:
    wrong = [replace(event, seq=event.seq + (event.seq > 2)) for event in RIGHT]
    assert rules(Sent(), wrong) == ["seq"]


def test_own_stream_must_be_the_same() -> None:
    assert rules(Sent(), RIGHT, RIGHT[:-1]) == ["bus"]


def test_incomplete_producer_is_found() -> None:
    assert rules(Sent(complete=False), RIGHT) == ["stuck"]


def test_torn_word_may_be_damaged() -> None:
    published = events(STARTED, BEGUN, turn_end("w0 !1"), ENDED)
    assert rules(Sent(torn=frozenset({1})), published) == []


@pytest.mark.parametrize(
    ("style", "torn", "found"),
    [
        ("none", {0}, ["word 2", "word 3"]),  # only in the turn of the torn word
        ("none", set(), ["word 1", "word 2", "word 3"]),
        ("leading", {0}, ["word 1", "word 2", "word 3"]),
    ],
)
def test_unspaced_words_after_a_torn_one_may_be_lost(
    style: str, torn: set[int], found: list[str]
) -> None:
    plan = replace(PLAN, text_style=style)
    script = replace(SESSION.script, turns=SESSION.script.turns * 2)
    published = events(STARTED, BEGUN, turn_end("w0"), ENDED)
    sent = Sent(torn=frozenset(torn))
    lost = session_findings(plan, replace(SESSION, script=script), sent, Published(published))
    assert [each.detail for each in lost] == found


@pytest.mark.parametrize(
    ("provider", "texts", "found"),
    [
        ("flux", ("w0~ w1", "w0 w1"), []),
        ("cartesia", ("w0~ w1", "w0 w1"), ["shrunk"]),
        ("flux", ("w0~ w1", "w0", "w0 w1"), ["shrunk"]),
    ],
)
def test_only_flux_may_revise_the_end_of_a_turn(
    provider: str, texts: tuple[str, ...], found: list[str]
) -> None:
    *updates, last = texts
    turn = [BEGUN, *map(update, updates), turn_end(last)]
    assert rules(Sent(), events(STARTED, *turn, ENDED, provider=provider)) == found


def test_forgotten_session_needs_only_numbers_in_order() -> None:
    lost = events(STARTED, BEGUN, turn_end("w0"))
    assert rules(Sent(forgotten=True), lost) == []
    assert rules(Sent(forgotten=True), []) == []
    assert rules(Sent(forgotten=True), [*lost, lost[-1]]) == ["seq"]


ERROR = (SessionError, {"code": "internal", "message": "", "status": 0, "fatal": True})
FAILED = (SessionEnded, {"reason": "error", "turns": 1})
COMPLETE = Sent()
CRASHING = replace(SESSION, crashes=ALWAYS)


def crashed_rules(
    *kinds: tuple[type[Event], dict[str, Any]],
    sent: Sent = COMPLETE,
    session: FleetSession = CRASHING,
) -> list[str]:
    found = session_findings(PLAN, session, sent, Published(events(*kinds)))
    return [each.rule for each in found]


def test_session_that_always_crashes_ends_with_an_error() -> None:
    assert crashed_rules(STARTED, BEGUN, turn_end("w0"), ERROR, FAILED) == []
    assert crashed_rules(STARTED, BEGUN, turn_end("w0"), FAILED) == ["end"]


def test_session_that_always_crashes_loses_no_word_before_its_end() -> None:
    assert crashed_rules(STARTED, BEGUN, turn_end("w1"), ERROR, FAILED) == ["lost"]


def test_only_a_session_that_always_crashes_may_end_early() -> None:
    early = Sent(complete=False, over=True)
    failed = (STARTED, BEGUN, turn_end("w0"), ERROR, FAILED)
    assert crashed_rules(*failed, sent=early) == []
    assert crashed_rules(*failed, sent=Sent(complete=False)) == ["stuck"]
    assert crashed_rules(*failed, sent=early, session=SESSION) == ["stuck"]
    assert crashed_rules(STARTED, BEGUN, turn_end("w0"), ENDED, sent=early) == ["lost"]


@pytest.mark.parametrize(
    ("spec", "faults", "rules"),
    [
        ("cut@flushed,count=1", 2, ["reported"]),
        ("cut@flushed,count=1", 3, []),
        ("close=1011@between-turns,count=2", 1, ["reported"]),
        ("close=1011@between-turns,count=2", 2, []),  # a turn's words may still be on their way
        ("cut@opened,count=2", 2, ["reported"]),
    ],
)
def test_gap_is_accepted_after_cuts_in_every_flush(
    spec: str, faults: int, rules: list[str]
) -> None:
    cut = Fault(kind="provider-fault", at_s=1.0, spec=spec)
    plan = replace(PLAN, faults=(cut,) * faults)
    gap = (AudioGap, {"missing_ms": 100, "reason": "watchdog"})
    ended = events(STARTED, BEGUN, turn_end("w0 w1"), gap, ENDED)
    found = session_findings(plan, SESSION, Sent(), Published(ended))
    assert [each.rule for each in found] == rules


def test_expected_errors_of_bad_audio_are_accepted() -> None:
    error = (SessionError, {"code": "audio_empty", "message": "", "status": 0, "fatal": False})
    right = (STARTED, error, BEGUN, turn_end("w0 w1"), ENDED)
    session = replace(SESSION, bad_audio="empty")
    found = session_findings(PLAN, session, Sent(bad_ids=["7-0"]), Published(events(*right)))
    assert [*found] == []
    found = session_findings(PLAN, SESSION, Sent(), Published(events(*right)))
    assert [each.rule for each in found] == ["reported"]


@pytest.mark.parametrize(
    ("share", "texts", "found"),
    [
        (0.5, ("w0 w1", "w1"), []),
        (0.0, ("w0 w1", "w1"), ["repeated"]),
        (0.5, ("w0 w1", "w0 w1"), ["repeated", "repeated"]),
    ],
)
def test_replay_that_ends_sooner_may_repeat_one_word(
    share: float, texts: tuple[str, str], found: list[str]
) -> None:
    turns = [
        (kind, {**fields, "turn": number})
        for number, text in enumerate(texts)
        for kind, fields in (BEGUN, turn_end(text))
    ]
    ended = (SessionEnded, {"reason": "end", "turns": 2})
    published = Published(events(STARTED, *turns, ended))
    plan = replace(PLAN, hasty_share=share)
    assert [each.rule for each in session_findings(plan, SESSION, Sent(), published)] == found


@pytest.mark.parametrize(("kind", "found"), [("provider-slow", 0), ("provider-cut", 2)])
def test_slow_socket_may_repeat_the_words_of_its_lag(kind: FaultKind, found: int) -> None:
    fault = Fault(kind=kind, at_s=1.0)
    plan = replace(PLAN, hasty_share=0.5, faults=(fault,))
    again = [(kind, {**fields, "turn": 1}) for kind, fields in (BEGUN, turn_end("w0 w1"))]
    ended = (SessionEnded, {"reason": "end", "turns": 2})
    published = Published(events(STARTED, BEGUN, turn_end("w0 w1"), *again, ended))
    assert len([*session_findings(plan, SESSION, Sent(), published)]) == found
