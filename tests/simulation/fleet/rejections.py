"""What must follow a bad entry: one dead letter, the events of its session, and nothing else."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas import Keys
from schemas.turns import DeadLetter, Event, SessionEnded, SessionError
from tests.simulation.fleet.bad_entries import BAD_AUDIO, BAD_SESSIONS, BadSession, published_counts
from tests.simulation.fleet.history import Finding
from tests.simulation.fleet.plan import BadEntry, FleetSession

_REFUSALS: Final = ("duplicate", "ended")
"""Reasons to reject an announcement whose session is known: it was appended twice."""


class Rejected(NamedTuple):
    """A bad session entry that was appended."""

    entry: BadEntry
    entry_id: str
    session: str
    """Id of the session that the entry names; empty without a usable one."""
    fields: Mapping[str, str]

    @property
    def kind(self) -> BadSession:
        """What is wrong with it."""
        return BAD_SESSIONS[self.entry.kind]


class AppendedAudio(NamedTuple):
    """A session, and the ids of the bad entries in its audio."""

    session: FleetSession
    bad_ids: Sequence[str]


def dead_letter_findings(
    letters: Sequence[DeadLetter],
    rejected: Sequence[Rejected],
    sessions: Sequence[AppendedAudio],
    keys: Keys,
    *,
    faults: bool,
) -> Iterator[Finding]:
    """Yield dead letters that are missing, repeated, wrong, or of an entry that is not bad.

    With faults, a worker may die when it has written one and not yet removed the entry: then the
    next one writes it again.
    """
    by_id = {each.entry_id: each for each in rejected}
    for letter in letters:
        if letter.stream == keys.sessions:
            right = _is_of_session(letter, by_id.get(letter.id), sessions)
        else:
            right = any(_is_of_audio(letter, each, keys) for each in sessions)
        if not right:
            yield Finding("dead", letter.session, f"a wrong dead letter: {letter}")
    counts = Counter(letter.id for letter in letters)
    for each in rejected:
        count = counts[each.entry_id]
        if count == 0 or (count > 1 and not faults):
            detail = f"{count} dead letters of {each.entry_id} ({each.entry.kind})"
            yield Finding("dead", each.session, detail)


def _is_of_session(
    letter: DeadLetter, rejected: Rejected | None, sessions: Sequence[AppendedAudio]
) -> bool:
    if rejected is not None:
        right = letter.reason in rejected.kind.reasons and letter.session == rejected.session
        return right and msgspec.json.decode(letter.entry) == rejected.fields
    named = [each.session for each in sessions if each.session.script.name == letter.session]
    if letter.reason in _REFUSALS:
        return bool(named)
    return letter.reason == "internal" and any(each.always_crashes for each in named)


def _is_of_audio(letter: DeadLetter, appended: AppendedAudio, keys: Keys) -> bool:
    session = appended.session
    if letter.stream != keys.audio(session.script.lane, session.script.name):
        return False
    reason = BAD_AUDIO[session.bad_audio].reason if session.bad_audio is not None else ""
    return letter.id in appended.bad_ids and letter.reason == reason


def rejected_session_findings(
    rejected: Rejected, events: Sequence[Event], *, tombstone: bool
) -> Iterator[Finding]:
    """Yield what is wrong with the events of a session that ended before it began."""
    name, kind = rejected.session, rejected.kind
    if not kind.published:
        return
    match events:
        case [SessionError(seq=1, fatal=True, status=400) as error, SessionEnded(seq=2) as ended]:
            if error.code not in {f"session_{reason}" for reason in kind.reasons}:
                yield Finding("dead", name, f"rejected with {error.code}")
            if (ended.reason, ended.turns) != ("error", 0):
                yield Finding("dead", name, f"rejected, and ended with {ended}")
        case _:
            yield Finding("dead", name, f"rejected with the events {events}")
    if not tombstone:
        yield Finding("dead", name, "its audio key is not the tombstone")


def bad_audio_findings(appended: AppendedAudio, events: Sequence[Event]) -> Iterator[Finding]:
    """Yield bad audio entries that are not reported, or too often."""
    kind = appended.session.bad_audio
    if kind is None:
        return
    code, name = BAD_AUDIO[kind].code, appended.session.script.name
    errors = [each for each in events if isinstance(each, SessionError) and each.code == code]
    expected = published_counts(len(appended.bad_ids))
    if len(errors) != expected:
        detail = f"{len(errors)} errors report {len(appended.bad_ids)} bad entries, not {expected}"
        yield Finding("dead", name, detail)
    if any(error.fatal for error in errors):
        yield Finding("dead", name, f"{code} is fatal")
