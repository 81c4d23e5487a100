"""Bad entries are bad as the table says, and the checkers find each wrong consequence."""

from typing import get_args

import msgspec
import pytest
from msgspec.structs import replace

from schemas import Keys
from schemas.audio import decode_session, parse_audio
from schemas.turns import DeadLetter, Event, SessionEnded, SessionError
from schemas.validation import EntryError
from tests.simulation.fleet.bad_entries import BAD_AUDIO, BAD_SESSIONS, published_counts
from tests.simulation.fleet.plan import BadAudioKind, BadEntry, BadEntryKind
from tests.simulation.fleet.producers import BadProducer
from tests.simulation.fleet.rejections import (
    AppendedAudio,
    Rejected,
    bad_audio_findings,
    dead_letter_findings,
    rejected_session_findings,
)
from tests.simulation.fleet.test_checkers import PLAN, SESSION

KEYS = Keys()
REASONS_OF_AN_ENTRY = ("malformed", "missing", "encoding", "too_large")


def appended(kind: BadEntryKind) -> Rejected:
    """Return an entry of a kind as its producer appends it."""
    producer = BadProducer(
        BadEntry(at_s=0.0, kind=kind, name="bad"), PLAN, KEYS, lambda key, fields: b"5-0"
    )
    producer._entry_id = "5-0"
    rejected = producer.rejected
    assert rejected is not None
    return rejected


@pytest.mark.parametrize("kind", sorted({*BAD_SESSIONS} - {"unservable", "repeated"}))
def test_bad_session_entry_is_rejected_for_its_reason(kind: BadEntryKind) -> None:
    rejected = appended(kind)
    fields = {name.encode(): value.encode() for name, value in rejected.fields.items()}
    with pytest.raises(EntryError) as raised:
        decode_session(fields)
    assert (raised.value.reason,) == rejected.kind.reasons


@pytest.mark.parametrize("kind", get_args(BadAudioKind))
def test_bad_audio_entry_has_one_error(kind: BadAudioKind) -> None:
    good = {"audio": b"\0\0"} if BAD_AUDIO[kind].beside_audio else {}
    fields = {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in {**good, **BAD_AUDIO[kind].fields}.items()
    }
    entry, (error,) = parse_audio(fields)
    assert error.reason == BAD_AUDIO[kind].reason
    assert entry.audio == good.get("audio", b"")


@pytest.mark.parametrize(
    ("entries", "counts"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (8, 4), (9, 5)]
)
def test_errors_are_published_when_their_count_doubles(entries: int, counts: int) -> None:
    assert published_counts(entries) == counts


BAD = appended("unknown-encoding")
LETTER = DeadLetter(
    id="5-0",
    stream=KEYS.sessions,
    session="bad",
    reason="encoding",
    detail="",
    size=1,
    entry=msgspec.json.encode(BAD.fields).decode(),
)
AUDIO = AppendedAudio(replace(SESSION, bad_audio="empty"), ["7-0"])
AUDIO_LETTER = DeadLetter(
    id="7-0", stream=KEYS.audio("0", "call-0"), session="call-0", reason="empty", detail="", size=1
)
CRASHED = AppendedAudio(replace(SESSION, crashes=1_000), ())


def letters_of(
    *letters: DeadLetter,
    rejected: Rejected = BAD,
    audio: AppendedAudio = AUDIO,
    faults: bool = False,
) -> int:
    """Return the number of findings."""
    return len([*dead_letter_findings(letters, [rejected], [audio], KEYS, faults=faults)])


def test_right_dead_letters_are_accepted() -> None:
    assert letters_of(LETTER, AUDIO_LETTER) == 0
    assert letters_of(LETTER, replace(LETTER, id="6-0", session="call-0", reason="ended")) == 0
    internal = replace(LETTER, id="1-0", session="call-0", reason="internal", entry="")
    assert letters_of(LETTER, internal, audio=CRASHED) == 0


def test_wrong_dead_letters_are_found() -> None:
    assert letters_of() == 1
    assert letters_of(LETTER, LETTER) == 1
    assert letters_of(LETTER, replace(LETTER, id="9-0")) == 1
    assert letters_of(replace(LETTER, reason="missing")) == 1
    assert letters_of(replace(LETTER, entry="{}")) == 1
    assert letters_of(LETTER, replace(AUDIO_LETTER, id="8-0")) == 1
    assert letters_of(LETTER, replace(LETTER, session="call-0", id="1-0", reason="internal")) == 1


def test_fault_may_repeat_a_dead_letter_and_lose_none() -> None:
    assert letters_of(LETTER, LETTER, faults=True) == 0
    assert letters_of(faults=True) == 1


def events_of(code: str = "session_encoding", turns: int = 0) -> list[Event]:
    common = {
        "session": "bad",
        "run": "5-0",
        "at": 1.0,
        "audio_ms": 0,
        "provider": "cartesia",
        "request_id": "",
        "connection": 0,
    }
    error = {"seq": 1, "code": code, "message": "", "status": 400, "fatal": True, **common}
    ended = {"seq": 2, "reason": "error", "turns": turns, **common}
    return [
        msgspec.convert({**error, "type": "session.error"}, SessionError),
        msgspec.convert({**ended, "type": "session.ended"}, SessionEnded),
    ]


@pytest.mark.parametrize(
    ("events", "tombstone", "found"),
    [
        (events_of(), True, 0),
        (events_of(), False, 1),
        (events_of("session_missing"), True, 1),
        (events_of(turns=1), True, 1),
        (events_of()[:1], True, 1),
        ([], True, 1),
    ],
)
def test_events_of_a_rejected_session(events: list[Event], tombstone: bool, found: int) -> None:
    assert len([*rejected_session_findings(BAD, events, tombstone=tombstone)]) == found


def test_session_without_a_usable_id_has_no_events() -> None:
    rejected = appended("missing-session")
    assert [*rejected_session_findings(rejected, [], tombstone=False)] == []


def test_each_bad_audio_entry_is_reported_once() -> None:
    error = replace(events_of("audio_empty")[0], fatal=False)
    assert [*bad_audio_findings(AUDIO, [error])] == []
    assert len([*bad_audio_findings(AUDIO, [])]) == 1
    assert len([*bad_audio_findings(AUDIO, [error, error])]) == 1
    assert len([*bad_audio_findings(AUDIO, events_of("audio_empty"))]) == 1


def test_table_has_every_kind() -> None:
    assert set(BAD_SESSIONS) == set(get_args(BadEntryKind))
    assert set(BAD_AUDIO) == set(get_args(BadAudioKind))
