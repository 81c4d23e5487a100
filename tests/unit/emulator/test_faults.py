"""Faults: their text, their plan and their rate limits. It opens no socket."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SettingsError
from worker.local.emulator.connection_stats import PaceMeter
from worker.local.emulator.engines.base import EngineEvent
from worker.local.emulator.fault_plan import FaultSet, RateLimit, Throttle
from worker.local.emulator.faults import (
    CloseFrame,
    Cut,
    Duplicate,
    Fault,
    HalfOpen,
    HttpRefusal,
    IgnoredCommand,
    InBandError,
    LateConnected,
    LostMessages,
    NoTurnEnd,
    PaceLimit,
    Reorder,
    Sent,
    Shrink,
    SlowRead,
    Stall,
    WindowJitter,
    parse_fault,
    parse_seconds,
)
from worker.local.emulator.messages import problem_of
from worker.local.emulator.turn_info import TurnInfo


@pytest.mark.parametrize(
    ("spec", "action", "at"),
    [
        ("cut@mid-turn", Cut("rst"), "mid-turn"),
        ("cut=rst@handshake", Cut("rst"), "handshake"),
        ("cut=fin@bytes=64000", Cut("fin"), 64_000),
        ("cut@bytes=64k", Cut("rst"), 64_000),
        ("cut=fin@sent=1k", Cut("fin"), Sent(1_000)),
        ("half-open@flush", HalfOpen(), "flush"),
        ("stall@mid-turn", Stall(), "mid-turn"),
        ("close=none@mid-turn", CloseFrame(1005, ""), "mid-turn"),
        ("error=500:none", InBandError(problem_of(500), 1005), "opened"),
        ("connected=skip", LateConnected(0, skipped=True), None),
        ("reorder", Reorder(), None),
        ("window-jitter=200ms", WindowJitter(0.2), None),
        ("close=1012", CloseFrame(1012, "Service restart"), "opened"),
        ("close=4001@flushed", CloseFrame(4001, ""), "flushed"),
        ("error=500", InBandError(problem_of(500), 1011), "opened"),
        ("error=429", InBandError(problem_of(429), 1008), "opened"),
        ("error=503:1013@between-turns", InBandError(problem_of(503), 1013), "between-turns"),
        ("error=400:open@mid-turn", InBandError(problem_of(400), None), "mid-turn"),
        ("http=503", HttpRefusal(problem_of(503)), "handshake"),
        ("connected=never", LateConnected(None), None),
        ("connected=late:3s", LateConnected(3.0), None),
        ("connected=late:250ms:deaf", LateConnected(0.25, deaf=True), None),
        ("no-turn-end", NoTurnEnd(), None),
        ("lose=turn.end:turn.start", LostMessages(("turn.start", "turn.end")), None),
        ("ignore=ForceEndTurn", IgnoredCommand("ForceEndTurn"), None),
        ("duplicate", Duplicate(), None),
        ("shrink", Shrink(), None),
        ("slow-read=8k/s", SlowRead(8_000), None),
        ("slow-read=1m/s", SlowRead(1_000_000), None),
        ("pace=2.0", PaceLimit(2.0, 1.0, 1008), None),
        ("pace=1.5:burst=200ms", PaceLimit(1.5, 0.2, 1008), None),
        ("pace=1:open", PaceLimit(1.0, 1.0, None), None),
        ("pace=1:burst=2s:1011", PaceLimit(1.0, 2.0, 1011), None),
    ],
)
def test_fault_specs_are_parsed(spec: str, action: object, at: object) -> None:
    assert parse_fault(spec) == Fault(spec, action, at)  # type: ignore[arg-type]


def test_fault_options_are_parsed() -> None:
    fault = parse_fault(" cut@mid-turn,p=0.25,count=2,seed=7 ")
    assert fault == Fault("cut@mid-turn,p=0.25,count=2,seed=7", Cut(), "mid-turn", 0.25, 2, 7)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "the kinds are cut, half-open"),
        ("cats", "the kinds are"),
        ("cut", "it needs a WHEN: @handshake, @opened"),
        ("cut=off@mid-turn", "the value must be rst or fin"),
        ("cut@lunch", "'lunch' is not a valid WHEN"),
        ("cut@", "'' is not a valid WHEN"),
        ("cut@bytes=0", "bytes are written"),
        ("cut@bytes=-1", "bytes are written"),
        ("half-open=1@flush", "it takes no value"),
        ("half-open@sent=1", "'sent=1' is not a valid WHEN"),
        ("stall", "it needs a WHEN: @opened"),
        ("stall@handshake", "'handshake' is not a valid WHEN"),
        ("window-jitter", "a duration is written 3s"),
        ("lose", "it takes kinds of turn events"),
        ("lose=turn.end:progress", "it takes kinds of turn events"),
        ("ignore", "the value must be the type of a message"),
        ("ignore={}", "the value must be the type of a message"),
        ("close=1012@handshake", "'handshake' is not a valid WHEN"),
        ("close", "not a whole number from 1000"),
        ("close=1006", "1006 cannot be in a close frame"),
        ("close=2000", "2000 cannot be in a close frame"),
        ("error=500:1006", "1006 cannot be in a close frame"),
        ("error=500:open:1011", "it takes one value"),
        ("error", "not a whole number from 400"),
        ("http=200", "not a whole number from 400"),
        ("http=599", "599 is not an HTTP status"),
        ("http=503@opened", "it takes no WHEN"),
        ("duplicate@mid-turn", "it takes no WHEN"),
        ("connected=late", "the value must be late:3s"),
        ("connected=late:3", "a duration is written 3s"),
        ("pace", "'' is not a number above 0"),
        ("pace=0", "'0' is not a number above 0"),
        ("pace=nan", "not a number"),
        ("pace=1:burst=1", "a duration is written"),
        ("slow-read=8/min", "bytes are written"),
        ("shrink,p=2", "p is at most 1"),
        ("shrink,p=0", "not a number above 0"),
        ("shrink,count=0", "not a whole number from 1"),
        ("shrink,often", "the options are p, count and seed"),
    ],
)
def test_invalid_fault_spec_is_refused_with_reason(spec: str, says: str) -> None:
    with pytest.raises(SettingsError) as garbled:
        parse_fault(spec)
    assert str(garbled.value).startswith(f"fault {spec!r}: ")
    assert says in str(garbled.value)


@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.from_regex(r"[a-z=@:,.0-9-]{0,30}"))
def test_any_text_is_parsed_or_refused(spec: str) -> None:
    with suppress(SettingsError):
        assert parse_fault(spec).spec == spec.strip()


@pytest.mark.parametrize(
    ("text", "seconds"), [("3s", 3.0), ("0s", 0.0), ("1.5s", 1.5), ("20ms", 0.02)]
)
def test_durations_are_parsed(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


def test_invalid_duration_is_refused() -> None:
    with pytest.raises(SettingsError, match="a duration is written"):
        parse_seconds("3 minutes")


def struck(faults: FaultSet, count: int) -> list[bool]:
    return [faults.plan().at_moment("mid-turn") is not None for _ in range(count)]


def test_fault_strikes_each_connection_once() -> None:
    faults = FaultSet()
    faults.set("cut@mid-turn")
    plan = faults.plan()
    assert plan.at_moment("between-turns") is None
    assert plan.at_moment("mid-turn") == Cut()
    assert plan.at_moment("mid-turn") is None
    assert plan.applied == ["cut@mid-turn"]
    assert faults.plan().at_moment("mid-turn") == Cut()
    assert [each.applied for each in faults.standing] == [2]


def test_count_is_of_struck_connections() -> None:
    faults = FaultSet()
    faults.set("cut@mid-turn,count=2")
    idle = [faults.plan() for _ in range(5)]
    assert all(plan.at_moment("between-turns") is None for plan in idle)
    assert struck(faults, 4) == [True, True, False, False]
    assert idle[0].at_moment("mid-turn") is None


def test_lasting_fault_continues_after_count_is_used_up() -> None:
    faults = FaultSet()
    faults.set("duplicate,count=1")
    first, second = faults.plan(), faults.plan()
    start = EngineEvent("turn.start")
    assert first.distort(start) == [start, start]
    assert second.distort(start) == [start]
    assert first.distort(start) == [start, start]
    assert (first.applied, second.applied) == (["duplicate,count=1"], [])


def test_share_depends_on_seed_and_number_alone() -> None:
    def drawn(seed: int, spec: str = "cut@mid-turn,p=0.3") -> list[bool]:
        faults = FaultSet()
        faults.set(spec, seed=seed)
        return struck(faults, 400)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert 80 < sum(drawn(1)) < 160
    of_its_own = "cut@mid-turn,p=0.3,seed=5"
    assert drawn(1, of_its_own) == drawn(2, of_its_own)


def test_set_and_clear_apply_to_open_connections() -> None:
    faults = FaultSet()
    plan = faults.plan()
    assert not plan
    faults.set("no-turn-end", "cut@mid-turn")
    assert plan
    end = EngineEvent("turn.end", "w1")
    assert plan.distort(end) == []
    faults.set("cut@between-turns")
    assert plan.distort(end) == [end]
    assert plan.at_moment("mid-turn") is None
    faults.clear()
    assert plan.at_moment("between-turns") is None
    assert not plan


def test_one_invalid_spec_changes_nothing() -> None:
    faults = FaultSet()
    faults.set("duplicate")
    with pytest.raises(SettingsError):
        faults.set("shrink", "cats")
    assert [each.fault.spec for each in faults.standing] == ["duplicate"]


def test_nearest_byte_count_strikes_first() -> None:
    faults = FaultSet()
    faults.set("cut@bytes=300", "close=1012@bytes=100", "half-open@bytes=1000")
    plan = faults.plan()
    assert plan.fault_within(0, 99) is None
    assert plan.fault_within(99, 500) == (1, CloseFrame(1012, "Service restart"))
    assert plan.fault_within(599, 1) == (0, Cut())  # passed meanwhile
    assert plan.fault_within(600, 399) is None
    assert plan.fault_within(600, 400) == (400, HalfOpen())


def test_upgrade_is_refused_or_struck() -> None:
    faults = FaultSet()
    faults.set("http=503,count=1", "cut@handshake,count=1", "cut@mid-turn")
    assert faults.at_upgrade() == HttpRefusal(problem_of(503))
    assert faults.at_upgrade() == Cut()
    assert faults.at_upgrade() is None


def garbled(*specs: str) -> list[tuple[str, str | None]]:
    faults = FaultSet()
    faults.set(*specs)
    plan = faults.plan()
    turn = [
        EngineEvent("turn.start"),
        EngineEvent("turn.update", " w1 w2"),
        EngineEvent("turn.end", " w1 w2"),
    ]
    return [(each.kind, each.transcript) for event in turn for each in plan.distort(event)]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([], [("turn.start", None), ("turn.update", " w1 w2"), ("turn.end", " w1 w2")]),
        (["no-turn-end"], [("turn.start", None), ("turn.update", " w1 w2")]),
        (["lose=turn.start:turn.end"], [("turn.update", " w1 w2")]),
        (
            ["shrink"],
            [
                *(("turn.start", None), ("turn.update", " w1 w2")),
                *(("turn.update", " w1"), ("turn.end", " w1 w2")),
            ],
        ),
        (
            ["duplicate", "no-turn-end"],
            [
                *(("turn.start", None), ("turn.start", None)),
                *(("turn.update", " w1 w2"), ("turn.update", " w1 w2")),
            ],
        ),
    ],
)
def test_fault_garbles_events(specs: list[str], expected: Any) -> None:
    assert garbled(*specs) == expected


@pytest.mark.parametrize(("spec", "next_index"), [("no-turn-end", 3), ("lose=turn.end", 4)])
def test_turn_without_an_end_keeps_its_index(spec: str, next_index: int) -> None:
    faults = FaultSet()
    faults.set(spec)
    plan = faults.plan()
    assert plan.distort(TurnInfo("turn.end", "w1", turn_index=3)) == []
    (following,) = plan.distort(TurnInfo("turn.update", "", turn_index=4))
    assert isinstance(following, TurnInfo)
    assert following.turn_index == next_index
    no_turn = EngineEvent("progress", trigger="manual")
    assert plan.distort(no_turn) == ([] if spec == "no-turn-end" else [no_turn])


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ('{"type":"ForceEndTurn"}', True),
        ('{"note":1,"type":"ForceEndTurn"}', True),
        ('{"type":"CloseStream"}', False),
        ('{"type":5}', False),
        ("ForceEndTurn", False),
        ("[" * 2_000, False),
    ],
)
def test_commands_of_one_type_are_ignored(text: str, ignored: bool) -> None:
    faults = FaultSet()
    faults.set("ignore=ForceEndTurn,count=1")
    plan, other = faults.plan(), faults.plan()
    assert plan.ignores(text) is ignored
    assert plan.ignores(text) is ignored, "for the whole connection"
    assert not (ignored and other.ignores(text)), "count is that of connections"


def test_pace_limit_allows_burst_then_pace() -> None:
    guard = RateLimit(speed=2.0, burst_s=1.0)
    assert not guard.allows(1.1, 0.0)
    assert guard.allows(1.0, 0.0)
    assert not guard.allows(0.1, 0.0)
    assert guard.allows(0.5, 0.25)
    assert not guard.allows(0.1, 0.25)
    assert not guard.allows(1.1, 60.0)  # time alone saves up no more than a burst


@given(
    st.floats(1, 4),
    st.floats(0.2, 2),
    st.lists(st.tuples(st.floats(0.01, 0.2), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_no_second_exceeds_burst_and_pace(
    speed: float, burst_s: float, messages: list[tuple[float, float]]
) -> None:
    guard = RateLimit(speed, burst_s)
    now = 0.0
    admitted: list[tuple[float, float]] = []
    for audio_s, wait_s in messages:
        now += wait_s
        if guard.allows(audio_s, now):
            admitted.append((now, audio_s))
    for since, _ in admitted:
        for until, _ in admitted:
            within = sum(audio for at, audio in admitted if since <= at <= until)
            if since <= until:
                assert within <= burst_s + speed * (until - since) + 1e-6


def test_slow_reading_follows_its_rate() -> None:
    throttle = Throttle(per_s=1_000)
    assert throttle.delay_s(500, 10.0) == 0.5
    assert throttle.delay_s(500, 10.0) == 1.0
    assert throttle.delay_s(500, 20.0) == 0.5


def test_pace_is_measured_as_mean_and_peak() -> None:
    meter = PaceMeter()
    assert (meter.mean, meter.peak) == (None, 0)
    for tenth in range(21):
        meter.add(0.1, 100 + tenth / 10)
    assert meter.mean == pytest.approx(1.0)
    assert meter.peak == pytest.approx(1.0)
    meter.add(3.0, 102.05)
    meter.add(0.1, 104.0)
    assert meter.peak == pytest.approx(3.1)
    assert meter.mean == pytest.approx(5.1 / 4)
